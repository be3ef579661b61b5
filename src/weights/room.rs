//! Bytes for weights, and memory for those of the store's own: reserved, used again, given back.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::WeightsError;
use super::entry::Entry;
use super::reaper::Remains;
use super::region::Region;
use super::shelf::{Shared, Slot};
use super::slab::Room;
use super::spare::Spare;
use crate::budget::{Evictor, Reservation};
use crate::sync::{Mutant, planted};
use crate::wait::{Owner, Patience};

/// What becomes of the slabs of weights that the store lets go of.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    GivenBack,
    Spare,
}

/// Gives the budget what nobody uses.
pub(super) struct Unreferenced(pub(super) Weak<Shared>);

impl Evictor for Unreferenced {
    fn evict(&self, bytes: u64) {
        if let Some(shared) = self.0.upgrade() {
            let spare = shared.spares.give_back(bytes);
            shared.evict(bytes - spare.min(bytes), Fate::GivenBack);
        }
    }
}

impl Shared {
    /// Reserves bytes, of which some are in memory already, for the weights to have.
    pub(super) fn charge(
        &self,
        key: &str,
        (bytes, filled): (u64, u64),
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Option<Reservation>, WeightsError> {
        let Some(budget) = &self.budget else { return Ok(None) };
        let reservation = budget.reserve_filled(bytes, filled, Some(key), owner, patience)?;
        reservation.disown();
        Ok(Some(reservation))
    }

    /// Memory of the store's own, and so many bytes reserved for it.
    ///
    /// A slab that is there already is taken before a new one is made; and before weights that nobody
    /// uses are given back to the system, it is tried whether one of theirs will do. Nobody who waits
    /// for bytes is overtaken.
    pub(super) fn room(
        &self,
        key: &str,
        bytes: u64,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Room, WeightsError> {
        let Some(budget) = self.budget.as_ref().filter(|budget| !budget.is_wanted()) else {
            return new_room(key, bytes, self.charge(key, (bytes, 0), owner, patience)?);
        };
        let reused = |spare: Option<Spare>| self.reused(spare?, key, bytes, owner);
        if let Some(room) = reused(self.spares.take_fitting(bytes)) {
            return Ok(room);
        }
        if let Some(reserved) = budget.reserve_at_once(bytes, Some(key), owner)? {
            reserved.disown();
            return new_room(key, bytes, Some(reserved));
        }
        let missing = bytes.saturating_sub(budget.free() + self.spares.nbytes());
        self.evict(missing, Fate::Spare);
        if let Some(room) = reused(self.spares.take_any(bytes)) {
            return Ok(room);
        }
        new_room(key, bytes, self.charge(key, (bytes, 0), owner, patience)?)
    }

    /// A spare slab with so many bytes; `None` gives it back.
    fn reused(&self, spare: Spare, key: &str, bytes: u64, owner: &Owner) -> Option<Room> {
        let room = spare.reopen().ok()?;
        let reserved = room.reserved.as_ref()?;
        let has = reserved.bytes();
        if bytes > has {
            // At once, or else in line without it: it might be what those wait for who come before.
            let budget = reserved.budget();
            let more = || budget.reserve_at_once(bytes - has, Some(key), owner).ok().flatten();
            let extra = more().or_else(|| {
                self.spares.give_back(u64::MAX);
                more()
            })?;
            reserved.absorb(&extra).ok()?;
        }
        let room = room.resized(usize::try_from(bytes).ok()?).ok()?;
        let reserved = room.reserved.as_ref()?;
        reserved.shrink(has.saturating_sub(bytes)).ok()?;
        reserved.rename(key);
        Some(room)
    }

    /// The end of a load that began then, of what took so long to make before.
    pub(super) fn loaded(&self, (entry, started): (Entry, Instant), cost: Duration) -> Entry {
        entry.loaded(started.elapsed().saturating_add(cost), &self.spares)
    }

    /// Lets go of weights that nobody uses, those that are worth the least first, until so many bytes are
    /// free. Returns how many.
    pub(super) fn evict(&self, wanted: u64, slabs: Fate) -> u64 {
        let mut slots = self.slots.lock();
        // Under this lock nobody gets hold of weights that only the store has.
        let mut unused: Vec<(f64, String)> = slots
            .by_key
            .iter()
            .filter_map(|(key, slot)| match slot {
                Slot::Live { kept: Some(entry), uses, .. }
                    if Arc::strong_count(entry) == 1 || planted(Mutant::EvictsWhatIsUsed) =>
                {
                    Some((uses.worth(entry.cost_per_byte()), key.clone()))
                }
                _ => None,
            })
            .collect();
        unused.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut freed, mut gone) = (0_u64, Vec::new());
        for (worth, key) in unused {
            if freed >= wanted {
                break;
            }
            if let Some(slot) = slots.by_key.remove(&key) {
                slots.greedy.left(worth);
                freed += slot.live().map_or(0, |entry| entry.nbytes);
                gone.push(slot);
            }
        }
        drop(slots);
        for slot in gone {
            if let Slot::Live { kept: Some(entry), .. } = slot
                && let Some(mut entry) = Arc::into_inner(entry)
            {
                let remains = entry.remains();
                let left = match slabs {
                    Fate::Spare => self.spares.keep(remains, entry.forks),
                    Fate::GivenBack => Some(remains),
                };
                left.into_iter().for_each(Remains::give_back);
            }
        }
        freed
    }
}

/// A new slab for bytes that are reserved.
fn new_room(key: &str, bytes: u64, reserved: Option<Reservation>) -> Result<Room, WeightsError> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    let region = Region::fresh(length).map_err(|why| WeightsError::no_memory(key, why))?;
    Ok(Room { region, reserved })
}
