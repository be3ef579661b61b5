//! `WorkerPool`, its tickets and the lanes that its threads serve.

mod lane;
mod scatter;
mod status;
mod task;
mod ticket;
mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::Mutex;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

pub(super) use lane::Lane;
pub(super) use status::WorkerStatus;
pub(super) use ticket::Ticket;

use super::device::{self, Device};
use super::error::{Error, Result, invalid_type, invalid_value, raise};
use super::exit::{Inside, attached};
use super::wait::{Terms, caller, patiently};
use super::{argument, context};
use crate::device::{self as core_device, Name};
use crate::pool::PoolError;
use crate::wait::{Deadlock, Owner, Step, seconds};
use crate::worker::{self, Finished, Pushed};
use task::{Outcome, Task, cancel_future};
use waits::{wait_for, wait_for_workers};

type CoreLane = worker::Lane<Task, Outcome>;
type CoreTicket = worker::Ticket<Task, Outcome>;

/// One device's lane, and what its thread must know of it.
struct Post {
    device: core_device::Device,
    lane: Arc<CoreLane>,
    /// Whether the start hook has to run before the next task.
    unprepared: AtomicBool,
}

/// One persistent thread per device.
#[pyclass(frozen, weakref, module = "coresident", name = "WorkerPool")]
pub(super) struct WorkerPool {
    posts: Vec<Arc<Post>>,
    on_start: Option<Py<PyAny>>,
    torch_threads: Option<Py<PyAny>>,
}

impl WorkerPool {
    fn post_of(&self, name: Name) -> Result<&Arc<Post>> {
        let known = self.posts.iter().find(|post| post.device.name() == name);
        let post = known.ok_or_else(|| {
            let present = self.posts.iter().map(|post| post.device.name()).collect();
            PoolError::NotInPool { name, present }
        })?;
        post.lane.check()?;
        Ok(post)
    }

    fn task(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Result<Task> {
        Ok(Task::new(py, function, args, kwargs, self.on_start.as_ref())?)
    }

    /// Has the lane's thread started, if it is not there.
    fn ensure_worker(&self, py: Python<'_>, post: &Arc<Post>) -> Result<()> {
        if post.lane.claim_worker() {
            return self.start_worker(py, post);
        }
        Ok(())
    }

    fn start_worker(&self, py: Python<'_>, post: &Arc<Post>) -> Result<()> {
        let _inside = Inside::enter(py);
        let lane = Py::new(py, Lane::new(post.clone()))?;
        let start = || -> PyResult<()> {
            let serve = py.import("coresident._serve")?.getattr("start")?;
            serve.call1((&lane, &self.torch_threads, self.posts.len()))?;
            Ok(())
        };
        start().or_else(|error| {
            lane.get().give_up(py)?;
            Err(error.into())
        })
    }

    fn push(&self, py: Python<'_>, post: &Arc<Post>, task: Task) -> Result<Arc<CoreTicket>> {
        let pushed = post.lane.push(task)?;
        if pushed.needs_worker {
            self.start_worker(py, post)?;
        }
        Ok(pushed.ticket)
    }
}

impl Post {
    /// Whether a call for this device runs where it is made: on its own worker, or in code that
    /// holds the device.
    fn is_callers_own(&self, py: Python<'_>) -> Result<bool> {
        if self.lane.is_served_by(Owner::this_thread()) {
            return Ok(true);
        }
        Ok(context::current(py)?.is_some_and(|device| device == self.device))
    }
}

/// Tells everyone who waits for these tasks that they will not run.
fn cancel_all(py: Python<'_>, cancelled: Vec<(Task, Finished)>) -> Result<()> {
    let tasks: Vec<Task> = cancelled
        .into_iter()
        .map(|(task, finished)| {
            finished.wake();
            task
        })
        .collect();
    // Everyone is told, whatever somebody's callback raises.
    let outcomes: Vec<Result<()>> = tasks.iter().map(|task| cancel_future(py, task)).collect();
    outcomes.into_iter().collect()
}

fn check_callable(function: &Bound<'_, PyAny>) -> Result<()> {
    if function.is_callable() {
        return Ok(());
    }
    Err(invalid_type(&format!(
        "a task is something to call, not {}",
        argument::type_name(function)
    )))
}

#[pymethods]
impl WorkerPool {
    #[new]
    #[pyo3(signature = (devices, *, on_start=None, torch_threads=None))]
    fn new(
        devices: &Bound<'_, PyAny>,
        on_start: Option<&Bound<'_, PyAny>>,
        torch_threads: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let on_start = on_start.filter(|hook| !hook.is_none());
        if let Some(hook) = on_start.filter(|hook| !hook.is_callable()) {
            let given = argument::type_name(hook);
            return Err(invalid_type(&format!(
                "on_start takes a function of the device, not {given}"
            )));
        }
        let torch_threads = torch_threads.filter(|threads| !threads.is_none());
        if let Some(threads) = torch_threads
            && argument::whole_number("torch_threads", threads)? == 0
        {
            return Err(invalid_value("torch_threads must be at least 1"));
        }
        let posts = device::select("WorkerPool()", devices)?.into_iter().map(|device| {
            let lane = CoreLane::new(&device.to_string());
            Arc::new(Post { device, lane, unprepared: AtomicBool::new(true) })
        });
        Ok(Self {
            posts: posts.collect(),
            on_start: on_start.map(|hook| hook.clone().unbind()),
            torch_threads: torch_threads.map(|threads| threads.clone().unbind()),
        })
    }

