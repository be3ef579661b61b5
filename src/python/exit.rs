//! `fork`, the end of threads, and the end of the interpreter; called by the package, not by users.

use pyo3::prelude::*;

use crate::wait::{self, Owner};

/// Tells the core that this is a forked child.
#[pyfunction]
pub(super) fn entered_child() {
    wait::entered_child();
}

/// Releases what the code of this thread still holds: its end has come.
#[pyfunction]
pub(super) fn release_this_thread() {
    wait::thread_ended(Owner::this_thread());
}

/// Keeps every other thread from coming back to the interpreter.
#[pyfunction]
pub(super) fn begin_exit() {
    wait::begin_exit();
}
