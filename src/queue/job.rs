//! A job: what was submitted, how it stands, and whoever waits for its end.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use slab::Slab;

use super::clock::Micros;
use super::error::QueueError;
use super::event::{Aftermath, Event, Kind, Subscriber, Subscribers, Topic};
use crate::sync::{Mutant, Mutex, planted};
use crate::wait::{
    Asked, Birth, Blockers, Description, Left, Owner, Pending, Queue, Resource, Wake, WakeList,
};

/// What a job is, for whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A text of JSON.
    Json(Arc<str>),
}

impl Payload {
    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Json(text) => text.len(),
        }
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// It waits.
    Queued,
    /// A device has it.
    Running,
    /// Its claim was finished.
    Done,
    /// Its claim failed, or was lost too often.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// Whether it is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// What a job may change while it lives, as it is now.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// How it stands.
    pub state: JobState,
    /// Whether it runs and was told to stop.
    pub cancelling: bool,
    /// How often it was begun.
    pub attempts: u32,
    /// Where it runs or ran last, as a number of the queue's devices.
    pub device: Option<usize>,
    /// Its priority.
    pub priority: i32,
    /// What its claim said last.
    pub stage: Option<Arc<str>>,
    /// The step that its claim told last, and of how many.
    pub progress: Option<(u32, u32)>,
    /// When it was last claimed.
    pub started: Option<Micros>,
    /// When it was over.
    pub finished: Option<Micros>,
    /// Why it failed, was cancelled, or cannot run.
    pub error: Option<Arc<str>>,
    /// The path that it finished with.
    pub path: Option<Arc<str>>,
    /// Whether it was done or failed in an earlier process.
    pub earlier: bool,
}

/// What the jobs of one queue share.
pub(super) struct Home<V> {
    pub(super) birth: Birth,
    /// Which claims there are, of which device, and whose.
    pub(super) movers: Mutex<HashMap<u64, (usize, Option<Owner>)>>,
    pub(super) subscribers: Subscribers<V>,
}

/// One job.
pub struct Job<V> {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub user: Arc<str>,
    /// Its batch.
    pub batch: Option<Arc<str>>,
    /// Its tags.
    pub tags: Arc<[Arc<str>]>,
    /// Keys of the weights that it uses.
    pub needs: Arc<[Arc<str>]>,
    /// What it is.
    pub payload: Payload,
    /// When it was submitted.
    pub submitted: Micros,
    /// How often it may be begun.
    pub max_attempts: u32,
    pub(super) mask: u64,
    pub(super) home: Arc<Home<V>>,
    pub(super) live: Mutex<Live<V>>,
}

/// What changes of a job.
pub(super) struct Live<V> {
    pub(super) now: Snapshot,
    pub(super) value: Option<V>,
    /// The claim that runs it.
    pub(super) claim: Option<u64>,
    pub(super) begun: bool,
    /// The queue was closed while it waits: a later process will run it.
    pub(super) left: bool,
    waiters: Slab<Arc<dyn Wake>>,
    watchers: Vec<Weak<Subscriber<V>>>,
}

impl<V> Live<V> {
    pub(super) fn new(now: Snapshot) -> Self {
        let (waiters, watchers) = (Slab::new(), Vec::new());
        Self { now, value: None, claim: None, begun: false, left: false, waiters, watchers }
    }

    /// Those who wait for its end.
    pub(super) fn wakers(&self) -> impl Iterator<Item = Arc<dyn Wake>> + '_ {
        self.waiters.iter().map(|(_, waker)| waker.clone())
    }
}

impl Snapshot {
    pub(super) fn queued(priority: i32) -> Self {
        Self {
            state: JobState::Queued,
            cancelling: false,
            attempts: 0,
            device: None,
            priority,
            stage: None,
            progress: None,
            started: None,
            finished: None,
            error: None,
            path: None,
            earlier: false,
        }
    }
}

