//! The queue of jobs: who is next on which device, and what becomes of every job.
//!
//! **What it is.** [`JobQueue::submit`] queues a job; the worker of a device takes the next one for it, as
//! an [`Offer`] that it may decline or as a [`Claim`]; the claim's end is the job's. In memory, or with a
//! journal in a file ([`Durability`]).
//!
//! **Order.** Fair by GPU time over users, by priority and age among a user's jobs, or one line for all:
//! see [`order`]. A job goes to the idle device that holds what it needs, then to the fastest. Who waits
//! for the same device is served in order of arrival.
//!
//! **Invariants.**
//! - A job is with one device at a time. Queued, running, and over in one of three ways, each change once.
//! - A cancel that is ordered before the end of a claim is ordered ends the job as cancelled.
//! - What a call has returned for is written. What could not be written has not happened, but that a token
//!   that was raised stays raised, and a claim that was given back is given back: in the journal it
//!   runs, which is queued again by the next process.
//! - Events of one job come in the order of its changes.
//!
//! **Locks.** The books' mutex, then a job's, then a subscriber's. The journal is written with none of them
//! held; its own order is that of the books.
//!
//! **Errors.** [`QueueError`], [`JournalError`].
//!
//! ```
//! use coresident::device::{VirtualSpec, virtual_devices};
//! use coresident::queue::{JobQueue, JobState, Outcome, Settings, Spec};
//! use coresident::wait::{Owner, Patience};
//!
//! let devices = virtual_devices(1, VirtualSpec::default())?;
//! let queue: JobQueue<u32> = JobQueue::new(devices.clone(), Settings::default())?;
//! let job = queue.submit(Spec::of("ann", b"a cat"))?;
//! let me = Owner::thread(|| "worker".into());
//! let claim = queue.claim(devices[0].name(), &me, &Patience::FOREVER)?;
//! assert_eq!(claim.job().id, job.id);
//! assert_eq!(claim.finish(Outcome::done(7))?, JobState::Done);
//! assert_eq!(job.value(|value| *value), Some(7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod alarm;
mod change;
mod claim;
mod clock;
mod close;
mod error;
mod event;
mod job;
mod journal;
mod line;
mod offer;
pub mod order;
mod placement;
mod recover;
mod run;
mod select;
mod state;
mod stop;
mod submit;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use claim::{Claim, Outcome};
pub use clock::{Clock, ManualClock, Micros, SystemClock, micros};
pub use error::{JournalError, QueueError};
pub use event::{Aftermath, Event, Kind, Subscriber, Topic};
pub use job::{Job, JobState, Payload, Snapshot};
pub use journal::{Durability, Journal};
pub use offer::Offer;
pub use order::{Holdings, Limits, Rules, UserStatus};
pub use placement::Placement;
pub use select::Selection;
pub use submit::Spec;
pub use write::{Row, Standing, UserRow, Write};

use crate::device::{Device, Name};
use crate::sync::Mutex;
use crate::wait::{self, Birth};
use alarm::Alarm;
use job::Home;
use line::Line;
use order::Order;
use state::State;

/// The most devices that a queue tells apart.
pub const MOST_DEVICES: usize = 64;

/// How a queue goes about its jobs.
pub struct Settings {
    /// The order.
    pub rules: Rules,
    /// How fast devices are, as shares of the fastest; those that are missing are as fast.
    pub speeds: HashMap<Name, f64>,
    /// How often a job may be begun that does not say so itself.
    pub max_attempts: u32,
    /// The most bytes of a payload.
    pub max_payload: u64,
    /// How many jobs that are over are remembered.
    pub history: usize,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who knows what devices hold; without one a device is taken to hold what it used last.
    pub placement: Option<Arc<dyn Placement>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            speeds: HashMap::new(),
            max_attempts: 3,
            max_payload: 1 << 20,
            history: 10_000,
            clock: Arc::new(SystemClock::default()),
            placement: None,
        }
    }
}

/// Jobs of many users for several devices. Clones are the same queue.
pub struct JobQueue<V: Send + Sync + 'static>(pub(super) Arc<Inner<V>>);

