//! Changing what waits: queuing again, moving, pausing, and what users may have.

use std::sync::Arc;

use super::JobQueue;
use super::clock::Micros;
use super::error::QueueError;
use super::event::{Aftermath, Kind};
use super::job::JobState;
use super::order::{Limits, Rank};
use super::select::Selection;
use super::state::{Phase, State};
use super::write::Write;

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// Queues jobs again that failed or were cancelled. Returns how many.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Full`], [`QueueError::Journal`] and
    /// [`QueueError::Forked`]; then nothing has changed.
    pub fn retry(&self, selection: &Selection, front: bool) -> Result<u64, QueueError> {
        let inner = &self.0;
        inner.check()?;
        let now = inner.now();
        let mut state = inner.state.lock();
        if state.closed {
            return Err(QueueError::Closed);
        }
        let over = |id: &u64| {
            state.jobs.get(id).is_some_and(|record| {
                let failed = matches!(record.job.state(), JobState::Failed | JobState::Cancelled);
                record.phase == Phase::Over && failed
            })
        };
        let ids: Vec<u64> = state.selected(selection).into_iter().filter(over).collect();
        let mut coming: std::collections::HashMap<usize, u64> = std::collections::HashMap::new();
        for record in ids.iter().filter_map(|id| state.jobs.get(id)) {
            *coming.entry(record.item.user).or_default() += 1;
        }
        for (&user, &asked) in &coming {
            state.admit(user, asked)?;
        }
        for (&user, &asked) in &coming {
            *state.coming.entry(user).or_default() += asked;
        }
        let mut writes = Vec::new();
        for (at, id) in (0..).zip(&ids) {
            let rank =
                state.place(*id, if front { Some(true) } else { None }, None, at, ids.len(), now);
            if let Some(record) = state.jobs.get_mut(id) {
                record.phase = Phase::Reviving;
                record.item.rank = rank;
            }
            if let Some(record) = state.jobs.get(id).filter(|_| inner.journal.is_some()) {
                let standing = super::Standing::queued(*id, record.item.priority, rank);
                writes.push(Write::Stand(Box::new(standing)));
            }
        }
        let entered = inner.enter(writes);
        drop(state);

        let written = inner.written(entered);
        let mut aftermath = Aftermath::default();
        inner.look_at_waiting();
        let mut state = inner.state.lock();
        for (user, asked) in coming {
            if let Some(count) = state.coming.get_mut(&user) {
                *count -= asked;
            }
        }
        for &id in &ids {
            if written.is_ok() {
                state.revive(id, now, &mut aftermath);
            } else if let Some(record) = state.jobs.get_mut(&id) {
                record.phase = Phase::Over;
            }
        }
        state.dispatch(now, &mut aftermath);
        drop(state);
        aftermath.settle();
        written?;
        Ok(ids.len() as u64)
    }

    /// Gives queued jobs another priority, or another place: at the front of those of their users, or
    /// at the back. Returns how many.
    ///
    /// # Errors
    /// [`QueueError::Journal`] and [`QueueError::Forked`]; then nothing has changed.
    pub fn rearrange(
        &self,
        selection: &Selection,
        front: Option<bool>,
        priority: Option<i32>,
    ) -> Result<u64, QueueError> {
        let inner = &self.0;
        inner.check()?;
        let now = inner.now();
        let state = inner.state.lock();
        let queued =
            |id: &u64| state.jobs.get(id).is_some_and(|record| record.phase == Phase::Queued);
        let ids: Vec<u64> = state.selected(selection).into_iter().filter(queued).collect();
        let mut writes = Vec::new();
        let mut places = Vec::new();
        for (at, id) in (0..).zip(&ids) {
            let rank = state.place(*id, front, priority, at, ids.len(), now);
            let Some(record) = state.jobs.get(id) else { continue };
            let priority = priority.unwrap_or(record.item.priority);
            places.push((*id, rank, priority));
            if inner.journal.is_some() {
                let mut standing = state.standing(record);
                (standing.rank, standing.priority) = (rank, priority);
                writes.push(Write::Stand(Box::new(standing)));
            }
        }
        let entered = inner.enter(writes);
        drop(state);

        inner.written(entered)?;
        let mut state = inner.state.lock();
        let mut moved = 0;
        for (id, rank, priority) in places {
            // One that was claimed meanwhile has gone where it was to go.
            let Some(record) = state.jobs.get_mut(&id) else { continue };
            (record.item.rank, record.item.priority) = (rank, priority);
            record.job.live.lock().now.priority = priority;
            if record.phase == Phase::Queued {
                state.order.rerank(id, rank, priority, now);
                moved += 1;
            }
        }
        Ok(moved)
    }

    /// Has no more jobs claimed, of one user or at all.
    ///
    /// # Errors
    /// [`QueueError::Forked`].
    pub fn pause(&self, user: Option<&Arc<str>>, paused: bool) -> Result<(), QueueError> {
        let inner = &self.0;
        inner.check()?;
        let now = inner.now();
        let mut aftermath = Aftermath::default();
        inner.look_at_waiting();
        let mut state = inner.state.lock();
        let user = user.map(|name| state.order.user(name));
        state.order.pause(user, paused, now);
        inner.owe(state.forget_users());
        state.dispatch(now, &mut aftermath);
        let next = state.order.next_change();
        drop(state);
        aftermath.settle();
        inner.set_alarm(next);
        Ok(())
    }

    /// Changes what a user may have.
    ///
    /// # Errors
    /// [`QueueError::Journal`] and [`QueueError::Forked`]; then nothing has changed.
    pub fn set_limits(
        &self,
        name: &Arc<str>,
        change: impl Fn(&mut Limits),
    ) -> Result<(), QueueError> {
        let inner = &self.0;
        inner.check()?;
        let now = inner.now();
        let mut state = inner.state.lock();
        let user = state.order.user(name);
        state.order.keep(user, 1);
        let entered = inner.journal.is_some().then(|| {
            let mut row = state.order.row(user);
            if let Some(row) = &mut row {
                change(&mut row.limits);
            }
            row.into_iter().map(Write::User).collect()
        });
        let entered = entered.and_then(|writes| inner.enter(writes));
        drop(state);

        let written = inner.written(entered);
        let mut aftermath = Aftermath::default();
        inner.look_at_waiting();
        let mut state = inner.state.lock();
        if written.is_ok() {
            let mut limits = state.order.limits(user);
            change(&mut limits);
            state.order.set_limits(user, limits, now);
        }
        state.order.let_go(user, 1);
        inner.owe(state.forget_users());
        state.dispatch(now, &mut aftermath);
        let next = state.order.next_change();
        drop(state);
        aftermath.settle();
        inner.set_alarm(next);
        written
    }
}

