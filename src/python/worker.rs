//! `WorkerPool`, its tickets and the lanes that its threads serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMapping, PyString, PyTuple};

use super::aio::{self, Request};
use super::device::{self, Device};
use super::error::{Error, Result, invalid_type, invalid_value, raise};
use super::wait::{Terms, caller, patiently, patiently_idle};
use super::{argument, context, torch};
use crate::device::{self as core_device, Name};
use crate::pool::PoolError;
use crate::wait::{Owner, Parker, Patience, seconds};
use crate::worker::{self, Cancelled, Finished};

type CoreLane = worker::Lane<Task, Outcome>;
type CoreTicket = worker::Ticket<Task, Outcome>;

/// What a worker is to call.
struct Task {
    function: Py<PyAny>,
    args: Py<PyTuple>,
    kwargs: Option<Py<PyDict>>,
    context: Py<PyAny>,
    future: Option<Py<PyAny>>,
    torch_mode: u8,
}

impl Task {
    fn new(
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        static COPY_CONTEXT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let copy_context = COPY_CONTEXT.get_or_try_init(py, || {
            PyResult::Ok(py.import("contextvars")?.getattr("copy_context")?.unbind())
        })?;
        Ok(Self {
            function: function.clone().unbind(),
            args: args.clone().unbind(),
            kwargs: kwargs.map(|kwargs| kwargs.clone().unbind()),
            context: copy_context.bind(py).call0()?.unbind(),
            future: None,
            torch_mode: torch::grad_mode(py)?,
        })
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.function)?;
        visit.call(&self.args)?;
        visit.call(&self.kwargs)?;
        visit.call(&self.context)?;
        visit.call(&self.future)
    }
}

/// How a task ended.
enum Outcome {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
}

impl Outcome {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Value(value) => Self::Value(value.clone_ref(py)),
            Self::Error(error) => Self::Error(error.clone_ref(py)),
        }
    }

    fn into_result(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Error(error) => Err(PyErr::from_value(error.into_bound(py))),
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        let (Self::Value(object) | Self::Error(object)) = self;
        visit.call(object)
    }
}

/// One device's lane, and what its thread must know.
struct Post {
    device: core_device::Device,
    lane: Arc<CoreLane>,
    /// Whether the start hook has to run before the next task.
    unprepared: AtomicBool,
}

/// How long a thread looks before it sleeps: about what waking a sleeping thread costs.
const LOOK: Duration = Duration::from_micros(20);

/// Looks for `ready` for a moment, so that a quick answer costs no sleep.
fn look(ready: impl Fn() -> bool) {
    let until = Instant::now() + LOOK;
    while !ready() && Instant::now() < until {
        std::hint::spin_loop();
    }
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
        known.ok_or_else(|| {
            let present = self.posts.iter().map(|post| post.device.name()).collect();
            PoolError::NotInPool { name, present }.into()
        })
    }

    /// Has the lane's thread started, if it is not there.
    fn ensure_worker(&self, py: Python<'_>, post: &Arc<Post>) -> Result<()> {
        if post.lane.claim_worker() {
            return self.start_worker(py, post);
        }
        Ok(())
    }

    fn start_worker(&self, py: Python<'_>, post: &Arc<Post>) -> Result<()> {
        let start = || -> PyResult<()> {
            let lane = Lane { post: post.clone(), at_work: Mutex::new(AtWork::default()) };
            let serve = py.import("coresident._serve")?.getattr("start")?;
            serve.call1((lane, &self.on_start, &self.torch_threads, self.posts.len()))?;
            Ok(())
        };
        start().map_err(|error| {
            // No thread, no worker: what is queued would wait for ever.
            let _ = post.lane.leave();
            Error::from(error)
        })
    }

    fn push(&self, py: Python<'_>, post: &Arc<Post>, task: Task) -> Result<Arc<CoreTicket>> {
        let pushed = post.lane.push(task)?;
        if pushed.needs_worker
            && let Err(error) = self.start_worker(py, post)
        {
            drop(pushed.ticket.cancel(None));
            return Err(error);
        }
        Ok(pushed.ticket)
    }

    /// Whether a call for this device runs where it is made: its own worker, or code that holds it.
    fn is_own(&self, py: Python<'_>, post: &Post) -> Result<bool> {
        if post.lane.is_served_by(Owner::this_thread()) {
            return Ok(true);
        }
        let current = context::current(py).map_err(Error::from)?;
        Ok(current.is_some_and(|device| device == post.device))
    }
}

