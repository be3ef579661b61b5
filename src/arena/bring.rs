//! Bringing pages, for whoever has the turn: their bytes, their memory, and their content.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::area::{Pins, Shared as AreaShared};
use super::fault::Beside;
use super::layout::{PageSet, runs};
use super::state::By;
use super::{ArenaError, Shared as ArenaShared};
use crate::budget::{BudgetError, Reservation};
use crate::device::{Event, MemoryError, Pinning, Stream};
use crate::sync::{Mutant, planted, wait_until};
use crate::trace::Cause;
use crate::wait::{Owner, Patience};

/// What takes less is no wait: it takes some time to evict, too.
const A_WAIT: Duration = Duration::from_millis(1);

/// Pages that are to get memory; they are given up when it is dropped, and what they have got.
pub(super) struct Coming<'a> {
    area: &'a AreaShared,
    pub(super) missing: Vec<usize>,
    /// Whether they have memory.
    pub(super) given: bool,
    /// Whose bytes they have, if not the budget's.
    pub(super) of: Option<&'a Reservation>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if self.missing.is_empty() || planted(Mutant::GivenUpStaysClaimed) {
            return;
        }
        if self.given {
            self.area.take_back(&self.missing, self.of);
        }
        self.area.arena.state.lock().give_up(self.area.number, &self.missing);
    }
}

