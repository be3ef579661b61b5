//! What jobs have used, and what that says of the jobs to come.

use std::collections::{HashMap, VecDeque};

use super::Component;

/// These numbers were chosen on traces of image and video pipelines, all at once; around them little
/// changes. So many jobs are looked back at.
const JOBS: usize = 256;
/// So many kinds of jobs are told apart; who has more has the last ones.
const KINDS: usize = 64;
/// How much less a job counts than the one after it.
const AGEING: f64 = 0.95;
/// How much less the visit to a kind of jobs counts than the one after it.
const VISIT_AGEING: f64 = 0.3;
/// Kinds that share so much of their bytes are of one family: the same models, used otherwise.
const FAMILY: f64 = 0.3;
/// How likely it is that the next job is of the family of the last one, before that is known.
const STAYS: f64 = 0.95;
/// How many jobs weigh as much as what is likely before they are known.
const PRIOR: f64 = 100.0;
/// So many visits each family has had before it has had any.
const UNVISITED: f64 = 3.0;
/// How much less a use counts than one a job before.
const DISCOUNT: f64 = 0.95;
/// So many jobs are looked ahead.
const AHEAD: usize = 20;

/// The jobs of the past, and those that are known to come. Jobs that use the same components in the
/// same order are of one kind.
#[derive(Default)]
pub(super) struct History {
    /// By kind, the last ones.
    jobs: VecDeque<usize>,
    kinds: Vec<Vec<Component>>,
    by_content: HashMap<Vec<Component>, usize>,
    bytes: HashMap<Component, u64>,
}

impl History {
    /// A component has so many bytes.
    pub(super) fn weigh(&mut self, component: Component, bytes: u64) {
        let known = self.bytes.entry(component).or_default();
        *known = bytes.max(*known);
    }

    /// A job has used these, or is using them.
    pub(super) fn note(&mut self, job: &[Component]) {
        let kind = self.kind(job);
        self.jobs.push_back(kind);
        if self.jobs.len() > JOBS {
            self.jobs.pop_front();
        }
        if self.kinds.len() > 2 * KINDS {
            self.forget();
        }
    }

    /// The last job that was noted to use these uses others, or was none.
    pub(super) fn correct(&mut self, said: &[Component], job: &[Component]) {
        let before = self.by_content.get(said);
        let Some(at) = self.jobs.iter().rposition(|kind| Some(kind) == before) else { return };
        if job.is_empty() {
            self.jobs.remove(at);
        } else {
            self.jobs[at] = self.kind(job);
        }
    }

    fn kind(&mut self, job: &[Component]) -> usize {
        if let Some(known) = self.by_content.get(job) {
            return *known;
        }
        let kind = self.kinds.len();
        self.kinds.push(job.to_vec());
        self.by_content.insert(job.to_vec(), kind);
        kind
    }

    /// Numbers the kinds anew that there still are jobs of.
    fn forget(&mut self) {
        let jobs: Vec<Vec<Component>> =
            self.jobs.iter().map(|kind| self.kinds[*kind].clone()).collect();
        let rest = jobs.len().saturating_sub(KINDS);
        self.jobs.clear();
        self.kinds.clear();
        self.by_content.clear();
        for job in &jobs[rest..] {
            let kind = self.kind(job);
            self.jobs.push_back(kind);
        }
    }

    /// What is likely after the last of its jobs, or after these that follow them.
    pub(super) fn predict(&mut self, coming: &[Vec<Component>]) -> Prediction {
        let coming: Vec<usize> = coming.iter().map(|job| self.kind(job)).collect();
        let sequence: Vec<usize> = self.jobs.iter().copied().chain(coming).collect();
        // As many of the last of these jobs as have no more kinds than are told apart.
        let mut number = HashMap::new();
        let mut kinds: Vec<&[Component]> = Vec::new();
        let mut jobs = Vec::with_capacity(sequence.len());
        for kind in sequence.iter().rev().take(JOBS) {
            if kinds.len() == KINDS && !number.contains_key(kind) {
                break;
            }
            jobs.push(*number.entry(*kind).or_insert_with(|| {
                kinds.push(&self.kinds[*kind]);
                kinds.len() - 1
            }));
        }
        jobs.reverse();
        Prediction::new(&kinds, &jobs, &self.bytes)
    }
}

/// When components are likely to be used next, after all jobs that are known.
#[derive(Default)]
pub(super) struct Prediction {
    /// The kind of the last job.
    last: usize,
    /// What follows each kind.
    follows: Vec<Follows>,
    /// How likely another family's job is one of each kind, but for a factor.
    far: Vec<f64>,
    /// In which kinds a component is, and at which place of the last of them.
    uses: HashMap<Component, (u64, usize)>,
    /// Of components that are in the same kinds.
    values: HashMap<u64, f64>,
}

/// How likely kinds follow one.
struct Follows {
    /// Those of its own family, and those that have followed it.
    near: Vec<(usize, f64)>,
    /// The factor of all other families' kinds.
    far: f64,
    /// To which of them it does not apply: its own family.
    family: Vec<usize>,
}

