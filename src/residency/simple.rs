//! Policies that remember little: by last use, by known use, by size.

use super::table::Table;
use super::{Component, Outlook, Policy};

/// When components were used last.
#[derive(Default)]
pub(super) struct Lru {
    clock: u64,
    used: Table<u64>,
}

impl Lru {
    /// When it was used last; 0 is never.
    pub(super) fn age(&self, component: Component) -> u64 {
        self.used.get(&component).copied().unwrap_or(0)
    }
}

impl Policy for Lru {
    fn used(&mut self, component: Component, _bytes: u64, _outlook: &Outlook) {
        self.clock += 1;
        self.used.insert(component, self.clock);
    }

    fn order(&mut self, candidates: &mut [Component], _outlook: &Outlook) {
        candidates.sort_by_key(|component| self.age(*component));
    }
}

/// Those that are known to be used, by when; the others by when they were used last.
#[derive(Default)]
pub(super) struct Known(Lru);

impl Policy for Known {
    fn used(&mut self, component: Component, bytes: u64, outlook: &Outlook) {
        self.0.used(component, bytes, outlook);
    }

    fn order(&mut self, candidates: &mut [Component], outlook: &Outlook) {
        let uses = outlook.first_uses();
        candidates.sort_by_key(|component| match uses.get(component) {
            Some(first) => (1, u64::MAX - *first as u64),
            None => (0, self.0.age(*component)),
        });
    }
}

/// The smallest first.
#[derive(Default)]
pub(super) struct SmallestFirst(Table<u64>);

impl Policy for SmallestFirst {
    fn used(&mut self, component: Component, bytes: u64, _outlook: &Outlook) {
        self.0.insert(component, bytes);
    }

    fn order(&mut self, candidates: &mut [Component], _outlook: &Outlook) {
        candidates.sort_by_key(|component| self.0.get(component).copied().unwrap_or(0));
    }
}
