//! A timeline as it was: written, read, replayed, and looked through for hints.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::super::argument;
use super::super::error::{Result, invalid_type, invalid_value};
use super::super::exit::detached;
use super::super::residency::Replayed;
use super::{Hint, array, seconds, text};
use crate::residency::{self, Recorded};
use crate::trace::{self, Cause, Kind};

/// A timeline as it was at one moment.
#[pyclass(frozen, module = "coresident.trace", name = "Recording")]
pub(in crate::python) struct Recording(pub(super) Arc<trace::Recording>);

impl Recording {
    fn recorded(&self, device: Option<&Bound<'_, PyAny>>) -> Result<Recorded> {
        let device = text("device", device)?;
        let device = (!device.is_empty()).then_some(device.as_str());
        Ok(Recorded::of(&self.0, device)?)
    }
}

#[pymethods]
impl Recording {
    /// A recording from what is in a file.
    #[staticmethod]
    fn parse(py: Python<'_>, text: &str) -> Result<Self> {
        let recording = detached(py, || trace::Recording::parse(text));
        let recording = recording.map_err(|error| invalid_value(&error.to_string()))?;
        Ok(Self(Arc::new(recording)))
    }

    /// Whether a text looks as if it was to be one.
    #[staticmethod]
    fn is_meant_by(text: &str) -> bool {
        trace::Recording::is_meant_by(text)
    }

    /// What is in a file of it.
    fn to_json(&self, py: Python<'_>) -> Result<String> {
        let text = detached(py, || self.0.to_json());
        text.map_err(|error| invalid_value(&error.to_string()))
    }

    /// Writes it to a file.
    pub(super) fn save(&self, py: Python<'_>, path: &Bound<'_, PyAny>) -> Result<()> {
        let path: PathBuf = path.extract().map_err(|_| {
            let given = argument::type_name(path);
            invalid_type(&format!("path is the path of a file, not {given}"))
        })?;
        let text = self.to_json(py)?;
        let written = detached(py, || std::fs::write(&path, text));
        written.map_err(|error| {
            let (number, why) = (error.raw_os_error(), error.to_string());
            let shown = path.display().to_string();
            match number {
                Some(number) => PyOSError::new_err((number, why, shown)),
                None => PyOSError::new_err(format!("{shown}: {why}")),
            }
            .into()
        })
    }

    /// How long the timeline had lasted, in seconds.
    #[getter]
    fn seconds(&self) -> f64 {
        seconds(self.0.nanos)
    }

    /// How many events are not in it.
    #[getter]
    fn lost(&self) -> u64 {
        self.0.lost
    }

    /// The texts of all numbers of devices, components and users.
    #[getter]
    fn names(&self) -> Vec<String> {
        self.0.names.clone()
    }

    /// What kinds of events are called, by number.
    #[classattr]
    fn kinds() -> Vec<&'static str> {
        Kind::ALL.iter().map(|kind| kind.name()).collect()
    }

    /// What causes of copies are called, by number.
    #[classattr]
    fn causes() -> Vec<&'static str> {
        Cause::ALL.iter().map(|cause| cause.name()).collect()
    }

    /// The names of the devices.
    #[getter]
    fn devices(&self) -> Vec<&str> {
        self.0.devices()
    }

    /// The names of those of which something was wanted.
    fn requested(&self) -> Vec<&str> {
        self.0.requested()
    }

    /// The events, as an array.
    #[getter]
    fn events<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        array::events(py, &self.0)
    }

    /// The counters, as an array.
    #[getter]
    fn counters<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        array::counters(py, &self.0)
    }

    /// How devices were set up, and from when on.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> Result<Vec<Bound<'py, PyDict>>> {
        let mut all = Vec::new();
        for (at, setting) in &self.0.settings {
            let told = PyDict::new(py);
            told.set_item("at", seconds(*at))?;
            told.set_item("device", &setting.device)?;
            told.set_item("total", setting.total)?;
            told.set_item("limit", setting.limit)?;
            told.set_item("headroom", setting.headroom)?;
            told.set_item("outside", setting.outside)?;
            told.set_item("page", setting.page)?;
            told.set_item("policy", &setting.policy)?;
            told.set_item("lookahead", setting.lookahead)?;
            told.set_item("low", setting.low)?;
            told.set_item("high", setting.high)?;
            all.push(told);
        }
        Ok(all)
    }

    /// What a policy would have moved on a device.
    #[pyo3(signature = (policy=None, lookahead=None, device=None))]
    fn replay(
        &self,
        py: Python<'_>,
        policy: Option<&str>,
        lookahead: Option<&Bound<'_, PyAny>>,
        device: Option<&Bound<'_, PyAny>>,
    ) -> Result<Replayed> {
        let mut recorded = self.recorded(device)?;
        if let Some(policy) = policy {
            policy.clone_into(&mut recorded.setting.policy);
        }
        if let Some(lookahead) = lookahead.filter(|lookahead| !lookahead.is_none()) {
            recorded = recorded.knowing(argument::whole_number("lookahead", lookahead)?);
        }
        let policy = recorded.policy().map_err(|error| invalid_value(&error.to_string()))?;
        let (moved, bound) = detached(py, || {
            let steps = recorded.replay()?;
            let moved = steps.iter().map(|step| step.moved).sum();
            Ok::<_, residency::TraceError>((moved, residency::least_bytes(&recorded.trace)))
        })?;
        let lookahead = usize::try_from(recorded.setting.lookahead).unwrap_or(usize::MAX);
        Ok(Replayed::of(recorded.trace.name, policy.to_string(), lookahead, moved, bound))
    }

    /// Bytes that were really copied to a device for requests.
    #[pyo3(signature = (device=None))]
    fn copied(&self, device: Option<&Bound<'_, PyAny>>) -> Result<u64> {
        Ok(self.recorded(device)?.copied())
    }

    /// Seconds in which some job ran on a device.
    #[pyo3(signature = (device=None))]
    fn job_seconds(&self, device: Option<&Bound<'_, PyAny>>) -> Result<f64> {
        Ok(seconds(self.recorded(device)?.job_nanos))
    }

    /// The requests of one device as a trace, as JSON.
    #[pyo3(signature = (device=None))]
    fn trace(&self, device: Option<&Bound<'_, PyAny>>) -> Result<String> {
        let trace = self.recorded(device)?.trace;
        serde_json::to_string(&trace).map_err(|error| invalid_value(&error.to_string()))
    }

    /// What would have spared copies on a device.
    #[pyo3(signature = (device, requests=None))]
    fn hints_on(
        &self,
        py: Python<'_>,
        device: &Bound<'_, PyAny>,
        requests: Option<&Bound<'_, PyAny>>,
    ) -> Result<Vec<Hint>> {
        let device = text("device", Some(device))?;
        let requests = requests.filter(|requests| !requests.is_none());
        let most = requests.map(|requests| argument::whole_number("requests", requests));
        let most = most
            .transpose()?
            .map_or(residency::REQUESTS, |most| usize::try_from(most).unwrap_or(usize::MAX));
        let hints = detached(py, || {
            let device = (!device.is_empty()).then_some(device.as_str());
            residency::hints(&Recorded::last_of(&self.0, device, most)?)
        })?;
        Ok(hints.into_iter().map(Hint).collect())
    }

    fn __repr__(&self) -> String {
        let (events, lost) = (self.0.events.len(), self.0.lost);
        let lost = if lost > 0 { format!(", {lost} lost") } else { String::new() };
        format!("<Recording of {:.3} s: {events} events{lost}>", seconds(self.0.nanos))
    }
}
