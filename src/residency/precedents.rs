//! What followed jobs before that were like the last ones.

use super::kinds::{Kind, UseSet};
use super::prediction::{DISCOUNT, FAMILY};

/// So many jobs in a row are compared.
const ORDERS: usize = 6;
/// So many precedents weigh as much as what was foretold without them: of one job alike, and of each
/// further one before it.
const DOUBT: [f64; ORDERS] = [5.0, 2.0, 2.0, 2.0, 2.0, 2.0];

/// The jobs so far, and after which of them things were as they are now.
pub(super) struct Precedents {
    jobs: Vec<Kind>,
    /// After which job, and how much that and those before it are like the last one and those before it:
    /// one of them, two in a row, and so on.
    found: Vec<(usize, Vec<f64>)>,
}

impl Precedents {
    pub(super) fn new(jobs: Vec<Kind>, likeness: &[Vec<f64>]) -> Self {
        let last = jobs.len().saturating_sub(1);
        let alike = |at: usize| {
            let pair = |back: usize| likeness[jobs[at - back]][jobs[last - back]];
            let pairs = (0..ORDERS.min(at + 1)).map(pair).take_while(|alike| *alike >= FAMILY);
            let product = |all: &mut f64, alike: f64| {
                *all *= alike;
                Some(*all)
            };
            (at, pairs.scan(1.0, product).collect::<Vec<f64>>())
        };
        let found = (0..last).map(alike).filter(|(_, orders)| !orders.is_empty()).collect();
        Self { jobs, found }
    }

    /// How likely the next job is of one of these kinds, which was foretold so, corrected by what came
    /// next before.
    pub(super) fn next(&self, uses: UseSet, foretold: f64) -> f64 {
        let mut sums = Sums::default();
        for (after, orders) in &self.found {
            sums.add(orders, uses.share(self.jobs[after + 1]));
        }
        sums.correct(foretold)
    }

    /// By how many jobs one of these kinds is to be expected, discounted, which was foretold so, corrected by
    /// what came before. After the last job things go on as was foretold.
    pub(super) fn value(&self, uses: UseSet, foretold: f64) -> f64 {
        let (mut sums, mut value) = (Sums::default(), foretold);
        let mut at = self.jobs.len().saturating_sub(1);
        for (after, orders) in self.found.iter().rev() {
            while at > *after {
                value = if uses.has(self.jobs[at]) { 1.0 } else { DISCOUNT * value };
                at -= 1;
            }
            sums.add(orders, value);
        }
        sums.correct(foretold)
    }
}

/// What precedents say, and how much they weigh, by how many jobs in a row are alike.
#[derive(Default)]
struct Sums([(f64, f64); ORDERS]);

impl Sums {
    fn add(&mut self, orders: &[f64], value: f64) {
        for ((sum, all), weight) in self.0.iter_mut().zip(orders) {
            *sum += weight * value;
            *all += weight;
        }
    }

    /// The more jobs in a row are alike, the later and the more that counts: as in blended prediction by
    /// partial matching (Cleary and Witten, "Data Compression Using Adaptive Coding and Partial String
    /// Matching", 1984).
    fn correct(&self, foretold: f64) -> f64 {
        let each = self.0.iter().zip(DOUBT);
        each.fold(foretold, |value, ((sum, all), doubt)| (doubt * value + sum) / (doubt + all))
    }
}