    /// The devices of the pool, in order.
    #[getter]
    fn devices(&self) -> Vec<Device> {
        self.posts.iter().map(|post| Device::of(post.device.clone())).collect()
    }

    /// Queues `function(*args, **kwargs)` on the device's worker. Does not wait.
    #[pyo3(signature = (device, function, /, *args, **kwargs))]
    fn post(
        &self,
        py: Python<'_>,
        device: &Bound<'_, PyAny>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Result<Ticket> {
        let post = self.post_of(argument::name(device)?)?;
        check_callable(function)?;
        let task = self.task(py, function, args, kwargs)?;
        Ok(Ticket(self.push(py, post, task)?))
    }

    /// As `post`, with a real `concurrent.futures.Future`. Does not wait.
    #[pyo3(signature = (device, function, /, *args, **kwargs))]
    fn submit<'py>(
        &self,
        py: Python<'py>,
        device: &Bound<'_, PyAny>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Result<Bound<'py, PyAny>> {
        static FUTURE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let post = self.post_of(argument::name(device)?)?;
        check_callable(function)?;
        let _inside = Inside::enter(py);
        let class = FUTURE.get_or_try_init(py, || {
            PyResult::Ok(py.import("coresident._future")?.getattr("WorkerFuture")?.unbind())
        });
        let future = class.and_then(|class| class.bind(py).call0())?;
        let mut task = self.task(py, function, args, kwargs)?;
        task.future = Some(future.clone().unbind());
        let ticket = Ticket(self.push(py, post, task)?);
        future.setattr(pyo3::intern!(py, "_ticket"), ticket)?;
        Ok(future)
    }

    /// Calls `function(*args, **kwargs)` on the device's worker, and waits for its value.
    #[pyo3(signature = (device, function, /, *args, timeout=None, cancel=None, **kwargs))]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn run(
        &self,
        py: Python<'_>,
        device: &Bound<'_, PyAny>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Result<Py<PyAny>> {
        let post = self.post_of(argument::name(device)?)?;
        check_callable(function)?;
        let terms = Terms::of(timeout, cancel)?;
        terms.check("a task")?;
        if post.is_callers_own(py)? {
            let _inside = Inside::enter(py);
            return Ok(function.call(args, kwargs)?.unbind());
        }
        self.ensure_worker(py, post)?;
        let task = self.task(py, function, args, kwargs)?;
        let owner = caller(py)?;
        // Pushed once detached, so that the worker finds the interpreter free.
        let lane = post.lane.clone();
        let given: Mutex<Option<Arc<CoreTicket>>> = Mutex::new(None);
        let outcome = patiently(py, terms, |patience| {
            let Pushed { ticket, needs_worker } = lane.push(task)?;
            *given.lock() = Some(ticket.clone());
            if needs_worker {
                // The one that was there has left meanwhile.
                attached(|py| self.start_worker(py, post))?;
            }
            Ok::<_, Error>(wait_for(&ticket, &owner, patience)?)
        });
        match (outcome, given.into_inner()) {
            (Ok(()), Some(ticket)) => Ticket(ticket).ended(py),
            (Err(error), Some(ticket)) => {
                // Nobody waits for it any more.
                Ticket(ticket).cancel(py, Some("the caller stopped waiting".to_owned()))?;
                Err(error)
            }
            (outcome, None) => {
                Err(outcome.err().unwrap_or_else(|| invalid_value("nothing was queued")))
            }
        }
    }