impl<V: Send + Sync + 'static> Clone for JobQueue<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What clones of a queue share.
pub struct Inner<V: Send + Sync + 'static> {
    birth: Birth,
    devices: Arc<[Device]>,
    max_attempts: u32,
    max_payload: u64,
    clock: Arc<dyn Clock>,
    /// By how much the latest time in the journal was ahead of the clock.
    skew: Micros,
    placement: Mutex<Option<Arc<dyn Placement>>>,
    home: Arc<Home<V>>,
    state: Mutex<State<V>>,
    journal: Option<Journal>,
    alarm: Alarm,
}

/// A queue at a glance.
#[derive(Debug, Clone)]
pub struct QueueStatus {
    /// How many jobs are in each of [`JobState::ALL`].
    pub counts: [u64; 5],
    /// Whether the whole queue is paused.
    pub paused: bool,
    /// The devices that somebody waits for a job for.
    pub waiting: Vec<Device>,
    /// Every user whom it knows.
    pub users: Vec<UserStatus>,
}

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// A queue in memory.
    ///
    /// # Errors
    /// [`QueueError::TooManyDevices`].
    pub fn new(devices: Vec<Device>, settings: Settings) -> Result<Self, QueueError> {
        check(&devices)?;
        Ok(Self::with_journal(devices, settings, None, 0))
    }

    /// A queue in a file, which is made if it is not there. What ran when its last owner ended is queued
    /// again, or has failed if it had its attempts.
    ///
    /// # Errors
    /// [`QueueError::Journal`] and [`QueueError::TooManyDevices`].
    pub fn open(
        path: &Path,
        durability: Durability,
        devices: Vec<Device>,
        settings: Settings,
    ) -> Result<Self, QueueError> {
        check(&devices)?;
        let journal = Journal::open(path, durability)?;
        let left = journal.read()?;
        let skew = recover::latest(&left.jobs).saturating_sub(settings.clock.now()).max(0);
        let queue = Self::with_journal(devices, settings, Some(journal), skew);
        queue.recover(left)?;
        Ok(queue)
    }

    fn with_journal(
        devices: Vec<Device>,
        settings: Settings,
        journal: Option<Journal>,
        skew: Micros,
    ) -> Self {
        let speed = |device: &Device| settings.speeds.get(&device.name()).copied().unwrap_or(1.0);
        let speeds = devices.iter().map(speed).collect();
        let state = State {
            jobs: BTreeMap::new(),
            order: Order::new(settings.rules, speeds),
            line: Line::default(),
            active: HashMap::new(),
            history: BTreeSet::new(),
            coming: HashMap::new(),
            holdings: vec![Holdings::new(); devices.len()],
            remembers: settings.placement.is_none(),
            devices: devices.clone().into(),
            counts: [0; 5],
            keep: settings.history,
            next_id: 1,
            next_number: 0,
            closed: false,
        };
        let birth = Birth::default();
        let movers = Mutex::new(HashMap::new());
        let home = Arc::new(Home { birth, movers, subscribers: event::Subscribers::default() });
        let inner = Arc::new(Inner {
            birth,
            devices: devices.into(),
            max_attempts: settings.max_attempts,
            max_payload: settings.max_payload,
            clock: settings.clock,
            skew,
            placement: Mutex::new(settings.placement),
            home,
            state: Mutex::new(state),
            journal,
            alarm: Alarm::default(),
        });
        wait::register(&inner);
        Self(inner)
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn check(&self) -> Result<(), QueueError> {
        self.0.check()
    }

    /// The devices, in order.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.0.devices
    }

    /// The file of a durable queue.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.0.journal.as_ref().map(|journal| journal.path().to_owned())
    }

    /// Whether it is in a file.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.0.journal.is_some()
    }

    /// The time, as the queue has it.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.0.now()
    }

    /// Says who knows what devices hold.
    pub fn set_placement(&self, placement: Option<Arc<dyn Placement>>) {
        self.0.state.lock().remembers = placement.is_none();
        let before = std::mem::replace(&mut *self.0.placement.lock(), placement);
        drop(before);
    }

    /// The job with this number.
    ///
    /// # Errors
    /// [`QueueError::NoJob`] and [`QueueError::Forked`].
    pub fn job(&self, id: u64) -> Result<Arc<Job<V>>, QueueError> {
        self.check()?;
        let state = self.0.state.lock();
        state.jobs.get(&id).map(|record| record.job.clone()).ok_or(QueueError::NoJob { id })
    }

    /// Jobs in order of their numbers; the newest so many.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn jobs(
        &self,
        selection: &Selection,
        most: Option<usize>,
    ) -> Result<Vec<Arc<Job<V>>>, QueueError> {
        self.check()?;
        let state = self.0.state.lock();
        let ids = state.selected(selection).into_iter();
        let found = ids.rev().take(most.unwrap_or(usize::MAX));
        let mut jobs: Vec<_> =
            found.filter_map(|id| state.jobs.get(&id)).map(|record| record.job.clone()).collect();
        jobs.reverse();
        Ok(jobs)
    }

    /// How many jobs are queued.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn queued(&self) -> Result<u64, QueueError> {
        self.check()?;
        Ok(self.0.state.lock().counts[JobState::Queued as usize])
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn status(&self) -> Result<QueueStatus, QueueError> {
        self.check()?;
        let now = self.now();
        let mut state = self.0.state.lock();
        state.order.advance(now);
        let mut waiting: Vec<usize> = state.line.devices().collect();
        waiting.sort_unstable();
        waiting.dedup();
        let mut users = state.order.accounts(now);
        users.sort_by(|one, other| one.name.cmp(&other.name));
        let waiting = waiting.into_iter().filter_map(|at| self.0.devices.get(at).cloned());
        Ok(QueueStatus {
            counts: state.counts,
            paused: state.order.is_paused(),
            waiting: waiting.collect(),
            users,
        })
    }

    /// What the jobs need that this device would be given next.
    ///
    /// # Errors
    /// [`QueueError::NoDevice`] and [`QueueError::Forked`].
    pub fn forecast(&self, device: Name, most: usize) -> Result<Vec<order::Needs>, QueueError> {
        let device = self.0.device(device)?;
        let now = self.now();
        let mut state = self.0.state.lock();
        let state = &mut *state;
        state.order.advance(now);
        let next = state.order.forecast(device, &state.holdings[device], most, now);
        Ok(next.into_iter().map(|item| item.needs).collect())
    }

    /// What happens to jobs from now on; progress is kept within the limit.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn subscribe(
        &self,
        user: Option<Arc<str>>,
        limit: usize,
    ) -> Result<Arc<Subscriber<V>>, QueueError> {
        self.check()?;
        let topic = user.map_or(Topic::All, Topic::User);
        let subscriber = Subscriber::new(topic, limit, None);
        if self.0.state.lock().closed {
            subscriber.close();
        }
        self.0.home.subscribers.add(&subscriber);
        Ok(subscriber)
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().closed
    }
}

