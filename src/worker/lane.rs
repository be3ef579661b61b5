//! A lane: the tasks of one device, and its one worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use super::{Cancelled, Finished, Ticket, WorkerError, forget};
use crate::sync::{AtomicU64, Condvar, Mutant, Mutex, Ordering, planted, wait_until};
use crate::wait::{
    Asked, Birth, Blockers, CancelToken, Description, Left, Owner, Pending, Queue, Resource,
    WaitError, Wake, WakeList, wake_all,
};

/// What a lane and its tickets share: whose worker it is.
pub(super) struct Post {
    birth: Birth,
    device: String,
    worker: Mutex<Option<Owner>>,
}

impl Post {
    pub(super) fn worker(&self) -> Option<Owner> {
        self.worker.lock().clone()
    }

    pub(super) fn birth(&self) -> Birth {
        self.birth
    }

    pub(super) fn device(&self) -> &str {
        &self.device
    }
}

/// The queue of one device, served by one thread.
pub struct Lane<T, V> {
    post: Arc<Post>,
    state: Mutex<State<T, V>>,
    ready: Condvar,
    /// Tasks in the queue, and one more once it is closed: what an idle worker looks at.
    signal: AtomicU64,
}

struct State<T, V> {
    queue: VecDeque<Arc<Ticket<T, V>>>,
    running: Option<Arc<Ticket<T, V>>>,
    finished: u64,
    has_worker: bool,
    closed: bool,
    /// Those who wait for the worker to leave.
    waiters: Slab<Arc<dyn Wake>>,
}

/// A task that a lane has accepted.
pub struct Pushed<T, V> {
    /// Its ticket.
    pub ticket: Arc<Ticket<T, V>>,
    /// Whether the caller must start the lane's worker now.
    pub needs_worker: bool,
}

/// A lane at a glance.
#[derive(Debug, Clone)]
pub struct LaneStatus {
    /// The lane's device.
    pub device: String,
    /// Tasks that wait.
    pub queued: usize,
    /// How long the running task has run; `None` when idle.
    pub running_for: Option<Duration>,
    /// Tasks that the worker is through with.
    pub finished: u64,
    /// Whether it takes no more tasks.
    pub closed: bool,
    /// Whether a thread serves it.
    pub has_worker: bool,
}

impl<T: Send + 'static, V: Send + 'static> Lane<T, V> {
    /// An open lane without tasks or a worker.
    #[must_use]
    pub fn new(device: &str) -> Arc<Self> {
        let birth = Birth::default();
        let (device, worker) = (device.to_owned(), Mutex::new(None));
        let post = Arc::new(Post { birth, device, worker });
        let state = State {
            queue: VecDeque::new(),
            running: None,
            finished: 0,
            has_worker: false,
            closed: false,
            waiters: Slab::new(),
        };
        Arc::new(Self {
            post,
            state: Mutex::new(state),
            ready: Condvar::new(),
            signal: AtomicU64::new(0),
        })
    }

    /// Queues a task.
    ///
    /// # Errors
    /// [`WorkerError::Closed`] and [`WorkerError::Forked`].
    pub fn push(&self, task: T) -> Result<Pushed<T, V>, WorkerError> {
        self.check()?;
        let ticket = Ticket::new(task, CancelToken::new(), self.post.clone());
        let mut state = self.state.lock();
        if state.closed && !planted(Mutant::ClosedLaneAccepts) {
            drop(state);
            return Err(WorkerError::Closed { device: self.post.device.clone() });
        }
        state.queue.push_back(ticket.clone());
        self.signal.fetch_add(1, Ordering::Release);
        let needs_worker = state.claim_worker();
        drop(state);
        if !planted(Mutant::PushForgetsWorker) {
            self.ready.notify_one();
        }
        Ok(Pushed { ticket, needs_worker })
    }

    /// Refuses to go on in a forked child, where no worker is.
    ///
    /// # Errors
    /// [`WorkerError::Forked`].
    pub fn check(&self) -> Result<(), WorkerError> {
        Ok(self.post.birth.check("worker pool")?)
    }

