//! What callers say about jobs: names, numbers, payloads, and which jobs they mean.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyMemoryView, PyString};

use super::super::argument;
use super::super::error::{Error, Result, invalid_type, invalid_value, raise};
use super::super::exit::Inside;
use super::super::owner::unless_interrupted;
use super::job::Job;
use super::value::Value;
use crate::queue::{JobState, Micros, Payload, Selection};

/// The most bytes of a name.
const LONGEST: usize = 1024;
/// The most names, needs or jobs that anybody lists; what goes on after that goes on for ever.
const MOST: usize = 1 << 20;

/// A name: of a user, a batch, a tag, a key.
pub(super) fn name(what: &str, value: &Bound<'_, PyAny>) -> Result<Arc<str>> {
    let Ok(text) = value.cast::<PyString>() else {
        let given = argument::type_name(value);
        return Err(invalid_type(&format!("{what} is a text, not {given}")));
    };
    let Some(text) = unless_interrupted(value.py(), text.extract::<String>())? else {
        return Err(invalid_value(&format!("{what} has characters that are none")));
    };
    if text.is_empty() || text.len() > LONGEST || text.contains('\0') {
        return Err(invalid_value(&format!(
            "{what} has from 1 to {LONGEST} bytes, and none of them is 0, not {} bytes",
            text.len()
        )));
    }
    Ok(text.into())
}

pub(super) fn optional_name(
    what: &str,
    value: Option<&Bound<'_, PyAny>>,
) -> Result<Option<Arc<str>>> {
    given(value).map(|value| name(what, value)).transpose()
}

/// What was given, if it is something.
pub(super) fn given<'a, 'py>(
    value: Option<&'a Bound<'py, PyAny>>,
) -> Option<&'a Bound<'py, PyAny>> {
    value.filter(|value| !value.is_none())
}

/// The name of a keyword argument.
pub(super) fn keyword<'a>(key: &'a Bound<'_, PyAny>) -> Result<&'a str> {
    Ok(key.cast::<PyString>().map_err(PyErr::from)?.to_str()?)
}

/// A keyword argument that a call does not have.
pub(super) fn unexpected(call: &str, key: &str) -> Error {
    invalid_type(&format!("JobQueue.{call}() got an unexpected keyword argument '{key}'"))
}

/// One of a few words.
pub(super) fn word<T: Copy>(what: &str, value: &str, words: &[(&str, T)]) -> Result<T> {
    let known = words.iter().find(|(word, _)| *word == value);
    known.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(word, _)| format!("'{word}'")).collect();
        invalid_value(&format!("{what} is {}, not '{value}'", all.join(" or ")))
    })
}

/// Names; a text is refused, for it would be taken letter by letter.
pub(super) fn names(what: &str, value: Option<&Bound<'_, PyAny>>) -> Result<Arc<[Arc<str>]>> {
    let Some(value) = given(value) else { return Ok(Arc::new([])) };
    if value.is_instance_of::<PyString>() {
        return Err(invalid_type(&format!("{what} takes a list of texts, not the text {value:?}")));
    }
    let one = format!("one of {what}");
    items(what, "texts", value)?.iter().map(|item| name(&one, item)).collect()
}

/// The items of an iterable.
pub(super) fn items<'py>(
    what: &str,
    of: &str,
    value: &Bound<'py, PyAny>,
) -> Result<Vec<Bound<'py, PyAny>>> {
    let _inside = Inside::enter(value.py());
    let items = value.try_iter().map_err(|_| {
        invalid_type(&format!("{what} takes a list of {of}, not {}", argument::type_name(value)))
    })?;
    let mut all = Vec::new();
    for item in items {
        if all.len() == MOST {
            return Err(invalid_value(&format!("{what} takes {MOST} {of} at most")));
        }
        all.push(item?);
    }
    Ok(all)
}

/// A whole number between two.
pub(super) fn whole(what: &str, value: &Bound<'_, PyAny>, least: i64, most: i64) -> Result<i64> {
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        let given = argument::type_name(value);
        return Err(invalid_type(&format!("{what} is a whole number, not {given}")));
    }
    let known = value.extract::<i64>().ok().filter(|value| (least..=most).contains(value));
    known.ok_or_else(|| {
        let shown =
            value.str().map_or_else(|_| "a much larger number".to_owned(), |it| it.to_string());
        invalid_value(&format!("{what} must be from {least} to {most}, not {shown}"))
    })
}

/// A number between two.
pub(super) fn number(what: &str, value: &Bound<'_, PyAny>, least: f64, most: f64) -> Result<f64> {
    let is_number = value.is_instance_of::<PyFloat>() || value.is_instance_of::<PyInt>();
    if value.is_instance_of::<PyBool>() || !is_number {
        let given = argument::type_name(value);
        return Err(invalid_type(&format!("{what} is a number, not {given}")));
    }
    let known = value.extract::<f64>().ok().filter(|value| (least..=most).contains(value));
    known.ok_or_else(|| {
        let shown =
            value.str().map_or_else(|_| "a much larger number".to_owned(), |it| it.to_string());
        invalid_value(&format!("{what} must be from {least} to {most}, not {shown}"))
    })
}

/// The most seconds of anything: some three hundred years.
pub(super) const AGES: f64 = 1e10;

