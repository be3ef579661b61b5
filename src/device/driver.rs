//! What a kind of device must be able to tell.

use std::sync::Arc;

use super::memory::DeviceMemory;
use super::near::Near;
use super::virtual_memory::VirtualMemory;

/// The questions that every kind of device answers in its own way.
pub trait Driver: Send + Sync {
    /// Bytes of its memory that nobody uses now, in this process or another; `None` where it
    /// cannot be known. May take a system call; called with no lock held.
    fn free_memory(&self) -> Option<u64>;

    /// The processors near it, where others are further away.
    fn near(&self) -> Option<Near> {
        None
    }

    /// Its memory, where we can place pages there ourselves.
    fn memory(&self) -> Option<Arc<dyn DeviceMemory>> {
        None
    }

    /// The same, of a virtual device.
    fn virtual_memory(&self) -> Option<Arc<VirtualMemory>> {
        None
    }
}
