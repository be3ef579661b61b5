//! The jobs of the past, and what they say of those to come.

use std::collections::VecDeque;

use super::Component;
use super::kinds::{KINDS, Kind, Kinds};
use super::prediction::Prediction;
use super::table::Table;

/// So many jobs are looked back at.
const JOBS: usize = 160;
/// How much less a job says of how jobs are to be foretold than the one after it.
const AGEING: f64 = 0.98;

/// The jobs of the past, and those that are known to come.
#[derive(Default)]
pub(super) struct History {
    jobs: VecDeque<Kind>,
    kinds: Kinds,
    bytes: Table<u64>,
    /// Whether nobody has seen yet who has foretold the last job better.
    is_new: bool,
    /// By how much precedents have foretold the jobs so far better than habits.
    evidence: f64,
}

impl History {
    /// A component has so many bytes.
    pub(super) fn weigh(&mut self, component: Component, bytes: u64) {
        let known = self.bytes.entry(component).or_default();
        if bytes > *known {
            *known = bytes;
            self.kinds.reweigh();
        }
    }

    /// A job uses these.
    pub(super) fn note(&mut self, job: &[Component]) {
        self.weigh_evidence();
        self.make_room(1);
        let kind = self.kinds.of(job);
        self.is_new = kind.is_some();
        self.jobs.extend(kind);
        if self.jobs.len() > JOBS {
            self.jobs.pop_front();
        }
    }

    /// The last job of which was noted that it uses what was `said` uses these instead; none is no job.
    pub(super) fn correct(&mut self, said: &[Component], job: &[Component]) {
        self.make_room(1);
        let Some(said) = self.kinds.known(said) else { return };
        let Some(at) = self.jobs.iter().rposition(|kind| *kind == said) else { return };
        let kind = if job.is_empty() { None } else { self.kinds.of(job) };
        match kind {
            Some(kind) => self.jobs[at] = kind,
            None => {
                self.is_new &= at + 1 < self.jobs.len();
                self.jobs.remove(at);
            }
        }
    }

    /// Sees who has foretold the last job better. By now it is known what that has used.
    fn weigh_evidence(&mut self) {
        let Some(last) = self.jobs.pop_back() else { return };
        if self.is_new && !self.jobs.is_empty() {
            let evidence = self.predict(&[]).evidence_of(last, &self.kinds);
            self.evidence = self.evidence * AGEING + evidence;
        }
        self.jobs.push_back(last);
    }

    /// Keeps the kinds of the last jobs alone if there would be too many with so many new ones.
    fn make_room(&mut self, new: usize) {
        if self.kinds.len() + new <= KINDS {
            return;
        }
        let mut kept = Kinds::default();
        let jobs = std::mem::take(&mut self.jobs);
        let last = jobs.into_iter().rev().map_while(|kind| {
            let known = kept.len() < KINDS / 2;
            known.then(|| kept.of(self.kinds.job(kind))).flatten()
        });
        self.jobs = last.collect::<Vec<_>>().into_iter().rev().collect();
        self.kinds = kept;
    }

    /// What is likely after the last of its jobs, or after these that follow them.
    pub(super) fn predict(&mut self, coming: &[Vec<Component>]) -> Prediction {
        // What comes after all of them depends on the last.
        let coming = &coming[coming.len().saturating_sub(KINDS / 2)..];
        self.make_room(coming.len());
        let mut jobs: Vec<Kind> = self.jobs.iter().copied().collect();
        jobs.extend(coming.iter().filter_map(|job| self.kinds.of(job)));
        let likeness = self.kinds.likeness(&self.bytes);
        Prediction::new(jobs, likeness, self.evidence)
    }

    /// What is known of kinds of jobs.
    pub(super) fn kinds(&self) -> &Kinds {
        &self.kinds
    }
}
