//! Lanes, which have the jobs that the same devices may run, and kinds, which have those that need the
//! same.

use std::collections::BTreeSet;

use super::{Key, Needs, Order};

/// Jobs that the same devices may run, and where their users stand.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) mask: u64,
    pub(super) jobs: usize,
    pub(super) users: BTreeSet<(Key, usize)>,
}

/// Jobs that need the same.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) needs: Needs,
    pub(super) jobs: usize,
}

impl Order {
    /// The lane of jobs that these devices may run.
    pub(super) fn lane(&mut self, mask: u64) -> usize {
        let new = || self.lanes.insert(Lane { mask, jobs: 0, users: BTreeSet::new() });
        *self.lane_of.entry(mask).or_insert_with(new)
    }

    /// The kind of jobs that need this.
    pub(super) fn kind(&mut self, needs: &Needs) -> usize {
        if let Some(known) = self.kind_of.get(needs) {
            return *known;
        }
        let kind = self.kinds.insert(Kind { needs: needs.clone(), jobs: 0 });
        self.kind_of.insert(needs.clone(), kind);
        for key in needs.iter() {
            let kinds = self.kinds_needing.entry(key.clone()).or_default();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kind
    }

    /// Forgets a kind of which there are no jobs.
    pub(super) fn forget_kind(&mut self, kind: usize) {
        let Kind { needs, .. } = self.kinds.remove(kind);
        self.kind_of.remove(&needs);
        for key in needs.iter() {
            if let Some(kinds) = self.kinds_needing.get_mut(key) {
                kinds.retain(|other| *other != kind);
                if kinds.is_empty() {
                    self.kinds_needing.remove(key);
                }
            }
        }
    }
}
