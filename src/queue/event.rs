//! What happens to jobs, for those who watch.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use slab::Slab;

use super::clock::Micros;
use super::error::QueueError;
use super::job::Job;
use crate::sync::Mutex;
use crate::wait::{
    Asked, Birth, Blockers, Description, Left, Owner, Pending, Queue, Resource, Wake, WakeList,
};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It waits, for the first time or again.
    Queued,
    /// A device has it.
    Claimed,
    /// The work has begun.
    Started,
    /// Another stage has begun.
    Stage,
    /// A step is done.
    Step,
    /// It is done.
    Finished,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed,
}

impl Kind {
    /// Whether it tells of progress, and not of a change of state.
    #[must_use]
    pub fn is_progress(self) -> bool {
        matches!(self, Self::Stage | Self::Step)
    }

    /// Whether nothing comes after it, unless the job is queued again.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Self::Finished | Self::Cancelled | Self::Failed)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Started => "started",
            Self::Stage => "stage",
            Self::Step => "step",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// One thing that happened to a job.
pub struct Event<V> {
    /// What.
    pub kind: Kind,
    /// The job.
    pub job: Arc<Job<V>>,
    /// Where it runs, as a number of the queue's devices.
    pub device: Option<usize>,
    /// When.
    pub time: Micros,
    /// How often the job had been begun.
    pub attempt: u32,
    /// The stage it was in.
    pub stage: Option<Arc<str>>,
    /// Steps done, and of how many.
    pub step: Option<(u32, u32)>,
    /// What a step shows.
    pub preview: Option<Arc<V>>,
    /// Why.
    pub error: Option<Arc<str>>,
}

impl<V> Clone for Event<V> {
    fn clone(&self) -> Self {
        Self {
            kind: self.kind,
            job: self.job.clone(),
            device: self.device,
            time: self.time,
            attempt: self.attempt,
            stage: self.stage.clone(),
            step: self.step,
            preview: self.preview.clone(),
            error: self.error.clone(),
        }
    }
}

/// Whose events a subscriber gets.
pub enum Topic<V> {
    /// One job's, until it is over.
    Job(Arc<Job<V>>),
    /// One user's.
    User(Arc<str>),
    /// All.
    All,
}

/// Events for one who watches. Those of each job are in order.
pub struct Subscriber<V> {
    birth: Birth,
    topic: Topic<V>,
    limit: usize,
    state: Mutex<State<V>>,
}

struct State<V> {
    /// The events that are there, with gaps where progress was dropped.
    events: VecDeque<Option<Event<V>>>,
    /// The number of the first of them.
    first: u64,
    /// The numbers of those that tell of progress.
    progress: BTreeSet<u64>,
    /// The latest step of each job, by number.
    steps: HashMap<u64, u64>,
    dropped: u64,
    ended: bool,
    waiters: Slab<Arc<dyn Wake>>,
}

/// What publishing leaves to do once no lock is held: whom to wake, and what to drop.
#[must_use]
pub struct Aftermath<V> {
    pub(super) wakers: WakeList,
    pub(super) gone: Vec<Event<V>>,
    pub(super) values: Vec<V>,
    /// Jobs that are forgotten, and with them what they came to.
    pub(super) jobs: Vec<Arc<Job<V>>>,
    /// Perhaps the last who hold them.
    held: Vec<Arc<Subscriber<V>>>,
}

impl<V> Default for Aftermath<V> {
    fn default() -> Self {
        Self {
            wakers: WakeList::new(),
            gone: Vec::new(),
            values: Vec::new(),
            jobs: Vec::new(),
            held: Vec::new(),
        }
    }
}

impl<V> Aftermath<V> {
    /// Keeps a subscriber until no lock is held.
    pub(super) fn hold(&mut self, subscriber: Arc<Subscriber<V>>) {
        self.held.push(subscriber);
    }

    /// Does it.
    pub fn settle(self) {
        crate::wait::wake_all(&self.wakers);
    }
}

impl<V> State<V> {
    /// Leaves a gap where this progress was.
    fn drop_progress(&mut self, number: u64) -> Option<Event<V>> {
        self.progress.remove(&number);
        let at = usize::try_from(number - self.first).ok()?;
        let old = self.events.get_mut(at)?.take()?;
        self.dropped += 1;
        Some(old)
    }

