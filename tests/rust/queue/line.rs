//! Who waits for a job, and who gets it.

use std::sync::atomic::{AtomicUsize, Ordering};

use coresident::queue::{Holdings, Offer, Placement};
use coresident::wait::{CancelToken, Owner, Parker};

use super::*;
use crate::helpers::Spawned;

fn waiting(queue: &Queue) -> usize {
    queue.status().unwrap().waiting.len()
}

/// A thread that waits for a job for its device.
fn worker(queue: &Queue, device: usize) -> Spawned<Result<Claim<u64>, QueueError>> {
    let (queue, before) = (queue.clone(), waiting(queue));
    let waits = queue.clone();
    let spawned = spawn(move || {
        queue.claim(name(device), &this_thread("worker"), &Patience::FOREVER).inspect(|claim| {
            claim.hand_over().unwrap();
        })
    });
    until(|| waiting(&waits) > before);
    spawned
}

#[test]
fn who_waits_for_a_job_is_woken_by_it() {
    let queue = queue(1);
    let worker = worker(&queue, 0);
    let job = queue.submit(spec("ann")).unwrap();
    let claim = worker.join().unwrap();
    assert_eq!((claim.job().id, job.state()), (job.id, JobState::Running));
}

#[test]
fn a_job_is_given_to_one_device_though_all_wait() {
    let queue = queue(3);
    let workers: Vec<_> = (0..3).map(|device| worker(&queue, device)).collect();
    let job = queue.submit(spec("ann")).unwrap();
    until(|| job.state() == JobState::Running);
    queue.close();
    let outcomes: Vec<_> = workers.into_iter().map(Spawned::join).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().flatten().all(Claim::is_open));
}

#[test]
fn of_idle_devices_the_one_with_the_weights_gets_the_job_then_the_fastest() {
    struct Held;
    impl Placement for Held {
        fn holdings(&self, device: Name) -> Holdings {
            let held: &[(Arc<str>, u64)] = match device.index() {
                2 => &[("unet".into(), 5)],
                _ => &[],
            };
            held.iter().cloned().collect()
        }
    }
    let (mut settings, _) = settings(plain());
    settings.placement = Some(Arc::new(Held));
    settings.speeds = [(name(0), 0.5), (name(2), 0.5)].into();
    let queue: Queue = JobQueue::new(devices(3), settings).unwrap();
    let workers: Vec<_> = (0..3).map(|device| worker(&queue, device)).collect();
    let placed = queue.submit(needing("ann", &["unet"])).unwrap();
    until(|| placed.state() == JobState::Running);
    assert_eq!(placed.now().device, Some(2));
    let fast = queue.submit(spec("ann")).unwrap();
    until(|| fast.state() == JobState::Running);
    assert_eq!(fast.now().device, Some(1));
    queue.close();
    drop(workers.into_iter().map(Spawned::join).collect::<Vec<_>>());
}

#[test]
fn a_job_goes_to_the_idle_device_that_has_the_weights_now_and_not_when_it_came() {
    struct Moved(AtomicUsize);
    impl Placement for Moved {
        fn holdings(&self, device: Name) -> Holdings {
            let here = usize::try_from(device.index()).unwrap() == self.0.load(Ordering::SeqCst);
            here.then(|| ("unet".into(), 5)).into_iter().collect()
        }
    }
    let (mut settings, _) = settings(plain());
    let moved = Arc::new(Moved(AtomicUsize::new(0)));
    settings.placement = Some(moved.clone());
    let queue: Queue = JobQueue::new(devices(3), settings).unwrap();
    let mut workers: Vec<_> = (0..3).map(|device| worker(&queue, device)).collect();
    // All of them wait, and the weights go from one to the next.
    moved.0.store(2, Ordering::SeqCst);
    let first = queue.submit(needing("ann", &["unet"])).unwrap();
    let claim = workers.pop().unwrap().join().unwrap();
    assert_eq!(claim.job().id, first.id);
    moved.0.store(1, Ordering::SeqCst);
    claim.finish(Outcome::Failed { error: "no".into(), value: None, retry: true }).unwrap();
    let claim = workers.pop().unwrap().join().unwrap();
    assert_eq!((claim.job().id, claim.attempt()), (first.id, 2));
    queue.pause(None, true).unwrap();
    let last = queue.submit(needing("ann", &["unet"])).unwrap();
    let other = worker(&queue, 2);
    moved.0.store(2, Ordering::SeqCst);
    queue.pause(None, false).unwrap();
    assert_eq!(other.join().unwrap().job().id, last.id);
    queue.close();
    drop(workers.into_iter().map(Spawned::join).collect::<Vec<_>>());
}