impl<V: Send + Sync + 'static> Job<V> {
    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn check(&self) -> Result<(), QueueError> {
        Ok(self.home.birth.check("queue")?)
    }

    /// How it stands.
    #[must_use]
    pub fn now(&self) -> Snapshot {
        self.live.lock().now.clone()
    }

    /// Its state alone.
    #[must_use]
    pub fn state(&self) -> JobState {
        self.live.lock().now.state
    }

    /// Looks at what it finished or failed with. `look` runs under the job's lock: it may only copy.
    pub fn value<R>(&self, look: impl FnOnce(&V) -> R) -> Option<R> {
        self.live.lock().value.as_ref().map(look)
    }

    /// The same, if nobody else uses the job right now.
    pub fn try_value<R>(&self, look: impl FnOnce(&V) -> R) -> Option<R> {
        self.live.try_lock()?.value.as_ref().map(look)
    }

    /// Takes the value out of a job that nobody will use again; drop it with no lock held.
    pub fn take_value(&self) -> Option<V> {
        self.live.lock().value.take()
    }

    /// Changes what the job is now and tells those who watch, in one step.
    pub(super) fn change(
        self: &Arc<Self>,
        kind: Kind,
        time: Micros,
        aftermath: &mut Aftermath<V>,
        change: impl FnOnce(&mut Live<V>),
    ) {
        let mut live = self.live.lock();
        change(&mut live);
        self.tell(&mut live, kind, time, None, aftermath);
        if live.now.state.is_over() && !planted(Mutant::FinishForgetsWaiters) {
            aftermath.wakers.extend(live.wakers());
        }
    }

    /// Says where the claim of this number is; nothing if it is not the one that runs.
    pub(super) fn advance(
        self: &Arc<Self>,
        claim: u64,
        kind: Kind,
        time: Micros,
        preview: Option<V>,
        change: impl FnOnce(&mut Live<V>),
    ) -> Result<Aftermath<V>, Option<V>> {
        let mut aftermath = Aftermath::default();
        let mut live = self.live.lock();
        if live.claim != Some(claim) {
            return Err(preview);
        }
        if !std::mem::replace(&mut live.begun, true) {
            self.tell(&mut live, Kind::Started, time, None, &mut aftermath);
        }
        if kind != Kind::Started {
            change(&mut live);
            self.tell(&mut live, kind, time, preview.map(Arc::new), &mut aftermath);
        }
        Ok(aftermath)
    }

    fn tell(
        self: &Arc<Self>,
        live: &mut Live<V>,
        kind: Kind,
        time: Micros,
        preview: Option<Arc<V>>,
        aftermath: &mut Aftermath<V>,
    ) {
        let event = self.event(live, kind, time, preview);
        live.watchers.retain(|watcher| watcher.strong_count() > 0);
        for watcher in live.watchers.iter().filter_map(Weak::upgrade) {
            watcher.push(&event, aftermath);
            aftermath.hold(watcher);
        }
        self.home.subscribers.push(&event, aftermath);
        // With what it shows, if nobody kept it.
        aftermath.gone.push(event);
    }

    fn event(
        self: &Arc<Self>,
        live: &Live<V>,
        kind: Kind,
        time: Micros,
        preview: Option<Arc<V>>,
    ) -> Event<V> {
        let now = &live.now;
        let running = !matches!(kind, Kind::Queued);
        Event {
            kind,
            job: self.clone(),
            device: now.device.filter(|_| running),
            time,
            attempt: now.attempts,
            stage: now.stage.clone(),
            step: now.progress.filter(|_| kind == Kind::Step),
            preview,
            error: now.error.clone(),
        }
    }

    /// What happens to it: first what is so now, then every change up to its end.
    #[must_use]
    pub fn watch(self: &Arc<Self>, time: Micros, limit: usize) -> Arc<Subscriber<V>> {
        let mut live = self.live.lock();
        let kind = match live.now.state {
            JobState::Queued => Kind::Queued,
            JobState::Running if live.now.progress.is_some() => Kind::Step,
            JobState::Running if live.now.stage.is_some() => Kind::Stage,
            JobState::Running if live.begun => Kind::Started,
            JobState::Running => Kind::Claimed,
            JobState::Done => Kind::Finished,
            JobState::Failed => Kind::Failed,
            JobState::Cancelled => Kind::Cancelled,
        };
        let first = self.event(&live, kind, time, None);
        let subscriber = Subscriber::new(Topic::Job(self.clone()), limit, Some(first));
        live.watchers.push(Arc::downgrade(&subscriber));
        subscriber
    }

    /// Asks to be woken when it is over.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn ask(
        self: &Arc<Self>,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Self>, QueueError> {
        self.check()?;
        let mut live = self.live.lock();
        if live.now.state.is_over() {
            return Ok(Asked::Granted(live.now.state));
        }
        let key = live.waiters.insert(waker);
        drop(live);
        Ok(Asked::Waiting(Pending::new(self.clone(), key as u64, owner.clone())))
    }

    /// Who must move before it can be over: whoever runs it, or, for each device that may, whoever
    /// has that device busy. `None` once it is over.
    pub(super) fn movers(&self) -> Option<Blockers> {
        let live = self.live.lock();
        if live.now.state.is_over() || live.left {
            return None;
        }
        let claim = live.claim;
        drop(live);
        let movers = self.home.movers.lock();
        if let Some(claim) = claim {
            let owner = movers.get(&claim).and_then(|(_, owner)| owner.clone());
            return Some(vec![owner.into_iter().collect()]);
        }
        if self.mask == 0 {
            return Some(vec![Vec::new()]);
        }
        let mut alternatives = Blockers::new();
        for device in (0..u64::BITS as usize).filter(|device| self.mask >> device & 1 != 0) {
            let mut busy = movers.values().filter(|(where_, _)| *where_ == device).peekable();
            if busy.peek().is_none() {
                alternatives.push(Vec::new());
            }
            alternatives.extend(busy.map(|(_, owner)| owner.iter().cloned().collect()));
        }
        Some(alternatives)
    }
}

impl<V: Send + Sync + 'static> Resource for Job<V> {
    fn blockers(&self, _: u64) -> Option<Blockers> {
        self.movers()
    }

    fn describe(&self, _: u64) -> Description {
        let live = self.live.lock();
        let held = match live.now.state {
            JobState::Queued => ", which is queued".to_owned(),
            JobState::Running => ", which runs".to_owned(),
            state => format!(", which is {}", state.as_str()),
        };
        Description { wants: format!("the end of job {} of {}", self.id, self.user), held }
    }
}

impl<V: Send + Sync + 'static> Queue for Job<V> {
    type Guard = JobState;
    type Error = QueueError;

    fn collect(self: &Arc<Self>, _: u64) -> Option<Result<JobState, QueueError>> {
        let live = self.live.lock();
        if live.now.state.is_over() {
            return Some(Ok(live.now.state));
        }
        live.left.then_some(Err(QueueError::Closed))
    }

    fn abandon(&self, key: u64) -> Left {
        if !self.home.birth.is_here() {
            return Left::default();
        }
        let key = usize::try_from(key).ok();
        let waker = key.and_then(|key| self.live.lock().waiters.try_remove(key));
        Left::new(waker, WakeList::new())
    }
}
