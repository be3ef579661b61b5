//! Queuing jobs.

use std::sync::Arc;

use super::clock::Micros;
use super::error::QueueError;
use super::event::{Aftermath, Kind};
use super::job::{Job, JobState, Live, Payload, Snapshot};
use super::order::{Item, Needs};
use super::state::{Phase, Record};
use super::write::{Row, Write};
use super::{Inner, JobQueue};
use crate::device::{ByteSize, Device, Name};
use crate::sync::Mutex;

/// What a job is to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What it is, for whoever runs it.
    pub payload: Payload,
    /// Whose it is.
    pub user: Arc<str>,
    /// The higher goes first.
    pub priority: i32,
    /// A name that it shares with others.
    pub batch: Option<Arc<str>>,
    /// Names by which it can be found.
    pub tags: Arc<[Arc<str>]>,
    /// Keys of the weights that it uses, in order.
    pub needs: Needs,
    /// The only devices that may run it.
    pub devices: Option<Vec<Name>>,
    /// Bytes that its device must have in all.
    pub memory: Option<u64>,
    /// The GPU time that it will take.
    pub estimate: Option<Micros>,
    /// How often it may be begun.
    pub max_attempts: Option<u32>,
}

impl Spec {
    /// A job of this user, with nothing special about it.
    #[must_use]
    pub fn of(user: &str, payload: &[u8]) -> Self {
        Self {
            payload: Payload::Bytes(payload.into()),
            user: user.into(),
            priority: 0,
            batch: None,
            tags: Arc::new([]),
            needs: Arc::new([]),
            devices: None,
            memory: None,
            estimate: None,
            max_attempts: None,
        }
    }
}

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// Queues a job. When it returns, the job is there for good.
    ///
    /// # Errors
    /// [`QueueError::Closed`], [`QueueError::Unrunnable`], [`QueueError::Full`],
    /// [`QueueError::Payload`], [`QueueError::NoDevice`], [`QueueError::Journal`] and
    /// [`QueueError::Forked`].
    pub fn submit(&self, spec: Spec) -> Result<Arc<Job<V>>, QueueError> {
        let mut jobs = self.submit_all(vec![spec])?;
        jobs.pop().ok_or(QueueError::Closed)
    }

    /// Queues jobs: all of them or, with an error, none.
    ///
    /// # Errors
    /// As [`JobQueue::submit`].
    pub fn submit_all(&self, specs: Vec<Spec>) -> Result<Vec<Arc<Job<V>>>, QueueError> {
        let inner = &self.0;
        inner.check()?;
        let mut masks = Vec::with_capacity(specs.len());
        for spec in &specs {
            let bytes = spec.payload.len() as u64;
            if bytes > inner.max_payload {
                return Err(QueueError::Payload { bytes, limit: inner.max_payload });
            }
            masks.push(inner.mask(spec.devices.as_deref(), spec.memory)?);
        }
        let now = inner.now();
        let mut coming = Vec::new();
        let mut records = Vec::with_capacity(specs.len());
        let mut writes = Vec::new();
        let mut state = inner.state.lock();
        if state.closed {
            return Err(QueueError::Closed);
        }
        for spec in &specs {
            let user = state.order.user(&spec.user);
            match coming.iter_mut().find(|(known, _)| *known == user) {
                Some((_, count)) => *count += 1,
                None => coming.push((user, 1)),
            }
        }
        let admitted = coming.iter().try_for_each(|&(user, asked)| state.admit(user, asked));
        if let Err(refused) = admitted {
            inner.owe(state.forget_users());
            return Err(refused);
        }
        for (spec, mask) in specs.into_iter().zip(masks) {
            let id = state.next_id;
            state.next_id += 1;
            let rank = state.order.rules().rank(spec.priority, now);
            let user = state.order.user(&spec.user);
            if inner.journal.is_some() {
                writes.push(Write::Insert(Box::new(row(&spec, id, now, inner.max_attempts, rank))));
            }
            let Spec { needs, priority, estimate, .. } = &spec;
            let (needs, priority, estimate) = (needs.clone(), *priority, *estimate);
            let item = Item { job: id, user, mask, needs, priority, rank, estimate };
            let live = Live::new(Snapshot::queued(priority));
            let job = inner.job(spec, id, mask, now, live);
            records.push(Record::new(job, item, Phase::Queued));
        }
        for &(user, asked) in &coming {
            *state.coming.entry(user).or_default() += asked;
            state.order.keep(user, asked);
        }
        let entered = inner.enter(writes);
        drop(state);

        let written = inner.written(entered);
        let mut aftermath = Aftermath::default();
        let jobs: Vec<_> = records.iter().map(|record| record.job.clone()).collect();
        inner.look_at_waiting();
        let mut state = inner.state.lock();
        for &(user, asked) in &coming {
            if let Some(count) = state.coming.get_mut(&user) {
                *count -= asked;
                if *count == 0 {
                    state.coming.remove(&user);
                }
            }
        }
        if let Err(error) = written {
            for (user, asked) in coming {
                state.order.let_go(user, asked);
            }
            inner.owe(state.forget_users());
            drop(state);
            return Err(error);
        }
        for record in records {
            state.add(record, now, &mut aftermath);
        }
        state.dispatch(now, &mut aftermath);
        let next = state.order.next_change();
        drop(state);
        aftermath.settle();
        inner.set_alarm(next);
        Ok(jobs)
    }
}