impl AreaShared {
    /// Pins pages, whatever there is of them.
    pub(super) fn claim<'a>(
        self: &'a Arc<Self>,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
        by: By,
    ) -> Result<(Pins, Coming<'a>), ArenaError> {
        let arena = &self.arena;
        let mut state = arena.state.lock();
        while state.is_leaving(self.number, set) {
            // Whoever takes their memory away waits for nobody.
            state = wait_until(&arena.left, state, None);
        }
        let claimed = state.claim(self.number, set, by);
        drop(state);
        let missing = claimed.map_err(|why| self.refused(why))?;
        let coming = Coming { area: self, missing, given: false, of: None };
        Ok((Pins::new(self, set, stream, owner, by), coming))
    }

    /// Brings what was claimed. Returns what has to pass before all content is there, and working
    /// memory.
    pub(super) fn bring(
        &self,
        pins: &Pins,
        mut coming: Coming<'_>,
        beside: Beside,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(Vec<Event>, Option<Reservation>), ArenaError> {
        let working = self.give_memory(pins.set(), &mut coming, beside, owner, patience)?;
        let filled = self.fill(pins.set(), &mut coming, owner, Cause::CameBack)?;
        Ok((filled, working))
    }

    /// Gives memory to the pages that are coming, charged to their area, and reserves what is wanted
    /// beside; waits in line for both.
    fn give_memory(
        &self,
        set: &PageSet,
        coming: &mut Coming<'_>,
        beside: Beside,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Option<Reservation>, ArenaError> {
        let (budget, began) = (&self.arena.budget, Instant::now());
        if coming.missing.is_empty() && beside.bytes == 0 {
            return Ok(None);
        }
        let mut in_vain = 0;
        loop {
            let (patience, asked) = (patience.since(began), Instant::now());
            let hand = self.reserve(set, coming, beside, owner, &patience)?;
            let missing = self.bytes_of(coming.missing.len());
            let wanted = missing + beside.bytes;
            if let Some(track) = self.land.track.as_ref().filter(|_| asked.elapsed() >= A_WAIT) {
                track.waited(wanted, asked);
            }
            let Some(hand) = hand else { continue };
            let committed = self.commit(&coming.missing, true);
            self.arena.memory.clear_aside();
            match committed {
                Ok(()) => {
                    let pages = hand.split(missing)?;
                    // Filled before the ledger says so: until then it has less, not more.
                    self.land.reservation.absorb(&pages)?;
                    self.land.reservation.fill_more(missing);
                    coming.given = true;
                    return Ok((beside.bytes > 0).then_some(hand));
                }
                Err(MemoryError::OutOfMemory { .. }) => {
                    if let Some(track) = &self.land.track {
                        track.retried(missing);
                    }
                }
                Err(error) => return Err(error.into()),
            }
            drop(hand);
            // Others outside were faster than the last look. Now the ledger knows, and waits for them;
            // unless it knows better.
            budget.look()?;
            if budget.free() >= wanted {
                in_vain += 1;
                if in_vain == 2 {
                    return Err(self.arena.full(&self.key, missing));
                }
            }
        }
    }

    fn bytes_of(&self, pages: usize) -> u64 {
        (pages * self.arena.memory.page()) as u64
    }

    /// Reserves the bytes of the pages that are coming, and what is wanted beside; waits in line for
    /// both. Meanwhile others may have those pages of the set that are there. If they take some, these
    /// come too, and nothing is reserved: which happens as often as there are pages at most.
    fn reserve(
        &self,
        set: &PageSet,
        coming: &mut Coming<'_>,
        beside: Beside,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Option<Reservation>, ArenaError> {
        let (arena, purpose) = (&self.arena, format!("working memory of {}", self.key));
        let wanted = self.bytes_of(coming.missing.len()) + beside.bytes;
        if let Some(hand) = arena.budget.reserve_at_once(wanted, Some(&purpose), owner)? {
            return Ok(Some(hand));
        }
        let stake = arena.state.lock().begin_yield(self.number, set, self.bytes_of(1));
        let all = self.bytes_of(set.len()) + beside.bytes;
        let rest = |patience: &Patience<'_>| {
            arena.budget.reserve_rest(all, &stake, Some(&purpose), owner, patience)
        };
        let reserved = arena.in_exchange(&rest).map_or_else(|| rest(patience), Ok);
        let mut books = arena.state.lock();
        while books.is_leaving(self.number, set) {
            books = wait_until(&arena.left, books, None);
        }
        coming.missing.extend(books.end_yield(self.number, set));
        drop(books);
        coming.missing.sort_unstable();
        let reserved = reserved?;
        // Some may have been taken between the end of the wait and now.
        if reserved.bytes() >= self.bytes_of(coming.missing.len()) + beside.bytes {
            return Ok(Some(reserved));
        }
        arena.memory.clear_aside();
        Ok(None)
    }

    /// Gives memory to pages; to all of them or none. If there is too little, others may be asked to
    /// give some back, which can take them a while.
    pub(super) fn commit(&self, pages: &[usize], ask_others: bool) -> Result<(), MemoryError> {
        let (memory, budget, land) = (&self.arena.memory, &self.arena.budget, &self.land);
        let runs = runs(pages.iter().copied());
        for (at, run) in runs.iter().enumerate() {
            let mut outcome = land.commit(run);
            if let Err(MemoryError::OutOfMemory { asked, free, .. }) = outcome
                && ask_others
            {
                budget.relieve(asked.saturating_sub(free), &|| memory.free() >= asked);
                outcome = land.commit(run);
            }
            if let Err(error) = outcome {
                runs[..at].iter().for_each(|run| land.decommit(run));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has all content copied that is not there, or may be wrong; why what had left comes back is told.
    /// Returns what has to pass before it is there.
    pub(super) fn fill(
        &self,
        set: &PageSet,
        coming: &mut Coming<'_>,
        owner: &Owner,
        back: Cause,
    ) -> Result<Vec<Event>, ArenaError> {
        loop {
            let stale = self.arena.state.lock().stale(self.number, set);
            let mut pages = stale.pages;
            pages.extend_from_slice(&coming.missing);
            if pages.is_empty() {
                return Ok(self.arena.state.lock().filling(self.number, set));
            }
            pages.sort_unstable();
            let how = self.arena.pinning(owner)?;
            let began = Instant::now();
            let filled = self.copy(&pages, &stale.fences, how)?;
            // Once more, if somebody has said meanwhile that it may be wrong.
            let generation = stale.generation;
            let what = self.arena.state.lock().settle(self.number, &pages, generation, &filled);
            coming.missing.clear();
            let (track, page) = (self.land.track.as_ref(), self.arena.memory.page());
            self.arena.records.copying(track, &filled, began, (what, back), page);
        }
    }

    /// Has pages copied, after what still uses them. Returns what has to pass before they are there.
    fn copy(&self, pages: &[usize], fences: &[Event], how: Pinning) -> Result<Event, ArenaError> {
        let runs = runs(pages.iter().copied());
        let place = |offset| self.land.address(offset);
        let pieces = runs.iter().flat_map(|run| self.layout.pieces(place, run)).collect();
        Ok(self.arena.memory.upload(fences, pieces, how)?)
    }

    /// Takes the memory of pages away that will have no content, and gives the bytes back to whose
    /// they were.
    fn take_back(&self, pages: &[usize], of: Option<&Reservation>) {
        self.let_copies_end();
        let bytes = (pages.len() * self.arena.memory.page()) as u64;
        self.land.reservation.fill_less(bytes);
        for run in runs(pages.iter().copied()) {
            self.land.decommit(&run);
        }
        // It has at least these.
        let _ = match of {
            Some(of) => self.land.reservation.split(bytes).and_then(|bytes| of.absorb(&bytes)),
            None => self.land.reservation.shrink(bytes),
        };
    }

    /// Waits for copies that were begun, when one could not be: what fails again copies no more.
    fn let_copies_end(&self) {
        let memory = &self.arena.memory;
        let marked = memory.copies().and_then(|stream| memory.record(stream));
        let _ = marked.and_then(|event| event.wait(None));
    }
}

impl ArenaShared {
    /// Reserves without waiting, where that is worth it: what leaves for that is kept for who has the
    /// turn instead of being given back. `None` if that needs a wait, or others wait:
    /// then what leaves may be for them.
    fn in_exchange(
        &self,
        reserve: &dyn Fn(&Patience<'_>) -> Result<Reservation, BudgetError>,
    ) -> Option<Reservation> {
        if !self.memory.exchanges() || self.budget.is_wanted() {
            return None;
        }
        self.sets_aside.store(true, Ordering::SeqCst);
        let reserved = reserve(&Patience::at_most(Duration::ZERO)).ok();
        self.sets_aside.store(false, Ordering::SeqCst);
        if reserved.is_none() {
            self.memory.clear_aside();
        }
        reserved
    }
}
