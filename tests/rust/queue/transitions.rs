//! What becomes of a job, and what cancelling, deleting, retrying and moving do to it.

use super::*;

fn batch(user: &str, batch: &str) -> Spec {
    Spec { batch: Some(batch.into()), ..spec(user) }
}

#[test]
fn a_job_that_is_claimed_and_finished_is_done_with_its_value() {
    let queue = queue(1);
    let job = queue.submit(spec("ann")).unwrap();
    assert_eq!(job.state(), JobState::Queued);
    let claim = claimed(&queue, 0);
    assert_eq!((job.state(), job.now().attempts), (JobState::Running, 1));
    assert_eq!(claim.finish(Outcome::done(7)).unwrap(), JobState::Done);
    assert_eq!((job.state(), job.value(|value| *value)), (JobState::Done, Some(7)));
    assert_eq!(
        refusal(claim.finish(Outcome::done(8))),
        "the claim of job 1 has been ended already"
    );
    assert_eq!(queue.status().unwrap().counts, [0, 0, 1, 0, 0]);
}

#[test]
fn cancelling_a_batch_ends_what_is_queued_and_tells_all_that_runs() {
    let queue = queue(2);
    let jobs = queue.submit_all(vec![batch("ann", "b"); 4]).unwrap();
    let other = queue.submit(batch("ann", "c")).unwrap();
    let claims = [claimed(&queue, 0), claimed(&queue, 1)];
    let of_b = Selection { batch: Some("b".into()), ..Selection::default() };
    assert_eq!(queue.cancel(&of_b, Some("enough")).unwrap(), 4);
    assert_eq!(queue.cancel(&of_b, None).unwrap(), 0, "counts are of real changes");
    assert!(claims.iter().all(|claim| claim.token().is_cancelled()));
    assert_eq!(claims[0].token().reason().as_deref(), Some("enough"));
    assert!(jobs[..2].iter().all(|job| job.now().cancelling));
    assert_eq!(claims[0].finish(Outcome::done(1)).unwrap(), JobState::Cancelled);
    assert_eq!(claims[1].finish(Outcome::failed("stopped")).unwrap(), JobState::Cancelled);
    assert!(states(&jobs).iter().all(|state| *state == JobState::Cancelled));
    assert_eq!(jobs[0].now().error.as_deref(), Some("cancelled: enough"));
    assert_eq!((jobs[0].value(|_| ()), other.state()), (None, JobState::Queued));
}

#[test]
fn cancels_go_by_user_tag_number_and_everything() {
    let queue = queue(1);
    let tagged = Spec { tags: ["x".into(), "y".into()].into(), ..spec("ann") };
    let jobs =
        [tagged, spec("ann"), spec("bob"), spec("cleo")].map(|one| queue.submit(one).unwrap());
    let by_tag = Selection { tag: Some("y".into()), ..Selection::default() };
    assert_eq!(queue.cancel(&by_tag, None).unwrap(), 1);
    assert_eq!(queue.cancel(&Selection::user("ann"), None).unwrap(), 1);
    assert_eq!(queue.cancel(&Selection::job(jobs[2].id), None).unwrap(), 1);
    assert_eq!(queue.cancel(&Selection::job(99), None).unwrap(), 0);
    assert_eq!(queue.cancel(&Selection::default(), None).unwrap(), 1);
    assert!(claim(&queue, 0).is_none());
}

#[test]
fn a_cancelled_job_that_is_given_back_is_not_run_again() {
    let queue = queue(1);
    for give_back in [Claim::release, |claim: &Claim<u64>| claim.lose("it fell")] {
        let job = queue.submit(spec("ann")).unwrap();
        let claim = claimed(&queue, 0);
        queue.cancel(&Selection::job(job.id), None).unwrap();
        give_back(&claim);
        assert_eq!(job.state(), JobState::Cancelled);
        assert!(self::claim(&queue, 0).is_none());
    }
}

