//! Timelines, recordings and hints.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use super::argument;
use super::error::{Error, Result, invalid_type, invalid_value};
use super::exit::detached;
use super::residency::Replayed;
use crate::device::ByteSize;
use crate::residency::{self, PolicyName, Recorded};
use crate::trace::{self, Cause, Event, Kind, Setting};

/// What happened on the devices, as it happens.
#[pyclass(frozen, weakref, module = "coresident", name = "Timeline")]
pub(super) struct Timeline(trace::Timeline);

impl Timeline {
    pub(super) fn inner(&self) -> &trace::Timeline {
        &self.0
    }
}

/// A text, or nothing.
fn text(what: &str, value: Option<&Bound<'_, PyAny>>) -> Result<String> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(String::new()) };
    let text = value.cast::<PyString>().map_err(|_| {
        let given = argument::type_name(value);
        invalid_type(&format!("{what} is a text, not {given}"))
    })?;
    Ok(text.to_string_lossy().into_owned())
}

fn count(what: &str, value: Option<&Bound<'_, PyAny>>) -> Result<u64> {
    value
        .filter(|value| !value.is_none())
        .map_or(Ok(0), |value| argument::whole_number(what, value))
}

fn bytes(what: &str, value: Option<&Bound<'_, PyAny>>) -> Result<u64> {
    value.filter(|value| !value.is_none()).map_or(Ok(0), |value| argument::bytes(what, value))
}

/// One of the names of an enum.
fn named<T>(what: &str, given: &str, found: Option<T>, all: &[&str]) -> Result<T> {
    found.ok_or_else(|| {
        invalid_value(&format!("{what} is one of {}, not {given:?}", all.join(", ")))
    })
}

#[pymethods]
impl Timeline {
    #[new]
    #[pyo3(signature = (events=None), text_signature = "(events=65536)")]
    fn new(events: Option<&Bound<'_, PyAny>>) -> Result<Self> {
        let events = events
            .map_or(Ok(trace::EVENTS as u64), |events| argument::whole_number("events", events))?;
        let most = 1 << 26;
        let fits = usize::try_from(events).ok().filter(|events| (1..=most).contains(events));
        let Some(events) = fits else {
            return Err(invalid_value(&format!("events is 1 to {most}, not {events}")));
        };
        Ok(Self(trace::Timeline::new(events)))
    }

    /// Whether it records.
    #[getter]
    fn enabled(&self) -> bool {
        self.0.is_on()
    }

    #[setter]
    fn set_enabled(&self, enabled: &Bound<'_, PyAny>) -> Result<()> {
        let on = enabled.extract::<bool>().map_err(|_| {
            let given = argument::type_name(enabled);
            invalid_type(&format!("enabled is True or False, not {given}"))
        })?;
        self.0.turn(on);
        Ok(())
    }

    /// How many events it keeps.
    #[getter]
    fn capacity(&self) -> u64 {
        self.0.events()
    }

    /// Records something.
    #[pyo3(signature = (
        kind, device=None, component=None, *, whom=None, nbytes=None, beside=None, of=None,
        seconds=None, cause=None, job=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "an event has so many fields")]
    fn record(
        &self,
        kind: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        component: Option<&Bound<'_, PyAny>>,
        whom: Option<&Bound<'_, PyAny>>,
        nbytes: Option<&Bound<'_, PyAny>>,
        beside: Option<&Bound<'_, PyAny>>,
        of: Option<&Bound<'_, PyAny>>,
        seconds: Option<&Bound<'_, PyAny>>,
        cause: Option<&Bound<'_, PyAny>>,
        job: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        self.0.check()?;
        let (kind, cause) = (text("kind", Some(kind))?, text("cause", cause)?);
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let causes: Vec<&str> = Cause::ALL[1..].iter().map(|cause| cause.name()).collect();
        let kind = named("kind", &kind, Kind::named(&kind), &kinds)?;
        let cause = named("cause", &cause, Cause::named(&cause), &causes)?;
        let seconds = argument::seconds("seconds", seconds)?;
        let took = u64::try_from(seconds.as_nanos()).unwrap_or(u64::MAX);
        let device = match device.filter(|device| !device.is_none()) {
            Some(device) => argument::name(device)?.to_string(),
            None => String::new(),
        };
        let event = Event {
            cause,
            whom: self.0.label(&text("whom", whom)?),
            at: self.0.now().saturating_sub(took),
            took,
            bytes: bytes("nbytes", nbytes)?,
            beside: bytes("beside", beside)?,
            of: bytes("of", of)?,
            job: count("job", job)?,
            ..Event::of(kind)
        };
        self.0.track(&device, &text("component", component)?).record(event);
        Ok(())
    }

    /// Says how a device without pages is set up.
    fn set_device(
        &self,
        device: &Bound<'_, PyAny>,
        total: u64,
        limit: u64,
        headroom: u64,
        outside: u64,
        policy: &str,
    ) -> Result<()> {
        self.0.check()?;
        self.0.set(Setting {
            device: argument::name(device)?.to_string(),
            total,
            limit,
            headroom,
            outside,
            page: 1,
            policy: policy.to_owned(),
            ..Setting::default()
        });
        Ok(())
    }

    /// All of it as it is now.
    fn recording(&self, py: Python<'_>) -> Result<Recording> {
        let recording = detached(py, || self.0.recording())?;
        Ok(Recording(Arc::new(recording)))
    }

    /// Forgets everything so far.
    fn clear(&self, py: Python<'_>) -> Result<()> {
        Ok(detached(py, || self.0.clear())?)
    }

    /// Writes all of it to a file.
    fn save(&self, py: Python<'_>, path: &Bound<'_, PyAny>) -> Result<()> {
        self.recording(py)?.save(py, path)
    }

    fn __repr__(&self) -> String {
        let state = if self.0.is_on() { "on" } else { "off" };
        format!("<Timeline of {} events, {state}>", self.0.events())
    }
}