    fn pop(&mut self) -> Option<Event<V>> {
        loop {
            let next = self.events.pop_front()?;
            let number = self.first;
            self.first += 1;
            let Some(event) = next else { continue };
            self.progress.remove(&number);
            if self.steps.get(&event.job.id) == Some(&number) {
                self.steps.remove(&event.job.id);
            }
            return Some(event);
        }
    }
}

impl<V: Send + Sync + 'static> Subscriber<V> {
    pub(super) fn new(topic: Topic<V>, limit: usize, first: Option<Event<V>>) -> Arc<Self> {
        let mut state = State {
            events: VecDeque::new(),
            first: 0,
            progress: BTreeSet::new(),
            steps: HashMap::new(),
            dropped: 0,
            ended: first.as_ref().is_some_and(|event| event.kind.is_last()),
            waiters: Slab::new(),
        };
        state.events.extend(first.map(Some));
        Arc::new(Self { birth: Birth::default(), topic, limit, state: Mutex::new(state) })
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn check(&self) -> Result<(), QueueError> {
        Ok(self.birth.check("queue")?)
    }

    fn wants(&self, event: &Event<V>) -> bool {
        match &self.topic {
            Topic::All => true,
            Topic::User(user) => **user == *event.job.user,
            Topic::Job(job) => Arc::ptr_eq(job, &event.job),
        }
    }

    /// Adds an event; progress may push older progress out.
    pub(super) fn push(&self, event: &Event<V>, aftermath: &mut Aftermath<V>) {
        if !self.wants(event) {
            return;
        }
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        if event.kind == Kind::Step
            && let Some(old) = state.steps.get(&event.job.id).copied()
        {
            // Of one job only the latest step is kept.
            aftermath.gone.extend(state.drop_progress(old));
        }
        if event.kind.is_progress() {
            if state.progress.len() >= self.limit
                && let Some(old) = state.progress.first().copied()
            {
                aftermath.gone.extend(state.drop_progress(old));
            }
            let number = state.first + state.events.len() as u64;
            state.progress.insert(number);
            if event.kind == Kind::Step {
                state.steps.insert(event.job.id, number);
            }
        }
        state.events.push_back(Some(event.clone()));
        if matches!(self.topic, Topic::Job(_)) && event.kind.is_last() {
            state.ended = true;
        }
        aftermath.wakers.extend(state.waiters.iter().map(|(_, waker)| waker.clone()));
    }

    /// No more events after those that are there.
    pub fn close(&self) {
        if !self.birth.is_here() {
            return;
        }
        let mut state = self.state.lock();
        state.ended = true;
        let wakers: WakeList = state.waiters.iter().map(|(_, waker)| waker.clone()).collect();
        drop(state);
        crate::wait::wake_all(&wakers);
    }

    /// How much progress it was too slow for.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// The next event if there is one; `Some(None)` if there will be none.
    pub fn poll(&self) -> Option<Option<Event<V>>> {
        let mut state = self.state.lock();
        match state.pop() {
            Some(event) => Some(Some(event)),
            None => state.ended.then_some(None),
        }
    }

    /// Asks for the next event.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn ask(
        self: &Arc<Self>,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Self>, QueueError> {
        self.check()?;
        if let Some(next) = self.poll() {
            return Ok(Asked::Granted(next));
        }
        let key = self.state.lock().waiters.insert(waker);
        // What came in between has woken nobody, but whoever waits looks first.
        Ok(Asked::Waiting(Pending::new(self.clone(), key as u64, owner.clone())))
    }
}

impl<V: Send + Sync + 'static> Resource for Subscriber<V> {
    fn blockers(&self, _: u64) -> Option<Blockers> {
        let state = self.state.lock();
        if state.ended || state.events.iter().any(Option::is_some) {
            return None;
        }
        drop(state);
        match &self.topic {
            Topic::Job(job) => job.movers(),
            Topic::User(_) | Topic::All => Some(vec![Vec::new()]),
        }
    }

    fn describe(&self, _: u64) -> Description {
        let wants = match &self.topic {
            Topic::Job(job) => format!("the next event of job {}", job.id),
            Topic::User(user) => format!("the next event of a job of {user}"),
            Topic::All => "the next event of a queue".to_owned(),
        };
        Description { wants, held: String::new() }
    }
}

impl<V: Send + Sync + 'static> Queue for Subscriber<V> {
    type Guard = Option<Event<V>>;
    type Error = QueueError;

    fn collect(self: &Arc<Self>, _: u64) -> Option<Result<Self::Guard, QueueError>> {
        self.poll().map(Ok)
    }

    fn abandon(&self, key: u64) -> Left {
        if !self.birth.is_here() {
            return Left::default();
        }
        let key = usize::try_from(key).ok();
        let waker = key.and_then(|key| self.state.lock().waiters.try_remove(key));
        Left::new(waker, WakeList::new())
    }
}

/// Those who watch more than one job.
pub(super) struct Subscribers<V>(Mutex<Vec<Weak<Subscriber<V>>>>);

impl<V> Default for Subscribers<V> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<V: Send + Sync + 'static> Subscribers<V> {
    pub(super) fn add(&self, subscriber: &Arc<Subscriber<V>>) {
        let mut all = self.0.lock();
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(subscriber));
    }

    pub(super) fn push(&self, event: &Event<V>, aftermath: &mut Aftermath<V>) {
        let all = self.0.lock();
        for one in all.iter().filter_map(Weak::upgrade) {
            one.push(event, aftermath);
            aftermath.hold(one);
        }
    }

    pub(super) fn close(&self) {
        let all: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        for one in all {
            one.close();
        }
    }
}
