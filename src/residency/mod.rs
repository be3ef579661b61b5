//! The planner: which weights stay on a device so that the fewest bytes are moved.
//!
//! **What it is.** A [`Policy`] says what leaves first when room is missing, and nothing leaves before;
//! of what leaves, no more than is missing. The host has the weights, so that leaving costs nothing,
//! and what is moved are the bytes that come (back).
//!
//! **What it knows.** What was used so far, and an [`Outlook`]: the rest of the running job, and the jobs
//! that are known to come. It never sees further.
//!
//! **Replay.** [`replay()`] runs a recorded [`Trace`] through the same policies on an imagined device,
//! and [`least_bytes`] tells what somebody would have moved who had known all of it.
//!
//! What decides on a live device is the arena's own order so far; the planner decides in replay.
//!
//! **Errors.** [`TraceError`] and [`NoPolicy`].
//!
//! ```
//! use coresident::residency::{PolicyName, Trace, replay};
//!
//! let trace = Trace::parse(r#"{"name": "two", "capacity_bytes": 10, "requests": [
//!     {"job": 0, "component": "encoder", "bytes": 4, "working_bytes": 1},
//!     {"job": 0, "component": "unet", "bytes": 8, "working_bytes": 1},
//!     {"job": 1, "component": "encoder", "bytes": 4, "working_bytes": 1}]}"#)?;
//! let replayed = replay(&trace, PolicyName::default(), 2)?;
//! assert_eq!((replayed.bytes_moved, replayed.bound), (15, 15));
//! # Ok::<(), coresident::residency::TraceError>(())
//! ```

mod ahead;
mod gdsf;
mod habits;
mod history;
mod kinds;
mod oracle;
mod policy;
mod precedents;
mod prediction;
mod replay;
mod simple;
mod table;
mod trace;

pub use oracle::least_bytes;
pub use policy::{NoPolicy, POLICIES, Policy, PolicyName};
pub use replay::{Replayed, Step, replay, steps};
use table::Table;
pub use trace::{Request, Trace, TraceError};

/// A model, or a part of one, by its number.
pub type Component = u32;

/// What is known to come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// What the running job still uses, in order.
    pub rest: Vec<Component>,
    /// What the jobs that come next use, each in order.
    pub next: Vec<Vec<Component>>,
}

impl Outlook {
    /// Everything that is known to be used, by how many uses come before.
    fn first_uses(&self) -> Table<usize> {
        let all = self.rest.iter().chain(self.next.iter().flatten());
        let mut first = Table::default();
        for (place, component) in all.enumerate() {
            first.entry(*component).or_insert(place);
        }
        first
    }
}
