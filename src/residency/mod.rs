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
//! **Live.** A [`Planner`] runs the same policy on a device: it is what an arena asks which weights leave
//! first. It learns from [`Planner::begin`] that a job begins, from the arena what is used, and from a
//! [`Forecast`] what comes next. A job that does other things than it was to do costs time only.
//!
//! **Order of locks.** Neither the forecast nor the bounds are asked under the planner's mutex, and a
//! policy calls nothing.
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
mod forecast;
mod gdsf;
mod habits;
mod hints;
mod history;
mod kinds;
mod oracle;
mod planner;
mod policy;
mod precedents;
mod prediction;
mod recorded;
mod replay;
mod running;
mod simple;
mod table;
mod trace;

pub use forecast::{Bounds, Forecast, Needs};
pub use hints::{Advice, Hint, HintKind, hints};
pub use oracle::least_bytes;
pub use planner::{Job, Planner};
pub use policy::{NoPolicy, POLICIES, Policy, PolicyName};
pub use recorded::{REQUESTS, Recorded};
pub use replay::{Conditions, Replayed, Said, Step, multiple, replay, steps, steps_under};
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
