//! A task and its outcome, as Python objects.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::super::error::{Error, Result};
use super::super::exit::Inside;
use super::super::torch;

/// What a worker is to call.
pub(super) struct Task {
    pub(super) function: Py<PyAny>,
    pub(super) args: Py<PyTuple>,
    pub(super) kwargs: Option<Py<PyDict>>,
    pub(super) context: Py<PyAny>,
    pub(super) future: Option<Py<PyAny>>,
    pub(super) torch_mode: u8,
    /// The pool's start hook, which an idle worker does not keep.
    pub(super) on_start: Option<Py<PyAny>>,
}

impl Task {
    pub(super) fn new(
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        on_start: Option<&Py<PyAny>>,
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
            on_start: on_start.map(|hook| hook.clone_ref(py)),
        })
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.function)?;
        visit.call(&self.args)?;
        visit.call(&self.kwargs)?;
        visit.call(&self.context)?;
        visit.call(&self.on_start)?;
        visit.call(&self.future)
    }
}

/// How a task ended.
pub(super) enum Outcome {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
}

impl Outcome {
    pub(super) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Value(value) => Self::Value(value.clone_ref(py)),
            Self::Error(error) => Self::Error(error.clone_ref(py)),
        }
    }

    pub(super) fn into_result(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Error(error) => Err(PyErr::from_value(error.into_bound(py))),
        }
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        let (Self::Value(object) | Self::Error(object)) = self;
        visit.call(object)
    }
}

/// Cancels the future of a task that will not run, and tells whoever waits for it.
pub(super) fn cancel_future(py: Python<'_>, task: &Task) -> Result<()> {
    let Some(future) = &task.future else { return Ok(()) };
    let _inside = Inside::enter(py);
    let future = future.bind(py);
    let cancel = || future.call_method0("_cancel_unstarted");
    cancel().map(drop).map_err(Error::from)
}
