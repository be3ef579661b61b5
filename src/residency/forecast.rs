//! What a planner asks of others: which jobs come next, and where jobs begin that nobody has declared.

use std::sync::Arc;

use crate::device::Name;

/// The keys of the weights that one job uses, in the order in which it does.
pub type Needs = Arc<[String]>;

/// Who knows which jobs come next.
pub trait Forecast: Send + Sync {
    /// What the next jobs of a device need, `most` of them at most, in the order in which the device will
    /// run them as far as is known; without the jobs that run already. Called with no lock held,
    /// whenever a device comes to another model or lacks room; must be quick and must not wait.
    fn coming(&self, device: Name, most: usize) -> Vec<Needs>;
}

/// Who knows where jobs begin and end that nobody has declared.
pub trait Bounds: Send + Sync {
    /// A number of what bounds the use of a device now, another one each time; `None` if nothing does.
    /// Called as [`Forecast::coming`] is.
    fn current(&self, device: Name) -> Option<u64>;
}
