//! Closing a queue.

use std::sync::Arc;

use super::error::QueueError;
use super::event::Aftermath;
use super::state::{Phase, State, Verdict};
use super::{Inner, JobQueue};
use crate::sync::{Mutant, planted};

impl<V: Send + Sync + 'static> JobQueue<V> {
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
    /// Leaves a job to a later process: whoever waits for it is told so.
    fn leave(&mut self, id: u64, aftermath: &mut Aftermath<V>) {
        if let Some(record) = self.jobs.get(&id) {
            let mut live = record.job.live.lock();
            live.left = true;
            aftermath.wakers.extend(live.wakers());
        }
    }
}
