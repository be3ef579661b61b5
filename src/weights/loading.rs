//! Who loads a key, who waits for that, and how it ends.

use std::sync::Arc;
use std::time::Instant;

use super::entry::Entry;
use super::flight::{Flight, Outcome};
use super::shelf::{Shared, Slot};
use super::worth::Uses;
use super::{Weights, WeightsError};
use crate::sync::{Mutant, Ordering, planted};
use crate::wait::{Owner, Patience};

/// What one who wants a key finds there at once.
enum Boarding {
    Live(Arc<Entry>),
    Waiting(Arc<Flight>),
    /// Nothing: it is on the caller to load it.
    Ours(Arc<Flight>),
}

/// What he finds in the end.
pub(super) enum Found<'a> {
    Live(Arc<Entry>),
    /// Nothing: it is on the caller to load it, with what is left of his patience.
    Ours(Landing<'a>, Patience<'a>),
}

impl Shared {
    fn board(&self, key: &str, owner: &Owner) -> Boarding {
        let mut slots = self.slots.lock();
        if let Some(Slot::Loading(flight)) = slots.by_key.get(key)
            && !planted(Mutant::EveryOneLoads)
        {
            return Boarding::Waiting(flight.clone());
        }
        if let Some(entry) = slots.used(key) {
            return Boarding::Live(entry);
        }
        if slots.by_key.len() == slots.by_key.capacity() {
            // Dead entries hold nothing: only their keys are left.
            slots.by_key.retain(
                |_, slot| !matches!(slot, Slot::Live { entry, .. } if entry.strong_count() == 0),
            );
        }
        let flight = Flight::new(key, owner);
        let dead = slots.by_key.insert(key.to_owned(), Slot::Loading(flight.clone()));
        drop(slots);
        drop(dead);
        Boarding::Ours(flight)
    }

    /// As [`Shared::board`], after waiting for whoever loads the key.
    pub(super) fn find<'a>(
        &'a self,
        key: &'a str,
        owner: &Owner,
        patience: &Patience<'a>,
    ) -> Result<Found<'a>, WeightsError> {
        let began = Instant::now();
        loop {
            let patience = patience.since(began);
            match self.board(key, owner) {
                Boarding::Live(entry) => return Ok(Found::Live(entry)),
                Boarding::Ours(flight) => {
                    let outcome = Outcome::Abandoned;
                    return Ok(Found::Ours(
                        Landing { shared: self, key, flight, outcome },
                        patience,
                    ));
                }
                Boarding::Waiting(flight) => match flight.wait(owner, &patience)? {
                    Outcome::Failed(error) => return Err(error),
                    // The next look at the slot tells.
                    Outcome::Loaded(_) | Outcome::Abandoned => {}
                },
            }
        }
    }
}

/// The end of a load, whatever it is: the flight lands, and the slot is what came of it.
pub(super) struct Landing<'a> {
    shared: &'a Shared,
    key: &'a str,
    flight: Arc<Flight>,
    outcome: Outcome,
}

impl Landing<'_> {
    pub(super) fn load(
        mut self,
        load: impl FnOnce() -> Result<Entry, WeightsError>,
    ) -> Result<Weights, WeightsError> {
        match load() {
            Ok(entry) => {
                let entry = Arc::new(entry);
                self.outcome = Outcome::Loaded(entry.clone());
                Ok(Weights(entry))
            }
            Err(error) => {
                if !error.is_of_the_caller() {
                    self.outcome = Outcome::Failed(error.clone());
                }
                Err(error)
            }
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if !self.shared.birth.is_here() {
            // Forked in the middle of the load: who waits for it is in the parent.
            std::mem::forget(std::mem::replace(&mut self.outcome, Outcome::Abandoned));
            return;
        }
        let mut slots = self.shared.slots.lock();
        let own = |slot: &Slot| matches!(slot, Slot::Loading(flight) if Arc::ptr_eq(flight, &self.flight));
        let ours =
            slots.by_key.get(self.key).is_some_and(own) || planted(Mutant::StaleLoadIsAdopted);
        let replaced = match &self.outcome {
            Outcome::Loaded(entry) if ours => {
                let kept = self.shared.budget.is_some().then(|| entry.clone());
                // Who loaded it and those who waited for that are one use.
                let mut uses = Uses::default();
                slots.greedy.used(&mut uses);
                let live = Slot::Live { entry: Arc::downgrade(entry), kept, uses };
                slots.by_key.insert(self.key.to_owned(), live)
            }
            Outcome::Loaded(entry) => {
                // Invalidated while it was being loaded.
                entry.retired.store(self.flight.is_stale(), Ordering::Relaxed);
                slots.retired.push(Arc::downgrade(entry));
                None
            }
            _ if ours => slots.by_key.remove(self.key),
            _ => None,
        };
        drop(slots);
        drop(replaced);
        self.flight.land(self.outcome.clone());
    }
}
