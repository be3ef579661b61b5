//! Slabs that hold nothing any more, kept for the next load: they have their pages already, which the
//! system would have to find and clear. Their bytes stay reserved meanwhile.

use std::io;

use super::region::Sealed;
use super::slab::Room;
use crate::budget::Reservation;
use crate::sync::Mutex;
use crate::wait::{Birth, forks};

/// One of them.
pub(super) struct Spare {
    // Dropped first: the bytes are given back once they are free.
    region: Sealed,
    reserved: Reservation,
    /// How often the process had forked when the slab was made.
    forks: u64,
}

impl Spare {
    pub(super) fn nbytes(&self) -> u64 {
        self.reserved.bytes()
    }

    /// The memory, to be filled again, and what is reserved for it.
    pub(super) fn reopen(self) -> io::Result<Room> {
        Ok(Room { region: self.region.reopen()?, reserved: Some(self.reserved) })
    }
}

/// Those of one store.
#[derive(Default)]
pub(super) struct Spares {
    birth: Birth,
    slabs: Mutex<Vec<Spare>>,
}

impl Spares {
    /// Keeps a slab that nobody uses, unless somebody waits for bytes.
    pub(super) fn keep(&self, region: Sealed, reserved: Reservation, forks: u64) {
        let spare = Spare { region, reserved, forks };
        if self.birth.is_here() && !spare.reserved.budget().is_wanted() {
            self.slabs.lock().push(spare);
        }
    }

    /// The smallest that has so many bytes, or else the largest.
    pub(super) fn take(&self, bytes: u64) -> Option<Spare> {
        let now = forks();
        let mut spares = self.slabs.lock();
        // A forked child may still read what is in these.
        let (rest, shared) =
            std::mem::take(&mut *spares).into_iter().partition(|spare| spare.forks == now);
        *spares = rest;
        let fit = |spare: &Spare| match spare.nbytes() {
            enough if enough >= bytes => (0, enough - bytes),
            less => (1, bytes - less),
        };
        let at = (0..spares.len()).min_by_key(|&at| fit(&spares[at]));
        let taken = at.map(|at| spares.swap_remove(at));
        drop(spares);
        drop::<Vec<Spare>>(shared);
        taken
    }

    /// Gives back at least so many bytes, if there are so many. Returns how many.
    pub(super) fn give_back(&self, wanted: u64) -> u64 {
        let mut gone = Vec::new();
        let mut freed = 0;
        let mut spares = self.slabs.lock();
        while freed < wanted
            && let Some(spare) = spares.pop()
        {
            freed += spare.nbytes();
            gone.push(spare);
        }
        drop(spares);
        drop(gone);
        freed
    }

    /// Bytes of all of them.
    pub(super) fn nbytes(&self) -> u64 {
        self.slabs.lock().iter().map(Spare::nbytes).sum()
    }
}
