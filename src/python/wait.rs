//! The one door to every call that waits, and cancel tokens.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use crate::sync::Mutex;
use pyo3::prelude::*;

use super::error::{Error, Result};
use super::exit::{Inside, detached};
use super::{argument, owner};
use crate::wait::{
    self, Birth, Blockers, Description, Interrupt, Owner, Parker, Patience, Pending, Resource,
    WaitError,
};

/// How often a wait in the main thread looks for signals.
const SLICE: Duration = Duration::from_millis(20);

/// A flag that is raised once, and at once wakes everyone who waits with it.
#[pyclass(frozen, module = "coresident", name = "CancelToken")]
pub(super) struct CancelToken(pub(super) wait::CancelToken);

#[pymethods]
impl CancelToken {
    #[new]
    fn new() -> Self {
        Self(wait::CancelToken::new())
    }

    /// Raises the flag, and wakes everyone who waits with this token. Does not wait.
    #[pyo3(signature = (reason=None))]
    fn cancel(&self, reason: Option<String>) -> bool {
        self.0.cancel(reason)
    }

    /// Whether the flag is raised.
    #[getter]
    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// What was given to `cancel`; `None` without a reason.
    #[getter]
    fn reason(&self) -> Option<String> {
        self.0.reason()
    }

    /// Raises an error once the flag is raised: for the loops of a task. Does not wait.
    fn raise_if_cancelled(&self) -> Result<()> {
        if !self.0.is_cancelled() {
            return Ok(());
        }
        let reason = self.0.reason();
        let message = format!("cancelled{}", wait::reason_suffix(reason.as_deref()));
        Err(super::error::raise("CancelledError", &message, |fields| {
            fields.set_item("reason", reason)
        }))
    }

