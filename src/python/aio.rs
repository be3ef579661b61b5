//! Waiting in asyncio: the task waits, its thread does not.
//!
//! The core wakes a waiter wherever it happens to be, with or without an interpreter. So a wake only
//! puts the waiter on a lane of its own, and one small thread carries it to the event loop.

use std::sync::Arc;

use crate::sync::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use super::error::{Error, Result};
use super::wait::{Terms, patiently_idle};
use crate::wait::{Asked, Listening, Pending, PerProcess, Queue, WaitError, Wake};
use crate::worker::Lane;

type WakeupLane = Lane<Arc<Target>, ()>;

static WAKEUPS: PerProcess<Arc<WakeupLane>> = PerProcess::new();

fn lane() -> &'static Arc<WakeupLane> {
    WAKEUPS.get_or_init(|| Lane::new("event loops"))
}

/// One waiting task: its event loop, and what to call there.
pub(super) struct Target {
    event_loop: Py<PyAny>,
    callback: Py<PyAny>,
}

impl Target {
    /// What the core wakes.
    pub(super) fn waker(self: &Arc<Self>) -> Arc<dyn Wake> {
        Arc::new(Waker(self.clone()))
    }
}

struct Waker(Arc<Target>);

impl Wake for Waker {
    fn wake(&self) {
        // The lane refuses only in a forked child, where the event loop is gone too.
        drop(lane().push(self.0.clone()));
    }
}

/// The wakes to carry, for the one thread that carries them.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Wakeups;

#[pymethods]
impl Wakeups {
    /// The next event loop and what to call there; waits for it.
    #[staticmethod]
    fn take(py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        let target = patiently_idle(py, || lane().take()?.start())?;
        Some((target.event_loop.clone_ref(py), target.callback.clone_ref(py)))
    }
}

/// The wakes to carry, if the caller must start the thread that carries them.
#[pyfunction]
pub(super) fn wakeups() -> Option<Wakeups> {
    lane().claim_worker().then_some(Wakeups)
}

/// Polls what a task waits for.
trait Settling: Send {
    fn poll(&mut self, py: Python<'_>) -> Option<Result<Py<PyAny>>>;
    fn timed_out(&self) -> Error;
    fn check(&self) -> Result<()>;
}

struct Waiting<Q: Queue, F> {
    pending: Pending<Q>,
    terms: Terms,
    wrap: Option<F>,
    _listening: Option<Listening>,
}

impl<Q, F> Settling for Waiting<Q, F>
where
    Q: Queue + Send + Sync,
    F: FnOnce(Python<'_>, Q::Guard) -> Result<Py<PyAny>> + Send,
    Error: From<Q::Error>,
{
    fn poll(&mut self, py: Python<'_>) -> Option<Result<Py<PyAny>>> {
        if let Some(token) = self.terms.cancel.as_ref().filter(|token| token.is_cancelled()) {
            let wants = self.pending.describe().wants;
            return Some(Err(WaitError::Cancelled { wants, reason: token.reason() }.into()));
        }
        let outcome = self.pending.poll()?;
        let wrap = self.wrap.take()?;
        Some(outcome.map_err(Error::from).and_then(|guard| wrap(py, guard)))
    }

    fn check(&self) -> Result<()> {
        Ok(self.pending.check()?)
    }

    fn timed_out(&self) -> Error {
        let described = self.pending.describe();
        let after = self.terms.timeout.unwrap_or_default();
        WaitError::Timeout { wants: described.wants, held: described.held, after }.into()
    }
}

/// A task's place in a line.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Request(Mutex<State>);

enum State {
    Waiting(Box<dyn Settling>),
    Settled(Py<PyAny>),
    Over,
}

impl Request {
    /// The request of the current task, whose guard `wrap` makes a Python object in the task's
    /// context once there is one.
    pub(super) fn of<Q, F>(
        asked: Asked<Q>,
        terms: Terms,
        target: &Arc<Target>,
        wrap: F,
    ) -> Result<Self>
    where
        Q: Queue + Send + Sync,
        F: FnOnce(Python<'_>, Q::Guard) -> Result<Py<PyAny>> + Send + 'static,
        Error: From<Q::Error>,
    {
        let mut pending = match asked {
            Asked::Granted(guard) => {
                let settled = Python::attach(|py| wrap(py, guard))?;
                return Ok(Self(Mutex::new(State::Settled(settled))));
            }
            Asked::Waiting(pending) => pending,
        };
        if terms.timeout != Some(std::time::Duration::ZERO) {
            pending.watch()?;
        }
        let listening = terms.cancel.as_ref().map(|token| token.listen(target.waker()));
        let waiting = Waiting { pending, terms, wrap: Some(wrap), _listening: listening };
        Ok(Self(Mutex::new(State::Waiting(Box::new(waiting)))))
    }

    /// Polls with no lock held. What is left of it stays; what is over is dropped.
    fn settle(&self, py: Python<'_>, late: bool) -> Result<Option<Py<PyAny>>> {
        let state = std::mem::replace(&mut *self.0.lock(), State::Over);
        match state {
            State::Settled(guard) => Ok(Some(guard)),
            State::Over => Ok(None),
            State::Waiting(mut waiting) => match waiting.poll(py) {
                Some(outcome) => outcome.map(Some),
                None if late => Err(waiting.timed_out()),
                None => {
                    waiting.check()?;
                    *self.0.lock() = State::Waiting(waiting);
                    Ok(None)
                }
            },
        }
    }
}

#[pymethods]
impl Request {
    /// The guard, if the turn has come.
    fn poll(&self, py: Python<'_>) -> Result<Option<Py<PyAny>>> {
        self.settle(py, false)
    }

    /// The guard, if the turn has come by now, else the error of a timeout.
    fn poll_late(&self, py: Python<'_>) -> Result<Option<Py<PyAny>>> {
        self.settle(py, true)
    }

    /// Gives the place up.
    fn abandon(&self) {
        let left = std::mem::replace(&mut *self.0.lock(), State::Over);
        drop(left);
    }
}

/// What `start` asks for, as something to `await` or to `async with`. It asks once it is awaited, in
/// the task that awaits it.
static AWAITABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

pub(super) fn awaitable<F>(py: Python<'_>, terms: Terms, start: F) -> Result<Bound<'_, PyAny>>
where
    F: Fn(Python<'_>, Terms, &Arc<Target>) -> Result<Request> + Send + Sync + 'static,
{
    let timeout = terms.timeout.map(|timeout| timeout.as_secs_f64());
    let begin =
        move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Request> {
            let py = args.py();
            let (event_loop, callback) = args.extract::<(Py<PyAny>, Py<PyAny>)>()?;
            let target = Arc::new(Target { event_loop, callback });
            Ok(start(py, terms.clone(), &target)?)
        };
    let begin = PyCFunction::new_closure(py, None, None, begin)?;
    let class = AWAITABLE.get_or_try_init(py, || {
        PyResult::Ok(py.import("coresident._aio")?.getattr("Awaitable")?.unbind())
    })?;
    class.bind(py).call1((begin, timeout)).map_err(Error::from)
}