#[test]
fn an_offer_that_is_declined_goes_to_another_device_at_once_and_counts_no_attempt() {
    let queue = queue(2);
    let job = queue.submit(spec("ann")).unwrap();
    let offer = queue.offer(name(0), &this_thread("first"), &LOOK).unwrap();
    assert_eq!(job.state(), JobState::Queued);
    assert!(claim(&queue, 1).is_none(), "it is kept for the first");
    let other = worker(&queue, 1);
    offer.release();
    let claim = other.join().unwrap();
    assert_eq!((claim.job().id, claim.attempt()), (job.id, 1));
    assert_eq!(refusal(offer.accept()), "the offer of job 1 has been ended already");
}

#[test]
fn an_offer_of_a_job_that_is_cancelled_gives_nothing() {
    let queue = queue(1);
    let job = queue.submit(spec("ann")).unwrap();
    let offer = queue.offer(name(0), &this_thread("me"), &LOOK).unwrap();
    assert_eq!(queue.cancel(&Selection::job(job.id), None).unwrap(), 1);
    assert!(offer.accept().unwrap().is_none());
    assert_eq!(queue.status().unwrap().users[0].gpu_time, 0);
}

#[test]
fn an_offer_that_was_granted_and_not_collected_goes_to_another() {
    let queue = queue(2);
    let parker = Parker::new();
    let asked = queue.ask(name(0), &somebody("gone"), || parker.clone()).unwrap();
    let pending = in_line(asked);
    let job = queue.submit(spec("ann")).unwrap();
    assert!(claim(&queue, 1).is_none());
    drop(pending);
    assert_eq!(claimed(&queue, 1).job().id, job.id);
}

#[test]
fn a_cancel_token_ends_the_wait_for_a_job() {
    let queue = queue(1);
    let token = CancelToken::new();
    let (waits, cancel) = (queue.clone(), token.clone());
    let worker = spawn(move || {
        let patience = Patience { cancel: Some(&cancel), ..Patience::FOREVER };
        let outcome = waits.claim(name(0), &this_thread("worker"), &patience);
        refusal(outcome)
    });
    until(|| waiting(&queue) == 1);
    token.cancel(None);
    assert_eq!(worker.join(), "cancelled while waiting for a job for virtual:0");
    assert_eq!(waiting(&queue), 0);
}

#[test]
fn a_pause_holds_jobs_back_and_its_end_wakes_who_waits() {
    let queue = queue(1);
    queue.pause(None, true).unwrap();
    let job = queue.submit(spec("ann")).unwrap();
    let worker = worker(&queue, 0);
    assert_eq!(job.state(), JobState::Queued);
    queue.pause(None, false).unwrap();
    assert_eq!(worker.join().unwrap().job().id, job.id);
}

#[test]
fn a_thread_that_ends_loses_its_claims_and_they_count() {
    let queue = queue(1);
    let job = queue.submit(spec("ann")).unwrap();
    for attempt in 1..=3 {
        let queue = queue.clone();
        let claim = spawn(move || claimed(&queue, 0)).join();
        assert_eq!(claim.attempt(), attempt);
        assert_eq!(
            refusal(claim.finish(Outcome::done(1))),
            "the claim of job 1 has been ended already"
        );
    }
    let error = job.now().error.unwrap();
    assert_eq!(
        (job.state(), &*error),
        (JobState::Failed, "the thread that ran it has ended, and all 3 attempts have been used")
    );
}

#[test]
fn a_claim_that_was_handed_over_outlives_its_thread() {
    let queue = queue(1);
    let job = queue.submit(spec("ann")).unwrap();
    let taking = queue.clone();
    let claim = spawn(move || {
        let claim = claimed(&taking, 0);
        claim.hand_over().unwrap();
        claim
    })
    .join();
    assert_eq!(claim.finish(Outcome::done(5)).unwrap(), JobState::Done);
    assert_eq!(job.value(|value| *value), Some(5));
}

