//! What a runtime puts together.

use pyo3::prelude::*;

use super::arena::Arena;
use super::error::Result;
use super::exit::detached;
use super::planner::Planner;
use super::queue::{JobQueue, Value};
use crate::runtime;

/// A queue and the devices that run its jobs: planners know which come, and the queue what is where.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Connection(runtime::Connection<Value>);

/// Connects a queue with the planners that are to ask it, and the arenas that it is to ask.
#[pyfunction]
pub(super) fn connect(
    queue: &Bound<'_, JobQueue>,
    planners: Vec<Bound<'_, Planner>>,
    arenas: Vec<Bound<'_, Arena>>,
) -> Result<Connection> {
    let queue = queue.get().inner();
    queue.check()?;
    let planners = planners.iter().map(|planner| planner.get().plans.clone()).collect();
    let arenas = arenas.iter().map(|arena| arena.get().pages.clone()).collect();
    Ok(Connection(runtime::connect(queue, planners, arenas)))
}

#[pymethods]
impl Connection {
    /// Ends it; again without effect.
    fn end(&self, py: Python<'_>) {
        detached(py, || self.0.end());
    }
}
