//! Offers and claims: the guards of jobs.

use std::sync::Arc;

use pyo3::exceptions::{PyBaseException, PyException};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::super::argument;
use super::super::device::Device;
use super::super::error::{Error, Result, invalid_type, invalid_value};
use super::super::exit::{Inside, detached};
use super::super::guard::{Taker, warn_forgotten};
use super::super::owner::unless_interrupted;
use super::super::wait::{CancelToken, caller};
use super::job::Job;
use super::text;
use super::value::Value;
use super::{CoreClaim, CoreOffer, CoreQueue};
use crate::queue::Outcome;

/// A job that is kept for one device.
#[pyclass(frozen, weakref, module = "coresident", name = "Offer")]
pub(in crate::python) struct Offer {
    offer: CoreOffer,
    queue: CoreQueue,
}

impl Offer {
    pub(super) fn of(offer: CoreOffer, queue: CoreQueue) -> Self {
        Self { offer, queue }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if self.offer.is_open() && self.queue.check().is_ok() {
            self.offer.release();
            warn_forgotten(&format!("the offer of job {}", self.offer.job().id));
        }
    }
}

#[pymethods]
impl Offer {
    /// The job.
    #[getter]
    fn job(&self) -> Job {
        Job(self.offer.job().clone(), self.queue.clone())
    }

    /// The device that it is offered to.
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.offer.device().clone())
    }

    /// Whether it was accepted or released.
    #[getter]
    fn released(&self) -> bool {
        !self.offer.is_open()
    }

    /// Makes it a claim.
    fn accept(&self, py: Python<'_>) -> Result<Option<Claim>> {
        let claim = detached(py, || self.offer.accept())?;
        let owner = caller(py)?;
        if let Some(claim) = &claim {
            // Another thread may have asked for the offer.
            claim.set_owner(Some(&owner))?;
        }
        Ok(claim.map(|claim| Claim::of(claim, self.queue.clone(), &owner)))
    }

    /// Gives the job back, to its old place.
    fn release(&self) {
        self.offer.release();
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.offer.release();
    }

    fn __repr__(&self) -> String {
        let state = if self.offer.is_open() { "open" } else { "released" };
        format!("<Offer of job {} to {} {state}>", self.offer.job().id, self.offer.device())
    }
}

/// A job that runs.
#[pyclass(frozen, weakref, module = "coresident", name = "Claim")]
pub(in crate::python) struct Claim {
    core: CoreClaim,
    queue: CoreQueue,
    taker: Taker,
}

impl Claim {
    pub(super) fn of(claim: CoreClaim, queue: CoreQueue, owner: &crate::wait::Owner) -> Self {
        Self { core: claim, queue, taker: Taker::of(owner) }
    }

    fn end(&self, py: Python<'_>, outcome: Outcome<Value>) -> Result<&'static str> {
        let ended = detached(py, || self.core.finish(outcome));
        Ok(ended.map_err(Error::from)?.as_str())
    }

    fn failed(
        &self,
        py: Python<'_>,
        error: &Bound<'_, PyAny>,
        retry: bool,
    ) -> Result<&'static str> {
        let (told, value) = if let Ok(text) = error.cast::<PyString>() {
            (text.to_string_lossy().into_owned(), None)
        } else {
            (told(error)?, Some(without_frames(error)?))
        };
        self.end(py, Outcome::Failed { error: told.into(), value, retry })
    }
}

/// An exception in words; one that cannot say anything is told by its type.
fn told(error: &Bound<'_, PyAny>) -> Result<String> {
    let _inside = Inside::enter(error.py());
    let class = argument::type_name(error);
    let text =
        unless_interrupted(error.py(), error.str().and_then(|text| text.extract::<String>()))?;
    Ok(match text.as_deref() {
        None => format!("{class}, which cannot be shown"),
        Some("") => class,
        Some(text) => format!("{class}: {text}"),
    })
}

/// An exception without the frames it came through, and what they hold: tensors, often.
fn without_frames(error: &Bound<'_, PyAny>) -> Result<Value> {
    let _inside = Inside::enter(error.py());
    let traceback = pyo3::intern!(error.py(), "__traceback__");
    unless_interrupted(error.py(), error.setattr(traceback, error.py().None()))?;
    Ok(Value::error(error))
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.core.is_open() && self.core.is_here() {
            Python::attach(|py| {
                let _inside = Inside::enter(py);
                detached(py, || self.core.lose("its claim was forgotten"));
            });
            warn_forgotten(&format!("the claim of job {}", self.core.job().id));
        }
    }
}

