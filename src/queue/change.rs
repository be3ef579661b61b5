//! Changing jobs from outside: cancelling, deleting, queuing again, moving, pausing; and closing.

use std::sync::Arc;

use super::clock::Micros;
use super::error::QueueError;
use super::event::{Aftermath, Kind};
use super::job::JobState;
use super::order::{Limits, Rank};
use super::select::Selection;
use super::state::{Phase, State, Verdict};
use super::write::Write;
use super::{Inner, JobQueue};
use crate::sync::{Mutant, planted};
use crate::wait::{CancelToken, reason_suffix};

/// The first half of cancelling: what is on its way.
#[derive(Default)]
struct Stopping {
    /// Those that will not start.
    ending: Vec<u64>,
    /// Those that run, and the tokens that they watch.
    running: Vec<(u64, CancelToken)>,
    /// Those that are over and go.
    going: Vec<u64>,
    writes: Vec<Write>,
}

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// Cancels jobs. Returns how many this call has cancelled.
    ///
    /// # Errors
    /// [`QueueError::Journal`]: those that were queued are queued as before. [`QueueError::Forked`].
    pub fn cancel(&self, selection: &Selection, reason: Option<&str>) -> Result<u64, QueueError> {
        self.stop(selection, reason, false)
    }

    /// Forgets jobs; those that are not over are cancelled first. Returns how many.
    ///
    /// # Errors
    /// As [`JobQueue::cancel`]; then nothing is forgotten.
    pub fn delete(&self, selection: &Selection) -> Result<u64, QueueError> {
        self.stop(selection, Some("it was deleted"), true)
    }

    fn stop(
        &self,
        selection: &Selection,
        reason: Option<&str>,
        delete: bool,
    ) -> Result<u64, QueueError> {
        let inner = &self.0;
        inner.check()?;
        let now = inner.now();
        let error: Arc<str> = format!("cancelled{}", reason_suffix(reason)).into();
        let mut state = inner.state.lock();
        let mut stopping = Stopping::default();
        for id in state.selected(selection) {
            state.begin_stop(id, &error, delete, now, &mut stopping);
        }
        let writes = std::mem::take(&mut stopping.writes);
        let entered = inner.enter(writes);
        drop(state);
        let tell = || {
            for (_, token) in &stopping.running {
                token.cancel(reason.map(str::to_owned));
            }
        };
        if !planted(Mutant::CancelForgetsToken) {
            tell();
        }

        let written = inner.written(entered);
        let mut aftermath = Aftermath::default();
        inner.look_at_waiting();
        let mut state = inner.state.lock();
        let mut owed = Vec::new();
        for &id in &stopping.ending {
            if written.is_ok() {
                let verdict = Verdict::cancelled(error.clone(), now);
                owed.extend(state.conclude(id, verdict, now, &mut aftermath));
            } else {
                state.undo_stop(id, now);
            }
        }
        for &id in &stopping.going {
            if written.is_ok() {
                state.forget(id, &mut aftermath);
                owed.extend(state.forget_users());
            } else if let Some(record) = state.jobs.get_mut(&id) {
                (record.phase, record.delete) = (Phase::Over, false);
            }
        }
        for (id, _) in &stopping.running {
            state.show_cancelling(*id);
            if written.is_err()
                && let Some(record) = state.jobs.get_mut(id)
            {
                record.delete = false;
            }
        }
        state.dispatch(now, &mut aftermath);
        inner.owe(owed);
        drop(state);
        aftermath.settle();
        written?;
        Ok((stopping.ending.len() + stopping.running.len() + stopping.going.len()) as u64)
    }

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

    /// Takes and gives no more jobs. In memory what is queued is cancelled; in a file it stays.
    pub fn close(&self) {
        let inner = &self.0;
        if !inner.birth.is_here() {
            return;
        }
        let now = inner.now();
        let mut aftermath = Aftermath::default();
        let mut state = inner.state.lock();
        state.closed = true;
        let turned_away = state.line.refuse(|_| Some(QueueError::Closed));
        if !planted(Mutant::CloseForgetsWaiters) {
            aftermath.wakers.extend(turned_away);
        }
        let waiting = |phase| matches!(phase, Phase::Queued | Phase::Offered(_));
        let ids: Vec<u64> = state
            .jobs
            .iter()
            .filter(|(_, record)| waiting(record.phase))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if inner.journal.is_some() {
                state.leave(id, &mut aftermath);
                continue;
            }
            state.take_out(id, now);
            let reason: Arc<str> = "cancelled: the queue was closed".into();
            let _ = state.conclude(id, Verdict::cancelled(reason, now), now, &mut aftermath);
        }
        drop(state);
        aftermath.settle();
        inner.home.subscribers.close();
        inner.close_journal_if_over();
    }
}

