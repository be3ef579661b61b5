//! Jobs, as Python has them.

use std::sync::Arc;

use pyo3::basic::CompareOp;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::super::aio::{self, Request};
use super::super::device::Device;
use super::super::error::{Error, Result, raise};
use super::super::exit::{Inside, detached};
use super::super::wait::{Terms, caller, settle};
use super::event::Events;
use super::text::{payload_object, seconds_of};
use super::{CoreJob, CoreQueue};
use crate::queue::{JobState, Selection};
use crate::wait::Parker;

/// One job.
#[pyclass(frozen, weakref, module = "coresident", name = "Job")]
pub(in crate::python) struct Job(pub(super) Arc<CoreJob>, pub(super) CoreQueue);

impl Job {
    /// What a job that is over came to.
    fn outcome(&self, py: Python<'_>, state: JobState) -> Result<Py<PyAny>> {
        let job = &self.0;
        let value = job.value(|value| (value.object(py), value.is_error));
        let now = job.now();
        let error = now.error.as_deref().unwrap_or("it failed");
        match (state, value) {
            (JobState::Done, Some((value, false))) => Ok(value),
            (JobState::Done, _) => match &now.path {
                Some(path) => {
                    let _inside = Inside::enter(py);
                    let class = py.import("pathlib")?.getattr("Path")?;
                    Ok(class.call1((&**path,))?.unbind())
                }
                None if now.earlier => {
                    let message = format!(
                        "job {} was done in an earlier process, and its result was not a path",
                        job.id
                    );
                    Err(raise("ResultNotKeptError", &message, |fields| {
                        fields.set_item("job", job.id)
                    }))
                }
                None => Ok(py.None()),
            },
            (JobState::Failed, Some((error, true))) => {
                let _inside = Inside::enter(py);
                Err(Error::of_task(PyErr::from_value(error.into_bound(py))))
            }
            (JobState::Failed, _) => {
                let message = format!("job {} failed: {error}", job.id);
                Err(raise("JobFailedError", &message, |fields| {
                    fields.set_item("job", job.id)?;
                    fields.set_item("error", error)
                }))
            }
            (..) => {
                let message = format!("job {} was {error}", job.id);
                let reason = error.strip_prefix("cancelled: ").map(str::to_owned);
                Err(raise("CancelledError", &message, |fields| fields.set_item("reason", reason)))
            }
        }
    }

    fn wait_for(&self, py: Python<'_>, terms: Terms) -> Result<JobState> {
        self.0.check()?;
        let state = self.0.state();
        if state.is_over() {
            return Ok(state);
        }
        terms.check("the end of a job")?;
        let owner = caller(py)?;
        let parker = Parker::new();
        let asked = self.0.ask(&owner, parker.clone())?;
        settle(py, asked, &parker, terms)
    }
}

#[pymethods]
impl Job {
    /// Its number.
    #[getter]
    fn id(&self) -> u64 {
        self.0.id
    }

    /// Whose it is.
    #[getter]
    fn user(&self) -> &str {
        &self.0.user
    }

    /// Its priority.
    #[getter]
    fn priority(&self) -> i32 {
        self.0.now().priority
    }

    /// Its batch.
    #[getter]
    fn batch(&self) -> Option<&str> {
        self.0.batch.as_deref()
    }

