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
mod ask;
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
mod open;
pub mod order;
mod placement;
mod recover;
mod run;
mod select;
mod state;
mod stop;
mod submit;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

pub use ask::QueueStatus;
pub use claim::{Claim, Outcome};
pub use clock::{Clock, ManualClock, Micros, SystemClock, micros};
pub use error::{JournalError, QueueError};
pub use event::{Aftermath, Event, Kind, Subscriber, Topic};
pub use job::{Job, JobState, Payload, Snapshot};
pub use journal::{Durability, Journal};
pub use offer::Offer;
pub use open::{MOST_DEVICES, Settings};
pub use order::{Holdings, Limits, Rules, UserStatus};
pub use placement::Placement;
pub use select::Selection;
pub use submit::Spec;
pub use write::{Row, Standing, UserRow, Write};

use crate::device::{Device, Name};
use crate::sync::Mutex;
use crate::wait::Birth;
use alarm::Alarm;
use job::Home;
use state::State;

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

impl<V: Send + Sync + 'static> JobQueue<V> {
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

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().closed
    }
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
