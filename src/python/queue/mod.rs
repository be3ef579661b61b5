//! `JobQueue`, its jobs, claims and events.

mod claim;
mod event;
mod job;
mod status;
mod text;
mod value;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyEllipsis, PyList, PyMemoryView, PyString};

pub(super) use claim::{Claim, Offer};
pub(super) use event::{Event, Events};
pub(super) use job::Job;
pub(super) use status::{QueueStatus, UserStatus};

use super::aio::{self, Request};
use super::argument;
use super::device::{self, Device};
use super::error::{Error, Result, invalid_type, invalid_value};
use super::exit::detached;
use super::wait::{Terms, caller, patiently, settle};
use crate::device::Name;
use crate::queue::{self, Durability, Rules, Settings, Spec};
use crate::wait::Parker;
use text::{AGES, Which, micros_of};
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

/// What all the jobs of a call have in common.
struct Common<'a, 'py> {
    user: Option<&'a Bound<'py, PyAny>>,
    priority: Option<&'a Bound<'py, PyAny>>,
    batch: Option<&'a Bound<'py, PyAny>>,
    tags: Option<&'a Bound<'py, PyAny>>,
    needs: Option<&'a Bound<'py, PyAny>>,
    devices: Option<&'a Bound<'py, PyAny>>,
    memory: Option<&'a Bound<'py, PyAny>>,
    estimate: Option<&'a Bound<'py, PyAny>>,
    max_attempts: Option<&'a Bound<'py, PyAny>>,
}

impl Common<'_, '_> {
    fn spec(&self) -> Result<Spec> {
        let user = text::optional_name("user", self.user)?;
        let mut spec = Spec::of(user.as_deref().unwrap_or("default"), b"");
        spec.priority = given(self.priority).map(priority).transpose()?.unwrap_or(0);
        spec.batch = text::optional_name("batch", self.batch)?;
        spec.tags = text::names("tags", self.tags)?;
        spec.needs = text::names("needs", self.needs)?;
        spec.devices = given(self.devices).map(only).transpose()?;
        spec.memory =
            given(self.memory).map(|bytes| argument::bytes("memory", bytes)).transpose()?;
        let seconds = |value| text::number("estimate", value, 0.0, AGES);
        spec.estimate = given(self.estimate).map(seconds).transpose()?.map(micros_of);
        spec.max_attempts = given(self.max_attempts).map(attempts).transpose()?;
        Ok(spec)
    }
}

fn given<'a, 'py>(value: Option<&'a Bound<'py, PyAny>>) -> Option<&'a Bound<'py, PyAny>> {
    value.filter(|value| !value.is_none())
}

/// One device, or several.
fn only(value: &Bound<'_, PyAny>) -> Result<Vec<Name>> {
    if value.is_instance_of::<PyString>() || argument::is_one_device(value) {
        return Ok(vec![argument::name(value)?]);
    }
    argument::names("devices", value)
}

fn priority(value: &Bound<'_, PyAny>) -> Result<i32> {
    let priority = text::whole("priority", value, -1000, 1000)?;
    Ok(i32::try_from(priority).unwrap_or_default())
}

fn attempts(value: &Bound<'_, PyAny>) -> Result<u32> {
    let attempts = text::whole("max_attempts", value, 1, 1_000_000)?;
    Ok(u32::try_from(attempts).unwrap_or(1))
}

/// One of a few words.
fn word<T: Copy>(what: &str, value: &str, words: &[(&str, T)]) -> Result<T> {
    let known = words.iter().find(|(word, _)| *word == value);
    known.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(word, _)| format!("'{word}'")).collect();
        invalid_value(&format!("{what} is {}, not '{value}'", all.join(" or ")))
    })
}

fn speeds(value: &Bound<'_, PyAny>) -> Result<HashMap<Name, f64>> {
    let Ok(items) = value.call_method0("items") else {
        let given = argument::type_name(value);
        return Err(invalid_type(&format!(
            "speeds takes a mapping of devices to shares, not {given}"
        )));
    };
    let mut speeds = HashMap::new();
    for item in text::items("speeds", "items", &items)? {
        let (device, speed) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        speeds.insert(argument::name(&device)?, text::number("a speed", &speed, 0.001, 1.0)?);
    }
    Ok(speeds)
}

