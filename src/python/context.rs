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

/// What a context carries, and what it covers: a borrow covers the lease that it was made under.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Pin {
    what: Pinned,
    under: Option<Py<Pin>>,
}

enum Pinned {
    Lease(Arc<Hold>),
    Task { device: device::Device, token: wait::CancelToken },
}

impl Pin {
    /// What a task carries that runs on the worker of `device`.
    pub(super) fn task(device: device::Device, token: wait::CancelToken) -> Self {
        Self { what: Pinned::Task { device, token }, under: None }
    }

    fn is_live(&self) -> bool {
        match &self.what {
            Pinned::Lease(hold) => hold.is_held_here(),
            Pinned::Task { .. } => true,
        }
    }

    fn device(&self) -> &device::Device {
        match &self.what {
            Pinned::Lease(hold) => hold.device(),
            Pinned::Task { device, .. } => device,
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

/// The innermost pin that still counts.
fn innermost(py: Python<'_>) -> PyResult<Option<Py<Pin>>> {
    let value = variable(py)?.get.bind(py).call0()?;
    let mut next = value.cast::<Pin>().ok().map(|pin| pin.clone().unbind());
    while let Some(pin) = next.take_if(|pin| !pin.get().is_live()) {
        next = pin.get().under.as_ref().map(|under| under.clone_ref(py));
    }
    Ok(next)
}

/// Makes a leased device current in this context.
pub(super) fn pin_lease(py: Python<'_>, hold: &Arc<Hold>) -> PyResult<()> {
    let pin = Pin { what: Pinned::Lease(hold.clone()), under: innermost(py)? };
    variable(py)?.set.bind(py).call1((pin,))?;
    Ok(())
}

/// The current device.
pub(super) fn current(py: Python<'_>) -> PyResult<Option<device::Device>> {
    Ok(innermost(py)?.map(|pin| pin.get().device().clone()))
}

/// The device that this code has leased or works for; `None` without one.
#[pyfunction]
pub(super) fn current_device(py: Python<'_>) -> PyResult<Option<Device>> {
    Ok(current(py)?.map(Device::of))
}

/// The token of the task that runs here; `None` outside a worker's task.
#[pyfunction]
pub(super) fn current_cancel_token(py: Python<'_>) -> PyResult<Option<CancelToken>> {
    let mut next = innermost(py)?;
    while let Some(pin) = next {
        if let Pinned::Task { token, .. } = &pin.get().what {
            return Ok(Some(CancelToken(token.clone())));
        }
        next = pin.get().under.as_ref().map(|under| under.clone_ref(py));
    }
    Ok(None)
}
