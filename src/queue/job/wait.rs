//! Waiting for a job's end, and whom that depends on.

use std::sync::Arc;

use super::super::error::QueueError;
use super::{Job, JobState};
use crate::wait::{
    Asked, Blockers, Description, Left, Owner, Pending, Queue, Resource, Wake, WakeList,
};

impl<V: Send + Sync + 'static> Job<V> {
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
    pub(in crate::queue) fn movers(&self) -> Option<Blockers> {
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
