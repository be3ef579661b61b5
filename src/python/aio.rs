//! Waiting in asyncio: the task waits, its thread does not.
//!
//! The core wakes a waiter wherever it happens to be, with or without an interpreter. So a wake only
//! puts the waiter on a lane of its own, and one small thread carries it to the event loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::Mutex;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use super::error::{Error, Result};
use super::exit::{Inside, detached};
use super::wait::Terms;
use crate::wait::{Asked, Listening, Pending, PerProcess, Queue, WaitError, Wake};
use crate::worker::Lane;

type WakeupLane = Lane<Arc<Target>, ()>;

static WAKEUPS: PerProcess<Arc<WakeupLane>> = PerProcess::new();

fn lane() -> &'static Arc<WakeupLane> {
    WAKEUPS.get_or_init(|| Lane::new("event loops"))
}

/// One waiting task: its event loop, and what to wake there.
pub(super) struct Target {
    event_loop: Py<PyAny>,
    waiter: Py<PyAny>,
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

/// The duty to carry wakes to their event loops, which one thread has at a time.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct Wakeups {
    lane: Arc<WakeupLane>,
    left: AtomicBool,
}

#[pymethods]
impl Wakeups {
    /// The duty, if nobody has it.
    #[staticmethod]
    fn claim() -> Option<Self> {
        let lane = lane().clone();
        lane.claim_worker().then(|| Self { lane, left: AtomicBool::new(false) })
    }

    /// The next event loop and what to wake there; waits for it.
    fn take(&self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        let target = detached(py, || self.lane.take()?.start())?;
        Some((target.event_loop.clone_ref(py), target.waiter.clone_ref(py)))
    }

    /// Gives the duty up, with the wakes that are left.
    fn leave(&self) {
        if !self.left.swap(true, Ordering::AcqRel) {
            // This lane is never closed.
            let _ = self.lane.unclaim_worker();
        }
    }
}

impl Drop for Wakeups {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Polls what a task waits for.
trait Settling: Send {
    /// How many wakers of the task this keeps, in the line and with the token.
    fn wakers(&self) -> usize;
    fn poll(&mut self, py: Python<'_>) -> Option<Result<Py<PyAny>>>;
    fn timed_out(&self) -> Error;
    fn check(&self) -> Result<()>;
}

struct Waiting<Q: Queue, F> {
    pending: Pending<Q>,
    terms: Terms,
    wrap: Option<F>,
    listening: Option<Listening>,
}

impl<Q, F> Settling for Waiting<Q, F>
where
    Q: Queue + Send + Sync,
    F: FnOnce(Python<'_>, Q::Guard) -> Result<Py<PyAny>> + Send,
    Error: From<Q::Error>,
{
    fn wakers(&self) -> usize {
        1 + usize::from(self.listening.is_some())
    }

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
    Waiting(Box<dyn Settling>, Arc<Target>),
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
        let waiting = Waiting { pending, terms, wrap: Some(wrap), listening };
        Ok(Self(Mutex::new(State::Waiting(Box::new(waiting), target.clone()))))
    }

    /// Polls with no lock held. What is left of it stays; what is over is dropped.
    fn settle(&self, py: Python<'_>, late: bool) -> Result<Option<Py<PyAny>>> {
        let state = std::mem::replace(&mut *self.0.lock(), State::Over);
        match state {
            State::Settled(guard) => Ok(Some(guard)),
            State::Over => Ok(None),
            State::Waiting(mut waiting, target) => match waiting.poll(py) {
                Some(outcome) => outcome.map(Some),
                None if late => Err(waiting.timed_out()),
                None => {
                    waiting.check()?;
                    *self.0.lock() = State::Waiting(waiting, target);
                    Ok(None)
                }
            },
        }
    }
}

#[pymethods]
impl Request {
    /// What was waited for, in a tuple, if the turn has come: a task's value may be `None`.
    fn poll(&self, py: Python<'_>) -> Result<Option<(Py<PyAny>,)>> {
        Ok(self.settle(py, false)?.map(|settled| (settled,)))
    }

    /// The same, if the turn has come by now, else the error of a timeout.
    fn poll_late(&self, py: Python<'_>) -> Result<Option<(Py<PyAny>,)>> {
        Ok(self.settle(py, true)?.map(|settled| (settled,)))
    }

    /// Gives the place up.
    fn abandon(&self) {
        let left = std::mem::replace(&mut *self.0.lock(), State::Over);
        drop(left);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        let Some(state) = self.0.try_lock() else { return Ok(()) };
        match &*state {
            // The line keeps the target for this request alone, unless a wake is on its way.
            State::Waiting(waiting, target)
                if Arc::strong_count(target) <= 1 + waiting.wakers() =>
            {
                visit.call(&target.event_loop)?;
                visit.call(&target.waiter)
            }
            State::Waiting(..) | State::Over => Ok(()),
            State::Settled(guard) => visit.call(guard),
        }
    }

    fn __clear__(&self) {
        self.abandon();
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
            let (event_loop, waiter) = args.extract::<(Py<PyAny>, Py<PyAny>)>()?;
            let target = Arc::new(Target { event_loop, waiter });
            Ok(start(py, terms.clone(), &target)?)
        };
    let _inside = Inside::enter(py);
    let begin = PyCFunction::new_closure(py, None, None, begin)?;
    let class = AWAITABLE.get_or_try_init(py, || {
        PyResult::Ok(py.import("coresident._aio")?.getattr("Awaitable")?.unbind())
    })?;
    class.bind(py).call1((begin, timeout)).map_err(Error::from)
}
