//! Events, as Python has them.

use std::sync::Arc;

use pyo3::exceptions::{PyStopAsyncIteration, PyStopIteration};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::super::aio::{self, Request};
use super::super::device::Device;
use super::super::error::Result;
use super::super::wait::{Terms, caller, settle};
use super::job::Job;
use super::text::seconds_of;
use super::value::Value;
use super::{CoreEvent, CoreQueue, CoreSubscriber};
use crate::wait::Parker;

/// How much progress is kept for who watches one job.
pub(super) const BUFFER: usize = 1024;

/// What happens to jobs.
#[pyclass(frozen, weakref, module = "coresident", name = "Events")]
pub(in crate::python) struct Events {
    subscriber: Arc<CoreSubscriber>,
    queue: CoreQueue,
}

impl Events {
    pub(super) fn of(subscriber: Arc<CoreSubscriber>, queue: CoreQueue) -> Self {
        Self { subscriber, queue }
    }

    fn take(&self, py: Python<'_>, terms: Terms) -> Result<Option<Event>> {
        self.subscriber.check()?;
        let next = match self.subscriber.poll() {
            Some(next) => next,
            None => {
                terms.check("the next event")?;
                let owner = caller(py)?;
                let parker = Parker::new();
                let asked = self.subscriber.ask(&owner, parker.clone())?;
                settle(py, asked, &parker, terms)?
            }
        };
        Ok(next.map(|event| Event::of(event, &self.queue)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.subscriber.close();
    }
}

#[pymethods]
impl Events {
    /// The next event; waits for it.
    #[pyo3(signature = (timeout=None, *, cancel=None))]
    fn next(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Option<Event>> {
        self.take(py, Terms::of(timeout, cancel)?)
    }

    /// Ends them, after those that are there already.
    fn close(&self) {
        self.subscriber.close();
    }

    /// How many stages and steps the subscriber was too slow for.
    #[getter]
    fn dropped(&self) -> u64 {
        self.subscriber.dropped()
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> Result<Event> {
        let next = self.take(py, Terms { timeout: None, cancel: None })?;
        next.ok_or_else(|| PyStopIteration::new_err(()).into())
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        self.subscriber.check()?;
        let (subscriber, queue) = (self.subscriber.clone(), self.queue.clone());
        let forever = Terms { timeout: None, cancel: None };
        aio::awaitable(py, forever, move |py, terms, target| {
            let asked = subscriber.ask(&caller(py)?, target.waker())?;
            let queue = queue.clone();
            Request::of(asked, terms, target, move |py, next| match next {
                Some(event) => {
                    let event = Py::new(py, Event::of(event, &queue))?;
                    Ok(event.into_any())
                }
                None => Err(PyStopAsyncIteration::new_err(()).into()),
            })
        })
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
        self.subscriber.close();
    }
}

/// One thing that happened to a job.
#[pyclass(frozen, module = "coresident", name = "Event")]
pub(in crate::python) struct Event {
    event: CoreEvent,
    queue: CoreQueue,
}

impl Event {
    fn of(event: CoreEvent, queue: &CoreQueue) -> Self {
        Self { event, queue: queue.clone() }
    }

    fn core_device(&self) -> Option<&crate::device::Device> {
        self.queue.devices().get(self.event.device?)
    }
}

#[pymethods]
impl Event {
    /// What happened.
    #[getter]
    fn kind(&self) -> &'static str {
        self.event.kind.as_str()
    }

    /// The job, as it is now.
    #[getter]
    fn job(&self) -> Job {
        Job(self.event.job.clone(), self.queue.clone())
    }

    /// The number of the job.
    #[getter]
    fn id(&self) -> u64 {
        self.event.job.id
    }

    /// Whose job it is.
    #[getter]
    fn user(&self) -> &str {
        &self.event.job.user
    }

    /// Where it runs.
    #[getter]
    fn device(&self) -> Option<Device> {
        self.core_device().cloned().map(Device::of)
    }

    /// The device's label.
    #[getter]
    fn label(&self) -> Option<String> {
        self.core_device().map(crate::device::Device::label)
    }

    /// When, in seconds since the epoch.
    #[getter]
    fn time(&self) -> f64 {
        seconds_of(self.event.time)
    }

    /// How often the job had been begun.
    #[getter]
    fn attempt(&self) -> u32 {
        self.event.attempt
    }

    /// The stage that the job was in.
    #[getter]
    fn stage(&self) -> Option<&str> {
        self.event.stage.as_deref()
    }

    /// Steps done.
    #[getter]
    fn step(&self) -> Option<u32> {
        self.event.step.map(|(step, _)| step)
    }

    /// Of how many.
    #[getter]
    fn steps(&self) -> Option<u32> {
        self.event.step.map(|(_, steps)| steps)
    }

    /// What the step shows.
    #[getter]
    fn preview(&self, py: Python<'_>) -> Py<PyAny> {
        let preview: Option<&Value> = self.event.preview.as_deref();
        preview.map_or_else(|| py.None(), |value| value.object(py))
    }

    /// Why.
    #[getter]
    fn error(&self) -> Option<&str> {
        self.event.error.as_deref()
    }

    fn __repr__(&self) -> String {
        let Self { event, .. } = self;
        let step = event.step.map_or_else(String::new, |(step, steps)| format!(" {step}/{steps}"));
        let on = self.core_device().map_or_else(String::new, |device| format!(" on {device}"));
        format!(
            "<Event {}{step} job {} of {}{on}>",
            event.kind.as_str(),
            event.job.id,
            event.job.user
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        match &self.event.preview {
            Some(preview) if Arc::strong_count(preview) == 1 => visit.call(preview.held()),
            _ => Ok(()),
        }
    }
}
