//! The books of a queue: every job, where it is on its way, and what is told about it.
//!
//! A change has two halves, and between them the journal is written with no lock held. The first half
//! takes a job out of everybody else's reach and says what to write; the second makes it so for all to
//! see, or puts it back if it could not be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::clock::Micros;
use super::event::{Aftermath, Kind};
use super::job::{Job, JobState};
use super::line::Line;
use super::order::{Charge, Holdings, Item, Order};
use super::write::{Standing, Write};
use crate::device::Device;
use crate::wait::Owner;

/// Where a job is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// In the order.
    Queued,
    /// Kept for one device.
    Offered(u64),
    /// Being claimed.
    Claiming(u64),
    /// With a device.
    Running(u64),
    /// With a device, while its end is written; whether it will be queued again.
    Finishing(u64, bool),
    /// Out of the order for good, which is being written.
    Ending,
    /// Over, while it is written that it is queued again.
    Reviving,
    /// Over.
    Over,
}

/// A job in the books.
pub(super) struct Record<V> {
    pub(super) job: Arc<Job<V>>,
    pub(super) item: Item,
    pub(super) phase: Phase,
    /// The device that has it, and what was charged for that.
    pub(super) charge: Option<(usize, Charge)>,
    /// Why it was cancelled, in words, once that is ordered.
    pub(super) cancel: Option<Arc<str>>,
    /// Whether it goes when it is over.
    pub(super) delete: bool,
    /// Its number among those that are over.
    pub(super) ended: u64,
}

impl<V> Record<V> {
    pub(super) fn new(job: Arc<Job<V>>, item: Item, phase: Phase) -> Self {
        Self { job, item, phase, charge: None, cancel: None, delete: false, ended: 0 }
    }
}

/// An offer or a claim.
pub(super) struct Active<V> {
    pub(super) job: Arc<Job<V>>,
    pub(super) device: usize,
    /// `None` once it was handed over.
    pub(super) owner: Option<Owner>,
    pub(super) token: crate::wait::CancelToken,
}

pub(super) struct State<V> {
    pub(super) jobs: BTreeMap<u64, Record<V>>,
    pub(super) order: Order,
    pub(super) line: Line,
    pub(super) active: HashMap<u64, Active<V>>,
    /// Jobs that are over, the first to end first.
    pub(super) history: BTreeSet<(u64, u64)>,
    /// Jobs that a user is about to have, by his number.
    pub(super) coming: HashMap<usize, u64>,
    pub(super) holdings: Vec<Holdings>,
    /// Whether a device is taken to hold what it used last, because nobody knows better.
    pub(super) remembers: bool,
    pub(super) devices: Arc<[Device]>,
    /// How many jobs are visibly in each state.
    pub(super) counts: [u64; 5],
    pub(super) keep: usize,
    pub(super) next_id: u64,
    pub(super) next_number: u64,
    pub(super) closed: bool,
}

