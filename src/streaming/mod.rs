//! `Streaming`: a model that is larger than its device, block by block.
//!
//! **What it is.** Of the pages of an [`Area`] some stay: those of what is in no
//! block, and the first ones of each block, as many as a [`Plan`] says. The others come before their
//! block is visited and leave after it. A thread of its own brings what is visited next while a block
//! computes, and takes away what is over. [`Streaming::enter`] waits only for what is not there yet.
//!
//! **Order.** Blocks are expected in the order in which they were visited before, at first in their own.
//! Whoever comes in another order waits for the copy, and what was brought in vain leaves.
//!
//! **Invariants.** From the beginning it has the bytes for all it does: while others wait for bytes or
//! for a turn in the arena, it waits for neither, so that it can be waited for. Every page that it has
//! is pinned by exactly one of: what stays, what is visited, what is ahead, what is over; and all of
//! them together never have more pages than were allotted. A page leaves only after the streams that
//! its visit was on. However it ends, nothing stays pinned, and its bytes go back to the budget.
//!
//! **Order of locks.** Its turn, then the arena's mutex or the budget's; its own mutex is held for its
//! books alone.
//!
//! **Errors.** [`StreamingError`].

mod error;
mod open;
mod plan;
mod serve;
mod state;
mod status;
mod times;
mod visits;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use error::StreamingError;
pub use open::Spec;
pub use plan::{Cost, Plan, plan};
pub use status::StreamingStatus;

use crate::arena::{Allowance, Area, ArenaError, Brought, PageSet, Pins};
use crate::device::{MemoryError, Stream};
use crate::load_lock::{LoadLock, Mode};
use crate::sync::{Condvar, Mutant, Mutex, planted};
use crate::wait::{Birth, Owner, Patience, exiting};
use state::State;
use status::Figures;
use times::{Moment, Pending};

/// A model's streaming on one device, until it is dropped or closed.
pub struct Streaming(Arc<Shared>);

/// What a streaming and its thread share.
pub(crate) struct Shared {
    birth: Birth,
    area: Area,
    allowance: Allowance,
    resident: Mutex<Option<Pins>>,
    /// Whoever brings pages or takes them away has it.
    turn: LoadLock,
    state: Mutex<State>,
    figures: Mutex<Figures>,
    /// Visits and copies that are not over, or of which nobody has heard.
    pending: Mutex<Pending>,
    /// There is news.
    told: Condvar,
    /// Ends soon after it is closed.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Streaming {
    /// Has a block's pages there, for work on `stream`, until [`Streaming::leave`]; waits for what is
    /// still missing.
    ///
    /// # Errors
    /// [`StreamingError`]; the block is not visited then.
    pub fn enter(
        &self,
        block: usize,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(), StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        let began = Instant::now();
        let set = shared.open_block(block)?;
        shared.check_stream(stream)?;
        let wanted = shared.is_wanted(block, stream);
        let brought = match shared.allowance.exclusive().pin_resident(&set, stream, owner) {
            Some(brought) => brought,
            None => shared.bring_now(block, &set, stream, owner, &patience.since(began))?,
        };
        let Brought { pins, filled, .. } = brought;
        let patience = patience.since(began);
        if let Err(error) = shared.area.await_content(&pins, filled, stream, &patience) {
            shared.is_over(pins);
            return Err(error.into());
        }
        shared.is_entered(block, pins, stream, wanted);
        Ok(())
    }