#[test]
fn a_worker_that_waits_for_what_only_it_could_run_is_refused() {
    let queue = queue(2);
    let me = this_thread("worker");
    let only = |device| Spec { devices: Some(vec![name(device)]), ..spec("ann") };
    let running = queue.submit(only(0)).unwrap();
    let claim = claimed(&queue, 0);
    let next = queue.submit(only(0)).unwrap();
    let wait = |job: &Arc<Job<u64>>, owner: &Owner| {
        let parker = Parker::new();
        job.ask(owner, parker.clone()).unwrap().wait(&parker, &Patience::at_most(AGES))
    };
    for job in [&running, &next] {
        let refused = refusal(wait(job, &me));
        assert!(refused.starts_with("this wait would never end: "), "{refused}");
    }
    // Another device may run it, and nobody says that none will come for it.
    let free = queue.submit(spec("ann")).unwrap();
    let (queue_, free_) = (queue.clone(), free.clone());
    let other = spawn(move || {
        queue_
            .claim(name(1), &this_thread("other"), &Patience::FOREVER)
            .unwrap()
            .finish(Outcome::done(3))
    });
    assert_eq!(wait(&free_, &me).unwrap(), JobState::Done);
    assert_eq!(other.join().unwrap(), JobState::Done);
    // Once somebody else has the claim, the wait may end.
    claim.hand_over().unwrap();
    let finishing = spawn(move || claim.finish(Outcome::done(1)).unwrap());
    assert_eq!(wait(&running, &me).unwrap(), JobState::Done);
    finishing.join();
}

use crate::helpers::AGES;

#[test]
fn an_hours_limit_lets_go_by_itself() {
    // The clock is set ahead by hand and runs on: the hour is over a moment from now.
    struct Ahead(std::time::Instant);
    impl coresident::queue::Clock for Ahead {
        fn now(&self) -> Micros {
            let passed = i64::try_from(self.0.elapsed().as_micros()).unwrap();
            60 * SECOND - 200_000 + passed
        }
        fn runs(&self) -> bool {
            true
        }
    }
    let clock = Arc::new(Ahead(std::time::Instant::now()));
    let queue: Queue =
        JobQueue::new(devices(1), Settings { clock, ..Settings::default() }).unwrap();
    queue.set_limits(&"ann".into(), |limits| limits.gpu_time_per_hour = Some(0)).unwrap();
    queue.submit(spec("ann")).unwrap();
    assert!(claim(&queue, 0).is_none());
    let worker = worker(&queue, 0);
    queue.set_limits(&"ann".into(), |limits| limits.gpu_time_per_hour = Some(1)).unwrap();
    assert!(worker.join().is_ok());
}

#[test]
fn threads_that_submit_claim_and_cancel_at_once_run_each_job_once() {
    const JOBS: u64 = 400;
    let queue = queue(4);
    let runs: Arc<Vec<_>> =
        Arc::new((0..=4 * JOBS).map(|_| std::sync::atomic::AtomicU64::new(0)).collect());
    let counted = runs.clone();
    let done = at_once(8, move |worker| {
        let mut random = Random(worker as u64);
        let mut done = 0;
        if worker < 4 {
            let me = this_thread("worker");
            while let Ok(claim) = queue.claim(name(worker), &me, &Patience::FOREVER) {
                let at = usize::try_from(claim.job().id).unwrap();
                match random.below(4) {
                    0 => claim.release(),
                    1 => drop(claim),
                    _ => {
                        counted[at].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        done +=
                            u64::from(claim.finish(Outcome::done(1)).unwrap() == JobState::Done);
                    }
                }
            }
            return done;
        }
        let mut cancelled = 0;
        for _ in 0..JOBS {
            let job = queue.submit(Spec { max_attempts: Some(1000), ..spec("ann") }).unwrap();
            if random.below(3) == 0 {
                cancelled += queue.cancel(&Selection::job(job.id), None).unwrap();
            }
        }
        // Of all: some may not have begun to submit when all jobs of the others are over.
        until(|| {
            let counts = queue.status().unwrap().counts;
            counts[..2] == [0, 0] && counts.iter().sum::<u64>() == 4 * JOBS
        });
        queue.close();
        // Those that were cancelled while they ran and had been finished before do not count.
        cancelled
    });
    assert!(runs.iter().all(|runs| runs.load(std::sync::atomic::Ordering::Relaxed) <= 1));
    assert_eq!(done.iter().sum::<u64>(), 4 * JOBS, "each job is done or was cancelled, once");
}

#[test]
fn an_offer_is_of_the_device_that_asked() {
    let queue = queue(2);
    queue.submit(Spec { devices: Some(vec![name(1)]), ..spec("ann") }).unwrap();
    assert!(claim(&queue, 0).is_none());
    let offer: Offer<u64> = queue.offer(name(1), &this_thread("me"), &LOOK).unwrap();
    assert_eq!(offer.device().name(), name(1));
    let elsewhere = queue.claim(name(7), &this_thread("me"), &LOOK);
    assert_eq!(
        refusal(elsewhere),
        "virtual:7 is not one of this queue's devices, which are virtual:0, virtual:1"
    );
}
