//! Those who wait for a job for their device, and who of them gets one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::clock::Micros;
use super::error::QueueError;
use super::event::Aftermath;
use super::state::{Active, Phase, State};
use crate::sync::{Mutant, planted};
use crate::wait::{CancelToken, Owner, Wake, WakeList};

struct Waiter {
    ticket: u64,
    device: usize,
    owner: Owner,
    waker: Arc<dyn Wake>,
}

/// Those who wait, the first to come first.
#[derive(Default)]
pub(super) struct Line {
    waiting: VecDeque<Waiter>,
    /// What they were given, or why they were turned away.
    settled: HashMap<u64, Result<u64, QueueError>>,
}

impl Line {
    pub(super) fn join(&mut self, ticket: u64, device: usize, owner: &Owner, waker: Arc<dyn Wake>) {
        self.waiting.push_back(Waiter { ticket, device, owner: owner.clone(), waker });
    }

    /// The outcome of a ticket, for the one who waited.
    pub(super) fn collect(&mut self, ticket: u64) -> Option<Result<u64, QueueError>> {
        self.settled.remove(&ticket)
    }

    pub(super) fn is_settled(&self, ticket: u64) -> bool {
        self.settled.contains_key(&ticket)
    }

    /// Takes a ticket out. What it was given and did not collect is returned.
    pub(super) fn abandon(&mut self, ticket: u64) -> (Option<Arc<dyn Wake>>, Option<u64>) {
        let at = self.waiting.iter().position(|waiter| waiter.ticket == ticket);
        let gone = at.and_then(|at| self.waiting.remove(at)).map(|waiter| waiter.waker);
        (gone, self.settled.remove(&ticket).and_then(Result::ok))
    }

    /// Turns away those whom `refusal` has an error for.
    pub(super) fn refuse(&mut self, refusal: impl Fn(&Owner) -> Option<QueueError>) -> WakeList {
        let mut wakers = WakeList::new();
        for waiter in std::mem::take(&mut self.waiting) {
            match refusal(&waiter.owner) {
                None => self.waiting.push_back(waiter),
                Some(error) => {
                    self.settled.insert(waiter.ticket, Err(error));
                    wakers.push(waiter.waker);
                }
            }
        }
        wakers
    }

    /// The devices that are waited for.
    pub(super) fn devices(&self) -> impl Iterator<Item = usize> + '_ {
        self.waiting.iter().map(|waiter| waiter.device)
    }

    /// What a ticket waits for.
    pub(super) fn device_of(&self, ticket: u64) -> Option<usize> {
        let waiter = self.waiting.iter().find(|waiter| waiter.ticket == ticket)?;
        Some(waiter.device)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl<V: Send + Sync + 'static> State<V> {
    /// Keeps the next job of a device for somebody, if there is one.
    pub(super) fn reserve(&mut self, device: usize, owner: &Owner, now: Micros) -> Option<u64> {
        if self.closed {
            return None;
        }
        let job = self.order.next(device, &self.holdings[device], now)?;
        self.keep_for(job, device, owner, now)
    }

    fn keep_for(&mut self, job: u64, device: usize, owner: &Owner, now: Micros) -> Option<u64> {
        let number = self.number();
        let item = if planted(Mutant::OfferedTwice) {
            self.jobs.get(&job)?.item.clone()
        } else {
            self.order.remove(job, now)?
        };
        let charge = self.order.begin(&item, device, now);
        let record = self.jobs.get_mut(&job)?;
        record.phase = Phase::Offered(number);
        record.charge = Some((device, charge));
        let token = CancelToken::new();
        let job = record.job.clone();
        let active = Active { job, device, owner: Some(owner.clone()), token };
        self.active.insert(number, active);
        Some(number)
    }

    /// Puts a job back that was kept for somebody.
    pub(super) fn put_back(&mut self, id: u64, now: Micros) {
        let Some(record) = self.jobs.get_mut(&id) else { return };
        record.phase = Phase::Queued;
        let (item, charge) = (record.item.clone(), record.charge.take());
        if let Some((device, charge)) = charge {
            self.order.end(&item, device, charge, None, now);
        }
        self.order.insert(item, now);
    }

    /// Gives jobs to those who wait, as long as there are some for them.
    pub(super) fn dispatch(&mut self, now: Micros, aftermath: &mut Aftermath<V>) {
        self.order.advance(now);
        while !self.line.is_empty() && !self.order.is_empty() && !self.closed {
            let devices: Vec<usize> = self.line.devices().collect();
            let next = devices.iter().find_map(|&device| {
                Some((self.order.next(device, &self.holdings[device], now)?, device))
            });
            let Some((job, device)) = next else { return };
            let device = self.best(job, &devices).unwrap_or(device);
            let Some(at) = self.line.waiting.iter().position(|waiter| waiter.device == device)
            else {
                return;
            };
            let owner = self.line.waiting[at].owner.clone();
            let Some(number) = self.keep_for(job, device, &owner, now) else { return };
            if let Some(waiter) = self.line.waiting.remove(at) {
                self.line.settled.insert(waiter.ticket, Ok(number));
                if !planted(Mutant::SubmitForgetsWaiters) {
                    aftermath.wakers.push(waiter.waker);
                }
            }
        }
    }

    /// Of the devices that wait, the one that holds most of what a job needs, then the fastest.
    fn best(&self, job: u64, devices: &[usize]) -> Option<usize> {
        let item = &self.jobs.get(&job)?.item;
        let held = |device: usize| -> u64 {
            item.needs.iter().filter_map(|key| self.holdings[device].get(key)).sum()
        };
        let may = devices.iter().rev().copied().filter(|device| item.mask >> device & 1 != 0);
        // The first of those that are alike has waited longest.
        may.max_by(|&one, &other| {
            let by_weights = held(one).cmp(&held(other));
            by_weights.then(self.order.speed(one).total_cmp(&self.order.speed(other)))
        })
    }
}
