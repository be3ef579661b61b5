//! Greedy-Dual-Size-Frequency.

use super::simple::Lru;
use super::table::Table;
use super::{Component, Outlook, Policy};
use crate::weights::{GreedyDual, Uses};

/// What a byte costs to bring is the same for all on a device.
const COST: f64 = 1.0;

/// What was used least often since it came leaves first; what came later begins with what the last one to
/// leave was worth.
#[derive(Default)]
pub(super) struct Gdsf {
    lru: Lru,
    greedy: GreedyDual,
    uses: Table<Uses>,
}

impl Policy for Gdsf {
    fn used(&mut self, component: Component, bytes: u64, outlook: &Outlook) {
        self.lru.used(component, bytes, outlook);
        self.greedy.used(self.uses.entry(component).or_default());
    }

    fn order(&mut self, candidates: &mut [Component], _outlook: &Outlook) {
        let worth =
            |component: &Component| self.uses.get(component).map_or(0.0, |uses| uses.worth(COST));
        candidates.sort_by(|a, b| {
            let older = self.lru.age(*a).cmp(&self.lru.age(*b));
            worth(a).total_cmp(&worth(b)).then(older)
        });
    }

    fn left(&mut self, component: Component) {
        let worth = self.uses.remove(&component).map_or(0.0, |uses| uses.worth(COST));
        self.greedy.left(worth);
    }
}
