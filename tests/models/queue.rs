//! `JobQueue`: claims, cancels and its end.

use std::sync::Arc;

use coresident::device::{Device, Name, VirtualSpec, virtual_devices};
use coresident::queue::{
    Claim, Job, JobQueue, JobState, ManualClock, Offer, Outcome, QueueError, Rules, Selection,
    Settings, Spec,
};
use coresident::wait::{CancelToken, Patience, WaitError};
use loom::thread;

use crate::owner;

type Queue = JobQueue<u32>;

const LOOK: Patience<'static> =
    Patience { timeout: Some(std::time::Duration::ZERO), ..Patience::FOREVER };

/// A queue without a clock that runs, for so many devices.
fn queue(count: u64) -> (Queue, Vec<Name>) {
    let devices = virtual_devices(count, VirtualSpec::default()).unwrap();
    let names = devices.iter().map(Device::name).collect();
    let clock = Arc::new(ManualClock::default());
    let rules = Rules { slack: 0, ..Rules::default() };
    let settings = Settings { rules, clock, ..Settings::default() };
    (JobQueue::new(devices, settings).unwrap(), names)
}

fn submit(queue: &Queue) -> Arc<Job<u32>> {
    queue.submit(Spec::of("ann", b"")).unwrap()
}

/// The offer of a job, if there is one now.
fn offered(queue: &Queue, device: Name, thread: u64) -> Option<Offer<u32>> {
    match queue.offer(device, &owner(thread), &LOOK) {
        Ok(offer) => Some(offer),
        Err(QueueError::Wait(WaitError::Timeout { .. })) => None,
        Err(error) => panic!("{error}"),
    }
}

fn claimed(queue: &Queue, device: Name, thread: u64) -> Option<Claim<u32>> {
    offered(queue, device, thread)?.accept().unwrap()
}

fn cancel(queue: &Queue) -> u64 {
    queue.cancel(&Selection::default(), None).unwrap()
}

pub(crate) fn a_user_is_known_while_a_job_of_his_comes() {
    let devices = virtual_devices(1, VirtualSpec::default()).unwrap();
    let (name, clock) = (devices[0].name(), Arc::new(ManualClock::default()));
    let rules = Rules { slack: 0, remembered: 0, ..Rules::default() };
    let settings = Settings { rules, clock, ..Settings::default() };
    let queue: Queue = JobQueue::new(devices, settings).unwrap();
    let other = thread::spawn({
        let queue = queue.clone();
        // It looks who has nothing here.
        move || queue.pause(Some(&"bob".into()), false).unwrap()
    });
    let job = submit(&queue);
    other.join().unwrap();
    let claim = claimed(&queue, name, 1).unwrap();
    assert_eq!(claim.job().id, job.id);
    let users = queue.status().unwrap().users;
    assert_eq!(users.iter().map(|user| &*user.name).collect::<Vec<_>>(), ["ann"]);
    drop(claim);
}

pub(crate) fn a_job_is_with_one_device_at_a_time() {
    let (queue, names) = queue(2);
    let job = submit(&queue);
    let (other, second) = (queue.clone(), names[1]);
    let apart = thread::spawn(move || claimed(&other, second, 2));
    let here = claimed(&queue, names[0], 1);
    let there = apart.join().unwrap();
    assert!(here.is_some() ^ there.is_some());
    let device = usize::from(there.is_some());
    assert_eq!((job.now().device, job.now().attempts), (Some(device), 1));
}

pub(crate) fn who_waits_for_a_job_is_woken_by_it() {
    let (queue, names) = queue(1);
    let (waits, device) = (queue.clone(), names[0]);
    let worker = thread::spawn(move || {
        let claim = waits.claim(device, &owner(1), &Patience::FOREVER).unwrap();
        claim.finish(Outcome::done(7)).unwrap()
    });
    submit(&queue);
    assert_eq!(worker.join().unwrap(), JobState::Done);
}

pub(crate) fn a_cancel_that_is_counted_ends_the_job_as_cancelled() {
    let (queue, names) = queue(1);
    let job = submit(&queue);
    let (works, device) = (queue.clone(), names[0]);
    let worker = thread::spawn(move || {
        let claim = claimed(&works, device, 1)?;
        Some(claim.finish(Outcome::done(7)).unwrap())
    });
    let cancelled = cancel(&queue) == 1;
    let ended = worker.join().unwrap();
    let expected = if cancelled { JobState::Cancelled } else { JobState::Done };
    assert_eq!(job.state(), expected);
    assert!(ended.is_none_or(|state| state == expected));
    assert_eq!(job.value(|value| *value).is_some(), !cancelled);
}

pub(crate) fn a_job_that_is_cancelled_while_it_runs_is_told() {
    let (queue, names) = queue(1);
    let job = submit(&queue);
    let claim = claimed(&queue, names[0], 1).unwrap();
    let other = queue.clone();
    let canceller = thread::spawn(move || cancel(&other));
    let state = claim.finish(Outcome::done(7)).unwrap();
    let counted = canceller.join().unwrap();
    assert_eq!(counted == 1, state == JobState::Cancelled);
    assert_eq!(claim.token().is_cancelled(), counted == 1);
    assert_eq!(job.state(), state);
}

pub(crate) fn an_offer_that_races_a_cancel_is_accepted_or_void() {
    let (queue, names) = queue(1);
    let job = submit(&queue);
    let offer = offered(&queue, names[0], 1).unwrap();
    let other = queue.clone();
    let canceller = thread::spawn(move || cancel(&other));
    let claim = offer.accept().unwrap();
    assert_eq!(canceller.join().unwrap(), 1);
    match claim {
        None => assert_eq!(job.state(), JobState::Cancelled),
        Some(claim) => {
            assert!(claim.token().is_cancelled());
            assert_eq!(claim.finish(Outcome::done(7)).unwrap(), JobState::Cancelled);
        }
    }
}

pub(crate) fn a_cancel_racing_a_grant_leaves_no_job_kept() {
    let (queue, names) = queue(1);
    let token = CancelToken::new();
    let (waits, device, given_up) = (queue.clone(), names[0], token.clone());
    let worker = thread::spawn(move || {
        let patience = Patience::FOREVER.or_cancelled(&given_up);
        waits.offer(device, &owner(1), &patience).is_ok_and(|offer| offer.is_open())
    });
    submit(&queue);
    token.cancel(None);
    worker.join().unwrap();
    // Whether it was given up before or after it was granted, the job is there for the next.
    assert!(claimed(&queue, names[0], 2).is_some());
}

pub(crate) fn closing_a_queue_turns_away_whoever_waits() {
    let (queue, names) = queue(1);
    let (waits, device) = (queue.clone(), names[0]);
    let worker = thread::spawn(move || {
        let outcome = waits.claim(device, &owner(1), &Patience::FOREVER);
        matches!(outcome, Err(QueueError::Closed))
    });
    queue.close();
    assert!(worker.join().unwrap());
}

pub(crate) fn the_end_of_a_job_wakes_who_waits_for_it() {
    let (queue, names) = queue(1);
    let job = submit(&queue);
    let claim = claimed(&queue, names[0], 1).unwrap();
    let waiter = thread::spawn(move || {
        let parker = coresident::wait::Parker::new();
        let asked = job.ask(&owner(2), parker.clone()).unwrap();
        asked.wait(&parker, &Patience::FOREVER).unwrap()
    });
    assert_eq!(claim.finish(Outcome::done(7)).unwrap(), JobState::Done);
    assert_eq!(waiter.join().unwrap(), JobState::Done);
}