    /// As [`Streaming::enter`], if everything is there; never waits. Returns whether it is.
    ///
    /// # Errors
    /// As [`Streaming::enter`].
    pub fn enter_at_once(
        &self,
        block: usize,
        stream: Stream,
        owner: &Owner,
    ) -> Result<bool, StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        let set = shared.open_block(block)?;
        shared.check_stream(stream)?;
        let wanted = shared.is_wanted(block, stream);
        let resident = shared.allowance.exclusive().pin_resident(&set, stream, owner);
        let Some(brought) = resident else { return Ok(false) };
        let Brought { pins, filled, .. } = brought;
        let at_once = Patience::at_most(Duration::ZERO);
        match shared.area.await_content(&pins, filled, stream, &at_once) {
            Ok(()) => {
                shared.is_entered(block, pins, stream, wanted);
                Ok(true)
            }
            Err(error) => {
                // Mostly what has brought them still pins them.
                if let Some(pins) = shared.area.unpin_shared(pins) {
                    shared.is_over(pins);
                }
                match error {
                    ArenaError::Wait(_) => Ok(false),
                    error => Err(error.into()),
                }
            }
        }
    }

    /// Has another stream use what is in no block, as [`Pins::also_on`].
    ///
    /// # Errors
    /// [`StreamingError::Arena`].
    pub fn also_on(&self, stream: Stream) -> Result<(), StreamingError> {
        let resident = self.0.resident.lock();
        Ok(resident.as_ref().map_or(Ok(()), |pins| pins.also_on(stream))?)
    }

    /// Ends a visit of which nobody has heard. Never waits.
    pub fn leave_as_it_was(&self, block: usize) {
        let kept = self.0.state.lock().kept.get(block).map_or(0, |kept| kept.pages);
        self.leave(block, kept);
    }

    /// Ends a visit: so many of the block's pages stay, the first ones. Never waits.
    pub fn leave(&self, block: usize, keep: usize) {
        let shared = &self.0;
        if !shared.birth.is_here() {
            return;
        }
        shared.has_ended(block);
        let mut pins = shared.state.lock().take_inside(block);
        if let Some(pins) = &mut pins {
            // Where the stream is now, and not where it will be when they leave.
            pins.end();
        }
        let before = shared.state.lock().left(block, pins, keep);
        shared.told.notify_all();
        drop(before);
    }

    /// Lets a block keep no more than so many pages from now on. False if it is used or comes just now;
    /// then [`Streaming::leave`] says how many stay. Never waits.
    #[must_use]
    pub fn keep_at_most(&self, block: usize, keep: usize) -> bool {
        let done = self.0.birth.is_here() && self.0.state.lock().keep_at_most(block, keep);
        self.0.told.notify_all();
        done
    }

    /// What should stay with room for so many pages in all, by the times that were measured. `None` if
    /// that is too little for a block.
    #[must_use]
    pub fn plan(&self, room: usize) -> Option<Plan> {
        let costs = self.0.costs();
        let rate = self.0.figures.lock().pages_per_second();
        plan(&costs, rate, room)
    }

    /// How many pages blocks may have in all.
    #[must_use]
    pub fn allotted(&self) -> usize {
        self.0.state.lock().allotted
    }

    /// How many of its own pages each block has.
    #[must_use]
    pub fn pages(&self) -> Vec<usize> {
        self.0.state.lock().blocks.iter().map(|block| block.len()).collect()
    }

    /// Gives up to so many pages' bytes back to the budget, which nobody needs who is visiting a block
    /// now; waits for the streams that have used them. Returns how many.
    ///
    /// # Errors
    /// [`StreamingError::Wait`] and [`StreamingError::Arena`] of a lost device.
    pub fn shrink(
        &self,
        pages: usize,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<usize, StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        let began = Instant::now();
        let turn = shared.turn.acquire(Mode::Write, owner, patience)?;
        while shared.allowance.pages() < pages {
            match shared.retire_one(&patience.since(began)) {
                Ok(true) => {}
                Err(error @ StreamingError::Wait(_)) => return Err(error),
                outcome => {
                    if !shared.state.lock().give_up_ahead(None) {
                        outcome?;
                        break;
                    }
                }
            }
        }
        let given = shared.allowance.give_back(pages);
        let mut state = shared.state.lock();
        state.allotted -= given.min(state.allotted);
        drop(state);
        drop(turn);
        Ok(given)
    }

    /// Ends it. Pages stay where they are, and may leave from now on. Waits for what its thread is doing
    /// at the moment, and for no stream. Again without effect.
    pub fn close(&self, owner: &Owner) {
        let shared = &self.0;
        if !shared.birth.is_here() {
            return;
        }
        let mut state = shared.state.lock();
        state.closed = true;
        state.news += 1;
        drop(state);
        shared.told.notify_all();
        // Nobody can want it back from whoever has it for longer than a copy is begun.
        let turn = shared.turn.acquire(Mode::Write, owner, &Patience::FOREVER);
        let all = shared.state.lock().take_all();
        let resident = shared.resident.lock().take();
        if !planted(Mutant::ClosedStaysPinned) {
            drop((all, resident));
            shared.allowance.end();
        }
        drop(turn);
        // Until then it has the area.
        let thread = shared.thread.lock().take();
        if let Some(thread) = thread.filter(|_| !exiting()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let closed = self.0.birth.is_here() && self.0.state.lock().closed;
        if !exiting() && !closed {
            self.close(&Owner::thread(|| "whoever lets go of a streaming".to_owned()));
        }
    }
}

