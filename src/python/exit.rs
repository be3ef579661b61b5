//! `fork`, the end of threads, and the end of the interpreter; called by the package, not by users.
//!
//! Before Python 3.14 an interpreter that exits ends every other thread that comes back to it, by an
//! unwinding that no Rust frame survives: the process would abort. So threads come back through
//! [`detached`], which counts them, and what runs Python code from Rust is counted by [`Inside`].
//! Once the exit has begun those who come stay outside for good, and it waits for those inside.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::wait::{self, Birth, Owner, PerProcess};

/// How long the exit waits for threads that are inside: much longer than our own code takes, but a
/// user's function that was called on the calling thread may take for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// The number of threads inside, or about to be.
fn inside() -> &'static AtomicUsize {
    static INSIDE: PerProcess<AtomicUsize> = PerProcess::new();
    INSIDE.get_or_init(AtomicUsize::default)
}

thread_local! {
    /// How many stretches of this thread are under way, one in the other.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// A stretch of Rust during which the interpreter does not exit.
pub(super) struct Inside(Birth);

impl Inside {
    /// Begins one, unless it is too late; needs no interpreter.
    pub(super) fn try_enter() -> Option<Self> {
        let outer = DEPTH.replace(DEPTH.get() + 1);
        let entered = Self(Birth::default());
        if outer == 0 {
            // Counted first, so that the exit either sees this thread or is seen by it.
            inside().fetch_add(1, Ordering::SeqCst);
            return (!wait::shut_out(Owner::this_thread())).then_some(entered);
        }
        Some(entered)
    }

    /// Begins one that will run Python code. Once the interpreter exits it never returns.
    pub(super) fn enter(py: Python<'_>) -> Self {
        Self::try_enter().unwrap_or_else(|| py.detach(|| stay_outside()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let outer = DEPTH.get().saturating_sub(1);
        DEPTH.set(outer);
        if outer == 0 && self.0.is_here() {
            inside().fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn stay_outside() -> ! {
    loop {
        thread::park();
    }
}

/// Runs `work` without the interpreter, and comes back to it. The exit does not wait for `work`.
pub(super) fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
    let (outer, birth) = (DEPTH.take(), Birth::default());
    if outer > 0 {
        inside().fetch_sub(1, Ordering::SeqCst);
    }
    let (outcome, back) = py.detach(|| {
        let outcome = work();
        (outcome, Inside::try_enter().unwrap_or_else(|| stay_outside()))
    });
    if birth.is_here() {
        // What `back` has counted is the outer stretch's again, if there is one.
        DEPTH.set(DEPTH.get() + outer);
        drop(back);
    } else {
        // Forked by a signal's handler: the outer stretches are not counted in the child.
        drop(back);
        DEPTH.set(outer);
    }
    outcome
}

/// Comes back to the interpreter in the middle of [`detached`] work.
pub(super) fn attached<R>(work: impl FnOnce(Python<'_>) -> R) -> R {
    let _inside = Inside::try_enter().unwrap_or_else(|| stay_outside());
    Python::attach(work)
}

/// Marks the end of the interpreter by its own: what is given to `atexit` with a callback is dropped
/// when all callbacks have run, which is the last moment at which other threads can come back.
#[pyclass(frozen, module = "coresident._core")]
pub(super) struct LastMoment(Birth);

#[pymethods]
impl LastMoment {
    #[new]
    fn new() -> Self {
        Self(Birth::default())
    }
}

impl Drop for LastMoment {
    fn drop(&mut self) {
        Python::attach(|py| {
            // A forked child has one of its own. And somebody may clear or run all callbacks in the
            // middle of things, as multiprocessing does in its children: then there is Python below.
            if !self.0.is_here() || has_python_below(py) {
                return;
            }
            wait::begin_exit(Owner::this_thread());
            py.detach(|| {
                let until = Instant::now() + PATIENCE;
                while inside().load(Ordering::SeqCst) > 0 && Instant::now() < until {
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
    }
}

/// Whether this thread is in the middle of Python code.
fn has_python_below(py: Python<'_>) -> bool {
    py.import("sys").and_then(|sys| sys.call_method0("_getframe")).is_ok()
}

/// Tells the core that this is a forked child.
#[pyfunction]
pub(super) fn entered_child() {
    wait::entered_child();
}

/// Tells the core that the process forks.
#[pyfunction]
pub(super) fn about_to_fork() {
    wait::about_to_fork();
}

/// Tells the core that the fork is over, in the parent.
#[pyfunction]
pub(super) fn has_forked() {
    wait::has_forked();
}

/// Releases what the code of this thread still holds: its end has come.
#[pyfunction]
pub(super) fn release_this_thread() {
    wait::thread_ended(Owner::this_thread());
}