fn row(spec: &Spec, id: u64, now: Micros, max_attempts: u32, rank: super::order::Rank) -> Row {
    let names = |names: &Vec<Name>| names.iter().map(ToString::to_string).collect();
    Row {
        id,
        user: spec.user.clone(),
        batch: spec.batch.clone(),
        tags: spec.tags.clone(),
        needs: spec.needs.clone(),
        devices: spec.devices.as_ref().map(names),
        memory: spec.memory,
        estimate: spec.estimate,
        max_attempts: spec.max_attempts.unwrap_or(max_attempts),
        submitted: now,
        payload: spec.payload.clone(),
        standing: super::write::Standing::queued(id, spec.priority, rank),
    }
}

impl<V: Send + Sync + 'static> Inner<V> {
    pub(super) fn job(
        &self,
        spec: Spec,
        id: u64,
        mask: u64,
        submitted: Micros,
        live: Live<V>,
    ) -> Arc<Job<V>> {
        Arc::new(Job {
            id,
            user: spec.user,
            batch: spec.batch,
            tags: spec.tags,
            needs: spec.needs,
            payload: spec.payload,
            submitted,
            max_attempts: spec.max_attempts.unwrap_or(self.max_attempts),
            mask,
            home: self.home.clone(),
            live: Mutex::new(live),
        })
    }

    /// The devices that may run a job, a bit for each.
    pub(super) fn mask(
        &self,
        only: Option<&[Name]>,
        memory: Option<u64>,
    ) -> Result<u64, QueueError> {
        let mut mask = 0u64;
        for name in only.unwrap_or_default() {
            mask |= 1 << self.device(*name)?;
        }
        if only.is_none() {
            mask = (0..self.devices.len()).fold(0, |mask, at| mask | 1 << at);
        }
        if mask == 0 {
            let reason = "devices= is empty, so that no device may run it".to_owned();
            return Err(QueueError::Unrunnable { reason });
        }
        let Some(memory) = memory else { return Ok(mask) };
        let allowed = |at: &usize| mask >> at & 1 != 0;
        let has = |device: &Device| device.memory().is_none_or(|has| has >= memory);
        let all: Vec<usize> = (0..self.devices.len()).filter(allowed).collect();
        let enough = all.iter().filter(|&&at| has(&self.devices[at]));
        let left = enough.fold(0u64, |left, at| left | 1 << at);
        if left == 0 {
            let told = all.iter().map(|&at| {
                let device = &self.devices[at];
                format!("{device} has {}", ByteSize(device.memory().unwrap_or_default()))
            });
            let reason = format!(
                "it needs a device with {}, and {}",
                ByteSize(memory),
                told.collect::<Vec<_>>().join(", ")
            );
            return Err(QueueError::Unrunnable { reason });
        }
        Ok(left)
    }
}

impl<V: Send + Sync + 'static> super::state::State<V> {
    /// Refuses what would be more than a user may have queued.
    pub(super) fn admit(&self, user: usize, asked: u64) -> Result<(), QueueError> {
        let coming = self.coming.get(&user).copied().unwrap_or(0);
        let queued = self.order.queued(user) + coming;
        match self.order.limits(user).queued {
            Some(limit) if queued + asked > limit => {
                let user = self.order.name(user).to_string();
                Err(QueueError::Full { user, queued, limit, asked })
            }
            _ => Ok(()),
        }
    }

    /// Puts a job that is queued into the books, for all to see.
    pub(super) fn add(&mut self, record: Record<V>, now: Micros, aftermath: &mut Aftermath<V>) {
        let (id, item) = (record.job.id, record.item.clone());
        self.jobs.insert(id, record);
        self.counts[JobState::Queued as usize] += 1;
        self.order.insert(item, now);
        self.publish(id, Kind::Queued, now, aftermath, |_| {});
    }
}
