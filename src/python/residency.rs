//! Traces replayed.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::argument;
use super::error::{Error, Result, invalid_type, invalid_value};
use super::exit::detached;
use crate::residency::{self, POLICIES, PolicyName, Trace, TraceError};

/// What came of a replay.
#[pyclass(frozen, get_all, module = "coresident.trace")]
pub(super) struct Replayed {
    name: String,
    policy: String,
    lookahead: usize,
    bytes_moved: u64,
    bound: u64,
    multiple: f64,
}

impl Replayed {
    pub(super) fn of(
        name: String,
        policy: String,
        lookahead: usize,
        bytes_moved: u64,
        bound: u64,
    ) -> Self {
        let multiple = residency::multiple(bytes_moved, bound);
        Self { name, policy, lookahead, bytes_moved, bound, multiple }
    }
}

impl From<TraceError> for Error {
    fn from(error: TraceError) -> Self {
        invalid_value(&error.to_string())
    }
}

#[pymethods]
impl Replayed {
    fn __repr__(&self) -> String {
        let Self { name, policy, lookahead, multiple, .. } = self;
        format!("<Replayed {name} by {policy}, {lookahead} jobs ahead: {multiple:.3} x the bound>")
    }
}

/// Has a policy serve a trace.
#[pyfunction]
pub(super) fn replay_trace(
    py: Python<'_>,
    text: &str,
    policy: &Bound<'_, PyAny>,
    lookahead: &Bound<'_, PyAny>,
) -> Result<Replayed> {
    let policy = self::policy(policy)?;
    let lookahead = argument::whole_number("lookahead", lookahead)?;
    let lookahead = usize::try_from(lookahead).unwrap_or(usize::MAX);
    let replayed = detached(py, || {
        let trace = Trace::parse(text)?;
        residency::replay(&trace, policy, lookahead)
    })?;
    let residency::Replayed { name, policy, lookahead, bytes_moved, bound, .. } = replayed;
    Ok(Replayed::of(name, policy, lookahead, bytes_moved, bound))
}

/// A policy by its name.
pub(super) fn policy(value: &Bound<'_, PyAny>) -> Result<PolicyName> {
    let Ok(text) = value.cast::<PyString>() else {
        let names = policies().join(", ");
        let given = argument::type_name(value);
        return Err(invalid_type(&format!("policy is one of {names}, not {given}")));
    };
    let policy = text.to_string_lossy().parse::<PolicyName>();
    policy.map_err(|error| invalid_value(&error.to_string()))
}

impl FromPyObject<'_, '_> for PolicyName {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        Ok(policy(&value)?)
    }
}

/// The names of all policies, the default one first.
#[pyfunction]
pub(super) fn policies() -> Vec<&'static str> {
    POLICIES.iter().map(|(name, _)| *name).collect()
}
