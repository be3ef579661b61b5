//! Waiting for tasks and for workers, detached from the interpreter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CoreLane, CoreTicket};
use crate::wait::{Owner, Parker, Patience, WaitError};
use crate::worker::WorkerError;

/// How long a thread looks before it sleeps: about what waking a sleeping thread costs.
const LOOK: Duration = Duration::from_micros(20);

/// Looks for `ready` for a moment, so that a quick answer costs no sleep.
pub(super) fn look(ready: impl Fn() -> bool) {
    let until = Instant::now() + LOOK;
    while !ready() && Instant::now() < until {
        // Whoever is to answer may be waiting for this very core.
        std::thread::yield_now();
    }
}

/// Waits until the ticket is over; looks for a moment before it sleeps.
pub(super) fn wait_for(
    ticket: &Arc<CoreTicket>,
    owner: &Owner,
    patience: &Patience<'_>,
) -> Result<(), WorkerError> {
    look(|| ticket.is_over());
    let parker = Parker::new();
    Ok(ticket.ask(owner, parker.clone()).wait(&parker, patience)?)
}

/// Waits until every lane's worker has left; false when the time was over first.
pub(super) fn wait_for_workers(
    lanes: &[Arc<CoreLane>],
    owner: &Owner,
    patience: &Patience<'_>,
) -> Result<bool, WorkerError> {
    let deadline = patience.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    for lane in lanes {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = Patience { timeout: left.or(patience.timeout), ..*patience };
        let parker = Parker::new();
        match lane.ask_left(owner, parker.clone()).wait(&parker, &patience) {
            Ok(()) => {}
            Err(WaitError::Timeout { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