impl Prediction {
    fn new(kinds: &[&[Component]], jobs: &[usize], bytes: &HashMap<Component, u64>) -> Self {
        let Some(&last) = jobs.last() else { return Self::default() };
        let count = kinds.len();
        let mut uses: HashMap<Component, (u64, usize)> = HashMap::new();
        // The place in the last kind that has it.
        for (kind, components) in kinds.iter().enumerate().rev() {
            for (place, component) in components.iter().enumerate().rev() {
                let entry = uses.entry(*component).or_default();
                *entry = (entry.0 | 1 << kind, place);
            }
        }
        let likeness = likeness(count, &uses, bytes);
        let (mut weights, mut visits) = (vec![0.0; count], vec![0.0; count]);
        let mut transitions = vec![vec![0.0; count]; count];
        // The last job counts as one.
        let mut weight = AGEING.powi(i32::try_from(jobs.len()).unwrap_or(i32::MAX));
        let mut before: Option<usize> = None;
        for &kind in jobs {
            weight /= AGEING;
            weights[kind] += weight;
            if before.is_none_or(|before| likeness[before][kind] < FAMILY) {
                for visit in &mut visits {
                    *visit *= VISIT_AGEING;
                }
                visits[kind] += 1.0;
            }
            if let Some(before) = before {
                transitions[before][kind] += weight;
            }
            before = Some(kind);
        }
        let family = |of: usize| -> Vec<usize> {
            (0..count).filter(|other| likeness[of][*other] >= FAMILY).collect()
        };
        let families: Vec<Vec<usize>> = (0..count).map(family).collect();
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let far: Vec<f64> = visits
            .iter()
            .zip(&families)
            .map(|(visit, family)| visit + UNVISITED / family.len().max(1) as f64)
            .collect();
        let all_far: f64 = far.iter().sum();
        let follows = families.into_iter().enumerate().map(|(from, family)| {
            // Mostly one of the same family, as often as it was used.
            let own = |to: usize| f64::from(u8::from(to == from));
            let near: Vec<f64> =
                family.iter().map(|to| weights[*to] * likeness[from][*to] + own(*to)).collect();
            let (all_near, seen) =
                (near.iter().sum::<f64>(), transitions[from].iter().sum::<f64>());
            // Else another one, the more likely the more lately it was visited.
            let others = all_far - family.iter().map(|to| far[*to]).sum::<f64>();
            let stays = if others > 1e-9 { STAYS } else { 1.0 };
            let share = PRIOR / (seen + PRIOR);
            let mut likely: Vec<f64> =
                transitions[from].iter().map(|seen_so| seen_so / (seen + PRIOR)).collect();
            for (to, near) in family.iter().zip(near) {
                likely[*to] += share * stays * near / all_near.max(1e-9);
            }
            let near = likely.into_iter().enumerate().filter(|(_, likely)| *likely > 0.0).collect();
            Follows { near, far: share * (1.0 - stays) / others.max(1e-9), family }
        });
        let follows = follows.collect();
        Self { last, follows, far, uses, values: HashMap::new() }
    }

    /// How much a component is worth: the sooner it is likely to be used, the more. Of equal ones the
    /// one that is used earlier in its job is worth more.
    pub(super) fn value(&mut self, component: Component) -> (f64, usize) {
        let Some(&(kinds, place)) = self.uses.get(&component) else { return (0.0, 0) };
        if let Some(known) = self.values.get(&kinds) {
            return (*known, place);
        }
        // By how many jobs it is likely to be used next, discounted; after a job of each kind.
        let used = |kind: usize| kinds >> kind & 1 == 1;
        let mut value = vec![0.0; self.follows.len()];
        for _ in 0..AHEAD {
            // What a job is worth that is of each kind.
            let worth: Vec<f64> = value
                .iter()
                .enumerate()
                .map(|(kind, v)| if used(kind) { 1.0 } else { *v })
                .collect();
            let far: f64 = worth.iter().zip(&self.far).map(|(worth, far)| worth * far).sum();
            let next = |Follows { near, far: factor, family }: &Follows| {
                let near: f64 = near.iter().map(|(to, likely)| likely * worth[*to]).sum();
                let own: f64 = family.iter().map(|to| self.far[*to] * worth[*to]).sum();
                DISCOUNT * (near + factor * (far - own))
            };
            value = self.follows.iter().map(next).collect();
        }
        let value = value[self.last];
        self.values.insert(kinds, value);
        (value, place)
    }
}

/// How much of their bytes each two kinds share.
fn likeness(
    kinds: usize,
    uses: &HashMap<Component, (u64, usize)>,
    bytes: &HashMap<Component, u64>,
) -> Vec<Vec<f64>> {
    let mut shared = vec![vec![0.0; kinds]; kinds];
    for (component, (used_by, _)) in uses {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let weight = bytes.get(component).map_or(1.0, |bytes| *bytes as f64);
        let those: Vec<usize> = (0..kinds).filter(|kind| used_by >> kind & 1 == 1).collect();
        for one in &those {
            for other in &those {
                shared[*one][*other] += weight;
            }
        }
    }
    let totals: Vec<f64> = (0..kinds).map(|kind| shared[kind][kind].max(1.0)).collect();
    for (one, row) in shared.iter_mut().enumerate() {
        for (other, bytes) in row.iter_mut().enumerate() {
            *bytes /= totals[one].max(totals[other]);
        }
    }
    shared
}
