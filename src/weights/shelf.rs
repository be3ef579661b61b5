//! What a store has: which weights are there, under which key, and what is spare.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::entry::Entry;
use super::flight::Flight;
use super::spare::Spares;
use super::worth::{GreedyDual, Uses};
use crate::budget::Budget;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wait::Birth;

/// What all clones of a store share.
pub(super) struct Shared {
    pub(super) birth: Birth,
    pub(super) budget: Option<Budget>,
    pub(super) slots: Mutex<Slots>,
    pub(super) versions: AtomicU64,
    pub(super) spares: Arc<Spares>,
    /// The number of this store's evictor with its budget.
    pub(super) evictor: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // In a forked child the budget does nothing.
        if let Some(budget) = &self.budget {
            budget.remove_evictor(self.evictor.load(Ordering::Relaxed));
        }
    }
}

#[derive(Default)]
pub(super) struct Slots {
    pub(super) by_key: HashMap<String, Slot>,
    /// What is no longer to be had, but still in somebody's hands.
    pub(super) retired: Vec<Weak<Entry>>,
    /// Which of those goes first that nobody uses.
    pub(super) greedy: GreedyDual,
}

pub(super) enum Slot {
    Loading(Arc<Flight>),
    /// Kept by the store itself if there is a budget that can ask for it back.
    Live {
        entry: Weak<Entry>,
        kept: Option<Arc<Entry>>,
        uses: Uses,
    },
}

impl Slots {
    /// The weights under a key, for somebody who uses them.
    pub(super) fn used(&mut self, key: &str) -> Option<Arc<Entry>> {
        let slot = self.by_key.get_mut(key)?;
        let entry = slot.live()?;
        if let Slot::Live { uses, .. } = slot {
            self.greedy.used(uses);
        }
        Some(entry)
    }
}

impl Slot {
    pub(super) fn live(&self) -> Option<Arc<Entry>> {
        match self {
            Self::Live { entry, .. } => entry.upgrade(),
            Self::Loading(_) => None,
        }
    }
}

impl Shared {
    pub(super) fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }
}