impl<V: Send + Sync + 'static> Inner<V> {
    /// Gives the file up once the queue is closed and nothing of it is on its way.
    pub(super) fn close_journal_if_over(&self) {
        let Some(journal) = &self.journal else { return };
        let over = {
            let state = self.state.lock();
            let at_rest = |phase| matches!(phase, Phase::Queued | Phase::Offered(_) | Phase::Over);
            state.closed && state.jobs.values().all(|record| at_rest(record.phase))
        };
        if over {
            journal.close();
        }
    }
}

impl<V: Send + Sync + 'static> State<V> {
    /// Takes a job that waits out of everybody's reach.
    fn take_out(&mut self, id: u64, now: Micros) {
        self.settle_charge(id, None, now);
        self.order.remove(id, now);
        if let Some(record) = self.jobs.get_mut(&id) {
            record.phase = Phase::Ending;
        }
    }

    fn begin_stop(
        &mut self,
        id: u64,
        error: &Arc<str>,
        delete: bool,
        now: Micros,
        stopping: &mut Stopping,
    ) {
        let Some(record) = self.jobs.get_mut(&id) else { return };
        match record.phase {
            Phase::Queued | Phase::Offered(_) => {
                record.delete = delete;
                self.take_out(id, now);
                stopping.ending.push(id);
                stopping.writes.push(self.stands_cancelled(id, error, now));
            }
            Phase::Claiming(number) | Phase::Running(number) | Phase::Finishing(number, true) => {
                let deleted = record.delete;
                record.delete |= delete;
                let ordered = record.cancel.is_some();
                if ordered && (deleted || !delete) {
                    return;
                }
                record.cancel.get_or_insert_with(|| error.clone());
                let Some(active) = self.active.get(&number) else { return };
                stopping.running.push((id, active.token.clone()));
                stopping.writes.push(Write::Cancelling(id, error.clone()));
            }
            Phase::Over if delete => {
                record.delete = true;
                record.phase = Phase::Ending;
                stopping.going.push(id);
                stopping.writes.push(Write::Delete(id));
            }
            // Its end, or its deletion, was ordered before.
            Phase::Finishing(_, false) if delete => {
                if !std::mem::replace(&mut record.delete, true) {
                    stopping.writes.push(Write::Delete(id));
                }
            }
            Phase::Over | Phase::Ending | Phase::Reviving | Phase::Finishing(..) => {}
        }
    }

    /// Puts a job back whose end could not be written.
    fn undo_stop(&mut self, id: u64, now: Micros) {
        if let Some(record) = self.jobs.get_mut(&id) {
            (record.phase, record.delete) = (Phase::Queued, false);
            let item = record.item.clone();
            self.order.insert(item, now);
        }
    }

    /// Shows that a job that runs was told to stop.
    fn show_cancelling(&self, id: u64) {
        if let Some(record) = self.jobs.get(&id) {
            let mut live = record.job.live.lock();
            live.now.cancelling = live.now.state == JobState::Running;
        }
    }

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

    /// Leaves a job to a later process: whoever waits for it is told so.
    fn leave(&mut self, id: u64, aftermath: &mut Aftermath<V>) {
        if let Some(record) = self.jobs.get(&id) {
            let mut live = record.job.live.lock();
            live.left = true;
            aftermath.wakers.extend(live.wakers());
        }
    }
}
