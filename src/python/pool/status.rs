//! What people are told about a pool.

use std::time::{Duration, SystemTime};

use pyo3::prelude::*;

use super::super::device::Device;
use crate::pool;

/// One device of a pool: who holds it, who waits for it.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct DeviceStatus {
    device: Py<Device>,
    holder: Option<Py<Holder>>,
    waiting: Vec<Py<Waiter>>,
    draining: bool,
}

/// Who holds a device, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct Holder {
    owner: String,
    since: f64,
    seconds: f64,
    borrowed: bool,
    handed_over: bool,
}

/// Who waits for a device, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct Waiter {
    owner: String,
    device: Option<String>,
    since: f64,
    seconds: f64,
}

impl DeviceStatus {
    pub(super) fn of(py: Python<'_>, status: pool::DeviceStatus) -> PyResult<Self> {
        let holder = status.holder.map(|holder| {
            let (since, seconds) = since(holder.held_for);
            let pool::HolderStatus { owner, borrowed, handed_over, .. } = holder;
            Py::new(py, Holder { owner, since, seconds, borrowed, handed_over })
        });
        let waiting = status.waiting.into_iter().map(|waiter| {
            let (since, seconds) = since(waiter.waited_for);
            let device = waiter.device.map(|name| name.to_string());
            Py::new(py, Waiter { owner: waiter.owner, device, since, seconds })
        });
        Ok(Self {
            device: Py::new(py, Device::of(status.device))?,
            holder: holder.transpose()?,
            waiting: waiting.collect::<PyResult<_>>()?,
            draining: status.draining,
        })
    }
}

/// When something began that has lasted so long: seconds since the epoch, and how many.
pub(in crate::python) fn since(lasted: Duration) -> (f64, f64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.saturating_sub(lasted).as_secs_f64(), lasted.as_secs_f64())
}

#[pymethods]
impl DeviceStatus {
    fn __repr__(&self, py: Python<'_>) -> String {
        let device = self.device.get().inner();
        let holder = self.holder.as_ref().map_or("idle".to_owned(), |holder| holder.get().told());
        let draining = if self.draining { ", draining" } else { "" };
        let waiting: Vec<&str> =
            self.waiting.iter().map(|one| one.bind(py).get().owner.as_str()).collect();
        let waiting = match waiting.as_slice() {
            [] => String::new(),
            waiting => format!(", wanted by {}", waiting.join(", ")),
        };
        format!("<{device}: {holder}{draining}{waiting}>")
    }
}

impl Holder {
    fn told(&self) -> String {
        let how = if self.borrowed { "borrowed" } else { "held" };
        format!("{how} by {} for {:.1} s", self.owner, self.seconds)
    }
}

#[pymethods]
impl Holder {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}

#[pymethods]
impl Waiter {
    fn __repr__(&self) -> String {
        let device = self.device.as_deref().unwrap_or("any device");
        format!("<{} waits for {device} for {:.1} s>", self.owner, self.seconds)
    }
}
