//! What becomes of a reservation until it is released.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::super::wish::Wish;
use super::{Entry, Place, State};
use crate::sync::{Mutant, planted};
use crate::wait::{Owner, WakeList};

impl State {
    fn entry(&self, place: Place) -> Option<&Entry> {
        self.reservations.get(place.key).filter(|entry| entry.ticket == place.ticket)
    }

    fn entry_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.reservations.get_mut(place.key).filter(|entry| entry.ticket == place.ticket)
    }

    /// The bytes of a reservation, and how many of them are filled; `None` once it is released.
    pub(in crate::budget) fn bytes(&self, place: Place) -> Option<(u64, u64)> {
        self.entry(place).map(|entry| (entry.wish.bytes, entry.filled))
    }

    pub(in crate::budget) fn wish(&self, place: Place) -> Option<Wish> {
        self.entry(place).map(|entry| entry.wish.clone())
    }

    /// Releases a reservation if it has so many bytes; `Err` if it has others.
    pub(in crate::budget) fn release_if(
        &mut self,
        place: Place,
        bytes: u64,
    ) -> Option<Result<(Wish, WakeList), ()>> {
        if self.entry(place)?.wish.bytes != bytes {
            return Some(Err(()));
        }
        self.release(place).map(Ok)
    }

    pub(in crate::budget) fn release(&mut self, place: Place) -> Option<(Wish, WakeList)> {
        self.entry(place)?;
        let Entry { wish, filled, .. } = self.reservations.remove(place.key);
        if !planted(Mutant::ReleaseForgetsBytes) {
            self.used -= wish.bytes;
        }
        self.filled -= filled;
        let wakers = if planted(Mutant::BudgetReleaseWakesNobody) {
            WakeList::new()
        } else {
            self.advance()
        };
        Some((wish, wakers))
    }

    /// Gives some of a reservation's bytes back. Those that are not filled go first.
    ///
    /// Returns its bytes if it has fewer than that.
    pub(in crate::budget) fn shrink(
        &mut self,
        place: Place,
        by: u64,
    ) -> Option<Result<WakeList, u64>> {
        let entry = self.entry_mut(place)?;
        let Some(left) = entry.wish.bytes.checked_sub(by) else {
            return Some(Err(entry.wish.bytes));
        };
        entry.wish.bytes = left;
        let emptied = entry.filled.saturating_sub(left);
        entry.filled -= emptied;
        self.filled -= emptied;
        self.used -= by;
        Some(Ok(self.advance()))
    }

    /// Makes two reservations of one. Those bytes that are not filled go first.
    ///
    /// Returns its bytes if it has fewer than that.
    pub(in crate::budget) fn split(
        &mut self,
        place: Place,
        off: u64,
    ) -> Option<Result<Place, u64>> {
        let entry = self.entry_mut(place)?;
        let Some(left) = entry.wish.bytes.checked_sub(off) else {
            return Some(Err(entry.wish.bytes));
        };
        if !planted(Mutant::SplitKeepsBytes) {
            entry.wish.bytes = left;
        }
        let filled = entry.filled.saturating_sub(left);
        entry.filled -= filled;
        let wish = Wish { bytes: off, filled: 0, ..entry.wish.clone() };
        let ticket = self.next_ticket();
        Some(Ok(Place { key: self.reservations.insert(Entry::new(ticket, wish, filled)), ticket }))
    }

    /// Adds the bytes of `extra` to `place`, and ends `extra`. `None` if one of them is not there.
    pub(in crate::budget) fn absorb(&mut self, place: Place, extra: Place) -> Option<Wish> {
        self.entry(place)?;
        self.entry(extra)?;
        let Entry { wish, filled, .. } = self.reservations.remove(extra.key);
        let entry = self.entry_mut(place)?;
        entry.wish.bytes += wish.bytes;
        entry.filled += filled;
        Some(wish)
    }

    pub(in crate::budget) fn disown(&mut self, place: Place) -> Option<Owner> {
        self.entry_mut(place)?.wish.owner.take()
    }

    /// Counts somebody among those who keep a reservation from being released.
    pub(in crate::budget) fn add_user(&mut self, place: Place, user: Owner) {
        if let Some(entry) = self.entry_mut(place) {
            entry.users.push(user);
        }
    }

    /// Has `spare` tell whether an evictor could release some of a reservation.
    pub(in crate::budget) fn spare(&mut self, place: Place, spare: Arc<AtomicBool>) {
        if let Some(entry) = self.entry_mut(place) {
            entry.spare = Some(spare);
        }
    }

    /// Counts him no more.
    pub(in crate::budget) fn remove_user(&mut self, place: Place, user: &Owner) -> Option<Owner> {
        let entry = self.entry_mut(place)?;
        let at = entry.users.iter().position(|other| other == user)?;
        Some(entry.users.swap_remove(at))
    }

    /// Says what a reservation is for; returns what was said before.
    pub(in crate::budget) fn rename(&mut self, place: Place, purpose: String) -> Option<String> {
        self.entry_mut(place)?.wish.purpose.replace(purpose)
    }

    /// Notes that so many more, or less, of a reservation's bytes are in memory: at most all of them.
    pub(in crate::budget) fn fill_by(&mut self, place: Place, more: u64, less: u64) {
        let Some(entry) = self.entry_mut(place) else { return };
        let filled = entry.filled.saturating_add(more).saturating_sub(less).min(entry.wish.bytes);
        let before = std::mem::replace(&mut entry.filled, filled);
        self.filled = self.filled - before + filled;
    }

    /// Notes how many of a reservation's bytes are in memory now.
    ///
    /// Returns its bytes if it has fewer than that.
    pub(in crate::budget) fn fill(&mut self, place: Place, filled: u64) -> Option<Result<(), u64>> {
        let entry = self.entry_mut(place)?;
        if filled > entry.wish.bytes {
            return Some(Err(entry.wish.bytes));
        }
        let before = std::mem::replace(&mut entry.filled, filled);
        self.filled = self.filled - before + filled;
        Some(Ok(()))
    }
}
