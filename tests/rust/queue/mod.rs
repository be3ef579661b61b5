//! The queue: who is next, what becomes of every job, and what is left after a crash.

mod durable;
mod events;
mod fairness;
mod line;
mod model;
mod transitions;

use std::sync::Arc;

use coresident::device::{Device, Name, VirtualSpec, virtual_devices};
use coresident::queue::{
    Claim, Job, JobQueue, JobState, Limits, ManualClock, Micros, Outcome, QueueError, Rules,
    Selection, Settings, Spec,
};
use coresident::wait::{Patience, WaitError};

use super::{Random, at_once, in_line, refusal, somebody, spawn, this_thread, until};

const SECOND: Micros = 1_000_000;
/// Looks, and does not wait.
const LOOK: Patience<'static> =
    Patience { timeout: Some(std::time::Duration::ZERO), ..Patience::FOREVER };

type Queue = JobQueue<u64>;

fn devices(count: u64) -> Vec<Device> {
    virtual_devices(count, VirtualSpec::default()).unwrap()
}

fn name(device: usize) -> Name {
    format!("virtual:{device}").parse().unwrap()
}

/// Settings with a clock of our own.
fn settings(rules: Rules) -> (Settings, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.set(1000 * SECOND);
    (Settings { rules, clock: clock.clone(), ..Settings::default() }, clock)
}

fn plain() -> Rules {
    Rules { slack: 0, ..Rules::default() }
}

fn queue(count: u64) -> Queue {
    JobQueue::new(devices(count), settings(plain()).0).unwrap()
}

fn spec(user: &str) -> Spec {
    Spec::of(user, b"")
}

fn taking(user: &str, seconds: i64) -> Spec {
    Spec { estimate: Some(seconds * SECOND), ..spec(user) }
}

fn needing(user: &str, needs: &[&str]) -> Spec {
    Spec { needs: needs.iter().map(|key| Arc::from(*key)).collect(), ..spec(user) }
}

/// The next job of a device, if there is one.
fn claim(queue: &Queue, device: usize) -> Option<Claim<u64>> {
    match queue.claim(name(device), &this_thread("worker"), &LOOK) {
        Ok(claim) => Some(claim),
        Err(QueueError::Wait(WaitError::Timeout { .. })) => None,
        Err(error) => panic!("{error}"),
    }
}

fn claimed(queue: &Queue, device: usize) -> Claim<u64> {
    claim(queue, device).expect("there is a job")
}

/// Runs the next job of a device, and tells whose it was.
fn serve(queue: &Queue, device: usize) -> String {
    let claim = claimed(queue, device);
    claim.finish(Outcome::done(0)).unwrap();
    claim.job().user.to_string()
}

fn states(jobs: &[Arc<Job<u64>>]) -> Vec<JobState> {
    jobs.iter().map(|job| job.state()).collect()
}
