//! Asking for a job for a device, in threads and in tasks.

use pyo3::prelude::*;

use super::super::aio::{self, Request};
use super::super::error::{Error, Result};
use super::super::exit::detached;
use super::super::wait::{Terms, caller, patiently, settle};
use super::{Claim, CoreOffer, CoreQueue, Offer};
use crate::device::Name;
use crate::wait::{Owner, Parker, WaitError};

/// Waits for a job, and claims it.
pub(super) fn claim(
    queue: &CoreQueue,
    py: Python<'_>,
    device: Name,
    terms: Terms,
) -> Result<Claim> {
    queue.check()?;
    terms.check("a job")?;
    let owner = caller(py)?;
    let claim = patiently(py, terms, |patience| queue.claim(device, &owner, patience))?;
    Ok(Claim::of(claim, queue.clone(), &owner))
}

/// The same, for asyncio.
pub(super) fn claim_async<'py>(
    queue: &CoreQueue,
    py: Python<'py>,
    device: Name,
    terms: Terms,
) -> Result<Bound<'py, PyAny>> {
    offered(queue, py, device, terms, |py, offer, queue, owner| {
        match detached(py, || offer.accept())? {
            Some(claim) => Ok(Py::new(py, Claim::of(claim, queue, &owner))?.into_any()),
            // Cancelled between its offer and now: as if there had been none.
            None => Err(gone(offer.job().id)),
        }
    })
}

/// Waits for a job, and has it kept for the caller.
pub(super) fn offer(
    queue: &CoreQueue,
    py: Python<'_>,
    device: Name,
    terms: Terms,
) -> Result<Offer> {
    queue.check()?;
    terms.check("a job")?;
    let owner = caller(py)?;
    let parker = Parker::new();
    let asked = queue.ask(device, &owner, || parker.clone())?;
    Ok(Offer::of(settle(py, asked, &parker, terms)?, queue.clone()))
}

/// The same, for asyncio.
pub(super) fn offer_async<'py>(
    queue: &CoreQueue,
    py: Python<'py>,
    device: Name,
    terms: Terms,
) -> Result<Bound<'py, PyAny>> {
    offered(queue, py, device, terms, |py, offer, queue, _| {
        Ok(Py::new(py, Offer::of(offer, queue))?.into_any())
    })
}

/// Has a task wait for a job that is kept for it, and makes of that what it is given.
fn offered<'py>(
    queue: &CoreQueue,
    py: Python<'py>,
    device: Name,
    terms: Terms,
    given: fn(Python<'_>, CoreOffer, CoreQueue, Owner) -> Result<Py<PyAny>>,
) -> Result<Bound<'py, PyAny>> {
    let queue = queue.clone();
    aio::awaitable(py, terms, move |py, terms, target| {
        let owner = caller(py)?;
        terms.check("a job")?;
        let asked = queue.ask(device, &owner, || target.waker())?;
        let queue = queue.clone();
        Request::of(asked, terms, target, move |py, offer| given(py, offer, queue, owner))
    })
}

/// A job was cancelled in the instant in which a task was given it.
fn gone(id: u64) -> Error {
    let reason = Some("it was offered and cancelled at once; ask again".to_owned());
    WaitError::Cancelled { wants: format!("job {id}"), reason }.into()
}