fn path_of(value: &Bound<'_, PyAny>) -> Result<PathBuf> {
    value.extract::<PathBuf>().map_err(|_| {
        invalid_type(&format!("path is a path or None, not {}", argument::type_name(value)))
    })
}

#[pymethods]
impl JobQueue {
    #[new]
    #[pyo3(signature = (
        path=None, *, devices, order="fair", ageing=Some(600.0), slack=30.0, priority_lead=0.0,
        speeds=None, max_attempts=None, max_payload=None, history=None, durability="process",
    ))]
    #[pyo3(
        text_signature = "(path=None, *, devices, order='fair', ageing=600.0, slack=30.0, priority_lead=0.0, speeds=None, max_attempts=3, max_payload='1MiB', history=10000, durability='process')"
    )]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn new(
        py: Python<'_>,
        path: Option<&Bound<'_, PyAny>>,
        devices: &Bound<'_, PyAny>,
        order: &str,
        ageing: Option<f64>,
        slack: f64,
        priority_lead: f64,
        speeds: Option<&Bound<'_, PyAny>>,
        max_attempts: Option<&Bound<'_, PyAny>>,
        max_payload: Option<&Bound<'_, PyAny>>,
        history: Option<&Bound<'_, PyAny>>,
        durability: &str,
    ) -> Result<Self> {
        let seconds = |what: &str, value: f64| -> Result<i64> {
            if (0.0..=AGES).contains(&value) {
                return Ok(micros_of(value));
            }
            Err(invalid_value(&format!("{what} must be 0 or more seconds, not {value}")))
        };
        let defaults = Settings::default();
        let rules = Rules {
            fifo: word("order", order, &[("fair", false), ("fifo", true)])?,
            ageing: ageing.map(|ageing| seconds("ageing", ageing)).transpose()?,
            slack: seconds("slack", slack)?,
            lead: seconds("priority_lead", priority_lead)?,
        };
        let words = [("process", Durability::Process), ("power", Durability::Power)];
        let durability = word("durability", durability, &words)?;
        let history = given(history).map(|value| text::whole("history", value, 0, 1 << 40));
        let history = history.transpose()?.and_then(|count| usize::try_from(count).ok());
        let max_payload = given(max_payload).map(|value| argument::bytes("max_payload", value));
        let settings = Settings {
            rules,
            speeds: given(speeds).map(self::speeds).transpose()?.unwrap_or_default(),
            max_attempts: given(max_attempts).map(attempts).transpose()?.unwrap_or(3),
            max_payload: max_payload.transpose()?.unwrap_or(defaults.max_payload),
            history: history.unwrap_or(defaults.history),
            ..defaults
        };
        let path = given(path).map(path_of).transpose()?;
        let devices = device::select("JobQueue()", devices)?;
        let unknown =
            settings.speeds.keys().find(|name| devices.iter().all(|one| one.name() != **name));
        if let Some(name) = unknown {
            let present = devices.iter().map(crate::device::Device::name).collect();
            return Err(queue::QueueError::NoDevice { name: *name, present }.into());
        }
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
    #[pyo3(signature = (
        payload=None, *, user=None, priority=None, batch=None, tags=None, needs=None, devices=None,
        memory=None, estimate=None, max_attempts=None,
    ))]
    #[pyo3(
        text_signature = "($self, payload=None, *, user='default', priority=0, batch=None, tags=(), needs=(), devices=None, memory=None, estimate=None, max_attempts=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn submit(
        &self,
        py: Python<'_>,
        payload: Option<&Bound<'_, PyAny>>,
        user: Option<&Bound<'_, PyAny>>,
        priority: Option<&Bound<'_, PyAny>>,
        batch: Option<&Bound<'_, PyAny>>,
        tags: Option<&Bound<'_, PyAny>>,
        needs: Option<&Bound<'_, PyAny>>,
        devices: Option<&Bound<'_, PyAny>>,
        memory: Option<&Bound<'_, PyAny>>,
        estimate: Option<&Bound<'_, PyAny>>,
        max_attempts: Option<&Bound<'_, PyAny>>,
    ) -> Result<Job> {
        self.0.check()?;
        let common =
            Common { user, priority, batch, tags, needs, devices, memory, estimate, max_attempts };
        let mut spec = common.spec()?;
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
    #[pyo3(signature = (
        payloads, *, user=None, priority=None, batch=None, tags=None, needs=None, devices=None,
        memory=None, estimate=None, max_attempts=None,
    ))]
    #[pyo3(
        text_signature = "($self, payloads, *, user='default', priority=0, batch=None, tags=(), needs=(), devices=None, memory=None, estimate=None, max_attempts=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn submit_many(
        &self,
        py: Python<'_>,
        payloads: &Bound<'_, PyAny>,
        user: Option<&Bound<'_, PyAny>>,
        priority: Option<&Bound<'_, PyAny>>,
        batch: Option<&Bound<'_, PyAny>>,
        tags: Option<&Bound<'_, PyAny>>,
        needs: Option<&Bound<'_, PyAny>>,
        devices: Option<&Bound<'_, PyAny>>,
        memory: Option<&Bound<'_, PyAny>>,
        estimate: Option<&Bound<'_, PyAny>>,
        max_attempts: Option<&Bound<'_, PyAny>>,
    ) -> Result<Vec<Job>> {
        self.0.check()?;
        let common =
            Common { user, priority, batch, tags, needs, devices, memory, estimate, max_attempts };
        let spec = common.spec()?;
        let is_one = payloads.is_instance_of::<PyString>()
            || payloads.is_instance_of::<PyBytes>()
            || payloads.is_instance_of::<PyByteArray>()
            || payloads.is_instance_of::<PyMemoryView>()
            || payloads.is_instance_of::<PyDict>();
        if is_one {
            let given = argument::type_name(payloads);
            return Err(invalid_type(&format!(
                "submit_many takes a list of payloads, and one {given} is a payload"
            )));
        }
        let mut specs = Vec::new();
        for payload in text::items("submit_many", "payloads", payloads)? {
            specs.push(Spec { payload: text::payload(&payload)?, ..spec.clone() });
        }
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
        let name = argument::name(device)?;
        let terms = Terms::of(timeout, cancel)?;
        self.0.check()?;
        terms.check("a job")?;
        let owner = caller(py)?;
        let claim = patiently(py, terms, |patience| self.0.claim(name, &owner, patience))?;
        Ok(Claim::of(claim, self.0.clone(), &owner))
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
        let name = argument::name(device)?;
        let terms = Terms::of(timeout, cancel)?;
        let queue = self.0.clone();
        aio::awaitable(py, terms, move |py, terms, target| {
            let owner = caller(py)?;
            terms.check("a job")?;
            let asked = queue.ask(name, &owner, || target.waker())?;
            let queue = queue.clone();
            Request::of(asked, terms, target, move |py, offer: CoreOffer| {
                match detached(py, || offer.accept())? {
                    Some(claim) => {
                        let claim = Claim::of(claim, queue, &owner);
                        Ok(Py::new(py, claim)?.into_any())
                    }
                    // Cancelled between its offer and now: as if there had been none.
                    None => Err(gone(offer.job().id)),
                }
            })
        })
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
        let name = argument::name(device)?;
        let terms = Terms::of(timeout, cancel)?;
        self.0.check()?;
        terms.check("a job")?;
        let owner = caller(py)?;
        let parker = Parker::new();
        let asked = self.0.ask(name, &owner, || parker.clone())?;
        Ok(Offer::of(settle(py, asked, &parker, terms)?, self.0.clone()))
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
        let name = argument::name(device)?;
        let terms = Terms::of(timeout, cancel)?;
        let queue = self.0.clone();
        aio::awaitable(py, terms, move |py, terms, target| {
            let owner = caller(py)?;
            terms.check("a job")?;
            let asked = queue.ask(name, &owner, || target.waker())?;
            let queue = queue.clone();
            Request::of(asked, terms, target, move |py, offer| {
                Ok(Py::new(py, Offer::of(offer, queue))?.into_any())
            })
        })
    }

    /// Cancels jobs.
    #[pyo3(signature = (jobs=None, *, batch=None, user=None, tag=None, everything=false, reason=None))]
    #[expect(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        reason = "the Python signature"
    )]
    fn cancel(
        &self,
        py: Python<'_>,
        jobs: Option<&Bound<'_, PyAny>>,
        batch: Option<&Bound<'_, PyAny>>,
        user: Option<&Bound<'_, PyAny>>,
        tag: Option<&Bound<'_, PyAny>>,
        everything: bool,
        reason: Option<String>,
    ) -> Result<u64> {
        let which = Which { jobs, batch, user, tag, state: None };
        let selection = which.meant(everything)?;
        Ok(detached(py, || self.0.cancel(&selection, reason.as_deref()))?)
    }

    /// Queues jobs again that failed or were cancelled.
    #[pyo3(signature = (jobs=None, *, batch=None, user=None, tag=None, everything=false, front=false))]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn retry(
        &self,
        py: Python<'_>,
        jobs: Option<&Bound<'_, PyAny>>,
        batch: Option<&Bound<'_, PyAny>>,
        user: Option<&Bound<'_, PyAny>>,
        tag: Option<&Bound<'_, PyAny>>,
        everything: bool,
        front: bool,
    ) -> Result<u64> {
        let selection = Which { jobs, batch, user, tag, state: None }.meant(everything)?;
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
        let priority = given(priority).map(self::priority).transpose()?;
        if front.is_none() && priority.is_none() {
            return Err(invalid_value("say where to: to='front', to='back' or priority="));
        }
        let nothing = None;
        let which =
            Which { jobs: Some(jobs), batch: nothing, user: nothing, tag: nothing, state: nothing };
        let selection = which.meant(false)?;
        Ok(detached(py, || self.0.rearrange(&selection, front, priority))?)
    }

    /// Forgets jobs.
    #[pyo3(signature = (jobs=None, *, batch=None, user=None, tag=None, state=None, everything=false))]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn delete(
        &self,
        py: Python<'_>,
        jobs: Option<&Bound<'_, PyAny>>,
        batch: Option<&Bound<'_, PyAny>>,
        user: Option<&Bound<'_, PyAny>>,
        tag: Option<&Bound<'_, PyAny>>,
        state: Option<&Bound<'_, PyAny>>,
        everything: bool,
    ) -> Result<u64> {
        let selection = Which { jobs, batch, user, tag, state }.meant(everything)?;
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
        let (mut weight, mut running, mut queued, mut gpu_time) = (None, None, None, None);
        for (key, value) in limits.into_iter().flatten() {
            if value.is_instance_of::<PyEllipsis>() {
                continue;
            }
            let count = |what: &str| -> Result<Option<u64>> {
                given(Some(&value)).map(|value| argument::whole_number(what, value)).transpose()
            };
            match key.cast::<PyString>().map(|key| key.to_string_lossy().into_owned()).as_deref() {
                Ok("weight") => weight = Some(text::number("weight", &value, 0.001, 1000.0)?),
                Ok("running") => running = Some(count("running")?),
                Ok("queued") => queued = Some(count("queued")?),
                Ok("gpu_seconds_per_hour") => {
                    let seconds = |value| text::number("gpu_seconds_per_hour", value, 0.0, AGES);
                    gpu_time = Some(given(Some(&value)).map(seconds).transpose()?.map(micros_of));
                }
                _ => {
                    return Err(invalid_type(&format!(
                        "set_user() takes weight=, running=, queued= and gpu_seconds_per_hour=, not {key}"
                    )));
                }
            }
        }
        let change = |limits: &mut queue::Limits| {
            limits.weight = weight.unwrap_or(limits.weight);
            limits.running = running.unwrap_or(limits.running);
            limits.queued = queued.unwrap_or(limits.queued);
            limits.gpu_time_per_hour = gpu_time.unwrap_or(limits.gpu_time_per_hour);
        };
        Ok(detached(py, || self.0.set_limits(&name, change))?)
    }

    /// The job with this number.
    fn job(&self, id: &Bound<'_, PyAny>) -> Result<Job> {
        let id = argument::whole_number("a job's number", id)?;
        Ok(self.of(self.0.job(id)?))
    }

    /// Jobs in order of their numbers.
    #[pyo3(signature = (*, batch=None, user=None, tag=None, state=None, limit=None))]
    fn jobs(
        &self,
        py: Python<'_>,
        batch: Option<&Bound<'_, PyAny>>,
        user: Option<&Bound<'_, PyAny>>,
        tag: Option<&Bound<'_, PyAny>>,
        state: Option<&Bound<'_, PyAny>>,
        limit: Option<&Bound<'_, PyAny>>,
    ) -> Result<Vec<Job>> {
        let selection = Which { jobs: None, batch, user, tag, state }.selection()?;
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

/// A job was cancelled in the instant in which a task was given it.
fn gone(id: u64) -> Error {
    let reason = Some("it was offered and cancelled at once; ask again".to_owned());
    crate::wait::WaitError::Cancelled { wants: format!("job {id}"), reason }.into()
}
