//! Why bytes are not reserved.

use std::time::Duration;

use crate::device::ByteSize;
use crate::wait::{Forked, WaitError, seconds};

/// What a wish met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Which budget.
    pub budget: String,
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes that could be reserved then.
    pub free: u64,
    /// The limit in bytes.
    pub limit: u64,
    /// Who has the rest, as the end of a sentence; empty when nobody has any.
    pub held: String,
}

/// Why bytes are not reserved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BudgetError {
    /// More than there would be if everybody released everything.
    #[error("{} can never have {}: its limit is {}", .0.budget, ByteSize(.0.asked), ByteSize(.0.limit))]
    Impossible(Figures),
    /// The deadline passed.
    #[error(
        "timed out after {} waiting for {} of {}, where {} of {} are free{}",
        seconds(*.after), ByteSize(.figures.asked), .figures.budget, ByteSize(.figures.free),
        ByteSize(.figures.limit), .figures.held
    )]
    Timeout {
        /// The patience that the caller gave.
        after: Duration,
        /// What it met.
        figures: Figures,
    },
    /// More is taken from a reservation than it has.
    #[error("this reservation has {} bytes: {what} takes at most that, not {asked}", .has)]
    TooMuch {
        /// What was tried.
        what: &'static str,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that it has.
        has: u64,
    },
    /// The reservation has been released.
    #[error("the reservation of {budget} has been released already")]
    Released {
        /// Which budget.
        budget: String,
    },
    /// The wait ended without the bytes.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}
