//! Functions of users that the core calls.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::exit::Inside;
use super::wait::interrupt_this_thread;

/// Calls a user's function from wherever we are. What it raises is shown as what a finaliser raises:
/// there is nobody above who has called it.
pub(super) fn call<T>(
    function: &Py<PyAny>,
    with: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
) -> Option<T> {
    // A thread that has left the interpreter may be too late to come back.
    let _inside = Inside::try_enter()?;
    Python::attach(|py| {
        let function = function.bind(py);
        with(function)
            .map_err(|error| {
                if error.is_instance_of::<PyException>(py) {
                    error.write_unraisable(py, Some(function));
                } else {
                    // Ctrl-C, or an exit: whoever waits next hears of it.
                    interrupt_this_thread(error);
                }
            })
            .ok()
    })
}
