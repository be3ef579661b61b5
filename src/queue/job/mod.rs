//! A job: what was submitted, how it stands, and whoever waits for its end.

mod tell;
mod wait;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use slab::Slab;

use super::clock::Micros;
use super::error::QueueError;
use super::event::{Subscriber, Subscribers};
use crate::sync::Mutex;
use crate::wait::{Birth, Owner, Wake};

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
}