#[pymethods]
impl Claim {
    /// The job.
    #[getter]
    fn job(&self) -> Job {
        Job(self.core.job().clone(), self.queue.clone())
    }

    /// The device that it runs on.
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.core.device().clone())
    }

    /// Raised at once when the job is cancelled.
    #[getter]
    fn token(&self) -> CancelToken {
        CancelToken(self.core.token().clone())
    }

    /// Which attempt at the job this is, from 1.
    #[getter]
    fn attempt(&self) -> u32 {
        self.core.attempt()
    }

    /// Whether it has been ended.
    #[getter]
    fn released(&self) -> bool {
        !self.core.is_open()
    }

    /// Says that the work begins now.
    fn start(&self) -> Result<()> {
        Ok(self.core.start()?)
    }

    /// Says what the job does now.
    fn stage(&self, name: &Bound<'_, PyAny>) -> Result<()> {
        Ok(self.core.stage(text::name("a stage", name)?)?)
    }

    /// Says how far the job is.
    #[pyo3(signature = (step, steps, preview=None))]
    fn step(
        &self,
        step: &Bound<'_, PyAny>,
        steps: &Bound<'_, PyAny>,
        preview: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let steps = text::whole("steps", steps, 0, i64::from(u32::MAX))?;
        let step = text::whole("step", step, 0, i64::from(u32::MAX))?;
        let (Ok(done), Ok(all)) = (u32::try_from(step), u32::try_from(steps)) else {
            return Err(invalid_value("step and steps are numbers from 0 on"));
        };
        if done > all {
            return Err(invalid_value(&format!("step {done} is more than all {all} steps")));
        }
        let preview = preview.filter(|preview| !preview.is_none()).map(Value::of);
        Ok(self.core.step(done, all, preview)?)
    }

    /// Ends the job.
    #[pyo3(signature = (result=None))]
    fn finish(&self, py: Python<'_>, result: Option<&Bound<'_, PyAny>>) -> Result<&'static str> {
        let (value, path) = match result {
            Some(result) => text::result(result)?,
            None => (None, None),
        };
        self.end(py, Outcome::Done { value, path })
    }

    /// Ends the job as failed, or queues it for another attempt.
    #[pyo3(signature = (error, *, retry=false))]
    fn fail(&self, py: Python<'_>, error: &Bound<'_, PyAny>, retry: bool) -> Result<&'static str> {
        let known = error.is_instance_of::<PyBaseException>() || error.is_instance_of::<PyString>();
        if !known {
            let given = argument::type_name(error);
            return Err(invalid_type(&format!("error is an exception or a text, not {given}")));
        }
        self.failed(py, error, retry)
    }

    /// Queues the job again, as if it had not been begun.
    fn release(&self, py: Python<'_>) {
        detached(py, || self.core.release());
    }

    /// Lets another thread or task have this claim.
    fn hand_over(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        slf.get().core.hand_over()?;
        Ok(slf)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        let claim = slf.get();
        if !claim.taker.is_caller() {
            claim.core.set_owner(Some(&caller(slf.py())?))?;
        }
        claim.core.start()?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> Result<()> {
        if !self.core.is_open() {
            return Ok(());
        }
        if value.is_instance_of::<PyException>() {
            let failed = self.failed_with_frames(py, value);
            if failed.is_err() {
                detached(py, || self.core.lose("its failure could not be written"));
            }
            return failed.map(|_| ());
        }
        if value.is_none() {
            detached(py, || self.core.lose("its claim ended without an outcome"));
        } else {
            detached(py, || self.core.release());
        }
        Ok(())
    }

    fn __repr__(&self) -> String {
        let state = if self.core.is_open() { "running" } else { "ended" };
        format!("<Claim of job {} on {} {state}>", self.core.job().id, self.core.device())
    }
}

impl Claim {
    /// Fails with an exception that goes on: its frames stay with whoever gets it.
    fn failed_with_frames(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> Result<&'static str> {
        let told: Arc<str> = told(error)?.into();
        let value = Some(Value::error(error));
        self.end(py, Outcome::Failed { error: told, value, retry: false })
    }
}
