//! Every blocking wait of the library: deadlines, cancellation, interrupts, and who waits for whom.
//!
//! A primitive (a device pool, a load lock) keeps its own line of waiters under its own mutex and
//! implements [`Queue`]. Everything about *being patient* is here, once: [`Pending::wait`] blocks a
//! thread until its turn comes, the deadline passes, the [`CancelToken`] is cancelled, the
//! [`Interrupt`] fires (Ctrl-C in Python's main thread) or the wait-for graph proves that the turn
//! can never come. [`Pending`] without a thread is the asynchronous form: poll it when it wakes you.
//!
//! # Order of locks
//! The graph's mutex first, then at most one primitive's mutex. No primitive holds its own mutex
//! while it calls anything in this room: wakers are collected under the lock and called after it.
//!
//! # Errors
//! [`WaitError`] names what was wanted and who holds it.

mod cancel;
mod graph;
mod owner;
mod park;
mod process;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use cancel::{CancelToken, Listening};
pub use graph::{Blockers, Deadlock, Registration, Resource, Step};
pub use owner::{Kind, Owner};
pub use park::{Parker, Wake, WakeList, wake_all};
pub use process::{
    Birth, Forked, PerProcess, about_to_fork, begin_exit, entered_child, exiting, forks,
    has_forked, register, shut_out, thread_ended,
};

/// Why a wait ended without what it waited for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("timed out after {} waiting for {wants}{held}", seconds(*.after))]
    Timeout {
        /// What was waited for.
        wants: String,
        /// Who holds it, as the end of a sentence; empty when nobody does.
        held: String,
        /// The patience that the caller gave.
        after: Duration,
    },
    /// The caller's token was cancelled.
    #[error("cancelled while waiting for {wants}{}", reason_suffix(.reason.as_deref()))]
    Cancelled {
        /// What was waited for.
        wants: String,
        /// The reason given to the token, if any.
        reason: Option<String>,
    },
    /// The caller's [`Interrupt`] fired; it knows the reason.
    #[error("interrupted")]
    Interrupted,
    /// Waiting would never have ended.
    #[error(transparent)]
    Deadlock(#[from] Deadlock),
    /// The process was forked by a signal's handler while it waited: this is the child.
    #[error(transparent)]
    Forked(#[from] Forked),
}

impl WaitError {
    /// The end of a wait whose thread, with the event loop that it ran, has ended.
    #[must_use]
    pub fn thread_ended(wants: String) -> Self {
        Self::Cancelled { wants, reason: Some("the thread that waited has ended".to_owned()) }
    }
}

/// A reason as the end of a sentence; nothing without one.
#[must_use]
pub fn reason_suffix(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

/// A duration as people read it: `0.05 s`, `12 s`.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    let value = duration.as_secs_f64();
    if value >= 10.0 {
        format!("{value:.0} s")
    } else {
        format!("{} s", (value * 1e3).round() / 1e3)
    }
}

/// Something outside that may end a wait early: pending signals, in Python.
pub trait Interrupt {
    /// How often [`Interrupt::interrupted`] must be asked; `None` when it never fires.
    fn slice(&self) -> Option<Duration>;
    /// Whether to give up now. Called with no lock held.
    fn interrupted(&self) -> bool;
}

/// No interrupts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uninterrupted;

impl Interrupt for Uninterrupted {
    fn slice(&self) -> Option<Duration> {
        None
    }
    fn interrupted(&self) -> bool {
        false
    }
}

/// How long to wait, and what may end the wait early.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// Longest wait; `None` waits for ever, zero only looks.
    pub timeout: Option<Duration>,
    /// Ends the wait when cancelled.
    pub cancel: Option<&'a CancelToken>,
    /// Asked between slices of the wait.
    pub interrupt: &'a dyn Interrupt,
}

impl Patience<'static> {
    /// Waits for ever.
    pub const FOREVER: Self = Self { timeout: None, cancel: None, interrupt: &Uninterrupted };

    /// Waits no longer than `timeout`.
    #[must_use]
    pub fn at_most(timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..Self::FOREVER }
    }
}

impl<'a> Patience<'a> {
    /// What is left of it, if it began then.
    #[must_use]
    pub fn since(self, began: Instant) -> Self {
        let timeout = self.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        Self { timeout, ..self }
    }

    /// The same patience, ended by `token` too.
    #[must_use]
    pub fn or_cancelled<'b>(self, token: &'b CancelToken) -> Patience<'b>
    where
        'a: 'b,
    {
        Patience { cancel: Some(token), ..self }
    }
}

/// A line of waiters: what a primitive implements to be waited for.
pub trait Queue: Resource + Sized + 'static {
    /// What a waiter gets when its turn comes.
    type Guard;
    /// Why a waiter may be turned away.
    type Error: From<WaitError>;

    /// Collects the outcome of `ticket` if there is one; takes no time.
    fn collect(self: &Arc<Self>, ticket: u64) -> Option<Result<Self::Guard, Self::Error>>;

    /// Takes `ticket` out of the line, and gives back what it was granted but never collected. Called
    /// under the graph's mutex: a line may not change its order while the graph is looked at.
    fn abandon(&self, ticket: u64) -> Left;
}

/// What giving a place up leaves to do once no lock is held.
#[derive(Default)]
#[must_use]
pub struct Left {
    gone: Option<Box<dyn Send>>,
    wakers: WakeList,
}

