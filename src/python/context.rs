//! The current device: what the context of the running code carries.
//!
//! A context variable carries a [`Pin`]: the lease itself, not a name. Tasks, copied contexts and
//! workers inherit it, and once the lease is released it counts for nothing wherever it was copied.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::device::Device;
use super::wait::CancelToken;
use crate::device;
use crate::pool::Hold;
use crate::wait;

/// What a context carries, outermost first: a borrow covers the lease that it was made under.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Pin(Vec<Pinned>);

#[derive(Clone)]
enum Pinned {
    Lease(Arc<Hold>),
    Task { device: device::Device, token: wait::CancelToken },
}

impl Pin {
    /// What a task carries that runs on the worker of `device`.
    pub(super) fn task(device: device::Device, token: wait::CancelToken) -> Self {
        Self(vec![Pinned::Task { device, token }])
    }

    /// Those that still count.
    fn live(&self) -> impl DoubleEndedIterator<Item = &Pinned> {
        self.0.iter().filter(|pinned| pinned.is_live())
    }
}

impl Pinned {
    fn is_live(&self) -> bool {
        match self {
            Self::Lease(hold) => hold.is_held_here(),
            Self::Task { .. } => true,
        }
    }

    fn device(&self) -> &device::Device {
        match self {
            Self::Lease(hold) => hold.device(),
            Self::Task { device, .. } => device,
        }
    }

    fn token(&self) -> Option<&wait::CancelToken> {
        match self {
            Self::Lease(_) => None,
            Self::Task { token, .. } => Some(token),
        }
    }
}

struct Variable {
    get: Py<PyAny>,
    set: Py<PyAny>,
}

fn variable(py: Python<'_>) -> PyResult<&Variable> {
    static VARIABLE: PyOnceLock<Variable> = PyOnceLock::new();
    VARIABLE.get_or_try_init(py, || {
        let kwargs = pyo3::types::PyDict::new(py);
        kwargs.set_item("default", py.None())?;
        let class = py.import("contextvars")?.getattr("ContextVar")?;
        let variable = class.call(("coresident_device",), Some(&kwargs))?;
        let method = |name| variable.getattr(name).map(Bound::unbind);
        Ok(Variable { get: method("get")?, set: method("set")? })
    })
}

/// `ContextVar.set` of the variable, to be run in a context of one's choice.
pub(super) fn setter(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    variable(py).map(|variable| &variable.set)
}

/// What the context carries, if anything.
fn carried(py: Python<'_>) -> PyResult<Option<Bound<'_, Pin>>> {
    Ok(variable(py)?.get.bind(py).call0()?.cast_into::<Pin>().ok())
}

/// Makes a leased device current in this context.
pub(super) fn pin_lease(py: Python<'_>, hold: &Arc<Hold>) -> PyResult<()> {
    let mut pins = Vec::new();
    if let Some(pin) = carried(py)? {
        pins.extend(pin.get().live().cloned());
    }
    pins.push(Pinned::Lease(hold.clone()));
    variable(py)?.set.bind(py).call1((Pin(pins),))?;
    Ok(())
}

/// The current device.
pub(super) fn current(py: Python<'_>) -> PyResult<Option<device::Device>> {
    let carried = carried(py)?;
    let innermost = carried.as_ref().and_then(|pin| pin.get().live().next_back());
    Ok(innermost.map(|pinned| pinned.device().clone()))
}

/// The device that this code has leased or works for; `None` without one.
#[pyfunction]
pub(super) fn current_device(py: Python<'_>) -> PyResult<Option<Device>> {
    Ok(current(py)?.map(Device::of))
}

/// The token of the task that runs here; `None` outside a worker's task.
#[pyfunction]
pub(super) fn current_cancel_token(py: Python<'_>) -> PyResult<Option<CancelToken>> {
    let carried = carried(py)?;
    let token = carried.as_ref().and_then(|pin| pin.get().live().rev().find_map(Pinned::token));
    Ok(token.map(|token| CancelToken(token.clone())))
}
