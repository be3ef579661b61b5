//! Beginning and ending the run of a job, in two halves each.

use std::sync::Arc;

use super::Inner;
use super::claim::{Claim, Outcome};
use super::clock::Micros;
use super::error::QueueError;
use super::event::{Aftermath, Kind};
use super::job::JobState;
use super::offer::Offer;
use super::state::{Active, Phase, Record, State, Verdict};
use super::write::Write;
use crate::sync::{Mutant, planted};
use crate::wait::CancelToken;

impl<V: Send + Sync + 'static> Inner<V> {
    /// Makes an offer a claim.
    pub(super) fn accept(
        self: &Arc<Self>,
        offer: &Offer<V>,
    ) -> Result<Option<Claim<V>>, QueueError> {
        let number = offer.number;
        let now = self.now();
        let mut state = self.state.lock();
        let Some(writes) = state.begin_claim(number, now, self.journal.is_some()) else {
            return Ok(None);
        };
        let entered = self.enter(writes);
        drop(state);

        let written = self.written(entered);
        let mut aftermath = Aftermath::default();
        let mut state = self.state.lock();
        let claimed = match written {
            Ok(()) => Ok(state.complete_claim(number, now, &self.home, &mut aftermath)),
            Err(error) => {
                let (gone, writes) = state.undo_claim(number, now, &mut aftermath);
                self.owe(writes);
                drop(state);
                drop(gone);
                aftermath.settle();
                return Err(error);
            }
        };
        drop(state);
        aftermath.settle();
        claimed.map(|claimed| {
            let (attempt, token) = claimed?;
            Some(Claim::new(
                self.clone(),
                offer.job().clone(),
                offer.device,
                number,
                attempt,
                token,
            ))
        })
    }

    /// Ends a claim.
    pub(super) fn end(
        self: &Arc<Self>,
        id: u64,
        number: u64,
        outcome: Outcome<V>,
    ) -> Result<JobState, (QueueError, Outcome<V>)> {
        let now = self.now();
        let given_back = matches!(outcome, Outcome::Lost(_) | Outcome::Returned);
        let mut state = self.state.lock();
        let Some((verdict, writes)) = state.begin_end(number, &outcome, now) else {
            let ended = QueueError::Ended { what: "claim", id };
            return Err((ended, outcome));
        };
        let writes = if self.journal.is_some() { writes } else { Vec::new() };
        let entered = self.enter(writes);
        drop(state);

        let written = self.written(entered);
        let mut aftermath = Aftermath::default();
        self.look_at_waiting();
        let mut state = self.state.lock();
        // In the journal a job that was given back runs, which comes to the same.
        if let Err(error) = written
            && !given_back
        {
            state.undo_end(number);
            return Err((error, outcome));
        }
        let (ended, gone, owed) = state.complete_end(number, verdict, outcome, now, &mut aftermath);
        self.home.movers.lock().remove(&number);
        state.dispatch(now, &mut aftermath);
        let next = state.order.next_change();
        self.owe(owed);
        drop(state);
        drop(gone);
        aftermath.settle();
        self.set_alarm(next);
        self.close_journal_if_over();
        Ok(ended)
    }
}

/// What begins to be decided when a claim ends.
pub(super) struct Decision {
    state: JobState,
    error: Option<Arc<str>>,
    attempts: u32,
}