fn check_callable(function: &Bound<'_, PyAny>) -> Result<()> {
    if function.is_callable() {
        return Ok(());
    }
    Err(invalid_type(&format!("a task is something to call, not {}", argument::type_name(function))))
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
            return Err(invalid_type(&format!("on_start takes a function of the device, not {given}")));
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

    #[getter]
    fn devices(&self) -> Vec<Device> {
        self.posts.iter().map(|post| Device::of(post.device.clone())).collect()
    }

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
        let task = Task::new(py, function, args, kwargs).map_err(Error::from)?;
        Ok(Ticket(self.push(py, post, task)?))
    }

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
        let class = FUTURE.get_or_try_init(py, || {
            PyResult::Ok(py.import("coresident._future")?.getattr("WorkerFuture")?.unbind())
        });
        let future = class.and_then(|class| class.bind(py).call0()).map_err(Error::from)?;
        let mut task = Task::new(py, function, args, kwargs).map_err(Error::from)?;
        task.future = Some(future.clone().unbind());
        let ticket = Ticket(self.push(py, post, task)?);
        future.setattr(pyo3::intern!(py, "_ticket"), ticket).map_err(Error::from)?;
        Ok(future)
    }

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
        if self.is_own(py, post)? {
            return Ok(function.call(args, kwargs).map_err(Error::from)?.unbind());
        }
        self.ensure_worker(py, post)?;
        let task = Task::new(py, function, args, kwargs).map_err(Error::from)?;
        let owner = caller(py)?;
        // Pushed once detached, so that the worker finds the interpreter free.
        let lane = post.lane.clone();
        let given: Mutex<Option<Arc<CoreTicket>>> = Mutex::new(None);
        let outcome = patiently(py, terms, |patience| {
            let ticket = lane.push(task)?.ticket;
            *given.lock() = Some(ticket.clone());
            wait_for(&ticket, &owner, patience)
        });
        match (outcome, given.into_inner()) {
            (Ok(()), Some(ticket)) => Ticket(ticket).ended(py),
            (Err(error), Some(ticket)) => {
                // Nobody waits for it any more.
                Ticket(ticket).cancel(py, Some("the caller stopped waiting".to_owned()))?;
                Err(error)
            }
            (outcome, None) => Err(outcome.err().unwrap_or_else(|| invalid_value("nothing was queued"))),
        }
    }

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
        let calls = self.parse_calls(calls)?;
        let nothing = PyTuple::empty(py);
        let mut parts: Vec<(Bound<'py, PyAny>, Part)> = Vec::with_capacity(calls.len());
        let mut own = None;
        for (key, post, function) in calls {
            if own.is_none() && self.is_own(py, post)? {
                own = Some((parts.len(), function));
                parts.push((key, Part::Here(None)));
                continue;
            }
            let task = Task::new(py, &function, &nothing, None).map_err(Error::from);
            match task.and_then(|task| self.push(py, post, task)) {
                Ok(ticket) => parts.push((key, Part::There(Ticket(ticket)))),
                Err(error) => {
                    stop_all(py, &parts)?;
                    return Err(error);
                }
            }
        }
        let owner = caller(py)?;
        let mut failure: Option<Error> = None;
        if let Some((at, function)) = own {
            match function.call0() {
                Ok(value) => parts[at].1 = Part::Here(Some(value.unbind())),
                Err(error) => failure = Some(error.into()),
            }
        }
        let deadline = terms.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        for at in 0..parts.len() {
            let Part::There(Ticket(ticket)) = &parts[at].1 else { continue };
            if failure.is_some() {
                break;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let terms = Terms { timeout: left.or(terms.timeout), cancel: terms.cancel.clone() };
            let waited = patiently(py, terms, |patience| wait_for(ticket, &owner, patience));
            let ended = waited.and_then(|()| Ticket(ticket.clone()).ended(py));
            match ended {
                Ok(value) => parts[at].1 = Part::Here(Some(value)),
                Err(error) => failure = Some(error),
            }
        }
        if let Some(failure) = failure {
            stop_all(py, &parts)?;
            return Err(failure);
        }
        let outputs = PyDict::new(py);
        for (key, part) in parts {
            if let Part::Here(value) = part {
                outputs.set_item(key, value).map_err(Error::from)?;
            }
        }
        Ok(outputs)
    }

    fn restart(&self, device: &Bound<'_, PyAny>) -> Result<()> {
        self.post_of(argument::name(device)?)?.unprepared.store(true, Ordering::Release);
        Ok(())
    }

    #[pyo3(signature = (how="drain", *, timeout=None))]
    fn close(&self, py: Python<'_>, how: &str, timeout: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let terms = Terms::of(timeout, None)?;
        match how {
            "drain" => self.posts.iter().for_each(|post| post.lane.drain()),
            "cancel" => {
                for post in &self.posts {
                    for (task, finished) in post.lane.cancel(Some("the worker pool was closed")) {
                        cancel_future(py, &task)?;
                        finished.wake();
                    }
                }
            }
            other => {
                let message = format!("close() takes how='drain' or how='cancel', not {other:?}");
                return Err(invalid_value(&message));
            }
        }
        let owner = caller(py)?;
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

    fn status(&self) -> Result<Vec<WorkerStatus>> {
        self.posts.iter().map(|post| WorkerStatus::of(post)).collect()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        r#type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> Result<()> {
        self.close(py, if r#type.is_none() { "drain" } else { "cancel" }, None)
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
    /// What each device is to call; nothing has been queued when this refuses.
    fn parse_calls<'a, 'py>(
        &'a self,
        calls: &Bound<'py, PyAny>,
    ) -> Result<Vec<(Bound<'py, PyAny>, &'a Arc<Post>, Bound<'py, PyAny>)>> {
        let refused = || {
            let given = argument::type_name(calls);
            invalid_type(&format!("scatter() takes a mapping of devices to functions, not {given}"))
        };
        let items = calls.cast::<PyMapping>().map_err(|_| refused())?.items().map_err(Error::from)?;
        let mut parsed: Vec<(_, &Arc<Post>, _)> = Vec::with_capacity(items.len());
        for item in items {
            let (key, function) = item.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>().map_err(Error::from)?;
            let post = self.post_of(argument::name(&key)?)?;
            check_callable(&function)?;
            if parsed.iter().any(|(_, other, _)| Arc::ptr_eq(other, post)) {
                return Err(invalid_value(&format!("scatter() was given {} twice", post.device)));
            }
            parsed.push((key, post, function));
        }
        Ok(parsed)
    }

    /// The lanes that are not through, in words.
    fn running(&self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for post in &self.posts {
            let status = post.lane.status()?;
            if let Some(running_for) = status.running_for {
                let (running, queued) = (seconds(running_for), status.queued);
                told.push(format!("{} has run a task for {running}, {queued} queued", status.device));
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

/// One device's part of a scatter.
enum Part {
    /// The value, once it is there.
    Here(Option<Py<PyAny>>),
    /// On a worker.
    There(Ticket),
}

/// Cancels what is left of a scatter, and waits until none of it runs.
fn stop_all(py: Python<'_>, parts: &[(Bound<'_, PyAny>, Part)]) -> Result<()> {
    let owner = caller(py)?;
    let left = parts.iter().filter_map(|(_, part)| match part {
        Part::There(ticket) => Some(ticket),
        Part::Here(_) => None,
    });
    let left: Vec<&Ticket> = left.collect();
    for ticket in &left {
        ticket.cancel(py, Some("another part of the scatter failed".to_owned()))?;
    }
    let forever = Terms { timeout: None, cancel: None };
    for ticket in left {
        patiently(py, forever.clone(), |patience| wait_for(&ticket.0, &owner, patience))?;
    }
    Ok(())
}

/// Waits until the ticket is over; looks for a moment before it sleeps.
fn wait_for(
    ticket: &Arc<CoreTicket>,
    owner: &Owner,
    patience: &Patience<'_>,
) -> std::result::Result<(), worker::WorkerError> {
    look(|| ticket.is_over());
    let parker = Parker::new();
    Ok(ticket.ask(owner, parker.clone()).wait(&parker, patience)?)
}

/// Waits until every lane's worker has left; false when the time was over first.
fn wait_for_workers(
    lanes: &[Arc<CoreLane>],
    owner: &Owner,
    patience: &Patience<'_>,
) -> std::result::Result<bool, worker::WorkerError> {
    use crate::wait::WaitError;

    let deadline = patience.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    for lane in lanes {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = Patience { timeout: left.or(patience.timeout), ..*patience };
        let parker = Parker::new();
        match lane.ask_left(owner, parker.clone()).wait(&parker, &patience) {
            Ok(()) => {}
            Err(WaitError::Timeout { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Cancels the future of a task that will not run, and tells whoever waits for it.
fn cancel_future(py: Python<'_>, task: &Task) -> Result<()> {
    let Some(future) = &task.future else { return Ok(()) };
    let future = future.bind(py);
    let cancel = || future.call_method0("_cancel_unstarted");
    cancel().map(drop).map_err(Error::from)
}

/// One task on its way through a worker.
#[pyclass(frozen, weakref, module = "coresident", name = "Ticket")]
pub(super) struct Ticket(Arc<CoreTicket>);

impl Ticket {
    /// The outcome of a ticket that is over.
    fn ended(&self, py: Python<'_>) -> Result<Py<PyAny>> {
        match self.0.outcome(|outcome| outcome.clone_ref(py)) {
            Some(outcome) => outcome.into_result(py).map_err(Error::from),
            None => {
                let reason = self.0.token().reason();
                let suffix = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
                let message = format!("the task was cancelled before it ran{suffix}");
                Err(raise("CancelledError", &message, |fields| fields.set_item("reason", reason)))
            }
        }
    }
}

#[pymethods]
impl Ticket {
    #[pyo3(signature = (timeout=None, *, cancel=None))]
    fn result(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Py<PyAny>> {
        let terms = Terms::of(timeout, cancel)?;
        if !self.0.is_over() {
            terms.check("the result of a task")?;
            let owner = caller(py)?;
            patiently(py, terms, |patience| wait_for(&self.0, &owner, patience))?;
        }
        self.ended(py)
    }

    /// Waits until the task is over, however it ended.
    #[pyo3(signature = (timeout=None))]
    fn join(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let terms = Terms::of(timeout, None)?;
        let owner = caller(py)?;
        patiently(py, terms, |patience| wait_for(&self.0, &owner, patience))
    }

    #[pyo3(signature = (reason=None))]
    fn cancel(&self, py: Python<'_>, reason: Option<String>) -> Result<bool> {
        match self.0.cancel(reason) {
            Cancelled::Queued(task, finished) => {
                finished.wake();
                cancel_future(py, &task)?;
                Ok(true)
            }
            Cancelled::Running | Cancelled::Over => Ok(false),
        }
    }

    fn done(&self) -> bool {
        self.0.is_over()
    }

    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    fn running(&self) -> bool {
        self.0.running_since().is_some()
    }

    fn __await__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let ticket = self.0.clone();
        let forever = Terms { timeout: None, cancel: None };
        let awaitable = aio::awaitable(py, forever, move |py, terms, target| {
            let asked = ticket.ask(&caller(py)?, target.waker());
            let ticket = Self(ticket.clone());
            Request::of(asked, terms, target, move |py, ()| ticket.ended(py))
        })?;
        awaitable.call_method0("__await__").map_err(Error::from)
    }

    fn __repr__(&self) -> String {
        let state = match (self.0.is_cancelled(), self.0.is_over(), self.running()) {
            (true, _, _) => "cancelled",
            (_, true, _) => "done",
            (_, _, true) => "running",
            _ => "queued",
        };
        format!("<Ticket {state}>")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        self.0.try_look(|task, outcome| {
            task.map_or(Ok(()), |task| task.traverse(&visit))?;
            outcome.map_or(Ok(()), |outcome| outcome.traverse(&visit))
        })
        .unwrap_or(Ok(()))
    }

    fn __clear__(&self) {
        drop(self.0.clear());
    }
}

/// What a worker's thread has in hand.
#[derive(Default)]
struct AtWork {
    ticket: Option<Arc<CoreTicket>>,
    /// Waiters of the last task, not woken yet.
    finished: Finished,
}

/// A lane, for the thread that serves it.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Lane {
    post: Arc<Post>,
    at_work: Mutex<AtWork>,
}

type Job = (bool, u8, Py<PyAny>, Py<PyAny>, Py<PyTuple>, Option<Py<PyDict>>, Option<Py<PyAny>>);

impl Lane {
    fn take_finished(&self) -> Finished {
        std::mem::take(&mut self.at_work.lock().finished)
    }

    /// The next ticket. Whoever waits for the last one is woken once the interpreter is free, or
    /// before the next task takes it.
    fn next(&self, py: Python<'_>) -> Option<Arc<CoreTicket>> {
        let finished = self.take_finished();
        let lane = &self.post.lane;
        if let Some(ticket) = lane.try_take() {
            finished.wake();
            return Some(ticket);
        }
        patiently_idle(py, || {
            finished.wake();
            look(|| lane.is_ready());
            lane.take()
        })
    }

    fn finish(&self, outcome: Outcome) {
        let ticket = self.at_work.lock().ticket.take();
        if let Some(ticket) = ticket {
            let finished = ticket.finish(outcome);
            self.at_work.lock().finished = finished;
        }
    }
}

#[pymethods]
impl Lane {
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.post.device.clone())
    }

    /// Makes the calling thread the lane's worker.
    fn serve(&self, py: Python<'_>) -> Result<()> {
        self.post.lane.serve(caller(py)?);
        Ok(())
    }

    /// The next task, whose context has the device current; waits for it. `None` ends the thread.
    fn take(&self, py: Python<'_>) -> Result<Option<Job>> {
        while let Some(ticket) = self.next(py) {
            let Some(task) = ticket.start() else { continue };
            let pin = context::Pin::task(self.post.device.clone(), ticket.token().clone());
            self.at_work.lock().ticket = Some(ticket);
            let setter = context::setter(py).map_err(Error::from)?;
            let pinned = task.context.bind(py).call_method1(pyo3::intern!(py, "run"), (setter, pin));
            pinned.map_err(Error::from)?;
            let unprepared = self.post.unprepared.swap(false, Ordering::AcqRel);
            let Task { function, args, kwargs, context, future, torch_mode } = task;
            return Ok(Some((unprepared, torch_mode, context, function, args, kwargs, future)));
        }
        Ok(None)
    }

    fn succeed(&self, value: Py<PyAny>) {
        self.finish(Outcome::Value(value));
    }

    fn fail(&self, error: Py<PyAny>) {
        self.finish(Outcome::Error(error));
    }

    /// Ends the thread's service. True if tasks are left, for another thread.
    fn leave(&self) -> bool {
        self.take_finished().wake();
        self.post.lane.leave()
    }

    /// Takes no more tasks.
    fn drain(&self) {
        self.post.lane.drain();
    }
}

/// A worker at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct WorkerStatus {
    device: Py<Device>,
    state: &'static str,
    queued: usize,
    finished: u64,
    running_seconds: Option<f64>,
}

impl WorkerStatus {
    fn of(post: &Post) -> Result<Self> {
        let status = post.lane.status()?;
        let state = match (status.closed, status.has_worker, status.running_for) {
            (true, false, _) => "closed",
            (_, _, Some(_)) => "running",
            (_, false, None) => "not started",
            (_, true, None) => "idle",
        };
        let device = Python::attach(|py| Py::new(py, Device::of(post.device.clone())));
        Ok(Self {
            device: device.map_err(Error::from)?,
            state,
            queued: status.queued,
            finished: status.finished,
            running_seconds: status.running_for.map(|lasted| lasted.as_secs_f64()),
        })
    }

    fn told(&self) -> String {
        let queued = if self.queued > 0 { format!(", {} queued", self.queued) } else { String::new() };
        format!("{}: {}{queued}", self.device.get().inner(), self.state)
    }
}

#[pymethods]
impl WorkerStatus {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}

/// Splits `total` in proportion to `speeds` into whole numbers that add up to `total`.
#[pyfunction]
pub(super) fn shares<'py>(total: &Bound<'py, PyAny>, speeds: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>> {
    let py = total.py();
    let total = argument::whole_number("total", total)?;
    let refused = || {
        let given = argument::type_name(speeds);
        invalid_type(&format!("speeds is a list of numbers, or a mapping to numbers, not {given}"))
    };
    if speeds.is_instance_of::<PyString>() {
        return Err(refused());
    }
    if let Ok(mapping) = speeds.cast::<PyMapping>() {
        let keys = mapping.keys().map_err(Error::from)?;
        let values = mapping.values().map_err(Error::from)?;
        let speeds = values.extract::<Vec<f64>>().map_err(|_| refused())?;
        let split = PyDict::new(py);
        for (key, share) in keys.iter().zip(worker::shares(total, &speeds)?) {
            split.set_item(key, share).map_err(Error::from)?;
        }
        return Ok(split.into_any());
    }
    let items = speeds.try_iter().map_err(|_| refused())?;
    let speeds: PyResult<Vec<f64>> = items.map(|speed| speed?.extract::<f64>()).collect();
    let split = worker::shares(total, &speeds.map_err(|_| refused())?)?;
    split.into_pyobject(py).map_err(Error::from)
}
