//! A lane, as the thread that serves it sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::sync::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::super::context;
use super::super::device::Device;
use super::super::error::Result;
use super::super::exit::{Inside, detached};
use super::super::wait::caller;
use super::task::{Outcome, Task};
use super::waits::look;
use super::{CoreTicket, Post, cancel_all};
use crate::worker::Finished;

/// What a worker's thread has in hand.
#[derive(Default)]
struct AtWork {
    ticket: Option<Arc<CoreTicket>>,
    future: Option<Py<PyAny>>,
    /// Waiters of the last task, not woken yet.
    finished: Finished,
}

/// A lane, for the one thread that was started to serve it.
#[pyclass(frozen, module = "coresident._core")]
pub(in crate::python) struct Lane {
    post: Arc<Post>,
    service: AtomicU8,
    at_work: Mutex<AtWork>,
}

/// Why tasks are cancelled that nobody can run.
const NO_THREAD: &str = "the worker's thread could not start";

/// The thread has been asked for, but has not come.
const AWAITED: u8 = 0;
/// The thread serves.
const SERVING: u8 = 1;
/// Given up or over: a thread that comes now has nothing to do here.
const OVER: u8 = 2;

/// The start hook if it has to run first, the torch mode, the context and the pin for it, and what
/// to call; the future, if any.
type Job = (
    Option<(Option<Py<PyAny>>,)>,
    u8,
    Py<PyAny>,
    Py<context::Pin>,
    Py<PyAny>,
    Py<PyTuple>,
    Option<Py<PyDict>>,
    Option<Py<PyAny>>,
);

impl Lane {
    pub(super) fn new(post: Arc<Post>) -> Self {
        Self { post, service: AtomicU8::new(AWAITED), at_work: Mutex::default() }
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.service.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// For a lane whose thread cannot start: cancels what is queued. Without effect if it has.
    pub(super) fn give_up(&self, py: Python<'_>) -> Result<()> {
        if !self.turn(AWAITED, OVER) {
            return Ok(());
        }
        cancel_all(py, self.post.lane.give_up(Some(NO_THREAD)))
    }

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
        detached(py, || {
            finished.wake();
            look(|| lane.is_ready());
            lane.take()
        })
    }

    /// Whether this is a forked child, in which the thread that forked has come back to its loop.
    fn is_forked(&self) -> bool {
        self.post.lane.check().is_err()
    }

    fn take_ticket(&self) -> Option<Arc<CoreTicket>> {
        self.at_work.lock().ticket.take()
    }

    fn take_future(&self) -> Option<Py<PyAny>> {
        self.at_work.lock().future.take()
    }

    fn finish(&self, outcome: Outcome) {
        let Some(ticket) = self.take_ticket().filter(|_| !self.is_forked()) else { return };
        let finished = ticket.finish(outcome);
        let mut at_work = self.at_work.lock();
        if at_work.future.is_some() {
            // Its callbacks run next, and may need whoever waits.
            drop(at_work);
            finished.wake();
        } else {
            at_work.finished = finished;
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Its thread has died on the way here or from here: the next task asks for another.
        if self.service.swap(OVER, Ordering::AcqRel) == OVER {
            return;
        }
        self.take_finished().wake();
        if self.post.lane.unclaim_worker() {
            Python::attach(|py| {
                if let Err(error) = cancel_all(py, self.post.lane.give_up(Some(NO_THREAD))) {
                    PyErr::from(error).write_unraisable(py, None);
                }
            });
        }
    }
}

#[pymethods]
impl Lane {
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.post.device.clone())
    }

    /// Makes a pin current; to be run in a task's context.
    #[getter]
    #[expect(clippy::unused_self, reason = "a property")]
    fn set_pin(&self, py: Python<'_>) -> Result<Py<PyAny>> {
        Ok(context::setter(py)?.clone_ref(py))
    }

    /// Makes the calling thread the lane's worker. False if another one is by now.
    fn serve(&self, py: Python<'_>) -> Result<bool> {
        let worker = caller(py)?;
        if !self.turn(AWAITED, SERVING) {
            return Ok(false);
        }
        // A new thread has nothing of what the start hook has set.
        self.post.unprepared.store(true, Ordering::Release);
        self.post.lane.serve(worker);
        Ok(true)
    }

    /// Has the calling thread run near the device from now on.
    fn stay_near(&self, py: Python<'_>) {
        detached(py, || self.post.device.stay_near());
    }

    /// The next task, and the pin that makes the device current in its context; waits for it.
    /// `None` ends the thread.
    fn take(&self, py: Python<'_>) -> Result<Option<Job>> {
        if self.is_forked() {
            return Ok(None);
        }
        while let Some(ticket) = self.next(py) {
            let Some(task) = ticket.start() else { continue };
            let pin = context::Pin::task(self.post.device.clone(), ticket.token().clone());
            let in_hand = task.future.as_ref().map(|future| future.clone_ref(py));
            {
                let mut at_work = self.at_work.lock();
                (at_work.ticket, at_work.future) = (Some(ticket), in_hand);
            }
            let unprepared = self.post.unprepared.load(Ordering::Acquire)
                && self.post.unprepared.swap(false, Ordering::AcqRel);
            let Task { function, args, kwargs, context, future, torch_mode, on_start } = task;
            let pin = Py::new(py, pin)?;
            let prepare = unprepared.then_some((on_start,));
            let job = (prepare, torch_mode, context, pin, function, args, kwargs, future);
            return Ok(Some(job));
        }
        Ok(None)
    }

    fn succeed(&self, value: Py<PyAny>) {
        self.finish(Outcome::Value(value));
    }

    /// Lets go of the future of the task in hand, which has its outcome by now.
    fn put_down(&self) {
        drop(self.take_future());
    }

    fn fail(&self, error: Py<PyAny>) {
        self.finish(Outcome::Error(error));
    }

    /// Gives the task in hand, if there is one, an error that hit the thread between two tasks.
    fn abort(&self, py: Python<'_>, error: Py<PyAny>) -> Result<bool> {
        let _inside = Inside::enter(py);
        let (ticket, future) = (self.take_ticket(), self.take_future());
        let mut taken = ticket.is_some();
        if let Some(ticket) = ticket {
            ticket.finish(Outcome::Error(error.clone_ref(py))).wake();
        }
        if let Some(future) = future
            && !future.call_method0(py, "done")?.is_truthy(py)?
        {
            future.call_method1(py, "set_exception", (error,))?;
            taken = true;
        }
        Ok(taken)
    }

    /// Ends the thread's service. If tasks are left, the lane for another thread.
    fn leave(&self) -> Option<Self> {
        if self.service.swap(OVER, Ordering::AcqRel) == OVER || self.is_forked() {
            return None;
        }
        self.take_finished().wake();
        self.post.lane.leave().then(|| Self::new(self.post.clone()))
    }

    /// Takes no more tasks.
    fn drain(&self) {
        self.post.lane.drain();
    }
}