impl Left {
    /// Objects to drop, and whom to wake.
    pub fn new(gone: impl Send + 'static, wakers: WakeList) -> Self {
        Self { gone: Some(Box::new(gone)), wakers }
    }

    fn settle(self) {
        drop(self.gone);
        wake_all(&self.wakers);
    }
}

/// A place in a line. Dropping it gives the place up.
pub struct Pending<Q: Queue> {
    queue: Arc<Q>,
    ticket: u64,
    owner: Owner,
    registration: Option<Registration>,
    collected: bool,
}

impl<Q: Queue> Pending<Q> {
    /// Wraps the place that `queue` has just given to `owner`.
    #[must_use]
    pub fn new(queue: Arc<Q>, ticket: u64, owner: Owner) -> Self {
        Self { queue, ticket, owner, registration: None, collected: false }
    }

    /// Collects the outcome if there is one; never waits.
    pub fn poll(&mut self) -> Option<Result<Q::Guard, Q::Error>> {
        let outcome = self.queue.collect(self.ticket)?;
        self.collected = true;
        self.registration = None;
        Some(outcome)
    }

    /// What is waited for, in words.
    #[must_use]
    pub fn describe(&self) -> Description {
        self.queue.describe(self.ticket)
    }

    /// Enters the wait-for graph as an asynchronous wait: the owner waits, its thread does not.
    ///
    /// # Errors
    /// [`WaitError::Deadlock`] when the turn can never come.
    pub fn watch(&mut self) -> Result<(), WaitError> {
        self.enter_graph(false)
    }

    /// Looks again whether the turn can still come.
    ///
    /// # Errors
    /// [`WaitError::Deadlock`] when it cannot.
    pub fn check(&self) -> Result<(), WaitError> {
        self.registration.as_ref().map_or(Ok(()), |registration| Ok(registration.check()?))
    }

    fn enter_graph(&mut self, blocks_thread: bool) -> Result<(), WaitError> {
        let resource: Arc<dyn Resource> = self.queue.clone();
        let registration =
            graph::register(resource, self.ticket, self.owner.clone(), blocks_thread)?;
        self.registration = Some(registration);
        Ok(())
    }

    /// Blocks the thread until the turn comes. `parker` is what the line wakes.
    ///
    /// # Errors
    /// The line's own refusal, or a [`WaitError`]. A turn that came in the instant of giving up is
    /// kept after a timeout and given back after a cancel or an interrupt.
    pub fn wait(
        mut self,
        parker: &Arc<Parker>,
        patience: &Patience<'_>,
    ) -> Result<Q::Guard, Q::Error> {
        let birth = Birth::default();
        let started = Instant::now();
        let deadline = patience.timeout.and_then(|timeout| started.checked_add(timeout));
        let waker: Arc<dyn Wake> = parker.clone();
        let _listening = patience.cancel.map(|token| token.listen(waker));
        let mut woken = false;
        loop {
            if let Some(token) = patience.cancel.filter(|token| token.is_cancelled()) {
                let wants = self.describe().wants;
                return Err(WaitError::Cancelled { wants, reason: token.reason() }.into());
            }
            if let Some(outcome) = self.poll() {
                return outcome;
            }
            let stuck = match self.registration {
                // Only looking is not waiting.
                None if patience.timeout == Some(Duration::ZERO) => Ok(()),
                None => self.enter_graph(true),
                // Woken for nothing: what could have come free has changed.
                Some(_) if woken => self.check(),
                Some(_) => Ok(()),
            };
            if let Err(error) = stuck {
                return self.poll().unwrap_or_else(|| Err(error.into()));
            }
            let now = Instant::now();
            if let Some(after) = patience.timeout.filter(|_| deadline.is_some_and(|d| now >= d)) {
                let Description { wants, held } = self.describe();
                return self
                    .poll()
                    .unwrap_or_else(|| Err(WaitError::Timeout { wants, held, after }.into()));
            }
            let slice = patience.interrupt.slice().map(|slice| now + slice);
            woken = parker.park(match (deadline, slice) {
                (Some(deadline), Some(slice)) => Some(deadline.min(slice)),
                (deadline, slice) => deadline.or(slice),
            });
            if patience.interrupt.interrupted() {
                return Err(WaitError::Interrupted.into());
            }
            birth.check("wait").map_err(WaitError::from)?;
        }
    }
}

/// The answer to asking without waiting.
pub enum Asked<Q: Queue> {
    /// It is ours.
    Granted(Q::Guard),
    /// We have a place in the line.
    Waiting(Pending<Q>),
}

impl<Q: Queue> Asked<Q> {
    /// Blocks the thread until the turn comes; see [`Pending::wait`].
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn wait(self, parker: &Arc<Parker>, patience: &Patience<'_>) -> Result<Q::Guard, Q::Error> {
        match self {
            Self::Granted(guard) => Ok(guard),
            Self::Waiting(pending) => pending.wait(parker, patience),
        }
    }
}

impl<Q: Queue> Drop for Pending<Q> {
    fn drop(&mut self) {
        self.registration = None;
        if !self.collected {
            graph::unwatched(|| self.queue.abandon(self.ticket)).settle();
        }
    }
}

/// A waiter's wish in words.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// What is wanted: `cuda:0`, `the load lock to write`.
    pub wants: String,
    /// The end of the sentence: `, held by thread 'a' for 3 s`; empty when nobody holds it.
    pub held: String,
}
