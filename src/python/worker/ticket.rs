//! The ticket of a task.

use std::sync::Arc;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::super::aio::{self, Request};
use super::super::error::{Error, Result, raise};
use super::super::exit::Inside;
use super::super::wait::{Terms, caller, patiently};
use super::CoreTicket;
use super::task::cancel_future;
use super::waits::wait_for;
use crate::wait::reason_suffix;
use crate::worker::Cancelled;

/// One task on its way through a worker.
#[pyclass(frozen, generic, weakref, module = "coresident", name = "Ticket")]
pub(in crate::python) struct Ticket(pub(super) Arc<CoreTicket>);

impl Ticket {
    /// The outcome of a ticket that is over.
    pub(super) fn ended(&self, py: Python<'_>) -> Result<Py<PyAny>> {
        match self.0.outcome(|outcome| outcome.clone_ref(py)) {
            Some(outcome) => outcome.into_result(py).map_err(Error::of_task),
            None => {
                let reason = self.0.token().reason();
                let suffix = reason_suffix(reason.as_deref());
                let message = format!("the task was cancelled before it ran{suffix}");
                Err(raise("CancelledError", &message, |fields| fields.set_item("reason", reason)))
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The last one to have it: what it keeps may run Python code when it goes.
        if Arc::strong_count(&self.0) == 1 && self.0.check().is_ok() {
            Python::attach(|py| {
                let _inside = Inside::enter(py);
                drop(self.0.clear());
            });
        }
    }
}

#[pymethods]
impl Ticket {
    /// The value of the task; waits for it. The task goes on when the wait ends first.
    #[pyo3(signature = (timeout=None, *, cancel=None))]
    fn result(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Py<PyAny>> {
        let terms = Terms::of(timeout, cancel)?;
        self.0.check()?;
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
        self.0.check()?;
        let owner = caller(py)?;
        patiently(py, terms, |patience| wait_for(&self.0, &owner, patience))
    }

    /// Keeps a queued task from running; tells a running one through its cancel token.
    #[pyo3(signature = (reason=None))]
    pub(super) fn cancel(&self, py: Python<'_>, reason: Option<String>) -> Result<bool> {
        self.0.check()?;
        match self.0.cancel(reason) {
            Cancelled::Queued(task, finished) => {
                finished.wake();
                cancel_future(py, &task)?;
                Ok(true)
            }
            Cancelled::Running | Cancelled::Over => Ok(false),
        }
    }

    /// Whether the task has returned, raised, or been cancelled. Does not wait.
    fn done(&self) -> Result<bool> {
        self.0.check()?;
        Ok(self.0.is_over())
    }

    /// Whether the task was cancelled before it ran. Does not wait.
    fn cancelled(&self) -> Result<bool> {
        self.0.check()?;
        Ok(self.0.is_cancelled())
    }

    /// Whether the task runs now. Does not wait.
    fn running(&self) -> Result<bool> {
        self.0.check()?;
        Ok(self.0.running_since().is_some())
    }

    fn __await__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        self.0.check()?;
        let _inside = Inside::enter(py);
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
        let state = match self.0.check() {
            Err(_) => "of another process",
            Ok(()) if self.0.is_cancelled() => "cancelled",
            Ok(()) if self.0.is_over() => "done",
            Ok(()) if self.0.running_since().is_some() => "running",
            Ok(()) => "queued",
        };
        format!("<Ticket {state}>")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        // While a lane or a waiter has the ticket too, what it holds is in use, which the garbage
        // collector cannot see.
        if Arc::strong_count(&self.0) > 1 {
            return Ok(());
        }
        self.0
            .try_look(|task, outcome| {
                task.map_or(Ok(()), |task| task.traverse(&visit))?;
                outcome.map_or(Ok(()), |outcome| outcome.traverse(&visit))
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self) {
        if Arc::strong_count(&self.0) == 1 {
            drop(self.0.clear());
        }
    }
}