fn check(devices: &[Device]) -> Result<(), QueueError> {
    if devices.len() > MOST_DEVICES {
        return Err(QueueError::TooManyDevices { given: devices.len(), most: MOST_DEVICES });
    }
    Ok(())
}

impl<V: Send + Sync + 'static> Inner<V> {
    fn check(&self) -> Result<(), QueueError> {
        Ok(self.birth.check("queue")?)
    }

    fn now(&self) -> Micros {
        self.clock.now().saturating_add(self.skew)
    }

    /// The number of a device.
    fn device(&self, name: Name) -> Result<usize, QueueError> {
        self.check()?;
        let known = self.devices.iter().position(|device| device.name() == name);
        known.ok_or_else(|| {
            let present = self.devices.iter().map(Device::name).collect();
            QueueError::NoDevice { name, present }
        })
    }

    /// What is to be written, to be called with the books locked: the journal has their order.
    fn enter(&self, writes: Vec<Write>) -> Option<u64> {
        let journal = self.journal.as_ref().filter(|_| !writes.is_empty())?;
        Some(journal.enter(writes))
    }

    /// What nobody waits for: it is written with what somebody else enters.
    fn owe(&self, writes: Vec<Write>) {
        if let Some(journal) = &self.journal {
            journal.owe(writes);
        }
    }

    /// Waits until it is written, to be called with no lock held.
    fn written(&self, entered: Option<u64>) -> Result<(), QueueError> {
        match (&self.journal, entered) {
            (Some(journal), Some(entered)) => Ok(journal.commit(entered)?),
            _ => Ok(()),
        }
    }

    /// Has the alarm look at the books when the next user may go on.
    fn set_alarm(self: &Arc<Self>, at: Option<Micros>) {
        if let Some(at) = at.filter(|_| self.clock.runs()) {
            self.alarm.set(self, at.saturating_sub(self.skew));
        }
    }
}
