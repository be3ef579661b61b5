//! What people are told about a queue.

use pyo3::prelude::*;

use super::text::seconds_of;
use crate::queue;

/// A queue at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct QueueStatus {
    queued: u64,
    running: u64,
    done: u64,
    failed: u64,
    cancelled: u64,
    paused: bool,
    waiting: Vec<String>,
    users: Vec<Py<UserStatus>>,
}

/// A user of a queue.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct UserStatus {
    name: String,
    weight: f64,
    queued: u64,
    running: u64,
    gpu_seconds: f64,
    gpu_seconds_last_hour: f64,
    paused: bool,
    blocked: Option<String>,
}

impl QueueStatus {
    pub(super) fn of(py: Python<'_>, status: queue::QueueStatus) -> PyResult<Self> {
        let [queued, running, done, failed, cancelled] = status.counts;
        let users = status.users.into_iter().map(|user| Py::new(py, UserStatus::of(user)));
        Ok(Self {
            queued,
            running,
            done,
            failed,
            cancelled,
            paused: status.paused,
            waiting: status.waiting.iter().map(ToString::to_string).collect(),
            users: users.collect::<PyResult<_>>()?,
        })
    }
}

impl UserStatus {
    fn of(user: queue::UserStatus) -> Self {
        Self {
            name: user.name.to_string(),
            weight: user.weight,
            queued: user.queued,
            running: user.running,
            gpu_seconds: seconds_of(user.gpu_time),
            gpu_seconds_last_hour: seconds_of(user.last_hour),
            paused: user.paused,
            blocked: user.blocked,
        }
    }
}

#[pymethods]
impl QueueStatus {
    fn __repr__(&self) -> String {
        let paused = if self.paused { ", paused" } else { "" };
        format!(
            "<QueueStatus {} queued, {} running, {} done, {} failed, {} cancelled{paused}>",
            self.queued, self.running, self.done, self.failed, self.cancelled
        )
    }
}

#[pymethods]
impl UserStatus {
    fn __repr__(&self) -> String {
        let blocked = self.blocked.as_ref().map_or_else(String::new, |why| format!(", {why}"));
        format!(
            "<UserStatus {}: {} queued, {} running, {:.1} GPU seconds{blocked}>",
            self.name, self.queued, self.running, self.gpu_seconds
        )
    }
}