/// Seconds, as the core has them.
#[expect(clippy::cast_possible_truncation, reason = "within 1e16, which was checked")]
pub(super) fn micros_of(seconds: f64) -> Micros {
    (seconds * 1e6) as Micros
}

/// Microseconds since the epoch, or of GPU time, as people have them.
#[expect(clippy::cast_precision_loss, reason = "exact for three hundred years")]
pub(super) fn seconds_of(time: Micros) -> f64 {
    time as f64 / 1e6
}

/// A payload: bytes as they are, and everything else as JSON says it.
pub(super) fn payload(value: &Bound<'_, PyAny>) -> Result<Payload> {
    let py = value.py();
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(Payload::Bytes(bytes.as_bytes().into()));
    }
    let _inside = Inside::enter(py);
    if value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>() {
        let bytes = py.get_type::<PyBytes>().call1((value,))?;
        return Ok(Payload::Bytes(bytes.extract::<Vec<u8>>()?.into()));
    }
    let json = py.import("coresident._json")?;
    let text = json.getattr("text")?.call1((value,));
    match text {
        Ok(text) => Ok(Payload::Json(text.extract::<String>()?.into())),
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
            let why = error.value(py).to_string();
            let message =
                format!("a payload is bytes, or what JSON can say, which this is not: {why}");
            Err(raise("PayloadError", &message, |_| Ok(())))
        }
        Err(error) => Err(error.into()),
    }
}

/// The payload as it was submitted.
pub(super) fn payload_object(py: Python<'_>, payload: &Payload) -> Result<Py<PyAny>> {
    match payload {
        Payload::Bytes(bytes) => Ok(PyBytes::new(py, bytes).into_any().unbind()),
        Payload::Json(text) => {
            let _inside = Inside::enter(py);
            let value = py.import("json")?.getattr(intern!(py, "loads"))?.call1((&**text,))?;
            Ok(value.unbind())
        }
    }
}

/// The state of this name.
pub(super) fn state(value: Option<&Bound<'_, PyAny>>) -> Result<Option<JobState>> {
    let Some(value) = given(value) else { return Ok(None) };
    let known = name("state", value)?;
    let found = JobState::named(&known);
    found.map(Some).ok_or_else(|| {
        let all = JobState::ALL.map(JobState::as_str).join("', '");
        invalid_value(&format!("state is one of '{all}', not '{known}'"))
    })
}

/// A job, its number, or several of either.
pub(super) fn ids(value: &Bound<'_, PyAny>) -> Result<Vec<u64>> {
    let one = |value: &Bound<'_, PyAny>| -> Option<Result<u64>> {
        if let Ok(job) = value.cast::<Job>() {
            return Some(Ok(job.get().0.id));
        }
        let number = value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>();
        number.then(|| argument::whole_number("a job's number", value))
    };
    if let Some(id) = one(value) {
        return Ok(vec![id?]);
    }
    let refused = |value: &Bound<'_, PyAny>| {
        let given = argument::type_name(value);
        invalid_type(&format!("jobs takes a Job, its number, or a list of them, not {given}"))
    };
    if value.is_instance_of::<PyString>() || value.try_iter().is_err() {
        return Err(refused(value));
    }
    let all = items("jobs", "jobs", value)?;
    all.iter().map(|item| one(item).unwrap_or_else(|| Err(refused(item)))).collect()
}

/// Which jobs a call means, by its keyword arguments; what is `None` is as if it was left out.
pub(super) fn selection(
    call: &str,
    jobs: Option<&Bound<'_, PyAny>>,
    by: Option<&Bound<'_, PyDict>>,
) -> Result<Selection> {
    let ids = given(jobs).map(ids).transpose()?;
    let mut selection = Selection { ids, ..Selection::default() };
    for (key, value) in by.into_iter().flatten() {
        let (key, value) = (keyword(&key)?, Some(&value));
        match key {
            "batch" => selection.batch = optional_name("batch", value)?,
            "user" => selection.user = optional_name("user", value)?,
            "tag" => selection.tag = optional_name("tag", value)?,
            "state" if matches!(call, "delete" | "jobs") => selection.state = state(value)?,
            _ => return Err(unexpected(call, key)),
        }
    }
    Ok(selection)
}

/// The same, for calls that change jobs: all of them only if that is said.
pub(super) fn meant(
    call: &str,
    jobs: Option<&Bound<'_, PyAny>>,
    by: Option<&Bound<'_, PyDict>>,
    everything: bool,
) -> Result<Selection> {
    let selection = selection(call, jobs, by)?;
    let Selection { ids, batch, user, tag, state } = &selection;
    let said =
        ids.is_some() || batch.is_some() || user.is_some() || tag.is_some() || state.is_some();
    if !said && !everything {
        return Err(invalid_value(
            "say which jobs are meant: by jobs, batch=, user= or tag=, or everything=True",
        ));
    }
    Ok(selection)
}

/// What a job finished with, and its path if it is one.
pub(super) fn result(value: &Bound<'_, PyAny>) -> Result<(Option<Value>, Option<Arc<str>>)> {
    if value.is_none() {
        return Ok((None, None));
    }
    let py = value.py();
    let path = if value.hasattr(intern!(py, "__fspath__"))? {
        let _inside = Inside::enter(py);
        let path = value.call_method0(intern!(py, "__fspath__"))?;
        unless_interrupted(py, path.extract::<String>())?.map(Into::into)
    } else {
        None
    };
    Ok((Some(Value::of(value)), path))
}
