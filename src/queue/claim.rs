//! Claims: a job on its way through one device, and how that ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Inner;
use super::error::QueueError;
use super::event::Kind;
use super::job::{Job, JobState};
use crate::device::Device;
use crate::wait::{CancelToken, Owner};

/// What becomes of a job whose claim ends.
pub enum Outcome<V> {
    /// It is done.
    Done {
        /// What it came to.
        value: Option<V>,
        /// The path of that, if it is a file.
        path: Option<Arc<str>>,
    },
    /// It failed.
    Failed {
        /// Why, in words.
        error: Arc<str>,
        /// Why, as an object.
        value: Option<V>,
        /// Whether it is queued again if attempts are left.
        retry: bool,
    },
    /// It is queued again, because of this, and the attempt counts.
    Lost(&'static str),
    /// It is queued again as if it had not been begun.
    Returned,
}

impl<V> Outcome<V> {
    /// Done with this.
    #[must_use]
    pub fn done(value: V) -> Self {
        Self::Done { value: Some(value), path: None }
    }

    /// Failed because of this.
    #[must_use]
    pub fn failed(error: &str) -> Self {
        Self::Failed { error: error.into(), value: None, retry: false }
    }
}

/// A job that runs. Dropping it queues the job again.
pub struct Claim<V: Send + Sync + 'static> {
    queue: Arc<Inner<V>>,
    job: Arc<Job<V>>,
    device: usize,
    number: u64,
    attempt: u32,
    token: CancelToken,
    open: AtomicBool,
}

impl<V: Send + Sync + 'static> Claim<V> {
    pub(super) fn new(
        queue: Arc<Inner<V>>,
        job: Arc<Job<V>>,
        device: usize,
        number: u64,
        attempt: u32,
        token: CancelToken,
    ) -> Self {
        Self { queue, job, device, number, attempt, token, open: AtomicBool::new(true) }
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> &Arc<Job<V>> {
        &self.job
    }

    /// The device that it runs on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.queue.devices[self.device]
    }

    /// Raised when the job is cancelled.
    #[must_use]
    pub fn token(&self) -> &CancelToken {
        &self.token
    }

    /// Which attempt this is.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether it has not been ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether this is the process that has it.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.queue.birth.is_here()
    }

    fn ended(&self) -> QueueError {
        QueueError::Ended { what: "claim", id: self.job.id }
    }

    /// Says that the work begins.
    ///
    /// # Errors
    /// [`QueueError::Ended`] and [`QueueError::Forked`].
    pub fn start(&self) -> Result<(), QueueError> {
        self.tell(Kind::Started, None, |_| {})
    }

    /// Says what the job does now.
    ///
    /// # Errors
    /// [`QueueError::Ended`] and [`QueueError::Forked`].
    pub fn stage(&self, name: Arc<str>) -> Result<(), QueueError> {
        self.tell(Kind::Stage, None, |live| {
            live.now.stage = Some(name);
            live.now.progress = None;
        })
    }

    /// Says how many steps are done, and of how many.
    ///
    /// # Errors
    /// [`QueueError::Ended`] and [`QueueError::Forked`].
    pub fn step(&self, step: u32, steps: u32, preview: Option<V>) -> Result<(), QueueError> {
        self.tell(Kind::Step, preview, |live| live.now.progress = Some((step, steps)))
    }

    fn tell(
        &self,
        kind: Kind,
        preview: Option<V>,
        change: impl FnOnce(&mut super::job::Live<V>),
    ) -> Result<(), QueueError> {
        self.queue.check()?;
        let now = self.queue.now();
        match self.job.advance(self.number, kind, now, preview, change) {
            Ok(aftermath) => {
                aftermath.settle();
                Ok(())
            }
            Err(preview) => {
                drop(preview);
                Err(self.ended())
            }
        }
    }

    /// Ends the job. A claim that cannot be written is held as before.
    ///
    /// # Errors
    /// [`QueueError::Journal`], [`QueueError::Ended`] and [`QueueError::Forked`].
    pub fn finish(&self, outcome: Outcome<V>) -> Result<JobState, QueueError> {
        self.queue.check()?;
        if !self.open.swap(false, Ordering::AcqRel) {
            return Err(self.ended());
        }
        self.queue.end(self.job.id, self.number, outcome).map_err(|(error, outcome)| {
            drop(outcome);
            self.open.store(true, Ordering::Release);
            error
        })
    }

    /// Queues the job again as if it had not been begun.
    pub fn release(&self) {
        self.give_back(Outcome::Returned);
    }

    /// Queues the job again, unless it has had its attempts.
    pub fn lose(&self, why: &'static str) {
        self.give_back(Outcome::Lost(why));
    }

    fn give_back(&self, outcome: Outcome<V>) {
        if self.queue.birth.is_here() && self.open.swap(false, Ordering::AcqRel) {
            // It may have ended with its thread.
            drop(self.queue.end(self.job.id, self.number, outcome));
        }
    }

    /// Lets anybody have it: it is in no cycle of waits, and no thread's end ends it.
    ///
    /// # Errors
    /// [`QueueError::Ended`] and [`QueueError::Forked`].
    pub fn hand_over(&self) -> Result<(), QueueError> {
        self.set_owner(None)
    }

    /// Makes it somebody's.
    ///
    /// # Errors
    /// [`QueueError::Ended`] and [`QueueError::Forked`].
    pub fn set_owner(&self, owner: Option<&Owner>) -> Result<(), QueueError> {
        self.queue.check()?;
        let mut state = self.queue.state.lock();
        let Some(active) = state.active.get_mut(&self.number) else { return Err(self.ended()) };
        let before = std::mem::replace(&mut active.owner, owner.cloned());
        if let Some((_, mover)) = self.queue.home.movers.lock().get_mut(&self.number) {
            *mover = owner.cloned();
        }
        drop(state);
        drop(before);
        Ok(())
    }
}

impl<V: Send + Sync + 'static> Drop for Claim<V> {
    fn drop(&mut self) {
        self.lose("its claim was forgotten");
    }
}
