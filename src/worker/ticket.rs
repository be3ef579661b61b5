//! A ticket: one task, its one outcome, and whoever waits for it.

use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use super::forget;
use super::lane::Post;
use crate::sync::{Mutant, Mutex, planted};
use crate::wait::{
    Asked, Blockers, CancelToken, Description, Forked, Left, Owner, Pending, Queue, Resource,
    WaitError, Wake, WakeList, seconds, wake_all,
};

/// One task on its way through a lane.
pub struct Ticket<T, V> {
    state: Mutex<State<T, V>>,
    token: CancelToken,
    post: Arc<Post>,
}

struct State<T, V> {
    stage: Stage<T, V>,
    waiters: Slab<(Arc<dyn Wake>, Owner)>,
}

enum Stage<T, V> {
    Queued(T),
    Running(Instant),
    Done(V),
    Cancelled,
}

/// What cancelling found.
#[derive(Debug)]
pub enum Cancelled<T> {
    /// It was still queued, and will not run: here is the task.
    Queued(T, Finished),
    /// It runs; its token is cancelled now.
    Running,
    /// It was done or cancelled before.
    Over,
}

/// The waiters of a ticket that has just ended: wake them when no lock is held.
#[derive(Default)]
#[must_use]
pub struct Finished(WakeList);

impl std::fmt::Debug for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Finished({} waiters)", self.0.len())
    }
}

impl Finished {
    /// Wakes them.
    pub fn wake(self) {
        wake_all(&self.0);
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T, V> State<T, V> {
    fn end(&mut self, stage: Stage<T, V>) -> (Stage<T, V>, Finished) {
        let before = std::mem::replace(&mut self.stage, stage);
        // The waiters stay registered: each takes itself out when it has looked.
        let wakers = self.waiters.iter().map(|(_, (waker, _))| waker.clone());
        let forget = planted(Mutant::FinishForgetsWaiters);
        (before, Finished(if forget { WakeList::new() } else { wakers.collect() }))
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Done(_) | Stage::Cancelled)
    }
}

impl<T: Send + 'static, V: Send + 'static> Ticket<T, V> {
    pub(super) fn new(task: T, token: CancelToken, post: Arc<Post>) -> Arc<Self> {
        let state = State { stage: Stage::Queued(task), waiters: Slab::new() };
        Arc::new(Self { state: Mutex::new(state), token, post })
    }

    /// Refuses to go on in a forked child, where no worker is.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn check(&self) -> Result<(), Forked> {
        self.post.birth().check("worker pool")
    }

    /// The token that a running task can watch.
    #[must_use]
    pub fn token(&self) -> &CancelToken {
        &self.token
    }

    /// For the worker: the task, unless it was cancelled.
    pub fn start(&self) -> Option<T> {
        let mut state = self.state.lock();
        if matches!(state.stage, Stage::Queued(_))
            && let Stage::Queued(task) =
                std::mem::replace(&mut state.stage, Stage::Running(Instant::now()))
        {
            return Some(task);
        }
        None
    }

    /// For the worker: the outcome. A ticket that is over keeps the outcome it has, and `outcome`
    /// is dropped, with no lock held.
    pub fn finish(&self, outcome: V) -> Finished {
        let mut state = self.state.lock();
        if state.is_over() {
            drop(state);
            drop(outcome);
            return Finished::default();
        }
        let (before, finished) = state.end(Stage::Done(outcome));
        drop(state);
        drop(before);
        finished
    }

    /// Keeps a queued task from running; tells a running one through its token.
    pub fn cancel(&self, reason: Option<String>) -> Cancelled<T> {
        let mut state = self.state.lock();
        match state.stage {
            Stage::Done(_) | Stage::Cancelled => Cancelled::Over,
            Stage::Running(_) => {
                drop(state);
                self.token.cancel(reason);
                Cancelled::Running
            }
            Stage::Queued(_) => {
                if planted(Mutant::CancelledTaskRuns) {
                    return Cancelled::Over;
                }
                let (before, finished) = state.end(Stage::Cancelled);
                drop(state);
                self.token.cancel(reason);
                match before {
                    Stage::Queued(task) => Cancelled::Queued(task, finished),
                    _ => Cancelled::Over,
                }
            }
        }
    }

    /// Whether it is done or cancelled.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state.lock().is_over()
    }

    /// Whether it was cancelled before it ran.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.state.lock().stage, Stage::Cancelled)
    }

    /// Whether its task runs now, and since when.
    #[must_use]
    pub fn running_since(&self) -> Option<Instant> {
        match self.state.lock().stage {
            Stage::Running(since) => Some(since),
            _ => None,
        }
    }

    /// Looks at the outcome, if there is one. `look` runs under the ticket's lock: it may only copy.
    pub fn outcome<R>(&self, look: impl FnOnce(&V) -> R) -> Option<R> {
        match &self.state.lock().stage {
            Stage::Done(outcome) => Some(look(outcome)),
            _ => None,
        }
    }

    /// Looks at the task or the outcome, whichever there is; `None` if the ticket is in use right
    /// now. `look` runs under the ticket's lock.
    pub fn try_look<R>(&self, look: impl FnOnce(Option<&T>, Option<&V>) -> R) -> Option<R> {
        let state = self.state.try_lock()?;
        Some(match &state.stage {
            Stage::Queued(task) => look(Some(task), None),
            Stage::Done(outcome) => look(None, Some(outcome)),
            Stage::Running(_) | Stage::Cancelled => look(None, None),
        })
    }

    /// Takes everything out of a ticket that nobody will use again; drop it with no lock held.
    pub fn clear(&self) -> impl Sized + use<T, V> {
        let mut state = self.state.lock();
        state.end(Stage::Cancelled)
    }

    /// Asks to be woken when it is over.
    pub fn ask(self: &Arc<Self>, owner: &Owner, waker: Arc<dyn Wake>) -> Asked<Self> {
        let mut state = self.state.lock();
        if state.is_over() {
            return Asked::Granted(());
        }
        let key = state.waiters.insert((waker, owner.clone()));
        drop(state);
        Asked::Waiting(Pending::new(self.clone(), key as u64, owner.clone()))
    }
}

impl<T: Send, V: Send> Resource for Ticket<T, V> {
    fn blockers(&self, _: u64) -> Option<Blockers> {
        if self.state.lock().is_over() {
            return None;
        }
        Some(vec![self.post.worker().into_iter().collect()])
    }

    fn describe(&self, _: u64) -> Description {
        let device = self.post.device();
        let held = match self.state.lock().stage {
            Stage::Running(since) => format!(", which has run for {}", seconds(since.elapsed())),
            Stage::Queued(_) => ", which has not started".to_owned(),
            Stage::Done(_) | Stage::Cancelled => String::new(),
        };
        Description { wants: format!("the result of a task on {device}"), held }
    }
}

impl<T: Send + 'static, V: Send + 'static> Queue for Ticket<T, V> {
    type Guard = ();
    type Error = WaitError;

    fn collect(self: &Arc<Self>, _: u64) -> Option<Result<(), WaitError>> {
        self.state.lock().is_over().then_some(Ok(()))
    }

    fn abandon(&self, key: u64) -> Left {
        if !self.post.birth().is_here() {
            return Left::default();
        }
        forget(&mut self.state.lock().waiters, key)
    }
}
