//! Timelines, recordings and hints.

mod array;
mod hint;
mod recording;

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyString;

pub(super) use hint::{Hint, hint_kinds, trace_hints};
pub(super) use recording::Recording;

use super::argument;
use super::error::{Result, invalid_type, invalid_value};
use super::exit::detached;
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

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}
