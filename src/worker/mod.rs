//! Persistent workers: one lane of tasks per device, served by one thread for its whole life.
//!
//! A [`Lane`] is a queue and the rules of its one worker; it starts no thread itself: whoever is told
//! so by [`Pushed::needs_worker`] starts one that calls [`Lane::serve`] and then [`Lane::take`] until
//! it returns `None`. What a task is, and what it yields, is the caller's: `T` and `V`.
//!
//! **Order.** First in, first out per lane. Lanes do not see each other.
//!
//! **Invariants.** A [`Ticket`] is its task: it moves from queued to running to done, or from queued
//! to cancelled, each once, so no outcome can be paired with another task. A task that was accepted
//! is run or cancelled, whatever closes when. Waiting for a ticket is known to the wait-for graph as
//! waiting for the lane's worker.
//!
//! **Errors.** [`WorkerError`].
//!
//! ```
//! use coresident::wait::{Owner, Parker, Patience};
//! use coresident::worker::Lane;
//!
//! let lane: std::sync::Arc<Lane<u32, u32>> = Lane::new("virtual:0");
//! let pushed = lane.push(20)?;
//! assert!(pushed.needs_worker);
//! let serving = lane.clone();
//! let worker = std::thread::spawn(move || {
//!     serving.serve(Owner::thread(|| "worker".into()));
//!     while let Some(ticket) = serving.take() {
//!         if let Some(task) = ticket.start() {
//!             ticket.finish(task + 1).wake();
//!         }
//!     }
//! });
//! let (me, parker) = (Owner::thread(|| "main".into()), Parker::new());
//! pushed.ticket.ask(&me, parker.clone()).wait(&parker, &Patience::FOREVER)?;
//! assert_eq!(pushed.ticket.outcome(|outcome| *outcome), Some(21));
//! lane.drain();
//! worker.join().unwrap();
//! # Ok::<(), coresident::worker::WorkerError>(())
//! ```

mod lane;
mod shares;
mod ticket;

pub use lane::{Lane, LaneStatus, Pushed};
pub use shares::{SharesError, shares};
pub use ticket::{Cancelled, Finished, Ticket};

use slab::Slab;

use crate::wait::{Forked, Left, WaitError, WakeList};

/// Takes one out of those who wait.
fn forget<W: Send + 'static>(waiters: &mut Slab<W>, key: u64) -> Left {
    let waiter = usize::try_from(key).ok().and_then(|key| waiters.try_remove(key));
    Left::new(waiter, WakeList::new())
}

/// Why a task is not accepted, or not waited for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkerError {
    /// The lane takes no more tasks.
    #[error("the worker of {device} is closed and takes no more tasks")]
    Closed {
        /// The lane's device.
        device: String,
    },
    /// The wait ended first.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}