#[test]
fn deleting_a_running_job_cancels_it_first_and_it_goes_at_its_end() {
    let queue = queue(1);
    let [running, queued] = [spec("ann"), spec("ann")].map(|one| queue.submit(one).unwrap());
    let claim = claimed(&queue, 0);
    assert_eq!(queue.delete(&Selection::user("ann")).unwrap(), 2);
    assert_eq!(queued.state(), JobState::Cancelled, "whoever waits for it hears of it");
    assert!(claim.token().is_cancelled());
    assert!(queue.job(running.id).is_ok());
    assert_eq!(claim.finish(Outcome::done(1)).unwrap(), JobState::Cancelled);
    assert_eq!(
        refusal(queue.job(running.id)),
        "there is no job 1: it never was, or has been deleted or forgotten"
    );
    assert_eq!(queue.status().unwrap().counts, [0; 5]);
}

#[test]
fn a_failure_may_be_tried_again_until_the_attempts_are_used() {
    let queue = queue(1);
    let job = queue.submit(Spec { max_attempts: Some(2), ..spec("ann") }).unwrap();
    let again = || Outcome::Failed { error: "no luck".into(), value: None, retry: true };
    assert_eq!(claimed(&queue, 0).finish(again()).unwrap(), JobState::Queued);
    assert_eq!(claimed(&queue, 0).finish(again()).unwrap(), JobState::Failed);
    assert_eq!(job.now().error.as_deref(), Some("no luck"));
    assert_eq!(queue.retry(&Selection::default(), false).unwrap(), 1);
    assert_eq!((job.state(), job.now().attempts), (JobState::Queued, 0));
    assert_eq!(queue.retry(&Selection::default(), false).unwrap(), 0, "it is queued");
}

#[test]
fn a_claim_given_back_keeps_its_place_and_its_attempts() {
    let queue = queue(1);
    let jobs = queue.submit_all(vec![spec("ann"); 3]).unwrap();
    let claim = claimed(&queue, 0);
    claim.release();
    assert_eq!((jobs[0].state(), jobs[0].now().attempts), (JobState::Queued, 0));
    assert_eq!(claimed(&queue, 0).job().id, jobs[0].id);
}

#[test]
fn jobs_move_to_the_front_and_to_the_back_in_order() {
    let queue = queue(1);
    let ids: Vec<u64> =
        queue.submit_all(vec![spec("ann"); 5]).unwrap().iter().map(|job| job.id).collect();
    let of = |ids: &[u64]| Selection { ids: Some(ids.to_vec()), ..Selection::default() };
    assert_eq!(queue.rearrange(&of(&[ids[4], ids[3]]), Some(true), None).unwrap(), 2);
    assert_eq!(queue.rearrange(&of(&[ids[0]]), Some(false), None).unwrap(), 1);
    assert_eq!(queue.rearrange(&of(&[ids[2]]), None, Some(1)).unwrap(), 1);
    let claims: Vec<_> = (0..5).map(|_| claimed(&queue, 0)).collect();
    let order: Vec<u64> = claims.iter().map(|claim| claim.job().id).collect();
    assert_eq!(order, [ids[2], ids[4], ids[3], ids[1], ids[0]]);
    assert_eq!(queue.rearrange(&of(&ids), Some(true), None).unwrap(), 0, "they run");
}

#[test]
fn what_no_device_may_run_is_refused_with_the_reason() {
    let devices =
        virtual_devices(2, VirtualSpec { memory: Some(8 << 30), ..VirtualSpec::default() });
    let queue: Queue = JobQueue::new(devices.unwrap(), Settings::default()).unwrap();
    let large = Spec { memory: Some(20 << 30), ..spec("ann") };
    assert_eq!(
        refusal(queue.submit(large)),
        "this job could never run: it needs a device with 20 GiB, and virtual:0 has 8 GiB, virtual:1 has 8 GiB"
    );
    let nowhere = Spec { devices: Some(vec![]), ..spec("ann") };
    assert_eq!(
        refusal(queue.submit(nowhere)),
        "this job could never run: devices= is empty, so that no device may run it"
    );
    let absent = Spec { devices: Some(vec![name(5)]), ..spec("ann") };
    assert!(refusal(queue.submit(absent)).contains("virtual:5 is not one of this queue's devices"));
}

