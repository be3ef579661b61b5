//! When components are likely to be used next, after all jobs that are known.

use super::habits::Habits;
use super::kinds::{Kind, Kinds, UseSet};
use super::precedents::Precedents;

// The numbers here, in habits and in precedents were chosen on one set of the traces that
// `benches/pipelines.py` makes, and on those in `benches/traces`; around them little changes.

/// How much less a use counts than one a job before.
pub(super) const DISCOUNT: f64 = 0.95;
/// Kinds that share so much of their bytes are of one family: the same models, used otherwise.
pub(super) const FAMILY: f64 = 0.5;
/// How evidence for precedents is weighed, and how much of it they need to count as much as habits.
const EVIDENCE: (f64, f64) = (2.0, 0.5);
/// Nothing is less likely than that.
const LEAST: f64 = 0.01;

/// When something is likely to be used.
#[derive(Clone, Copy, Default)]
pub(super) struct Foretold {
    /// How likely the next job uses it.
    pub(super) next: f64,
    /// By how many jobs it is likely to be used next, discounted.
    pub(super) value: f64,
}

/// When components are likely to be used next: by habit, and by precedents as far as those have foretold
/// the jobs so far better.
pub(super) struct Prediction {
    habits: Habits,
    precedents: Precedents,
    /// How much precedents count.
    trust: f64,
}

impl Prediction {
    /// After jobs of these kinds, of which each two are so much alike.
    pub(super) fn new(jobs: Vec<Kind>, likeness: &[Vec<f64>], evidence: f64) -> Self {
        let (weight, needed) = EVIDENCE;
        Self {
            habits: Habits::new(&jobs, likeness),
            precedents: Precedents::new(jobs, likeness),
            trust: 1.0 / (1.0 + (weight * (needed - evidence)).exp()),
        }
    }

    /// For each group of components when it is likely to be used.
    pub(super) fn foretell(&self, kinds: &Kinds) -> Vec<Foretold> {
        let mix = |habit: f64, precedent: f64| habit + self.trust * (precedent - habit);
        let values = self.habits.values(kinds.groups());
        let groups = kinds.groups().iter().zip(values);
        let foretell = |(uses, value): (&UseSet, f64)| {
            let next = self.habits.next(*uses);
            Foretold {
                next: mix(next, self.precedents.next(*uses, next)),
                value: mix(value, self.precedents.value(*uses, value)),
            }
        };
        groups.map(foretell).collect()
    }

    /// By how much precedents have foretold better than habits that the next job would be of this kind: the
    /// logarithm of the ratio of likelihoods, as Bayes has it. What is used depends on each other,
    /// so that less than the sum of all is evidence.
    pub(super) fn evidence_of(&self, job: Kind, kinds: &Kinds) -> f64 {
        let better = |uses: &UseSet| {
            let likelihood = |next: f64| if uses.has(job) { next } else { 1.0 - next }.max(LEAST);
            let habit = self.habits.next(*uses);
            let precedent = self.precedents.next(*uses, habit);
            (likelihood(precedent) / likelihood(habit)).ln()
        };
        // Kinds that nothing was of, after all, tell no groups apart.
        let mut came = self.habits.came();
        came.insert(job);
        let mut groups: Vec<UseSet> = kinds.groups().iter().map(|uses| uses.within(came)).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.retain(|uses| *uses != UseSet::default());
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let count = groups.len() as f64;
        groups.iter().map(better).sum::<f64>() / count.sqrt().max(1.0)
    }
}
