//! What is needed last leaves first.

use super::history::{History, Prediction};
use super::simple::Lru;
use super::{Component, Outlook, Policy};

/// What is needed last leaves first: as far as it is known, then as far as it is likely by what jobs have
/// used so far. Follows Belády's rule ("A study of replacement algorithms for a virtual-storage
/// computer", 1966) with a Markov chain of kinds of jobs in place of the future.
#[derive(Default)]
pub(super) struct LookAhead {
    lru: Lru,
    history: History,
    /// Made once for each job, whose outlook ends where it does at every stage.
    prediction: Option<Prediction>,
}

impl Policy for LookAhead {
    fn begin(&mut self, job: &[Component]) {
        self.history.note(job);
        self.prediction = None;
    }

    fn corrected(&mut self, said: &[Component], job: &[Component]) {
        self.history.correct(said, job);
        self.prediction = None;
    }

    fn used(&mut self, component: Component, bytes: u64, outlook: &Outlook) {
        self.lru.used(component, bytes, outlook);
        self.history.weigh(component, bytes);
    }

    fn order(&mut self, candidates: &mut [Component], outlook: &Outlook) {
        let Self { lru, history, prediction } = self;
        let prediction = prediction.get_or_insert_with(|| history.predict(&outlook.next));
        let uses = outlook.first_uses();
        let mut known: Vec<(Component, Worth)> = candidates
            .iter()
            .map(|component| {
                let worth = match uses.get(component) {
                    Some(first) => Worth::Known(u64::MAX - *first as u64),
                    None => {
                        let (value, place) = prediction.value(*component);
                        Worth::Likely(value, place, lru.age(*component))
                    }
                };
                (*component, worth)
            })
            .collect();
        known.sort_by(|a, b| a.1.compare(&b.1));
        for (place, (component, _)) in candidates.iter_mut().zip(known) {
            *place = component;
        }
    }
}

/// What a component is worth where it is.
enum Worth {
    /// By how likely it is used how soon; where in its job; and when it was used last.
    Likely(f64, usize, u64),
    /// It will be used: the larger, the sooner.
    Known(u64),
}

impl Worth {
    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Self::Known(one), Self::Known(other)) => one.cmp(other),
            (Self::Known(_), Self::Likely(..)) => std::cmp::Ordering::Greater,
            (Self::Likely(..), Self::Known(_)) => std::cmp::Ordering::Less,
            (Self::Likely(a, place, age), Self::Likely(b, other_place, other_age)) => {
                a.total_cmp(b).then(other_place.cmp(place)).then(age.cmp(other_age))
            }
        }
    }
}
