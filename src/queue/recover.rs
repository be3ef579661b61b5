//! What becomes of what an earlier process has left.

use std::sync::Arc;

use super::clock::Micros;
use super::error::QueueError;
use super::event::Aftermath;
use super::job::{JobState, Live, Snapshot};
use super::order::Item;
use super::state::{Phase, Record};
use super::submit::Spec;
use super::write::{Row, Standing, Write};
use super::{Inner, JobQueue};
use crate::device::Name;

const ENDED: &str = "the process that ran it ended";

/// How a job stands whose process has ended.
fn after(standing: &Standing, max_attempts: u32, now: Micros) -> Standing {
    let mut after = standing.clone();
    after.cancelling = false;
    if standing.state.is_over() || (standing.state == JobState::Queued && !standing.cancelling) {
        return after;
    }
    if standing.cancelling {
        (after.state, after.finished) = (JobState::Cancelled, Some(now));
    } else if standing.attempts >= max_attempts {
        (after.state, after.finished) = (JobState::Failed, Some(now));
        let error = format!("{ENDED}, and all {} attempts have been used", standing.attempts);
        after.error = Some(error.into());
    } else {
        (after.state, after.error) = (JobState::Queued, Some(ENDED.into()));
    }
    after
}

/// The latest time in a journal: the clock of a queue does not go behind it.
pub(super) fn latest(jobs: &[Row]) -> Micros {
    let times = jobs.iter().flat_map(|row| {
        let Standing { started, finished, .. } = &row.standing;
        [Some(row.submitted), *started, *finished]
    });
    times.flatten().max().unwrap_or(0)
}

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// Takes over what an earlier process has left, and writes what that changes.
    pub(super) fn recover(&self, left: super::journal::Left) -> Result<(), QueueError> {
        let inner = &self.0;
        let now = inner.now();
        let mut writes = Vec::new();
        let mut aftermath = Aftermath::default();
        let mut state = inner.state.lock();
        state.next_id = left.next_id;
        state.order.restore_time(left.virtual_time);
        for user in left.users {
            let number = state.order.user(&user.name);
            state.order.restore(number, &user, now);
        }
        let mut over = Vec::new();
        for row in left.jobs {
            let standing = after(&row.standing, row.max_attempts, now);
            if standing.state != row.standing.state
                || standing.cancelling != row.standing.cancelling
            {
                writes.push(Write::Stand(Box::new(standing.clone())));
            }
            let (id, ended) = (row.id, standing.finished);
            let record = inner.record(row, &standing, &mut state.order);
            if record.phase == Phase::Queued {
                state.add(record, now, &mut aftermath);
            } else {
                state.counts[record.job.state() as usize] += 1;
                state.jobs.insert(id, record);
                over.push((ended, id));
            }
        }
        over.sort_unstable();
        for (_, id) in over {
            let ended = state.number();
            if let Some(record) = state.jobs.get_mut(&id) {
                record.ended = ended;
                state.history.insert((ended, id));
            }
        }
        writes.extend(state.trim(&mut aftermath));
        let entered = inner.enter(writes);
        drop(state);
        aftermath.settle();
        inner.written(entered)
    }
}

impl<V: Send + Sync + 'static> Inner<V> {
    fn record(&self, row: Row, standing: &Standing, order: &mut super::order::Order) -> Record<V> {
        let names: Option<Vec<Name>> = row
            .devices
            .as_ref()
            .map(|names| names.iter().filter_map(|name| name.parse().ok()).collect());
        let here = |name: &Name| self.devices.iter().any(|device| device.name() == *name);
        let known =
            names.as_ref().map(|names| names.iter().copied().filter(here).collect::<Vec<_>>());
        let mask = self.mask(known.as_deref(), row.memory);
        let place = |name: &String| self.devices.iter().position(|one| one.to_string() == *name);
        let mut now = Snapshot::queued(standing.priority);
        now.state = standing.state;
        now.attempts = standing.attempts;
        now.device = standing.device.as_ref().and_then(place);
        (now.started, now.finished) = (standing.started, standing.finished);
        now.error.clone_from(&standing.error);
        now.path.clone_from(&standing.path);
        now.earlier = true;
        let is_over = standing.state.is_over();
        let mask = match (mask, is_over) {
            (Ok(mask), _) => mask,
            (Err(_), true) => 0,
            (Err(error), false) => {
                // It waits for a process that has the devices.
                now.error = Some(Arc::from(error.to_string()));
                0
            }
        };
        let spec = Spec {
            payload: row.payload,
            user: row.user,
            priority: standing.priority,
            batch: row.batch,
            tags: row.tags,
            needs: row.needs,
            devices: names,
            memory: row.memory,
            estimate: row.estimate,
            max_attempts: Some(row.max_attempts),
        };
        let user = order.user(&spec.user);
        order.keep(user, 1);
        let item = Item {
            job: row.id,
            user,
            mask,
            needs: spec.needs.clone(),
            priority: standing.priority,
            rank: standing.rank,
            estimate: row.estimate,
        };
        let phase = if is_over { Phase::Over } else { Phase::Queued };
        let job = self.job(spec, row.id, mask, row.submitted, Live::new(now));
        Record::new(job, item, phase)
    }
}