impl<V: Send + Sync + 'static> State<V> {
    /// Where a job goes, as one of several that go there in order.
    fn place(
        &self,
        id: u64,
        front: Option<bool>,
        priority: Option<i32>,
        at: i64,
        of: usize,
        now: Micros,
    ) -> Rank {
        let Some(record) = self.jobs.get(&id) else { return Rank::default() };
        let priority = priority.unwrap_or(record.item.priority);
        let by_priority = |since| self.order.rules().rank(priority, since);
        let Some(front) = front else {
            let waits = record.phase == Phase::Queued;
            return by_priority(if waits { record.job.submitted } else { now });
        };
        let outermost = self.order.outermost(record.item.user, front);
        let Rank(level, time) = outermost.unwrap_or_else(|| by_priority(now));
        let of = i64::try_from(of).unwrap_or(i64::MAX);
        Rank(level, if front { time - of + at } else { time + at })
    }

    /// Queues a job again that was over.
    fn revive(&mut self, id: u64, now: Micros, aftermath: &mut Aftermath<V>) {
        let Some(record) = self.jobs.get_mut(&id) else { return };
        let ended = record.ended;
        (record.phase, record.cancel) = (Phase::Queued, None);
        let item = record.item.clone();
        self.history.remove(&(ended, id));
        self.order.insert(item, now);
        let mut old = None;
        self.publish(id, Kind::Queued, now, aftermath, |live| {
            let priority = live.now.priority;
            live.now = super::Snapshot::queued(priority);
            old = live.value.take();
        });
        aftermath.values.extend(old);
    }
}