    /// Its tags.
    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        Ok(PyTuple::new(py, self.0.tags.iter().map(|tag| &**tag))?)
    }

    /// Keys of the weights that it uses.
    #[getter]
    fn needs<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        Ok(PyTuple::new(py, self.0.needs.iter().map(|key| &**key))?)
    }

    /// What was submitted: bytes, or a new copy of what JSON said.
    #[getter]
    fn payload(&self, py: Python<'_>) -> Result<Py<PyAny>> {
        payload_object(py, &self.0.payload)
    }

    /// How it stands.
    #[getter]
    fn state(&self) -> &'static str {
        self.0.state().as_str()
    }

    /// Whether it runs, and was told to stop.
    #[getter]
    fn cancelling(&self) -> bool {
        self.0.now().cancelling
    }

    /// How often it was begun.
    #[getter]
    fn attempts(&self) -> u32 {
        self.0.now().attempts
    }

    /// How often it may be begun.
    #[getter]
    fn max_attempts(&self) -> u32 {
        self.0.max_attempts
    }

    /// Where it runs or ran last.
    #[getter]
    fn device(&self) -> Option<Device> {
        let device = self.0.now().device?;
        self.1.devices().get(device).cloned().map(Device::of)
    }

    /// What its claim said last about where it is.
    #[getter]
    fn stage(&self) -> Option<String> {
        self.0.now().stage.as_deref().map(str::to_owned)
    }

    /// The step that its claim told last, and of how many.
    #[getter]
    fn progress(&self) -> Option<(u32, u32)> {
        self.0.now().progress
    }

    /// When it was submitted, in seconds since the epoch.
    #[getter]
    fn submitted(&self) -> f64 {
        seconds_of(self.0.submitted)
    }

    /// When it was last claimed, in seconds since the epoch.
    #[getter]
    fn started(&self) -> Option<f64> {
        self.0.now().started.map(seconds_of)
    }

    /// When it was over, in seconds since the epoch.
    #[getter]
    fn finished(&self) -> Option<f64> {
        self.0.now().finished.map(seconds_of)
    }

    /// Why it failed or was cancelled, in words.
    #[getter]
    fn error(&self) -> Option<String> {
        self.0.now().error.as_deref().map(str::to_owned)
    }

    /// Whether it is over: done, failed or cancelled.
    fn done(&self) -> bool {
        self.0.state().is_over()
    }

    /// Whether it runs now.
    fn running(&self) -> bool {
        self.0.state() == JobState::Running
    }

    /// Whether it ended as cancelled.
    fn cancelled(&self) -> bool {
        self.0.state() == JobState::Cancelled
    }

    /// Cancels it.
    #[pyo3(signature = (reason=None))]
    #[expect(clippy::needless_pass_by_value, reason = "what is taken out of Python is owned")]
    fn cancel(&self, py: Python<'_>, reason: Option<String>) -> Result<bool> {
        let (queue, selection) = (&self.1, Selection::job(self.0.id));
        Ok(detached(py, || queue.cancel(&selection, reason.as_deref()))? == 1)
    }

    /// Waits until it is over, however it ends.
    #[pyo3(signature = (timeout=None, *, cancel=None))]
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<&'static str> {
        let terms = Terms::of(timeout, cancel)?;
        Ok(self.wait_for(py, terms)?.as_str())
    }

    /// What its claim finished with, the same object; waits for it.
    #[pyo3(signature = (timeout=None, *, cancel=None))]
    fn result(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Py<PyAny>> {
        let terms = Terms::of(timeout, cancel)?;
        let state = self.wait_for(py, terms)?;
        self.outcome(py, state)
    }

    /// What happens to it: first what is so now, then every change.
    fn events(&self) -> Result<Events> {
        self.0.check()?;
        let watcher = self.0.watch(self.1.now(), super::event::BUFFER);
        Ok(Events::of(watcher, self.1.clone()))
    }

    fn __await__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        self.0.check()?;
        let _inside = Inside::enter(py);
        let (job, queue) = (self.0.clone(), self.1.clone());
        let forever = Terms { timeout: None, cancel: None };
        let awaitable = aio::awaitable(py, forever, move |py, terms, target| {
            let asked = job.ask(&caller(py)?, target.waker())?;
            let job = Self(job.clone(), queue.clone());
            Request::of(asked, terms, target, move |py, state| job.outcome(py, state))
        })?;
        awaitable.call_method0("__await__").map_err(Error::from)
    }

    fn __richcmp__(&self, other: &Bound<'_, PyAny>, how: CompareOp) -> Option<bool> {
        let same = match other.cast::<Self>() {
            Ok(other) => Arc::ptr_eq(&self.0, &other.get().0),
            Err(_) => return None,
        };
        match how {
            CompareOp::Eq => Some(same),
            CompareOp::Ne => Some(!same),
            _ => None,
        }
    }

    fn __hash__(&self) -> u64 {
        self.0.id
    }

    fn __repr__(&self) -> String {
        let state =
            if self.0.check().is_ok() { self.0.state().as_str() } else { "of another process" };
        format!("<Job {} of {} {state}>", self.0.id, self.0.user)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        // While the queue has the job too, what it holds is in use, which the garbage collector
        // cannot see.
        if Arc::strong_count(&self.0) > 1 {
            return Ok(());
        }
        self.0.try_value(|value| visit.call(value.held())).unwrap_or(Ok(()))
    }

    fn __clear__(&self) {
        if Arc::strong_count(&self.0) == 1 {
            drop(self.0.take_value());
        }
    }
}
