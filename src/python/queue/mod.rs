//! `JobQueue`, its jobs, claims and events.

mod asking;
mod claim;
mod event;
mod job;
mod setting;
mod status;
mod submission;
mod text;
mod value;

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

pub(super) use claim::{Claim, Offer};
pub(super) use event::{Event, Events};
pub(super) use job::Job;
pub(super) use status::{QueueStatus, UserStatus};

use super::argument;
use super::device::{self, Device};
use super::error::{Result, invalid_value};
use super::exit::detached;
use super::wait::Terms;
use crate::queue;
use text::{given, word};
pub(super) use value::Value;

type CoreQueue = queue::JobQueue<Value>;
type CoreJob = queue::Job<Value>;
type CoreClaim = queue::Claim<Value>;
type CoreOffer = queue::Offer<Value>;
type CoreEvent = queue::Event<Value>;
type CoreSubscriber = queue::Subscriber<Value>;

/// Jobs of many users, for any number of devices.
#[pyclass(frozen, weakref, module = "coresident", name = "JobQueue")]
pub(super) struct JobQueue(CoreQueue);

impl JobQueue {
    /// The queue, for what connects it with others.
    pub(super) fn inner(&self) -> &CoreQueue {
        &self.0
    }

    fn of(&self, job: Arc<CoreJob>) -> Job {
        Job(job, self.0.clone())
    }
}

