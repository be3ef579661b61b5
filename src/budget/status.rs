//! A budget at a glance.

use std::time::Duration;

/// What a budget has to give, and has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the memory, if they are known.
    pub total: Option<u64>,
    /// Most bytes that can be reserved.
    pub limit: u64,
    /// Bytes of the memory that stay free.
    pub headroom: u64,
    /// Bytes that reservations can have in all, beside what others outside have now.
    pub reach: u64,
    /// Bytes that others outside have, by the last look at the memory.
    pub outside: u64,
    /// Bytes reserved.
    pub used: u64,
}

/// A budget at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetStatus {
    /// What the memory is called.
    pub name: String,
    /// Most bytes that can be reserved.
    pub limit: u64,
    /// Bytes of the memory that stay free.
    pub headroom: u64,
    /// Bytes reserved.
    pub used: u64,
    /// The most that were ever reserved.
    pub peak: u64,
    /// Bytes that can be reserved now.
    pub free: u64,
    /// Bytes of the memory that others outside have, by the last look at it.
    pub outside: u64,
    /// Who has bytes; those with most first.
    pub holders: Vec<BudgetUser>,
    /// Who waits, in order of arrival.
    pub waiting: Vec<BudgetUser>,
}

/// Who has bytes, or waits for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetUser {
    /// What they are for, else who.
    pub holder: String,
    /// How many.
    pub bytes: u64,
    /// How long already.
    pub lasted: Duration,
}
