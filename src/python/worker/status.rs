//! A worker at a glance.

use pyo3::prelude::*;

use super::super::device::Device;
use super::super::error::Result;
use super::Post;

/// A worker at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct WorkerStatus {
    device: Py<Device>,
    state: &'static str,
    queued: usize,
    finished: u64,
    running_seconds: Option<f64>,
}

impl WorkerStatus {
    pub(super) fn of(post: &Post) -> Result<Self> {
        let status = post.lane.status()?;
        let state = match (status.closed, status.has_worker, status.running_for) {
            (true, false, _) => "closed",
            (_, _, Some(_)) => "running",
            (_, false, None) => "not started",
            (_, true, None) => "idle",
        };
        let device = Python::attach(|py| Py::new(py, Device::of(post.device.clone())));
        Ok(Self {
            device: device?,
            state,
            queued: status.queued,
            finished: status.finished,
            running_seconds: status.running_for.map(|lasted| lasted.as_secs_f64()),
        })
    }

    pub(super) fn told(&self) -> String {
        let queued =
            if self.queued > 0 { format!(", {} queued", self.queued) } else { String::new() };
        format!("{}: {}{queued}", self.device.get().inner(), self.state)
    }
}

#[pymethods]
impl WorkerStatus {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}
