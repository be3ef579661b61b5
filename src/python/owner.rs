//! Who calls: the asyncio task if one runs, else the event loop's callbacks, else the thread.

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::exit::Inside;
use crate::wait::{self, Owner};

/// A task's owner, kept on the task itself: it lives exactly as long, and no id is used twice.
#[pyclass(frozen, module = "coresident._core")]
struct TaskOwner(Owner);

static GET_RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static CURRENT_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// `sys.modules[name]`, without importing it.
pub(super) fn loaded_module<'py>(
    py: Python<'py>,
    name: &Bound<'py, PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    static MODULES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let modules = MODULES
        .get_or_try_init(py, || PyResult::Ok(py.import("sys")?.getattr("modules")?.unbind()))?;
    match modules.bind(py).cast::<PyDict>() {
        Ok(modules) => modules.get_item(name),
        Err(_) => Ok(None),
    }
}

/// The event loop that runs on this thread. Without asyncio in the process there is none.
pub(super) fn running_loop(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    let get = match GET_RUNNING_LOOP.get(py) {
        Some(get) => get,
        None => {
            let Some(events) = loaded_module(py, intern!(py, "asyncio.events"))? else {
                return Ok(None);
            };
            // Another thread may be in the middle of importing it.
            let Some(get) = events.getattr_opt(intern!(py, "_get_running_loop"))? else {
                return Ok(None);
            };
            GET_RUNNING_LOOP.get_or_init(py, || get.unbind())
        }
    };
    let running = get.bind(py).call0()?;
    Ok(if running.is_none() { None } else { Some(running) })
}

/// The owner of what the caller takes now.
pub(super) fn current(py: Python<'_>) -> PyResult<Owner> {
    match running_loop(py)? {
        None => Owner::try_thread(|| thread_name(py)),
        Some(running) => on_loop(py, &running),
    }
}

fn on_loop(py: Python<'_>, running: &Bound<'_, PyAny>) -> PyResult<Owner> {
    // Before CPython 3.12 `current_task` is Python code.
    let _inside = Inside::enter(py);
    let current_task = CURRENT_TASK.get_or_try_init(py, || {
        PyResult::Ok(py.import("asyncio")?.getattr("current_task")?.unbind())
    })?;
    let task = current_task.bind(py).call1((running,))?;
    if task.is_none() {
        return Owner::try_callbacks(|| thread_name(py));
    }
    let key = intern!(py, "_coresident_owner");
    if let Some(known) = task.getattr_opt(key)?
        && let Ok(known) = known.cast::<TaskOwner>()
    {
        let owner = &known.get().0;
        owner.moved_here();
        return Ok(owner.clone());
    }
    // What its thread holds is released with the thread, this task's too.
    Owner::try_thread(|| thread_name(py))?;
    let name = task.call_method0(intern!(py, "get_name")).and_then(|name| name.extract());
    let owner = Owner::task(unless_interrupted(py, name)?.unwrap_or_else(|| "?".to_owned()));
    task.setattr(key, TaskOwner(owner.clone()))?;
    Ok(owner)
}

/// The name that Python's `threading` knows for this thread, else the system's.
fn thread_name(py: Python<'_>) -> PyResult<String> {
    let _inside = Inside::enter(py);
    let find = || -> PyResult<Option<String>> {
        let threading = py.import("threading")?;
        let ident = threading.call_method0("get_ident")?;
        // Not current_thread(): it would make a permanent dummy for a foreign thread.
        for thread in threading.call_method0("enumerate")?.try_iter()? {
            let thread = thread?;
            if thread.getattr("ident")?.eq(&ident)? {
                see_the_end_of(&thread)?;
                return thread.getattr("name")?.extract().map(Some);
            }
        }
        Ok(None)
    };
    let known = unless_interrupted(py, find())?.flatten();
    let system = || std::thread::current().name().map(str::to_owned);
    Ok(known.or_else(system).unwrap_or_else(|| format!("{:?}", std::thread::current().id())))
}

/// Releases what the code of a thread still holds when Python is through with the thread, which is
/// before whoever joins it goes on. The system's own end of it comes a little later.
#[pyclass(frozen, module = "coresident._core")]
struct ThreadEnd {
    thread: u64,
    process: u32,
}

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        // A child drops what its parent's threads had before anybody is told that it was forked.
        if self.process == std::process::id() && !wait::exiting() {
            wait::thread_ended(self.thread);
        }
    }
}

/// Keeps a [`ThreadEnd`] in this thread's `threading.local`. Not for threads that Python has not
/// started: they come and go as often as they call.
fn see_the_end_of(thread: &Bound<'_, PyAny>) -> PyResult<()> {
    static LOCAL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = thread.py();
    let threading = py.import("threading")?;
    if thread.is_instance(&threading.getattr("_DummyThread")?)? {
        return Ok(());
    }
    let local =
        LOCAL.get_or_try_init(py, || PyResult::Ok(threading.call_method0("local")?.unbind()))?;
    let end = ThreadEnd { thread: Owner::this_thread(), process: std::process::id() };
    local.setattr(py, "coresident_end", end)
}

/// Forgets an ordinary error, but not Ctrl-C or an exit.
pub(super) fn unless_interrupted<T>(py: Python<'_>, outcome: PyResult<T>) -> PyResult<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_instance_of::<PyException>(py) => Ok(None),
        Err(error) => Err(error),
    }
}
