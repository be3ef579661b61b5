//! What a kind of device must be able to tell.

/// The questions that every kind of device answers in its own way.
pub trait Driver: Send + Sync {
    /// Bytes of its memory that nobody uses now, in this process or another; `None` where it
    /// cannot be known. May take a system call; called with no lock held.
    fn free_memory(&self) -> Option<u64>;
}
