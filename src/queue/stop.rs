//! Cancelling and deleting jobs.

use std::sync::Arc;

use super::JobQueue;
use super::clock::Micros;
use super::error::QueueError;
use super::event::Aftermath;
use super::job::JobState;
use super::select::Selection;
use super::state::{Phase, State, Verdict};
use super::write::Write;
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
}

impl<V: Send + Sync + 'static> State<V> {
    /// Takes a job that waits out of everybody's reach.
    pub(super) fn take_out(&mut self, id: u64, now: Micros) {
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
}