/// A timeline as it was at one moment.
#[pyclass(frozen, module = "coresident.trace", name = "Recording")]
pub(super) struct Recording(Arc<trace::Recording>);

impl Recording {
    fn recorded(&self, device: Option<&Bound<'_, PyAny>>) -> Result<Recorded> {
        let device = text("device", device)?;
        let device = (!device.is_empty()).then_some(device.as_str());
        Ok(Recorded::of(&self.0, device)?)
    }
}

/// An array of numpy over bytes, of records of these fields.
fn array<'py>(
    py: Python<'py>,
    bytes: &[u8],
    fields: &[(&str, &str)],
    size: usize,
) -> Result<Bound<'py, PyAny>> {
    let numpy = py.import("numpy").map_err(|error| {
        let told = PyRuntimeError::new_err("events and counters are arrays of numpy");
        told.set_cause(py, Some(error));
        told
    })?;
    let (mut names, mut formats, mut offsets, mut offset) = (vec![], vec![], vec![], 0);
    for (name, format) in fields {
        names.push(*name);
        formats.push(*format);
        offsets.push(offset);
        offset +=
            format.trim_start_matches(|sign: char| !sign.is_ascii_digit()).parse().unwrap_or(0);
    }
    let layout = PyDict::new(py);
    layout.set_item("names", names)?;
    layout.set_item("formats", formats)?;
    layout.set_item("offsets", offsets)?;
    layout.set_item("itemsize", size)?;
    let dtype = numpy.call_method1("dtype", (layout,))?;
    numpy.call_method1("frombuffer", (PyBytes::new(py, bytes), dtype)).map_err(Error::from)
}

/// The fields of an event, as an array has them.
const EVENT: [(&str, &str); 11] = [
    ("at", "<f8"),
    ("took", "<f8"),
    ("bytes", "<u8"),
    ("beside", "<u8"),
    ("of", "<u8"),
    ("job", "<u8"),
    ("device", "<u4"),
    ("component", "<u4"),
    ("whom", "<u4"),
    ("kind", "|u1"),
    ("cause", "|u1"),
];

/// The fields of a counter.
const COUNTER: [(&str, &str); 7] = [
    ("times", "<u8"),
    ("bytes", "<u8"),
    ("seconds", "<f8"),
    ("device", "<u4"),
    ("component", "<u4"),
    ("kind", "|u1"),
    ("cause", "|u1"),
];

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
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
    fn save(&self, py: Python<'_>, path: &Bound<'_, PyAny>) -> Result<()> {
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
        let wanted = |name: &&str| {
            let label = self.0.label(name);
            let mut requests = self.0.events.iter().filter(|event| event.kind == Kind::Request);
            requests.any(|event| Some(event.device) == label)
        };
        self.0.devices().into_iter().filter(wanted).collect()
    }

    /// The events, as an array.
    #[getter]
    fn events<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        const SIZE: usize = 64;
        let mut all = Vec::with_capacity(self.0.events.len() * SIZE);
        for event in &self.0.events {
            all.extend(seconds(event.at).to_le_bytes());
            all.extend(seconds(event.took).to_le_bytes());
            for word in [event.bytes, event.beside, event.of, event.job] {
                all.extend(word.to_le_bytes());
            }
            for label in [event.device, event.component, event.whom] {
                all.extend(label.0.to_le_bytes());
            }
            all.extend([event.kind as u8, event.cause as u8, 0, 0]);
        }
        array(py, &all, &EVENT, SIZE)
    }

    /// The counters, as an array.
    #[getter]
    fn counters<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        const SIZE: usize = 40;
        let mut all = Vec::with_capacity(self.0.counters.len() * SIZE);
        for trace::Counter { device, component, kind, cause, sum } in &self.0.counters {
            all.extend(sum.times.to_le_bytes());
            all.extend(sum.bytes.to_le_bytes());
            all.extend(seconds(sum.nanos).to_le_bytes());
            all.extend(device.0.to_le_bytes());
            all.extend(component.0.to_le_bytes());
            all.extend([*kind as u8, *cause as u8, 0, 0, 0, 0, 0, 0]);
        }
        array(py, &all, &COUNTER, SIZE)
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

/// What kinds of hints there are.
#[pyfunction]
pub(super) fn hint_kinds() -> Vec<&'static str> {
    residency::HintKind::ALL.iter().map(|kind| kind.name()).collect()
}

/// Hints for a trace, on a device that is set up so.
#[pyfunction]
pub(super) fn trace_hints(
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
pub(super) struct Hint(residency::Hint);

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
