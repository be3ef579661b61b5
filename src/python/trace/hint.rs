//! Hints: of a recording, or of a trace on a device that is set up so.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::super::argument;
use super::super::error::{Result, invalid_value};
use super::super::exit::detached;
use super::bytes;
use crate::device::ByteSize;
use crate::residency::{self, PolicyName, Recorded};
use crate::trace::Setting;

/// What kinds of hints there are.
#[pyfunction]
pub(in crate::python) fn hint_kinds() -> Vec<&'static str> {
    residency::HintKind::ALL.iter().map(|kind| kind.name()).collect()
}

/// Hints for a trace, on a device that is set up so.
#[pyfunction]
pub(in crate::python) fn trace_hints(
    py: Python<'_>,
    text: &str,
    policy: &str,
    lookahead: &Bound<'_, PyAny>,
    memory: Option<&Bound<'_, PyAny>>,
) -> Result<Vec<Hint>> {
    let policy: PolicyName =
        policy.parse().map_err(|error: residency::NoPolicy| invalid_value(&error.to_string()))?;
    let lookahead = argument::whole_number("lookahead", lookahead)?;
    let total = bytes("memory", memory)?;
    let hints = detached(py, || {
        let trace = residency::Trace::parse(text)?;
        let setting = Setting {
            device: trace.name.clone(),
            total,
            limit: trace.capacity_bytes,
            page: 1,
            policy: policy.to_string(),
            lookahead,
            ..Setting::default()
        };
        residency::hints(&Recorded::imagined(trace, setting)?)
    })?;
    Ok(hints.into_iter().map(Hint).collect())
}

/// That copies could have been spared, and how.
#[pyclass(frozen, module = "coresident.trace", name = "Hint")]
pub(in crate::python) struct Hint(pub(super) residency::Hint);

#[pymethods]
impl Hint {
    /// What stood in the way.
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind.name()
    }

    /// The device.
    #[getter]
    fn device(&self) -> &str {
        &self.0.device
    }

    /// What was copied again with most bytes.
    #[getter]
    fn component(&self) -> &str {
        self.0.components.first().map_or("", String::as_str)
    }

    /// All that was copied again.
    #[getter]
    fn components(&self) -> Vec<String> {
        self.0.components.clone()
    }

    /// How often something was.
    #[getter]
    fn copies(&self) -> u64 {
        self.0.copies
    }

    /// How many bytes of it.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// How many seconds that took.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    /// What share of the time of all jobs that is.
    #[getter]
    fn share(&self) -> Option<f64> {
        self.0.share
    }

    /// How many of the bytes would not have been copied.
    #[getter]
    fn spared(&self) -> u64 {
        self.0.spared
    }

    /// What to change.
    #[getter]
    fn advice<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let (advice, told) = (&self.0.advice, PyDict::new(py));
        if let Some(limit) = advice.limit {
            told.set_item("limit", limit)?;
        }
        if let Some(headroom) = advice.headroom {
            told.set_item("headroom", headroom)?;
        }
        if advice.no_watermarks {
            told.set_item("watermarks", py.None())?;
        }
        if let Some(policy) = &advice.policy {
            told.set_item("policy", policy)?;
        }
        if !advice.working_memory.is_empty() {
            let each = PyDict::new(py);
            for (component, bytes) in &advice.working_memory {
                each.set_item(component, bytes)?;
            }
            told.set_item("working_memory", each)?;
        }
        Ok(told)
    }

    fn __str__(&self) -> &str {
        &self.0.text
    }

    fn __repr__(&self) -> String {
        let (kind, device, spared) = (self.0.kind.name(), &self.0.device, ByteSize(self.0.spared));
        format!("<Hint {kind} on {device}: {spared} spared>")
    }
}
