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

mod bring;
mod enter;
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
use std::time::Instant;

pub use error::StreamingError;
pub use open::Spec;
pub use plan::{Cost, Plan, plan};
pub use status::StreamingStatus;

use crate::arena::{Allowance, Area, Pins};
use crate::device::Stream;
use crate::load_lock::{LoadLock, Mode};
use crate::sync::{Condvar, Mutant, Mutex, planted};
use crate::wait::{Birth, Owner, Patience, exiting};
use state::State;
use status::Figures;
use times::Pending;

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
    /// Has another stream use what is in no block, as [`Pins::also_on`].
    ///
    /// # Errors
    /// [`StreamingError::Arena`].
    pub fn also_on(&self, stream: Stream) -> Result<(), StreamingError> {
        let resident = self.0.resident.lock();
        Ok(resident.as_ref().map_or(Ok(()), |pins| pins.also_on(stream))?)
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

    /// Whether it has ended, here or with the process that has begun it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.0.birth.is_here() || self.0.state.lock().closed
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
        if !exiting() && !self.is_closed() {
            self.close(&Owner::thread(|| "whoever lets go of a streaming".to_owned()));
        }
    }
}