impl Shared {
    /// The pages of a block, of one that is not closed.
    fn open_block(&self, block: usize) -> Result<Arc<PageSet>, StreamingError> {
        let state = self.state.lock();
        let set = state.blocks.get(block).filter(|_| !state.closed).cloned();
        drop(state);
        set.ok_or_else(|| StreamingError::Closed {
            device: self.area.arena().device(),
            key: self.area.key().to_owned(),
        })
    }

    /// A block is visited from now on, and was wanted then.
    fn is_entered(&self, block: usize, pins: Pins, stream: Stream, wanted: Option<Moment>) {
        let within = self.state.lock().is_inside(block);
        self.figures.lock().visits += u64::from(!within);
        self.has_begun(block, stream, wanted);
        let twice = self.state.lock().entered(block, pins);
        self.told.notify_all();
        drop(twice);
    }

    fn is_over(&self, pins: Pins) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return drop(pins);
        }
        state.over.push_back(pins);
        state.news += 1;
        drop(state);
        self.told.notify_all();
    }

    /// Brings what a block misses, whatever was to come before it.
    fn bring_now(
        &self,
        block: usize,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Brought, StreamingError> {
        let began = Instant::now();
        let _turn = self.turn.acquire(Mode::Write, owner, patience)?;
        loop {
            // Somebody may have closed it while this has waited.
            self.open_block(block)?;
            let full = match self.bring(set, stream, owner) {
                Ok(Some(brought)) => return Ok(brought),
                Ok(None) => None,
                // Others have the memory, whatever the budget says.
                Err(StreamingError::Arena(ArenaError::Memory(
                    error @ MemoryError::OutOfMemory { .. },
                ))) => Some(error),
                Err(error) => return Err(error),
            };
            let wrong = match self.retire_one(&patience.since(began)) {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error @ StreamingError::Wait(_)) => return Err(error),
                Err(error) => Some(error),
            };
            if !self.state.lock().give_up_ahead(Some(block)) {
                let full = full.map(|error| ArenaError::from(error).into());
                return Err(full.or(wrong).unwrap_or_else(|| self.no_room(set)));
            }
        }
    }

    /// What to tell somebody whose block has no room beside what is in use.
    fn no_room(&self, set: &PageSet) -> StreamingError {
        let page = self.area.page() as u64;
        let (absent, _) = self.area.absent_and_unused(set);
        StreamingError::NoRoom {
            device: self.area.arena().device(),
            key: self.area.key().to_owned(),
            asked: absent as u64 * page,
            free: self.allowance.pages() as u64 * page,
        }
    }

    /// Has the first of what is over leave that can; for whoever has the turn. Returns whether one has.
    ///
    /// # Errors
    /// [`StreamingError::Wait`], and what a device says that cannot tell yet what its streams have done.
    fn retire_one(&self, patience: &Patience<'_>) -> Result<bool, StreamingError> {
        let count = self.state.lock().over.len();
        let mut wrong = None;
        for _ in 0..count {
            let Some(pins) = self.state.lock().over.pop_front() else { break };
            let Err(kept) = self.allowance.retire(pins, patience) else { return Ok(true) };
            let (pins, error) = *kept;
            if let ArenaError::Wait(error) = error {
                self.state.lock().over.push_front(pins);
                return Err(error.into());
            }
            self.state.lock().over.push_back(pins);
            wrong = Some(error);
        }
        wrong.map_or(Ok(false), |error| Err(error.into()))
    }

    /// Refuses work that would be done again when the pages have left.
    fn check_stream(&self, stream: Stream) -> Result<(), StreamingError> {
        if self.area.arena().captures(stream) {
            let (device, key) = (self.area.arena().device(), self.area.key().to_owned());
            return Err(StreamingError::Captured { device, key });
        }
        Ok(())
    }

    /// Pins pages, and brings what is missing of them; for whoever has the turn.
    fn bring(
        &self,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
    ) -> Result<Option<Brought>, StreamingError> {
        let (began, (_, found)) = (Instant::now(), self.area.absent_and_unused(set));
        let brought = self.allowance.bring(set, stream, owner)?;
        if let Some(brought) = &brought {
            // What was there from before has bytes of its own, and takes none of the allowance's.
            self.allowance.give_back(found);
            self.figures.lock().moved += brought.fresh;
            if let Some(filled) = brought.filled.last().filter(|_| brought.fresh > 0) {
                self.is_copied(filled.clone(), began, brought.fresh);
            }
        }
        Ok(brought)
    }
}