    /// Whether the caller must start the lane's worker now, before there is a task.
    pub fn claim_worker(&self) -> bool {
        self.state.lock().claim_worker()
    }

    /// For who was to be the worker or to start it, and is gone: the next task asks for another.
    /// Returns whether there can be no next one: then [`Lane::give_up`] what is left.
    #[must_use]
    pub fn unclaim_worker(&self) -> bool {
        if !self.post.birth.is_here() {
            return false;
        }
        let mut state = self.state.lock();
        state.has_worker = false;
        state.closed
    }

    /// For the thread that will serve: from now on it is the lane's worker.
    pub fn serve(&self, worker: Owner) {
        *self.post.worker.lock() = Some(worker);
    }

    /// Whether the thread with this number is the lane's worker.
    #[must_use]
    pub fn is_served_by(&self, thread: u64) -> bool {
        self.post.worker.lock().as_ref().is_some_and(|worker| worker.thread_number() == thread)
    }

    /// For the worker: the next ticket if there is one, without waiting.
    pub fn try_take(&self) -> Option<Arc<Ticket<T, V>>> {
        let mut state = self.state.lock();
        let done = state.running.take();
        state.finished += u64::from(done.is_some());
        let next = state.queue.pop_front();
        if next.is_some() {
            self.signal.fetch_sub(1, Ordering::Relaxed);
        }
        state.running.clone_from(&next);
        drop(state);
        drop(done);
        next
    }

    /// For the worker: waits for the next ticket; `None` once the lane is closed and empty. The
    /// worker must leave then, by [`Lane::leave`].
    pub fn take(&self) -> Option<Arc<Ticket<T, V>>> {
        loop {
            if let Some(ticket) = self.try_take() {
                return Some(ticket);
            }
            let mut state = self.state.lock();
            while state.queue.is_empty() {
                if state.closed {
                    return None;
                }
                state = wait_until(&self.ready, state, None);
            }
        }
    }

    /// Whether [`Lane::take`] would return at once; for a worker that looks before it sleeps.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.signal.load(Ordering::Acquire) > 0
    }

    /// For a worker that stops serving. Returns whether tasks are left, for which the caller must
    /// start another.
    #[must_use]
    pub fn leave(&self) -> bool {
        *self.post.worker.lock() = None;
        let mut state = self.state.lock();
        let running = state.running.take();
        let needs_worker = !state.queue.is_empty() && !planted(Mutant::LeaveForgetsQueued);
        state.has_worker = needs_worker;
        let wakers = state.wakers_if_left();
        drop(state);
        drop(running);
        wake_all(&wakers);
        needs_worker
    }

    /// Takes no more tasks; those that it has are run.
    pub fn drain(&self) {
        let dropped = self.close(false);
        drop(dropped);
    }

    /// Takes no more tasks, cancels the queued ones and tells the running one. Returns what was
    /// queued: drop it with no lock held, and wake those who wait for it.
    pub fn cancel(&self, reason: Option<&str>) -> Vec<(T, Finished)> {
        let (queued, running) = self.close(true);
        if let Some(running) = running {
            running.token().cancel(reason.map(str::to_owned));
        }
        cancel_queued(queued, reason)
    }

    /// For the caller who was to start the worker, and cannot: cancels what is queued. The next
    /// task asks for a worker again.
    pub fn give_up(&self, reason: Option<&str>) -> Vec<(T, Finished)> {
        let mut state = self.state.lock();
        state.has_worker = false;
        let queued = std::mem::take(&mut state.queue);
        self.signal.fetch_sub(queued.len() as u64, Ordering::Relaxed);
        let wakers = state.wakers_if_left();
        drop(state);
        wake_all(&wakers);
        cancel_queued(queued, reason)
    }

    #[expect(
        clippy::type_complexity,
        reason = "the queue and the running ticket, used twice above"
    )]
    fn close(&self, empty: bool) -> (VecDeque<Arc<Ticket<T, V>>>, Option<Arc<Ticket<T, V>>>) {
        if !self.post.birth.is_here() {
            return (VecDeque::new(), None);
        }
        let mut state = self.state.lock();
        state.closed = true;
        let empty = empty || planted(Mutant::CloseDropsQueued);
        let queued = if empty { std::mem::take(&mut state.queue) } else { VecDeque::new() };
        let running = state.running.clone();
        // One more than there are tasks, so that an idle worker always sees it.
        self.signal.store(state.queue.len() as u64 + 1, Ordering::Release);
        let wakers = state.wakers_if_left();
        drop(state);
        self.ready.notify_all();
        wake_all(&wakers);
        (queued, running)
    }

    /// Asks to be woken when the worker of a closed lane has left.
    pub fn ask_left(self: &Arc<Self>, owner: &Owner, waker: Arc<dyn Wake>) -> Asked<Self> {
        if !self.post.birth.is_here() {
            return Asked::Granted(());
        }
        let mut state = self.state.lock();
        if state.has_left() {
            return Asked::Granted(());
        }
        let key = state.waiters.insert(waker);
        drop(state);
        Asked::Waiting(Pending::new(self.clone(), key as u64, owner.clone()))
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`WorkerError::Forked`].
    pub fn status(&self) -> Result<LaneStatus, WorkerError> {
        self.check()?;
        let state = self.state.lock();
        let (queued, running) = (state.queue.len(), state.running.clone());
        let (finished, closed, has_worker) = (state.finished, state.closed, state.has_worker);
        drop(state);
        let running_for =
            running.and_then(|ticket| ticket.running_since()).map(|since| since.elapsed());
        let device = self.post.device.clone();
        Ok(LaneStatus { device, queued, running_for, finished, closed, has_worker })
    }
}

