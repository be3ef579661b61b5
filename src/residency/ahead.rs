//! What is needed last leaves first.

use std::cmp::Reverse;

use super::history::History;
use super::prediction::Foretold;
use super::simple::Lru;
use super::{Component, Outlook, Policy};

/// What the next job uses rather than not is needed before all that it rather does not use.
const RATHER: f64 = 0.5;

/// What is needed last leaves first: as far as it is known, then as far as it is likely by what jobs have
/// used so far. Follows Belády's rule ("A study of replacement algorithms for a virtual-storage
/// computer", 1966), with what is foretold in place of the future.
#[derive(Default)]
pub(super) struct LookAhead {
    lru: Lru,
    history: History,
    /// By group of components, after these jobs that are known to come: made once, as long as those are the
    /// same.
    foretold: Option<(Vec<Vec<Component>>, Vec<Foretold>)>,
}

impl Policy for LookAhead {
    fn begin(&mut self, job: &[Component]) {
        self.history.note(job);
        self.foretold = None;
    }

    fn corrected(&mut self, said: &[Component], job: &[Component]) {
        self.history.correct(said, job);
        self.foretold = None;
    }

    fn used(&mut self, component: Component, bytes: u64, outlook: &Outlook) {
        self.lru.used(component, bytes, outlook);
        self.history.weigh(component, bytes);
    }

    fn order(&mut self, candidates: &mut [Component], outlook: &Outlook) {
        let Self { lru, history, foretold } = self;
        let (_, foretold) = match foretold.take() {
            Some(known) if known.0 == outlook.next => foretold.insert(known),
            _ => {
                let made = history.predict(&outlook.next).foretell(history.kinds());
                foretold.insert((outlook.next.clone(), made))
            }
        };
        let uses = outlook.first_uses();
        let worth = |component: &Component| -> Worth {
            let age = lru.age(*component);
            if let Some(first) = uses.get(component) {
                return (u64::MAX - *first as u64, Reverse(0), age);
            }
            let Some(known) = history.kinds().use_of(*component) else {
                return (0, Reverse(0), age);
            };
            (likely(foretold[known.group]).to_bits(), Reverse(known.place), age)
        };
        let mut all: Vec<(Worth, Component)> =
            candidates.iter().map(|component| (worth(component), *component)).collect();
        all.sort_unstable();
        for (place, (_, component)) in candidates.iter_mut().zip(all) {
            *place = component;
        }
    }
}

/// What a component is worth where it is: by when it will be used, or how soon it is likely to be; where in
/// its job; and when it was used last. Numbers that are not negative are in the order of their bits.
type Worth = (u64, Reverse<usize>, u64);

/// From 1 to 2 by how likely the next job uses it, if it rather does; else less by how soon it is likely to be
/// used.
fn likely(foretold: Foretold) -> f64 {
    if foretold.next >= RATHER { 1.0 + foretold.next } else { foretold.value.clamp(0.0, 1.0) }
}
