//! What those who watch are told.

use coresident::queue::{Kind, Subscriber};

use super::*;

/// What is there now.
fn told(subscriber: &Subscriber<u64>) -> Vec<Kind> {
    std::iter::from_fn(|| subscriber.poll().flatten()).map(|event| event.kind).collect()
}

fn over(subscriber: &Subscriber<u64>) -> bool {
    matches!(subscriber.poll(), Some(None))
}

#[test]
fn who_watches_a_job_is_told_everything_in_order_and_nothing_after_its_end() {
    let queue = queue(1);
    let job = queue.submit(spec("ann")).unwrap();
    let watcher = job.watch(0, 100);
    let claim = claimed(&queue, 0);
    claim.start().unwrap();
    claim.stage("encoder".into()).unwrap();
    claim.step(1, 2, Some(11)).unwrap();
    assert_eq!(
        told(&watcher),
        [Kind::Queued, Kind::Claimed, Kind::Started, Kind::Stage, Kind::Step]
    );
    claim.step(2, 2, None).unwrap();
    claim.finish(Outcome::done(1)).unwrap();
    assert_eq!(told(&watcher), [Kind::Step, Kind::Finished]);
    assert!(over(&watcher));
    assert_eq!(told(&job.watch(0, 100)), [Kind::Finished]);
    assert!(refusal(claim.step(1, 2, None)).contains("has been ended already"));
}

#[test]
fn a_slow_subscriber_loses_steps_and_never_a_change_of_state() {
    let queue = queue(2);
    let watcher = queue.subscribe(None, 4).unwrap();
    queue.submit_all(vec![spec("ann"); 40]).unwrap();
    for _ in 0..20 {
        let claims = [claimed(&queue, 0), claimed(&queue, 1)];
        for claim in &claims {
            for step in 1..=10 {
                claim.step(step, 10, Some(u64::from(step))).unwrap();
                claim.stage("next".into()).unwrap();
            }
            claim.finish(Outcome::done(0)).unwrap();
        }
    }
    let events: Vec<_> = std::iter::from_fn(|| watcher.poll().flatten()).collect();
    let count = |kind| events.iter().filter(|event| event.kind == kind).count();
    for kind in [Kind::Queued, Kind::Claimed, Kind::Started, Kind::Finished] {
        assert_eq!(count(kind), 40, "{kind:?}");
    }
    assert_eq!(count(Kind::Step) + count(Kind::Stage), 4);
    assert_eq!(watcher.dropped(), 40 * 20 - 4);
    for job in 1..=40 {
        let kinds: Vec<Kind> = events
            .iter()
            .filter(|event| event.job.id == job && !event.kind.is_progress())
            .map(|event| event.kind)
            .collect();
        assert_eq!(kinds, [Kind::Queued, Kind::Claimed, Kind::Started, Kind::Finished]);
    }
}

#[test]
fn of_one_job_only_the_latest_step_is_kept() {
    let queue = queue(1);
    let job = queue.submit(spec("ann")).unwrap();
    let watcher = job.watch(0, 100);
    let claim = claimed(&queue, 0);
    for step in 1..=30 {
        claim.step(step, 30, Some(u64::from(step))).unwrap();
    }
    let steps: Vec<_> = std::iter::from_fn(|| watcher.poll().flatten())
        .filter(|event| event.kind == Kind::Step)
        .map(|event| (event.step, event.preview.as_deref().copied()))
        .collect();
    assert_eq!(steps, [(Some((30, 30)), Some(30))]);
}

#[test]
fn a_subscriber_of_a_user_hears_of_nobody_else() {
    let queue = queue(1);
    let watcher = queue.subscribe(Some("ann".into()), 10).unwrap();
    queue.submit(spec("bob")).unwrap();
    queue.submit(spec("ann")).unwrap();
    assert_eq!(told(&watcher), [Kind::Queued]);
    queue.cancel(&Selection::default(), None).unwrap();
    assert_eq!(told(&watcher), [Kind::Cancelled]);
    queue.close();
    assert!(over(&watcher));
    assert!(over(&queue.subscribe(None, 10).unwrap()));
}

#[test]
fn who_waits_for_an_event_is_woken_by_it() {
    let queue = queue(1);
    let watcher = queue.subscribe(None, 10).unwrap();
    let waits = watcher.clone();
    let waiting = spawn(move || {
        let parker = coresident::wait::Parker::new();
        let asked = waits.ask(&this_thread("watcher"), parker.clone()).unwrap();
        asked.wait(&parker, &Patience::FOREVER).unwrap().map(|event| event.kind)
    });
    queue.submit(spec("ann")).unwrap();
    assert_eq!(waiting.join(), Some(Kind::Queued));
}