#[test]
fn a_limit_on_queued_jobs_refuses_the_whole_batch() {
    let queue = queue(1);
    queue.set_limits(&"ann".into(), |limits| limits.queued = Some(3)).unwrap();
    queue.submit_all(vec![spec("ann"); 2]).unwrap();
    assert_eq!(
        refusal(queue.submit_all(vec![spec("ann"); 2])),
        "ann has 2 jobs queued and may have 3, so that 2 more are refused"
    );
    queue.submit(spec("ann")).unwrap();
    queue.submit(spec("bob")).unwrap();
}

#[test]
fn a_payload_is_bounded() {
    let (mut settings, _) = settings(plain());
    settings.max_payload = 10;
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    queue.submit(Spec::of("ann", &[0; 10])).unwrap();
    assert_eq!(
        refusal(queue.submit(Spec::of("ann", &[0; 11]))),
        "the payload has 11 B and may have 10 B; keep large data in a file, and submit its path"
    );
}

#[test]
fn history_is_bounded_and_the_oldest_goes_first() {
    let (mut settings, _) = settings(plain());
    settings.history = 2;
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    let jobs = queue.submit_all(vec![spec("ann"); 4]).unwrap();
    for _ in 0..3 {
        serve(&queue, 0);
    }
    assert!(queue.job(jobs[0].id).is_err());
    assert_eq!(jobs[0].value(|value| *value), Some(0), "whoever has it still has its value");
    assert_eq!(queue.status().unwrap().counts, [1, 0, 2, 0, 0]);
}

#[test]
fn closing_in_memory_cancels_what_is_queued_and_lets_what_runs_end() {
    let queue = queue(1);
    let jobs = queue.submit_all(vec![spec("ann"); 2]).unwrap();
    let claim = claimed(&queue, 0);
    queue.close();
    assert_eq!(jobs[1].now().error.as_deref(), Some("cancelled: the queue was closed"));
    assert_eq!(refusal(queue.submit(spec("ann"))), "the queue is closed");
    assert_eq!(refusal(queue.retry(&Selection::default(), false)), "the queue is closed");
    assert_eq!(claim.finish(Outcome::done(1)).unwrap(), JobState::Done);
    queue.close();
}

#[test]
fn more_than_sixty_four_devices_are_refused() {
    let refused = Queue::new(devices(65), Settings::default());
    assert_eq!(refusal(refused), "a queue has at most 64 devices, not 65");
    let queue: Queue = Queue::new(devices(64), Settings::default()).unwrap();
    queue.submit(spec("ann")).unwrap();
    assert!(claim(&queue, 63).is_some());
}

#[test]
fn a_forecast_tells_what_a_device_would_be_given_and_changes_nothing() {
    let queue = queue(1);
    for (user, key) in [("ann", "a1"), ("ann", "a2"), ("bob", "b1"), ("bob", "b2")] {
        queue.submit(needing(user, &[key])).unwrap();
    }
    let told: Vec<String> =
        queue.forecast(name(0), 10).unwrap().iter().map(|needs| needs.join(",")).collect();
    assert_eq!(told.len(), 4);
    assert_eq!(queue.forecast(name(0), 2).unwrap().len(), 2);
    let claims: Vec<_> = (0..4).map(|_| claimed(&queue, 0)).collect();
    let given: Vec<String> = claims.iter().map(|claim| claim.job().needs.join(",")).collect();
    assert_eq!(told, given);
}
