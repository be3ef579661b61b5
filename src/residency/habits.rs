//! What follows jobs by habit: mostly more of the same family, else any other one.

use super::kinds::{Kind, UseSet};
use super::prediction::{DISCOUNT, FAMILY};

/// How much less a job counts than the one after it.
const AGEING: f64 = 0.98;
/// How much less the visit to a family counts than the one after it.
const VISIT_AGEING: f64 = 0.3;
/// How likely it is that the next job is of the family of the last one.
const STAYS: f64 = 0.95;
/// So many visits each family has had before it has had any.
const UNVISITED: f64 = 3.0;
/// So many jobs more than came the last one's kind is taken for.
const OWN: f64 = 1.0;
/// Less than anything that was visited, and more than is left of nothing.
const LITTLE: f64 = 1e-6;
/// So many jobs are looked ahead.
const AHEAD: usize = 12;

/// How likely jobs of each kind are after one of each kind: mostly one of the same family, as often as it was
/// used; else one of another, the more likely the more lately it was visited.
pub(super) struct Habits {
    last: Kind,
    /// The family of each kind.
    family: Vec<usize>,
    /// How often each kind came.
    came: Vec<f64>,
    /// The same of all kinds of each family.
    all_came: Vec<f64>,
    /// How likely a job of another family is one of each kind, but for a factor.
    far: Vec<f64>,
    /// Of each family how likely one of it is followed by one of it; and the factor of all others.
    stays: Vec<(f64, f64)>,
}

impl Habits {
    pub(super) fn new(jobs: &[Kind], likeness: &[Vec<f64>]) -> Self {
        let family = families(likeness);
        let count = family.iter().max().map_or(0, |last| last + 1);
        let (mut came, mut far) = (vec![0.0; family.len()], vec![0.0; family.len()]);
        let mut before = None;
        for &kind in jobs {
            age(&mut came, AGEING);
            came[kind] += 1.0;
            if before != Some(family[kind]) {
                age(&mut far, VISIT_AGEING);
                far[kind] += 1.0;
            }
            before = Some(family[kind]);
        }
        let sums = |of: &[f64]| {
            let mut sums = vec![0.0; count];
            for (family, one) in family.iter().zip(of) {
                sums[*family] += one;
            }
            sums
        };
        // Kinds that nothing was of, after all, follow nothing.
        let is = |came: &f64| f64::from(u8::from(*came > 0.0));
        let members = sums(&came.iter().map(is).collect::<Vec<_>>());
        for ((far, family), came) in far.iter_mut().zip(&family).zip(&came) {
            *far += UNVISITED * is(came) / members[*family].max(1.0);
        }
        let (all_came, all_far) = (sums(&came), sums(&far));
        let others = all_far.iter().map(|own| all_far.iter().sum::<f64>() - own);
        let stays = others
            .map(
                |others| if others > LITTLE { (STAYS, (1.0 - STAYS) / others) } else { (1.0, 0.0) },
            )
            .collect();
        Self { last: jobs.last().copied().unwrap_or_default(), family, came, all_came, far, stays }
    }

    /// The kinds that there were jobs of.
    pub(super) fn came(&self) -> UseSet {
        let mut all = UseSet::default();
        for kind in (0..self.came.len()).filter(|kind| self.came[*kind] > 0.0) {
            all.insert(kind);
        }
        all
    }

    /// How likely the next job is of one of these kinds.
    pub(super) fn next(&self, uses: UseSet) -> f64 {
        let Some(&family) = self.family.get(self.last) else { return 0.0 };
        let (mut near, mut far) = (OWN * uses.share(self.last), 0.0);
        for (kind, of) in self.family.iter().enumerate() {
            if *of == family {
                near += self.came[kind] * uses.share(kind);
            } else {
                far += self.far[kind] * uses.share(kind);
            }
        }
        let (stays, factor) = self.stays[family];
        stays * near / (self.all_came[family] + OWN) + factor * far
    }

    /// For each of these by how many jobs one of its kinds is to be expected, discounted.
    pub(super) fn values(&self, all: &[UseSet]) -> Vec<f64> {
        let width = all.len();
        let row = |at: usize| at * width..(at + 1) * width;
        // Row by row: of each kind, what is to be expected after it, and if it comes; of each family and of
        // all, what is to be expected of its kinds.
        let mut value = vec![0.0; self.family.len() * width];
        let mut worth = value.clone();
        let mut near = vec![0.0; self.stays.len() * width];
        let mut own_far = near.clone();
        let mut all_far = vec![0.0; width];
        for _ in 0..AHEAD {
            near.fill(0.0);
            own_far.fill(0.0);
            all_far.fill(0.0);
            for (kind, family) in self.family.iter().enumerate() {
                let (came, far) = (self.came[kind], self.far[kind]);
                let own = worth[row(kind)].iter_mut().zip(&value[row(kind)]);
                let family = near[row(*family)].iter_mut().zip(&mut own_far[row(*family)]);
                for ((((worth, value), (near, own_far)), all_far), uses) in
                    own.zip(family).zip(&mut all_far).zip(all)
                {
                    let used = uses.share(kind);
                    *worth = used + (1.0 - used) * DISCOUNT * value;
                    *near += came * *worth;
                    *own_far += far * *worth;
                    *all_far += far * *worth;
                }
            }
            for (kind, family) in self.family.iter().enumerate() {
                let (stays, factor) = self.stays[*family];
                let stays = stays / (self.all_came[*family] + OWN);
                let family = near[row(*family)].iter().zip(&own_far[row(*family)]);
                let own = value[row(kind)].iter_mut().zip(&worth[row(kind)]);
                for (((value, worth), (near, own_far)), all_far) in own.zip(family).zip(&all_far) {
                    *value = stays * (near + OWN * worth) + factor * (all_far - own_far);
                }
            }
        }
        value.get(row(self.last)).unwrap_or_default().to_vec()
    }
}

fn age(all: &mut [f64], by: f64) {
    for one in all {
        *one *= by;
    }
}

/// The family of each kind: that of the one before that it is the most like, if they share enough.
fn families(likeness: &[Vec<f64>]) -> Vec<usize> {
    let mut families: Vec<usize> = Vec::with_capacity(likeness.len());
    let mut count = 0;
    for (kind, row) in likeness.iter().enumerate() {
        let alike = row[..kind].iter().enumerate().filter(|(_, shared)| **shared >= FAMILY);
        families.push(match alike.max_by(|a, b| a.1.total_cmp(b.1)) {
            Some((other, _)) => families[other],
            None => {
                count += 1;
                count - 1
            }
        });
    }
    families
}