impl<V: Send + Sync + 'static> State<V> {
    fn begin_claim(&mut self, number: u64, now: Micros, durable: bool) -> Option<Vec<Write>> {
        let active = self.active.get(&number)?;
        let (id, device) = (active.job.id, active.device);
        let record = self.jobs.get_mut(&id)?;
        if record.phase != Phase::Offered(number) {
            return None;
        }
        record.phase = Phase::Claiming(number);
        if let Some((_, charge)) = &mut record.charge {
            // The time that it took to get the device is nobody's.
            charge.at = now;
        }
        if !durable {
            return Some(Vec::new());
        }
        let record = self.jobs.get(&id)?;
        let mut standing = self.standing(record);
        standing.state = JobState::Running;
        standing.attempts += 1;
        standing.device = self.device_name(device);
        standing.started = Some(now);
        standing.error = None;
        let stand = Write::Stand(Box::new(standing));
        Some(std::iter::once(stand).chain(self.account(record.item.user)).collect())
    }

    fn complete_claim(
        &mut self,
        number: u64,
        now: Micros,
        home: &super::job::Home<V>,
        aftermath: &mut Aftermath<V>,
    ) -> Option<(u32, CancelToken)> {
        let active = self.active.get(&number)?;
        let (id, device, token) = (active.job.id, active.device, active.token.clone());
        home.movers.lock().insert(number, (device, active.owner.clone()));
        let record = self.jobs.get_mut(&id)?;
        record.phase = Phase::Running(number);
        let cancelling = record.cancel.is_some();
        self.holdings_after(id, device);
        let mut attempt = 0;
        self.publish(id, Kind::Claimed, now, aftermath, |live| {
            live.now.state = JobState::Running;
            live.now.cancelling = cancelling;
            live.now.attempts += 1;
            live.now.device = Some(device);
            live.now.started = Some(now);
            (live.now.error, live.now.stage, live.now.progress) = (None, None, None);
            (live.claim, live.begun) = (Some(number), false);
            attempt = live.now.attempts;
        });
        Some((attempt, token))
    }

    /// A device that nobody knows about is taken to hold what it used last.
    fn holdings_after(&mut self, id: u64, device: usize) {
        if !self.remembers {
            return;
        }
        if let Some(record) = self.jobs.get(&id) {
            self.holdings[device] = record.item.needs.iter().map(|key| (key.clone(), 1)).collect();
        }
    }

    /// Puts a job back whose claim could not be written.
    fn undo_claim(
        &mut self,
        number: u64,
        now: Micros,
        aftermath: &mut Aftermath<V>,
    ) -> (Option<Active<V>>, Vec<Write>) {
        let active = self.deactivate(number);
        let Some(id) = active.as_ref().map(|active| active.job.id) else {
            return (active, Vec::new());
        };
        let mut writes = Vec::new();
        match self.jobs.get(&id).and_then(|record| record.cancel.clone()) {
            None => self.put_back(id, now),
            // It was told to stop while it was being claimed.
            Some(reason) => {
                self.settle_charge(id, None, now);
                writes.push(self.stands_cancelled(id, &reason, now));
                writes.extend(self.conclude(id, Verdict::cancelled(reason, now), now, aftermath));
            }
        }
        self.dispatch(now, aftermath);
        (active, writes)
    }

    /// Corrects what was charged for a job that is no longer with a device.
    pub(super) fn settle_charge(&mut self, id: u64, took: Option<Micros>, now: Micros) {
        let Some(record) = self.jobs.get_mut(&id) else { return };
        if let Some((device, charge)) = record.charge.take() {
            let item = record.item.clone();
            self.order.end(&item, device, charge, took, now);
        }
    }

    pub(super) fn stands_cancelled(&self, id: u64, reason: &Arc<str>, now: Micros) -> Write {
        let Some(record) = self.jobs.get(&id) else { return Write::Delete(id) };
        if record.delete {
            return Write::Delete(id);
        }
        let mut standing = self.standing(record);
        standing.state = JobState::Cancelled;
        standing.cancelling = false;
        standing.finished = Some(now);
        standing.error = Some(reason.clone());
        Write::Stand(Box::new(standing))
    }

    fn decide(record: &Record<V>, outcome: &Outcome<V>) -> Decision {
        let attempts = record.job.now().attempts;
        let decision = |state, error| Decision { state, error, attempts };
        if let Some(reason) =
            record.cancel.clone().filter(|_| !planted(Mutant::FinishOvertakesCancel))
        {
            return decision(JobState::Cancelled, Some(reason));
        }
        let left = attempts < record.job.max_attempts;
        match outcome {
            Outcome::Done { .. } => decision(JobState::Done, None),
            Outcome::Failed { error, retry, .. } => {
                let state = if *retry && left { JobState::Queued } else { JobState::Failed };
                decision(state, Some(error.clone()))
            }
            Outcome::Lost(why) if left => decision(JobState::Queued, Some((*why).into())),
            Outcome::Lost(why) => {
                let error = format!("{why}, and all {attempts} attempts have been used");
                decision(JobState::Failed, Some(error.into()))
            }
            Outcome::Returned => {
                let attempts = attempts.saturating_sub(1);
                Decision { state: JobState::Queued, error: None, attempts }
            }
        }
    }

    pub(super) fn begin_end(
        &mut self,
        number: u64,
        outcome: &Outcome<V>,
        now: Micros,
    ) -> Option<(Decision, Vec<Write>)> {
        let id = self.active.get(&number)?.job.id;
        let record = self.jobs.get_mut(&id)?;
        if record.phase != Phase::Running(number) {
            return None;
        }
        let decision = Self::decide(record, outcome);
        record.phase = Phase::Finishing(number, decision.state == JobState::Queued);
        let record = self.jobs.get(&id)?;
        let mut standing = self.standing(record);
        standing.state = decision.state;
        standing.cancelling = false;
        standing.attempts = decision.attempts;
        standing.error.clone_from(&decision.error);
        standing.finished = decision.state.is_over().then_some(now);
        if let Outcome::Done { path, .. } = outcome {
            standing.path.clone_from(path);
        }
        let stand = if record.delete && decision.state.is_over() {
            Write::Delete(id)
        } else {
            Write::Stand(Box::new(standing))
        };
        let account = record.charge.and_then(|(device, charge)| {
            let took = now - charge.at;
            self.order.row_after(&record.item, device, charge, took, now).map(Write::User)
        });
        Some((decision, std::iter::once(stand).chain(account).collect()))
    }

    fn undo_end(&mut self, number: u64) {
        let id = self.active.get(&number).map(|active| active.job.id);
        if let Some(record) = id.and_then(|id| self.jobs.get_mut(&id)) {
            record.phase = Phase::Running(number);
        }
    }

    /// Ends a claim for all to see. Returns how, what to drop, and what more there is to write.
    pub(super) fn complete_end(
        &mut self,
        number: u64,
        decision: Decision,
        outcome: Outcome<V>,
        now: Micros,
        aftermath: &mut Aftermath<V>,
    ) -> (JobState, Option<Active<V>>, Vec<Write>) {
        let active = self.deactivate(number);
        let Some(id) = active.as_ref().map(|active| active.job.id) else {
            return (decision.state, active, Vec::new());
        };
        let Some(record) = self.jobs.get(&id) else {
            return (decision.state, active, Vec::new());
        };
        let began = record.charge.map_or(now, |(_, charge)| charge.at);
        let (took, item) = (now - began, record.item.clone());
        let cancel = record.cancel.clone();
        self.settle_charge(id, Some(took), now);
        if decision.state == JobState::Done {
            self.order.learn(&item, took);
        }
        let (value, path) = match outcome {
            Outcome::Done { value, path } => (value, path),
            Outcome::Failed { value, .. } => (value, None),
            Outcome::Lost(_) | Outcome::Returned => (None, None),
        };
        match (decision.state, cancel) {
            // It was told to stop while it was being queued again.
            (JobState::Queued, Some(reason)) => {
                aftermath.values.extend(value);
                let mut writes = vec![self.stands_cancelled(id, &reason, now)];
                writes.extend(self.conclude(id, Verdict::cancelled(reason, now), now, aftermath));
                (JobState::Cancelled, active, writes)
            }
            (JobState::Queued, None) => {
                aftermath.values.extend(value);
                if let Some(record) = self.jobs.get_mut(&id) {
                    record.phase = Phase::Queued;
                }
                self.order.insert(item, now);
                self.publish(id, Kind::Queued, now, aftermath, |live| {
                    live.now.state = JobState::Queued;
                    live.now.attempts = decision.attempts;
                    live.now.error = decision.error;
                    live.claim = None;
                });
                (JobState::Queued, active, Vec::new())
            }
            (state, _) => {
                // What a cancelled job came to is nobody's.
                let (value, wasted) =
                    if state == JobState::Cancelled { (None, value) } else { (value, None) };
                aftermath.values.extend(wasted);
                let error = decision.error;
                let path = path.filter(|_| state == JobState::Done);
                let verdict = Verdict { state, error, path, value, finished: now };
                let writes = self.conclude(id, verdict, now, aftermath);
                (state, active, writes)
            }
        }
    }
}
