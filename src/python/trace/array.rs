//! Events and counters as arrays of numpy.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::super::error::{Error, Result};
use super::seconds;
use crate::trace;

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

/// The events, as an array.
pub(super) fn events<'py>(
    py: Python<'py>,
    recording: &trace::Recording,
) -> Result<Bound<'py, PyAny>> {
    const SIZE: usize = 64;
    let mut all = Vec::with_capacity(recording.events.len() * SIZE);
    for event in &recording.events {
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
pub(super) fn counters<'py>(
    py: Python<'py>,
    recording: &trace::Recording,
) -> Result<Bound<'py, PyAny>> {
    const SIZE: usize = 40;
    let mut all = Vec::with_capacity(recording.counters.len() * SIZE);
    for trace::Counter { device, component, kind, cause, sum } in &recording.counters {
        all.extend(sum.times.to_le_bytes());
        all.extend(sum.bytes.to_le_bytes());
        all.extend(seconds(sum.nanos).to_le_bytes());
        all.extend(device.0.to_le_bytes());
        all.extend(component.0.to_le_bytes());
        all.extend([*kind as u8, *cause as u8, 0, 0, 0, 0, 0, 0]);
    }
    array(py, &all, &COUNTER, SIZE)
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
