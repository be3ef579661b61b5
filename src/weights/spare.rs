//! Slabs that hold nothing any more, kept for the next load: they have their pages already, which the
//! system would have to find and clear. Their bytes stay reserved meanwhile.

use std::io;

use super::reaper::Remains;
use super::region::WITH_FILE;
use super::slab::Room;
use crate::sync::Mutex;
use crate::wait::{Birth, forks};

/// Each has a file open.
const MOST: usize = 16;
/// How large a spare slab may be for what goes there, as long as there is room for another one.
const TOO_LARGE: u64 = 2;
/// What a reservation of spare memory is for.
const PURPOSE: &str = "spare slab";

/// One of them.
pub(super) struct Spare {
    remains: Remains,
    /// How often the process had forked when the slab was filled.
    forks: Option<u64>,
}

impl Spare {
    pub(super) fn nbytes(&self) -> u64 {
        self.remains.reserved.as_ref().map_or(0, crate::budget::Reservation::bytes)
    }

    /// The memory, to be filled again, and what is reserved for it.
    pub(super) fn reopen(self) -> io::Result<Room> {
        let (slab, reserved) = self.remains.into_slab().ok_or(io::ErrorKind::NotFound)?;
        Ok(Room { region: slab.reopen()?, reserved: Some(reserved) })
    }
}

/// Those of one store.
#[derive(Default)]
pub(super) struct Spares {
    birth: Birth,
    slabs: Mutex<Vec<Spare>>,
}

impl Drop for Spares {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.slabs.lock());
        for spare in left {
            spare.remains.let_go();
        }
    }
}

impl Spares {
    /// Keeps the slab of what is left of weights. Returns what is no slab, too little to keep, or
    /// wanted elsewhere.
    pub(super) fn keep(&self, remains: Remains, filled: Option<u64>) -> Option<Remains> {
        let wanted = |remains: &Remains| match &remains.reserved {
            Some(reserved) => {
                let budget = reserved.budget();
                budget.is_wanted() || budget.used() > budget.limit()
            }
            None => true,
        };
        let large = remains.slab_length().is_some_and(|length| length >= WITH_FILE);
        if !self.birth.is_here() || !large || filled.is_none() || wanted(&remains) {
            return Some(remains);
        }
        if let Some(reserved) = &remains.reserved {
            reserved.rename(PURPOSE);
        }
        let mut slabs = self.slabs.lock();
        slabs.push(Spare { remains, forks: filled });
        let too_many = (slabs.len() > MOST).then(|| slabs.remove(0));
        drop(slabs);
        too_many.map(|spare| spare.remains)
    }

    /// The smallest that has so many bytes and is not much too large.
    pub(super) fn take_fitting(&self, bytes: u64) -> Option<Spare> {
        self.take(|spare| {
            let has = spare.nbytes();
            (bytes..=bytes.saturating_mul(TOO_LARGE)).contains(&has).then(|| has - bytes)
        })
    }

    /// The one whose size is nearest.
    pub(super) fn take_any(&self, bytes: u64) -> Option<Spare> {
        self.take(|spare| Some(spare.nbytes().abs_diff(bytes)))
    }

    /// The one that is the least `unfit`.
    fn take(&self, unfit: impl Fn(&Spare) -> Option<u64>) -> Option<Spare> {
        if !self.birth.is_here() {
            return None;
        }
        // A forked child may still read what is in those that were filled before.
        let now = forks()?;
        let mut slabs = self.slabs.lock();
        let (shared, mut rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *slabs).into_iter().partition(|spare| spare.forks != Some(now));
        let fits = rest.iter().enumerate().filter_map(|(at, spare)| Some((unfit(spare)?, at)));
        let best = fits.min().map(|(_, at)| at);
        let taken = best.map(|at| rest.swap_remove(at));
        *slabs = rest;
        drop(slabs);
        for spare in shared {
            spare.remains.let_go();
        }
        taken
    }

    /// Gives back at least so many bytes, if there are so many. Returns how many.
    pub(super) fn give_back(&self, wanted: u64) -> u64 {
        let mut gone = Vec::new();
        let mut freed = 0;
        let mut slabs = self.slabs.lock();
        while freed < wanted
            && let Some(spare) = slabs.pop()
        {
            freed += spare.nbytes();
            gone.push(spare);
        }
        drop(slabs);
        drop(gone);
        freed
    }

    /// Bytes of all of them.
    pub(super) fn nbytes(&self) -> u64 {
        self.slabs.lock().iter().map(Spare::nbytes).sum()
    }

    /// Those that are still page-locked for copies to devices, until they are filled again.
    pub(super) fn locked(&self) -> u64 {
        self.slabs.lock().iter().map(|spare| spare.remains.locked()).sum()
    }
}