fn cancel_queued<T: Send + 'static, V: Send + 'static>(
    queued: VecDeque<Arc<Ticket<T, V>>>,
    reason: Option<&str>,
) -> Vec<(T, Finished)> {
    let cancelled =
        queued.into_iter().filter_map(|ticket| match ticket.cancel(reason.map(str::to_owned)) {
            Cancelled::Queued(task, finished) => Some((task, finished)),
            Cancelled::Running | Cancelled::Over => None,
        });
    cancelled.collect()
}

impl<T, V> State<T, V> {
    fn claim_worker(&mut self) -> bool {
        !std::mem::replace(&mut self.has_worker, true) || planted(Mutant::EveryPushNeedsWorker)
    }

    fn has_left(&self) -> bool {
        self.closed && !self.has_worker
    }

    /// Those who wait for the worker to leave, once it has.
    fn wakers_if_left(&self) -> WakeList {
        if !self.has_left() || planted(Mutant::LeaveForgetsWaiters) {
            return WakeList::new();
        }
        self.waiters.iter().map(|(_, waker)| waker.clone()).collect()
    }
}

impl<T: Send, V: Send> Resource for Lane<T, V> {
    fn blockers(&self, _: u64) -> Option<Blockers> {
        if self.state.lock().has_left() {
            return None;
        }
        Some(vec![self.post.worker().into_iter().collect()])
    }

    fn describe(&self, _: u64) -> Description {
        let state = self.state.lock();
        let running = usize::from(state.running.is_some());
        let held = format!(", with {running} running and {} queued", state.queue.len());
        Description { wants: format!("the worker of {} to finish", self.post.device), held }
    }
}

impl<T: Send + 'static, V: Send + 'static> Queue for Lane<T, V> {
    type Guard = ();
    type Error = WaitError;

    fn collect(self: &Arc<Self>, _: u64) -> Option<Result<(), WaitError>> {
        self.state.lock().has_left().then_some(Ok(()))
    }

    fn abandon(&self, key: u64) -> Left {
        if !self.post.birth().is_here() {
            return Left::default();
        }
        forget(&mut self.state.lock().waiters, key)
    }
}