    /// Calls one function per device at the same time, and waits for all of them.
    #[pyo3(signature = (calls, *, timeout=None, cancel=None))]
    fn scatter<'py>(
        &self,
        py: Python<'py>,
        calls: &Bound<'py, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Bound<'py, PyDict>> {
        let terms = Terms::of(timeout, cancel)?;
        terms.check("a task")?;
        scatter::scatter(self, py, calls, &terms)
    }

    /// Has `on_start` called again before the device's next task. Does not wait.
    fn restart(&self, device: &Bound<'_, PyAny>) -> Result<()> {
        let post = self.post_of(argument::name(device)?)?;
        post.unprepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes no more tasks, and waits until the workers are through. May be called again.
    #[pyo3(signature = (how="drain", *, timeout=None))]
    fn close(&self, py: Python<'_>, how: &str, timeout: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let terms = Terms::of(timeout, None)?;
        let owner = caller(py)?;
        self.refuse_own_worker(&owner)?;
        match how {
            "drain" => self.posts.iter().for_each(|post| post.lane.drain()),
            "cancel" => {
                let reason = Some("the worker pool was closed");
                let cancelled = self.posts.iter().flat_map(|post| post.lane.cancel(reason));
                cancel_all(py, cancelled.collect())?;
            }
            other => {
                let message = format!("close() takes how='drain' or how='cancel', not {other:?}");
                return Err(invalid_value(&message));
            }
        }
        let lanes: Vec<Arc<CoreLane>> = self.posts.iter().map(|post| post.lane.clone()).collect();
        let timeout = terms.timeout;
        let left = patiently(py, terms, |patience| wait_for_workers(&lanes, &owner, patience));
        match left {
            Ok(true) => Ok(()),
            Ok(false) => {
                let running = self.running()?;
                let message = format!(
                    "timed out after {} waiting for the workers to finish: {}",
                    seconds(timeout.unwrap_or_default()),
                    running.join("; ")
                );
                Err(raise("WaitTimeoutError", &message, |fields| {
                    fields.set_item("timeout", timeout.unwrap_or_default().as_secs_f64())?;
                    fields.set_item("running", running)
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// What every worker does. Does not wait.
    fn status(&self) -> Result<Vec<WorkerStatus>> {
        self.posts.iter().map(|post| WorkerStatus::of(post)).collect()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> Result<()> {
        self.close(py, if kind.is_none() { "drain" } else { "cancel" }, None)
    }

    fn __repr__(&self) -> Result<String> {
        let told = self.status()?.iter().map(WorkerStatus::told).collect::<Vec<_>>().join(", ");
        Ok(format!("<WorkerPool {told}>"))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.on_start)
    }
}

impl WorkerPool {
    /// A worker that waits for itself to finish would wait for ever: nothing is closed then.
    fn refuse_own_worker(&self, caller: &Owner) -> Result<()> {
        let here = Owner::this_thread();
        let is_own = |post: &&Arc<Post>| post.lane.check().is_ok() && post.lane.is_served_by(here);
        let Some(post) = self.posts.iter().find(is_own) else { return Ok(()) };
        let wants = format!("the worker of {} to finish", post.device);
        let waiter = caller.to_string();
        let holders = vec![waiter.clone()];
        Err(Deadlock { steps: vec![Step { waiter, wants, holders }] }.into())
    }

    /// The lanes that are not through, in words.
    fn running(&self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for post in &self.posts {
            let status = post.lane.status()?;
            if let Some(running_for) = status.running_for {
                let (running, queued) = (seconds(running_for), status.queued);
                told.push(format!(
                    "{} has run a task for {running}, {queued} queued",
                    status.device
                ));
            }
        }
        Ok(told)
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        // The threads end once they are through; nobody can give them more.
        self.posts.iter().for_each(|post| post.lane.drain());
    }
}