#[pymethods]
impl JobQueue {
    #[new]
    #[pyo3(
        signature = (path=None, *, devices, durability="process", **said),
        text_signature = "(path=None, *, devices, order='fair', ageing=600.0, slack=30.0, priority_lead=0.0, speeds=None, max_attempts=3, max_payload='1MiB', history=10000, durability='process')"
    )]
    fn new(
        py: Python<'_>,
        path: Option<&Bound<'_, PyAny>>,
        devices: &Bound<'_, PyAny>,
        durability: &str,
        said: Option<&Bound<'_, PyDict>>,
    ) -> Result<Self> {
        let (settings, durability) = (setting::settings(said)?, setting::durability(durability)?);
        let path = setting::path(path)?;
        let devices = device::select("JobQueue()", devices)?;
        setting::check_speeds(&settings.speeds, &devices)?;
        let queue = match path {
            None => CoreQueue::new(devices, settings),
            Some(path) => detached(py, || CoreQueue::open(&path, durability, devices, settings)),
        };
        Ok(Self(queue?))
    }

    /// The devices, in order.
    #[getter]
    fn devices(&self) -> Vec<Device> {
        self.0.devices().iter().cloned().map(Device::of).collect()
    }

    /// The file; `None` in memory.
    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.0.path()
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> Result<bool> {
        self.0.check()?;
        Ok(self.0.is_closed())
    }

    /// Queues a job.
    #[pyo3(
        signature = (payload=None, **said),
        text_signature = "($self, payload=None, *, user='default', priority=0, batch=None, tags=(), needs=(), devices=None, memory=None, estimate=None, max_attempts=None)"
    )]
    fn submit(
        &self,
        py: Python<'_>,
        payload: Option<&Bound<'_, PyAny>>,
        said: Option<&Bound<'_, PyDict>>,
    ) -> Result<Job> {
        self.0.check()?;
        let mut spec = submission::spec("submit", said)?;
        let nothing = py.None().into_bound(py);
        spec.payload = text::payload(payload.unwrap_or(&nothing))?;
        let job = if self.0.is_durable() {
            detached(py, || self.0.submit(spec))?
        } else {
            self.0.submit(spec)?
        };
        Ok(self.of(job))
    }

    /// Queues jobs that differ in their payloads alone: all of them, or none.
    #[pyo3(
        signature = (payloads, **said),
        text_signature = "($self, payloads, *, user='default', priority=0, batch=None, tags=(), needs=(), devices=None, memory=None, estimate=None, max_attempts=None)"
    )]
    fn submit_many(
        &self,
        py: Python<'_>,
        payloads: &Bound<'_, PyAny>,
        said: Option<&Bound<'_, PyDict>>,
    ) -> Result<Vec<Job>> {
        self.0.check()?;
        let specs = submission::specs(payloads, said)?;
        let jobs = detached(py, || self.0.submit_all(specs))?;
        Ok(jobs.into_iter().map(|job| self.of(job)).collect())
    }

    /// Takes the job that this device is to run next; waits until there is one.
    #[pyo3(signature = (device, *, timeout=None, cancel=None))]
    fn claim(
        &self,
        py: Python<'_>,
        device: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Claim> {
        asking::claim(&self.0, py, argument::name(device)?, Terms::of(timeout, cancel)?)
    }

    /// As `claim`, for asyncio: the task waits for a job, its thread does not.
    #[pyo3(signature = (device, *, timeout=None, cancel=None))]
    fn claim_async<'py>(
        &self,
        py: Python<'py>,
        device: &Bound<'py, PyAny>,
        timeout: Option<&Bound<'py, PyAny>>,
        cancel: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        asking::claim_async(&self.0, py, argument::name(device)?, Terms::of(timeout, cancel)?)
    }

    /// Waits for a job for this device, and has it kept for the caller.
    #[pyo3(signature = (device, *, timeout=None, cancel=None))]
    fn offer(
        &self,
        py: Python<'_>,
        device: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Offer> {
        asking::offer(&self.0, py, argument::name(device)?, Terms::of(timeout, cancel)?)
    }

    /// As `offer`, for asyncio: the task waits, its thread does not.
    #[pyo3(signature = (device, *, timeout=None, cancel=None))]
    fn offer_async<'py>(
        &self,
        py: Python<'py>,
        device: &Bound<'py, PyAny>,
        timeout: Option<&Bound<'py, PyAny>>,
        cancel: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        asking::offer_async(&self.0, py, argument::name(device)?, Terms::of(timeout, cancel)?)
    }

    /// Cancels jobs.
    #[pyo3(
        signature = (jobs=None, *, everything=false, reason=None, **by),
        text_signature = "($self, jobs=None, *, batch=None, user=None, tag=None, everything=False, reason=None)"
    )]
    #[expect(clippy::needless_pass_by_value, reason = "the Python signature")]
    fn cancel(
        &self,
        py: Python<'_>,
        jobs: Option<&Bound<'_, PyAny>>,
        everything: bool,
        reason: Option<String>,
        by: Option<&Bound<'_, PyDict>>,
    ) -> Result<u64> {
        let selection = text::meant("cancel", jobs, by, everything)?;
        Ok(detached(py, || self.0.cancel(&selection, reason.as_deref()))?)
    }

    /// Queues jobs again that failed or were cancelled.
    #[pyo3(
        signature = (jobs=None, *, everything=false, front=false, **by),
        text_signature = "($self, jobs=None, *, batch=None, user=None, tag=None, everything=False, front=False)"
    )]
    fn retry(
        &self,
        py: Python<'_>,
        jobs: Option<&Bound<'_, PyAny>>,
        everything: bool,
        front: bool,
        by: Option<&Bound<'_, PyDict>>,
    ) -> Result<u64> {
        let selection = text::meant("retry", jobs, by, everything)?;
        Ok(detached(py, || self.0.retry(&selection, front))?)
    }

    /// Gives queued jobs another place among those of their users.
    #[pyo3(signature = (jobs, to=None, *, priority=None))]
    fn r#move(
        &self,
        py: Python<'_>,
        jobs: &Bound<'_, PyAny>,
        to: Option<&str>,
        priority: Option<&Bound<'_, PyAny>>,
    ) -> Result<u64> {
        let front = to.map(|to| word("to", to, &[("front", true), ("back", false)])).transpose()?;
        let priority = given(priority).map(submission::priority).transpose()?;
        if front.is_none() && priority.is_none() {
            return Err(invalid_value("say where to: to='front', to='back' or priority="));
        }
        let selection = text::meant("move", Some(jobs), None, false)?;
        Ok(detached(py, || self.0.rearrange(&selection, front, priority))?)
    }

    /// Forgets jobs.
    #[pyo3(
        signature = (jobs=None, *, everything=false, **by),
        text_signature = "($self, jobs=None, *, batch=None, user=None, tag=None, state=None, everything=False)"
    )]
    fn delete(
        &self,
        py: Python<'_>,
        jobs: Option<&Bound<'_, PyAny>>,
        everything: bool,
        by: Option<&Bound<'_, PyDict>>,
    ) -> Result<u64> {
        let selection = text::meant("delete", jobs, by, everything)?;
        Ok(detached(py, || self.0.delete(&selection))?)
    }

    /// Has no more jobs claimed, of one user or at all.
    #[pyo3(signature = (user=None))]
    fn pause(&self, user: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let user = text::optional_name("user", user)?;
        Ok(self.0.pause(user.as_ref(), true)?)
    }

    /// Ends a pause, of one user or of the whole queue.
    #[pyo3(signature = (user=None))]
    fn resume(&self, user: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let user = text::optional_name("user", user)?;
        Ok(self.0.pause(user.as_ref(), false)?)
    }

    /// Says what a user may have.
    #[pyo3(signature = (name, **limits))]
    #[pyo3(
        text_signature = "($self, name, *, weight=..., running=..., queued=..., gpu_seconds_per_hour=...)"
    )]
    fn set_user(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        limits: Option<&Bound<'_, PyDict>>,
    ) -> Result<()> {
        let name = text::name("name", name)?;
        let change = setting::limits(limits)?;
        Ok(detached(py, || self.0.set_limits(&name, change))?)
    }

    /// The job with this number.
    fn job(&self, id: &Bound<'_, PyAny>) -> Result<Job> {
        let id = argument::whole_number("a job's number", id)?;
        Ok(self.of(self.0.job(id)?))
    }

    /// Jobs in order of their numbers.
    #[pyo3(
        signature = (*, limit=None, **by),
        text_signature = "($self, *, batch=None, user=None, tag=None, state=None, limit=None)"
    )]
    fn jobs(
        &self,
        py: Python<'_>,
        limit: Option<&Bound<'_, PyAny>>,
        by: Option<&Bound<'_, PyDict>>,
    ) -> Result<Vec<Job>> {
        let selection = text::selection("jobs", None, by)?;
        let limit = given(limit).map(|limit| argument::whole_number("limit", limit)).transpose()?;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let jobs = detached(py, || self.0.jobs(&selection, limit))?;
        Ok(jobs.into_iter().map(|job| self.of(job)).collect())
    }

    /// How many jobs are in which state, and what each user has had.
    fn status(&self, py: Python<'_>) -> Result<QueueStatus> {
        Ok(QueueStatus::of(py, self.0.status()?)?)
    }

    /// What the jobs need that this device would claim next.
    #[pyo3(signature = (device, jobs=None))]
    #[pyo3(text_signature = "($self, device, jobs=2)")]
    fn forecast<'py>(
        &self,
        py: Python<'py>,
        device: &Bound<'_, PyAny>,
        jobs: Option<&Bound<'_, PyAny>>,
    ) -> Result<Bound<'py, PyList>> {
        let name = argument::name(device)?;
        let most = jobs.map(|jobs| text::whole("jobs", jobs, 0, 1000)).transpose()?.unwrap_or(2);
        let next = self.0.forecast(name, usize::try_from(most).unwrap_or(0))?;
        let lists = next.iter().map(|needs| PyList::new(py, needs.iter().map(|key| &**key)));
        Ok(PyList::new(py, lists.collect::<PyResult<Vec<_>>>()?)?)
    }

    /// What happens to jobs from now on.
    #[pyo3(signature = (*, user=None, buffer=None))]
    #[pyo3(text_signature = "($self, *, user=None, buffer=1024)")]
    fn subscribe(
        &self,
        user: Option<&Bound<'_, PyAny>>,
        buffer: Option<&Bound<'_, PyAny>>,
    ) -> Result<Events> {
        let user = text::optional_name("user", user)?;
        let buffer = given(buffer).map(|buffer| text::whole("buffer", buffer, 1, 1_000_000));
        let buffer = buffer.transpose()?.and_then(|buffer| usize::try_from(buffer).ok());
        let subscriber = self.0.subscribe(user, buffer.unwrap_or(event::BUFFER))?;
        Ok(Events::of(subscriber, self.0.clone()))
    }

    /// Takes no more jobs, and turns away whoever waits for one.
    fn close(&self, py: Python<'_>) {
        detached(py, || self.0.close());
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.close(py);
    }

    fn __len__(&self) -> Result<usize> {
        Ok(usize::try_from(self.0.queued()?).unwrap_or(usize::MAX))
    }

    #[expect(clippy::unused_self, reason = "the Python signature")]
    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self) -> Result<String> {
        let [queued, running, ..] = self.0.status()?.counts;
        let place = self.0.path().map_or_else(String::new, |path| format!(" {}", path.display()));
        let closed = if self.0.is_closed() { ", closed" } else { "" };
        Ok(format!("<JobQueue{place}: {queued} queued, {running} running{closed}>"))
    }
}
