//! What devices hold, as a queue is told.

use super::Holdings;
use crate::device::Name;

/// Knows which weights are on a device now. Asked with no lock of the queue held, each time that a
/// device comes for a job, and while it waits for one each time that there may be one.
pub trait Placement: Send + Sync {
    /// The keys that a device holds, with their bytes there.
    fn holdings(&self, device: Name) -> Holdings;
}
