//! What a budget asks: a driver or a function what is free, and functions for bytes.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBool;

use super::super::argument;
use super::super::callback::call;
use super::super::error::{Result, invalid_type};
use crate::budget::{Evictor, Probe};
use crate::device::Driver;

/// A probe, and if it is a function of Python's, that as well.
pub(super) type Probing = (Option<Arc<dyn Probe>>, Option<Arc<PythonProbe>>);

/// What a device, or the host, says of its own memory.
struct OfDriver(Arc<dyn Driver>);

impl Probe for OfDriver {
    fn free(&self) -> Option<u64> {
        self.0.free_memory()
    }
}

/// What tells what is free: this function, else the driver, or nothing.
pub(super) fn probe(given: Option<&Bound<'_, PyAny>>, driver: Arc<dyn Driver>) -> Result<Probing> {
    let Some(given) = given.filter(|given| !given.is_none()) else {
        return Ok((Some(Arc::new(OfDriver(driver))), None));
    };
    if given.cast::<PyBool>().is_ok_and(|given| !given.is_true()) {
        return Ok((None, None));
    }
    if !given.is_callable() {
        let message = format!(
            "probe is a function that returns the bytes that are free, or False for none, not \
             {}",
            argument::type_name(given)
        );
        return Err(invalid_type(&message));
    }
    let probe = Arc::new(PythonProbe(given.clone().unbind()));
    Ok((Some(probe.clone()), Some(probe)))
}

/// A Python function that says what is free; one that raises does not know.
pub(super) struct PythonProbe(pub(super) Py<PyAny>);

impl Probe for PythonProbe {
    fn free(&self) -> Option<u64> {
        call(&self.0, |function| function.call0()?.extract()).flatten()
    }
}

/// A Python function that gives bytes back.
pub(super) struct PythonEvictor(pub(super) Py<PyAny>);

impl Evictor for PythonEvictor {
    fn evict(&self, bytes: u64) {
        call(&self.0, |function| function.call1((bytes,)).map(drop));
    }
}
