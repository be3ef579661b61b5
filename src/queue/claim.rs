//! Offers and claims: a job on its way through one device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::clock::Micros;
use super::error::QueueError;
use super::event::{Aftermath, Kind};
use super::job::{Job, JobState};
use super::state::{Active, Phase, Record, State, Verdict};
use super::write::Write;
use super::{Inner, JobQueue};
use crate::device::{Device, Name};
use crate::sync::{Mutant, planted};
use crate::wait::{
    Asked, Blockers, CancelToken, Description, Left, Owner, Parker, Patience, Pending, Queue,
    Resource, WaitError, Wake, WakeList,
};

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

/// A job that is kept for one device. Dropping it gives the job back.
pub struct Offer<V: Send + Sync + 'static> {
    queue: Arc<Inner<V>>,
    job: Arc<Job<V>>,
    device: usize,
    number: u64,
    owner: Owner,
    open: AtomicBool,
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

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// Asks for a job for a device: one that is kept for the caller, or a place in the line.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::NoDevice`] and [`QueueError::Forked`].
    pub fn ask(
        &self,
        device: Name,
        owner: &Owner,
        waker: impl FnOnce() -> Arc<dyn Wake>,
    ) -> Result<Asked<Inner<V>>, QueueError> {
        let inner = &self.0;
        let device = inner.device(device)?;
        inner.look_at(device);
        let now = inner.now();
        let mut state = inner.state.lock();
        if state.closed {
            return Err(QueueError::Closed);
        }
        let came_free = state.order.advance(now);
        let asked = if let Some(number) = state.reserve(device, owner, now) {
            Ok(number)
        } else {
            let ticket = state.number();
            state.line.join(ticket, device, owner, waker());
            Err(ticket)
        };
        let mut aftermath = Aftermath::default();
        if came_free {
            state.dispatch(now, &mut aftermath);
        }
        let next = state.order.next_change();
        drop(state);
        aftermath.settle();
        inner.set_alarm(next);
        Ok(match asked {
            Ok(number) => match inner.offer(number) {
                Some(offer) => Asked::Granted(offer),
                None => return Err(QueueError::Closed),
            },
            Err(ticket) => Asked::Waiting(Pending::new(inner.clone(), ticket, owner.clone())),
        })
    }

    /// Waits for a job for a device, which is kept for the caller.
    ///
    /// # Errors
    /// As [`JobQueue::ask`], and [`QueueError::Wait`].
    pub fn offer(
        &self,
        device: Name,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Offer<V>, QueueError> {
        let parker = Parker::new();
        self.ask(device, owner, || parker.clone())?.wait(&parker, patience)
    }

    /// Waits for a job for a device, and claims it.
    ///
    /// # Errors
    /// As [`JobQueue::offer`], and [`QueueError::Journal`].
    pub fn claim(
        &self,
        device: Name,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Claim<V>, QueueError> {
        let began = std::time::Instant::now();
        loop {
            let offer = self.offer(device, owner, &patience.since(began))?;
            // A job that was cancelled meanwhile is none: there may be another.
            if let Some(claim) = offer.accept()? {
                return Ok(claim);
            }
        }
    }
}

impl<V: Send + Sync + 'static> Inner<V> {
    /// Asks what the device holds, for its next jobs.
    fn look_at(&self, device: usize) {
        let placement = self.placement.lock().clone();
        if let Some(placement) = placement {
            let holdings = placement.holdings(self.devices[device].name());
            let before = std::mem::replace(&mut self.state.lock().holdings[device], holdings);
            drop(before);
        }
    }

    /// The guard of what was reserved.
    fn offer(self: &Arc<Self>, number: u64) -> Option<Offer<V>> {
        let state = self.state.lock();
        let active = state.active.get(&number)?;
        let (job, device, owner) = (active.job.clone(), active.device, active.owner.clone()?);
        drop(state);
        let open = AtomicBool::new(true);
        Some(Offer { queue: self.clone(), job, device, number, owner, open })
    }

    /// Gives an offer back.
    fn decline(self: &Arc<Self>, number: u64) {
        let now = self.now();
        let mut aftermath = Aftermath::default();
        let mut state = self.state.lock();
        let gone = state.decline(number, now);
        state.dispatch(now, &mut aftermath);
        drop(state);
        drop(gone);
        aftermath.settle();
    }

    fn accept(self: &Arc<Self>, offer: &Offer<V>) -> Result<Option<Claim<V>>, QueueError> {
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
            let open = AtomicBool::new(true);
            let (queue, job, device) = (self.clone(), offer.job.clone(), offer.device);
            Some(Claim { queue, job, device, number, attempt, token, open })
        })
    }

    /// Ends a claim.
    fn end(
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
    /// Takes a declined offer back.
    pub(super) fn decline(&mut self, number: u64, now: Micros) -> Option<Active<V>> {
        let offered = self.is_offered(number);
        let active = self.deactivate(number)?;
        if offered {
            self.put_back(active.job.id, now);
        }
        Some(active)
    }

    fn begin_claim(&mut self, number: u64, now: Micros, durable: bool) -> Option<Vec<Write>> {
        let active = self.active.get(&number)?;
        let (id, device) = (active.job.id, active.device);
        let record = self.jobs.get_mut(&id)?;
        if record.phase != Phase::Offered(number) {
            return None;
        }
        record.phase = Phase::Claiming(number);
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

    fn begin_end(
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

impl<V: Send + Sync + 'static> Offer<V> {
    /// The job.
    #[must_use]
    pub fn job(&self) -> &Arc<Job<V>> {
        &self.job
    }

    /// The device that it is offered to.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.queue.devices[self.device]
    }

    /// Whether it was neither accepted nor given back.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Makes it a claim; `None` if the job has been cancelled or deleted meanwhile.
    ///
    /// # Errors
    /// [`QueueError::Journal`], and then the job is queued as before; [`QueueError::Ended`],
    /// [`QueueError::Closed`] and [`QueueError::Forked`].
    pub fn accept(&self) -> Result<Option<Claim<V>>, QueueError> {
        self.queue.check()?;
        if !self.open.swap(false, Ordering::AcqRel) {
            return Err(QueueError::Ended { what: "offer", id: self.job.id });
        }
        if self.queue.state.lock().closed {
            self.queue.decline(self.number);
            return Err(QueueError::Closed);
        }
        self.queue.accept(self)
    }

    /// Gives the job back, to its old place.
    pub fn release(&self) {
        if self.queue.birth.is_here() && self.open.swap(false, Ordering::AcqRel) {
            self.queue.decline(self.number);
        }
    }

    /// Who has it.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl<V: Send + Sync + 'static> Drop for Offer<V> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<V: Send + Sync + 'static> Claim<V> {
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

impl<V: Send + Sync + 'static> Resource for Inner<V> {
    fn blockers(&self, ticket: u64) -> Option<Blockers> {
        // Anybody may submit a job.
        if self.state.lock().line.is_settled(ticket) { None } else { Some(vec![Vec::new()]) }
    }

    fn describe(&self, ticket: u64) -> Description {
        let state = self.state.lock();
        let device = state.line.device_of(ticket).and_then(|device| self.devices.get(device));
        let device = device.map_or_else(|| "a device".to_owned(), ToString::to_string);
        let queued = state.order.len();
        let held = match (state.order.is_paused(), queued) {
            (true, _) => ", while the queue is paused".to_owned(),
            (false, 0) => ", of which none is queued".to_owned(),
            (false, queued) => format!(", while none of {queued} that are queued may start there"),
        };
        Description { wants: format!("a job for {device}"), held }
    }

    fn thread_ended(&self, thread: u64) -> Left {
        if !self.birth.is_here() {
            return Left::default();
        }
        let now = self.now();
        let mut aftermath = Aftermath::default();
        let mut state = self.state.lock();
        let gone = |owner: &Owner| owner.thread_number() == thread;
        let refused = state.line.refuse(|owner| {
            gone(owner).then(|| WaitError::thread_ended("a job".to_owned()).into())
        });
        aftermath.wakers.extend(refused);
        let left: Vec<u64> = state
            .active
            .iter()
            .filter(|(_, active)| active.owner.as_ref().is_some_and(gone))
            .map(|(number, _)| *number)
            .collect();
        let mut dropped = Vec::new();
        for number in left {
            let lost = Outcome::Lost("the thread that ran it has ended");
            if let Some((decision, mut writes)) = state.begin_end(number, &lost, now) {
                let (_, active, more) =
                    state.complete_end(number, decision, lost, now, &mut aftermath);
                self.home.movers.lock().remove(&number);
                dropped.extend(active);
                writes.extend(more);
                // Written with whatever is written next: this is no place to wait for a disk.
                self.owe(writes);
            } else if state.is_offered(number) {
                dropped.extend(state.decline(number, now));
            }
        }
        state.dispatch(now, &mut aftermath);
        drop(state);
        let wakers = std::mem::take(&mut aftermath.wakers);
        Left::new((dropped, aftermath), wakers)
    }
}

impl<V: Send + Sync + 'static> Queue for Inner<V> {
    type Guard = Offer<V>;
    type Error = QueueError;

    fn collect(self: &Arc<Self>, ticket: u64) -> Option<Result<Offer<V>, QueueError>> {
        let settled = self.state.lock().line.collect(ticket)?;
        match settled {
            Ok(number) => {
                let ended = || WaitError::thread_ended("a job".to_owned()).into();
                Some(self.offer(number).ok_or_else(ended))
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn abandon(&self, ticket: u64) -> Left {
        if !self.birth.is_here() {
            return Left::default();
        }
        let now = self.now();
        let mut aftermath = Aftermath::default();
        let mut state = self.state.lock();
        let (waker, number) = state.line.abandon(ticket);
        let number = number.filter(|_| !planted(Mutant::AbandonLeavesTicket));
        let active = number.and_then(|number| state.decline(number, now));
        if active.is_some() {
            state.dispatch(now, &mut aftermath);
        }
        drop(state);
        let wakers: WakeList = std::mem::take(&mut aftermath.wakers);
        Left::new((waker, active, aftermath), wakers)
    }
}
