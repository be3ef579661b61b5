//! One call per device, all at once.

use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PyTuple};

use super::super::argument;
use super::super::error::{Error, Result, invalid_type, invalid_value};
use super::super::exit::Inside;
use super::super::wait::{Terms, caller, patiently};
use super::ticket::Ticket;
use super::waits::wait_for;
use super::{Post, WorkerPool, check_callable};

/// One device's part.
struct Part<'a, 'py> {
    key: Bound<'py, PyAny>,
    post: &'a Arc<Post>,
    function: Bound<'py, PyAny>,
    /// On a worker; `None` on the calling thread.
    ticket: Option<Ticket>,
    value: Option<Py<PyAny>>,
}

/// Calls them all and returns their values by key. The caller's own device runs on the calling
/// thread, the others on their workers. If one fails, the others are cancelled and waited for.
pub(super) fn scatter<'py>(
    workers: &WorkerPool,
    py: Python<'py>,
    calls: &Bound<'py, PyAny>,
    terms: &Terms,
) -> Result<Bound<'py, PyDict>> {
    let deadline = terms.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let left = || {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Terms { timeout: left, cancel: terms.cancel.clone() }
    };
    let mut parts = parse(workers, calls)?;
    if let Err(error) = call_all(workers, py, &mut parts, &left) {
        cancel_rest(py, &parts)?;
        if error.is_of_a_task(py)
            && let Err(later) = join_rest(py, &parts, &left)
            && later.is_interrupt(py)
        {
            return Err(later);
        }
        return Err(error);
    }
    let values = PyDict::new(py);
    for part in parts {
        values.set_item(part.key, part.value)?;
    }
    Ok(values)
}

/// What each device is to call; nothing has been queued when this refuses.
fn parse<'a, 'py>(
    workers: &'a WorkerPool,
    calls: &Bound<'py, PyAny>,
) -> Result<Vec<Part<'a, 'py>>> {
    let Ok(calls) = calls.cast::<PyMapping>() else {
        let given = argument::type_name(calls);
        let message = format!("scatter() takes a mapping of devices to functions, not {given}");
        return Err(invalid_type(&message));
    };
    let mut parts: Vec<Part<'a, 'py>> = Vec::new();
    for item in calls.items()? {
        let pair = item.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>();
        let (key, function) = pair.map_err(|_| {
            let given = argument::type_name(&item);
            invalid_type(&format!("the items() of a mapping are pairs, not {given}"))
        })?;
        let post = workers.post_of(argument::name(&key)?)?;
        check_callable(&function)?;
        if parts.iter().any(|other| Arc::ptr_eq(other.post, post)) {
            return Err(invalid_value(&format!("scatter() was given {} twice", post.device)));
        }
        parts.push(Part { key, post, function, ticket: None, value: None });
    }
    Ok(parts)
}

fn call_all(
    workers: &WorkerPool,
    py: Python<'_>,
    parts: &mut [Part<'_, '_>],
    left: &impl Fn() -> Terms,
) -> Result<()> {
    let nothing = PyTuple::empty(py);
    for part in parts.iter_mut() {
        if !part.post.is_callers_own(py)? {
            let task = workers.task(py, &part.function, &nothing, None)?;
            part.ticket = Some(Ticket(workers.push(py, part.post, task)?));
        }
    }
    for part in parts.iter_mut().filter(|part| part.ticket.is_none()) {
        let _inside = Inside::enter(py);
        part.value = Some(part.function.call0().map_err(Error::of_task)?.unbind());
    }
    let owner = caller(py)?;
    for part in parts.iter_mut() {
        let Some(ticket) = &part.ticket else { continue };
        patiently(py, left(), |patience| wait_for(&ticket.0, &owner, patience))?;
        part.value = Some(ticket.ended(py)?);
    }
    Ok(())
}

/// Keeps what has not started from running, and tells what runs.
fn cancel_rest(py: Python<'_>, parts: &[Part<'_, '_>]) -> Result<()> {
    let reason = || Some("another part of the scatter failed".to_owned());
    let tickets = parts.iter().filter_map(|part| part.ticket.as_ref());
    // Everyone is told, whatever somebody's callback raises.
    let told: Vec<Result<bool>> = tickets.map(|ticket| ticket.cancel(py, reason())).collect();
    told.into_iter().try_for_each(|told| told.map(drop))
}

/// Waits, within the time that is left, until none of it runs any more: its tensors are the caller's.
fn join_rest(py: Python<'_>, parts: &[Part<'_, '_>], left: &impl Fn() -> Terms) -> Result<()> {
    let owner = caller(py)?;
    for ticket in parts.iter().filter_map(|part| part.ticket.as_ref()) {
        patiently(py, left(), |patience| wait_for(&ticket.0, &owner, patience))?;
    }
    Ok(())
}
