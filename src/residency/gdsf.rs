//! Greedy-Dual-Size-Frequency.

use std::collections::HashMap;

use super::simple::Lru;
use super::{Component, Outlook, Policy};

/// What was used least often since it came leaves first; what came later begins with what the last one to
/// leave was worth. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
/// Caching Policy" (HP Labs, 1998). What a byte costs to bring is the same for all on a device, so
/// that size and cost cancel out.
#[derive(Default)]
pub(super) struct Gdsf {
    lru: Lru,
    /// How often components were used since they came, above what they began with.
    worth: HashMap<Component, u64>,
    inflation: u64,
}

impl Policy for Gdsf {
    fn used(&mut self, component: Component, bytes: u64, outlook: &Outlook) {
        self.lru.used(component, bytes, outlook);
        *self.worth.entry(component).or_insert(self.inflation) += 1;
    }

    fn order(&mut self, candidates: &mut [Component], _outlook: &Outlook) {
        let worth = |component: &Component| self.worth.get(component).copied().unwrap_or(0);
        candidates.sort_by_key(|component| (worth(component), self.lru.age(*component)));
    }

    fn left(&mut self, component: Component) {
        let worth = self.worth.remove(&component).unwrap_or(0);
        self.inflation = self.inflation.max(worth);
    }
}
