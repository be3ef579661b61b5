//! Asking for jobs: offers, which may be declined, and the places of those who wait for one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::claim::{Claim, Outcome};
use super::clock::Micros;
use super::error::QueueError;
use super::event::Aftermath;
use super::job::Job;
use super::state::{Active, State};
use super::{Inner, JobQueue};
use crate::device::{Device, Name};
use crate::sync::{Mutant, planted};
use crate::wait::{
    Asked, Blockers, Description, Left, Owner, Parker, Patience, Pending, Queue, Resource,
    WaitError, Wake, WakeList,
};

/// A job that is kept for one device. Dropping it gives the job back.
pub struct Offer<V: Send + Sync + 'static> {
    queue: Arc<Inner<V>>,
    job: Arc<Job<V>>,
    pub(super) device: usize,
    pub(super) number: u64,
    owner: Owner,
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

    /// The same of all devices that wait for a job: weights may have come and left since they came.
    pub(super) fn look_at_waiting(&self) {
        if self.placement.lock().is_none() {
            return;
        }
        let waiting: BTreeSet<usize> = self.state.lock().line.devices().collect();
        for device in waiting {
            self.look_at(device);
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
        self.look_at_waiting();
        let mut state = self.state.lock();
        let gone = state.decline(number, now);
        state.dispatch(now, &mut aftermath);
        drop(state);
        drop(gone);
        aftermath.settle();
    }
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