impl<V: Send + Sync + 'static> State<V> {
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// How a record stands, for the journal.
    pub(super) fn standing(&self, record: &Record<V>) -> Standing {
        let now = record.job.now();
        Standing {
            id: record.job.id,
            state: now.state,
            cancelling: now.cancelling,
            attempts: now.attempts,
            device: now.device.and_then(|at| self.device_name(at)),
            priority: record.item.priority,
            rank: record.item.rank,
            started: now.started,
            finished: now.finished,
            error: now.error,
            path: now.path,
        }
    }

    pub(super) fn device_name(&self, device: usize) -> Option<String> {
        self.devices.get(device).map(ToString::to_string)
    }

    /// What a user has had, for the journal.
    pub(super) fn account(&self, user: usize) -> Option<Write> {
        self.order.row(user).map(Write::User)
    }

    /// Changes the state that everybody sees, and tells those who watch.
    pub(super) fn publish(
        &mut self,
        id: u64,
        kind: Kind,
        now: Micros,
        aftermath: &mut Aftermath<V>,
        change: impl FnOnce(&mut super::job::Live<V>),
    ) {
        let Some(record) = self.jobs.get(&id) else { return };
        let mut states = (JobState::Queued, JobState::Queued);
        record.job.change(kind, now, aftermath, |live| {
            states.0 = live.now.state;
            change(live);
            states.1 = live.now.state;
        });
        self.counts[states.0 as usize] -= 1;
        self.counts[states.1 as usize] += 1;
    }

    /// Ends a job for all to see. Returns what more there is to write.
    pub(super) fn conclude(
        &mut self,
        id: u64,
        verdict: Verdict<V>,
        now: Micros,
        aftermath: &mut Aftermath<V>,
    ) -> Vec<Write> {
        let kind = match verdict.state {
            JobState::Done => Kind::Finished,
            JobState::Failed => Kind::Failed,
            _ => Kind::Cancelled,
        };
        let mut old = None;
        self.publish(id, kind, now, aftermath, |live| {
            live.now.state = verdict.state;
            live.now.cancelling = false;
            live.now.finished = Some(verdict.finished);
            live.now.error = verdict.error;
            live.now.path = verdict.path;
            live.claim = None;
            old = std::mem::replace(&mut live.value, verdict.value);
        });
        aftermath.values.extend(old);
        self.next_number += 1;
        let ended = self.next_number;
        let Some(record) = self.jobs.get_mut(&id) else { return Vec::new() };
        (record.phase, record.ended, record.charge) = (Phase::Over, ended, None);
        record.cancel = None;
        if record.delete {
            self.forget(id, aftermath);
            return self.forget_users();
        }
        self.history.insert((ended, id));
        self.trim(aftermath)
    }

    /// Forgets the oldest of what is over, beyond what is kept. Returns what there is to write.
    pub(super) fn trim(&mut self, aftermath: &mut Aftermath<V>) -> Vec<Write> {
        let mut writes = Vec::new();
        while self.history.len() > self.keep
            && let Some((_, oldest)) = self.history.first().copied()
        {
            writes.push(Write::Delete(oldest));
            self.forget(oldest, aftermath);
        }
        writes.extend(self.forget_users());
        writes
    }

    /// Forgets users who have nothing here, beyond what is kept. Returns what there is to write.
    pub(super) fn forget_users(&mut self) -> Vec<Write> {
        let gone = self.order.forget_users().into_iter();
        let virtual_time = self.order.virtual_time();
        gone.map(|name| Write::Forget { name, virtual_time }).collect()
    }

    /// Takes a job that is over out of the books.
    pub(super) fn forget(&mut self, id: u64, aftermath: &mut Aftermath<V>) {
        if let Some(record) = self.jobs.remove(&id) {
            self.order.let_go(record.item.user, 1);
            self.history.remove(&(record.ended, id));
            self.counts[record.job.state() as usize] -= 1;
            aftermath.jobs.push(record.job);
        }
    }

    /// Whether a job is kept for somebody under this number.
    pub(super) fn is_offered(&self, number: u64) -> bool {
        let job = self.active.get(&number).map(|active| active.job.id);
        let record = job.and_then(|id| self.jobs.get(&id));
        record.is_some_and(|record| record.phase == Phase::Offered(number))
    }

    /// Ends an offer or a claim. Its job's charge stays to be settled.
    pub(super) fn deactivate(&mut self, number: u64) -> Option<Active<V>> {
        self.active.remove(&number)
    }
}

/// How a job ends.
pub(super) struct Verdict<V> {
    pub(super) state: JobState,
    pub(super) error: Option<Arc<str>>,
    pub(super) path: Option<Arc<str>>,
    pub(super) value: Option<V>,
    pub(super) finished: Micros,
}

impl<V> Verdict<V> {
    pub(super) fn cancelled(error: Arc<str>, finished: Micros) -> Self {
        Self { state: JobState::Cancelled, error: Some(error), path: None, value: None, finished }
    }
}