    /// Waits for the flag: true once it is raised, false when the time is over.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> Result<bool> {
        let timeout = argument::timeout(timeout)?;
        if self.0.is_cancelled() {
            return Ok(true);
        }
        self.0.check()?;
        let owner = owner::current(py)?;
        let waiting = Arc::new(Raised(self.0.clone()));
        patiently(py, Terms { timeout, cancel: None }, move |patience| {
            let parker = Parker::new();
            let _listening = waiting.0.listen(parker.clone());
            match Pending::new(waiting, 0, owner).wait(&parker, patience) {
                Ok(()) => Ok(true),
                Err(WaitError::Timeout { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn __repr__(&self) -> String {
        match (self.0.is_cancelled(), self.0.reason()) {
            (false, _) => "<CancelToken>".to_owned(),
            (true, None) => "<CancelToken cancelled>".to_owned(),
            (true, Some(reason)) => format!("<CancelToken cancelled: {reason}>"),
        }
    }
}

/// A raised flag as something to wait for. Anybody may raise it, so that it blocks on nobody.
struct Raised(wait::CancelToken);

impl Resource for Raised {
    fn blockers(&self, _: u64) -> Option<Blockers> {
        Some(vec![Vec::new()])
    }

    fn describe(&self, _: u64) -> Description {
        Description { wants: "a cancel token".to_owned(), held: String::new() }
    }
}

impl wait::Queue for Raised {
    type Guard = ();
    type Error = WaitError;

    fn collect(self: &Arc<Self>, _: u64) -> Option<std::result::Result<(), WaitError>> {
        self.0.is_cancelled().then_some(Ok(()))
    }

    fn abandon(&self, _: u64) -> wait::Left {
        wait::Left::default()
    }
}

/// What a caller says about waiting: `timeout=` and `cancel=`.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) timeout: Option<Duration>,
    pub(super) cancel: Option<wait::CancelToken>,
}

impl Terms {
    pub(super) fn of(
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let timeout = argument::timeout(timeout)?;
        let cancel = match cancel.filter(|cancel| !cancel.is_none()) {
            None => None,
            Some(cancel) => match cancel.cast::<CancelToken>() {
                Ok(token) => {
                    token.get().0.check()?;
                    Some(token.get().0.clone())
                }
                Err(_) => {
                    let given = argument::type_name(cancel);
                    let message = format!("cancel takes a CancelToken or None, not {given}");
                    return Err(super::error::invalid_type(&message));
                }
            },
        };
        Ok(Self { timeout, cancel })
    }

    /// Refuses to begin what is cancelled already.
    pub(super) fn check(&self, wants: &str) -> Result<()> {
        match self.cancel.as_ref().filter(|token| token.is_cancelled()) {
            None => Ok(()),
            Some(token) => {
                let reason = token.reason();
                Err(WaitError::Cancelled { wants: wants.to_owned(), reason }.into())
            }
        }
    }
}

/// Signals of the main thread; other threads never get any.
struct Signals {
    main: bool,
    raised: Mutex<Option<PyErr>>,
}

impl Interrupt for Signals {
    fn slice(&self) -> Option<Duration> {
        self.main.then_some(SLICE)
    }

    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is not general enough"
    )]
    fn interrupted(&self) -> bool {
        if let Some(error) = INTERRUPT.take() {
            *self.raised.lock() = Some(error);
            return true;
        }
        if !self.main {
            return false;
        }
        let outcome = Python::attach(|py| py.check_signals());
        match outcome {
            Ok(()) => false,
            Err(error) => {
                *self.raised.lock() = Some(error);
                true
            }
        }
    }
}

thread_local! {
    /// What a user's function that a wait has called raised, if it is no mere exception.
    static INTERRUPT: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Ends the wait that this thread is in.
pub(super) fn interrupt_this_thread(error: PyErr) {
    let before = INTERRUPT.replace(Some(error));
    drop(before);
}

/// Whether signals are handled in this thread; asked of Python once per thread.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local! {
        static KNOWN: Cell<Option<(Birth, bool)>> = const { Cell::new(None) };
    }
    // A thread that forks is the main thread of the child.
    if let Some((_, main)) = KNOWN.get().filter(|(birth, _)| birth.is_here()) {
        return Ok(main);
    }
    let _inside = Inside::enter(py);
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let main = threading.call_method0("get_ident")?.eq(main)?;
    KNOWN.set(Some((Birth::default(), main)));
    Ok(main)
}

/// Waits, detached from the interpreter, until `wait` returns. Ctrl-C is answered between slices.
pub(super) fn patiently<G: Send, E: Send>(
    py: Python<'_>,
    terms: Terms,
    wait: impl FnOnce(&Patience<'_>) -> std::result::Result<G, E> + Send,
) -> Result<G>
where
    Error: From<E>,
{
    let signals = Signals { main: is_main_thread(py)?, raised: Mutex::new(None) };
    let Terms { timeout, cancel } = terms;
    let outcome =
        detached(py, || wait(&Patience { timeout, cancel: cancel.as_ref(), interrupt: &signals }));
    // Also what was raised after the last look.
    if let Some(raised) = signals.raised.into_inner().or_else(|| INTERRUPT.take()) {
        drop(outcome);
        return Err(raised.into());
    }
    outcome.map_err(Error::from)
}

/// Blocks until `asked` is settled.
pub(super) fn settle<Q>(
    py: Python<'_>,
    asked: wait::Asked<Q>,
    parker: &Arc<Parker>,
    terms: Terms,
) -> Result<Q::Guard>
where
    Q: wait::Queue + Send,
    Q::Guard: Send,
    Q::Error: Send,
    Error: From<Q::Error>,
{
    match asked {
        wait::Asked::Granted(guard) => Ok(guard),
        wait::Asked::Waiting(pending) => {
            patiently(py, terms, move |patience| pending.wait(parker, patience))
        }
    }
}

/// The caller, as the core knows it.
pub(super) fn caller(py: Python<'_>) -> Result<Owner> {
    owner::current(py).map_err(Error::from)
}
