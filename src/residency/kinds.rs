//! Kinds of jobs: those that use the same components in the same order.

use std::collections::{BTreeMap, HashMap};

use super::Component;
use super::table::Table;

/// So many kinds of jobs are told apart.
pub(super) const KINDS: usize = 64;

/// A kind, by its number.
pub(super) type Kind = usize;

/// Some of the kinds: those that use something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct UseSet(u64);

impl UseSet {
    pub(super) fn has(self, kind: Kind) -> bool {
        self.0 >> kind & 1 == 1
    }

    pub(super) fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind;
    }

    /// Those of them that are among others too.
    pub(super) fn within(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// One or none.
    pub(super) fn share(self, kind: Kind) -> f64 {
        f64::from(u8::from(self.has(kind)))
    }
}

/// What a component is used by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Which of the groups of components it is in that the same kinds use.
    pub(super) group: usize,
    /// At which place of such a job, which is the same in most of them.
    pub(super) place: usize,
}

/// The kinds that are told apart, and what follows from them alone.
#[derive(Default)]
pub(super) struct Kinds {
    jobs: Vec<Vec<Component>>,
    by_job: HashMap<Vec<Component>, Kind>,
    uses: Table<Use>,
    /// By whom the components of each group are used.
    groups: Vec<UseSet>,
    /// How much of their bytes each two share, until that changes.
    likeness: Option<Vec<Vec<f64>>>,
}

impl Kinds {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The kind of a job, if there is one.
    pub(super) fn known(&self, job: &[Component]) -> Option<Kind> {
        self.by_job.get(job).copied()
    }

    /// The kind of a job, if there is one or room for it.
    pub(super) fn of(&mut self, job: &[Component]) -> Option<Kind> {
        if let Some(known) = self.known(job) {
            return Some(known);
        }
        let kind = self.jobs.len();
        if kind == KINDS {
            return None;
        }
        self.jobs.push(job.to_vec());
        self.by_job.insert(job.to_vec(), kind);
        self.regroup();
        Some(kind)
    }

    /// What a job of this kind uses.
    pub(super) fn job(&self, kind: Kind) -> &[Component] {
        &self.jobs[kind]
    }

    pub(super) fn groups(&self) -> &[UseSet] {
        &self.groups
    }

    pub(super) fn use_of(&self, component: Component) -> Option<Use> {
        self.uses.get(&component).copied()
    }

    /// Has the likeness be found anew: something has other bytes than before.
    pub(super) fn reweigh(&mut self) {
        self.likeness = None;
    }

    fn regroup(&mut self) {
        self.likeness = None;
        let mut users: BTreeMap<Component, (UseSet, usize)> = BTreeMap::new();
        for (kind, components) in self.jobs.iter().enumerate() {
            for (place, component) in components.iter().enumerate().rev() {
                let (users, known) = users.entry(*component).or_default();
                *known = if users.0 == 0 || users.has(kind) { place } else { *known };
                users.insert(kind);
            }
        }
        self.groups.clear();
        let mut numbers: HashMap<UseSet, usize> = HashMap::new();
        self.uses = users
            .into_iter()
            .map(|(component, (users, place))| {
                let group = *numbers.entry(users).or_insert_with(|| {
                    self.groups.push(users);
                    self.groups.len() - 1
                });
                (component, Use { group, place })
            })
            .collect();
    }

    /// How much of their bytes each two share.
    pub(super) fn likeness(&mut self, bytes: &Table<u64>) -> &[Vec<f64>] {
        let Self { jobs, uses, groups, likeness, .. } = self;
        likeness.get_or_insert_with(|| {
            let mut weights = vec![0.0; groups.len()];
            for (component, Use { group, .. }) in &*uses {
                // Whole numbers, whose sum is the same in each order.
                #[expect(clippy::cast_precision_loss, reason = "a share")]
                let bytes = bytes.get(component).map_or(1.0, |bytes| *bytes as f64);
                weights[*group] += bytes;
            }
            let mut shared = vec![vec![0.0; jobs.len()]; jobs.len()];
            for (users, weight) in groups.iter().zip(weights) {
                let those: Vec<Kind> = (0..jobs.len()).filter(|kind| users.has(*kind)).collect();
                for one in &those {
                    for other in &those {
                        shared[*one][*other] += weight;
                    }
                }
            }
            let totals: Vec<f64> =
                (0..jobs.len()).map(|kind| shared[kind][kind].max(1.0)).collect();
            for (one, row) in shared.iter_mut().enumerate() {
                for (other, bytes) in row.iter_mut().enumerate() {
                    *bytes /= totals[one].max(totals[other]);
                }
            }
            shared
        })
    }
}
