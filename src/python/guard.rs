//! What every guard does in Python: entering, and being forgotten.

use std::ffi::CString;

use pyo3::exceptions::PyResourceWarning;
use pyo3::prelude::*;

use super::error::{Error, raise};
use super::exit::Inside;
use crate::wait::{self, Kind, Owner};

/// Who took a guard, as far as `__enter__` must know.
pub(super) struct Taker {
    thread: u64,
    kind: Kind,
}

impl Taker {
    pub(super) fn of(owner: &Owner) -> Self {
        Self { thread: owner.thread_number(), kind: owner.kind() }
    }

    /// Whether the caller is certainly the one who took it: plain code of the same thread. A task
    /// may have been handed its guard by a wrapper's task, so it is asked every time.
    pub(super) fn is_caller(&self) -> bool {
        self.kind == Kind::Thread && self.thread == Owner::this_thread()
    }
}

/// The error of a guard that is used after its release.
pub(super) fn released(what: &str) -> Error {
    raise("ReleasedError", &format!("{what} has been released already"), |_| Ok(()))
}

/// Warns that a guard was collected while it held something. It has been released by now.
pub(super) fn warn_forgotten(what: &str) {
    if wait::exiting() {
        return;
    }
    Python::attach(|py| {
        let _inside = Inside::enter(py);
        // This may run in the middle of another exception's way up.
        let pending = PyErr::take(py);
        let message =
            format!("{what} was never released: use it in a with block, or call release()");
        if let Ok(message) = CString::new(message)
            && let Err(error) = PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &message, 1)
        {
            error.write_unraisable(py, None);
        }
        if let Some(pending) = pending {
            pending.restore(py);
        }
    });
}
