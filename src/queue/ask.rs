//! What a queue tells: its jobs, how it stands, what comes next, and what happens from now on.

use std::sync::Arc;

use super::{Job, JobQueue, JobState, QueueError, Selection, Subscriber, Topic, UserStatus, order};
use crate::device::{Device, Name};

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
}
