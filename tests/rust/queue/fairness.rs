//! Fair shares of GPU time, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// A run of jobs on imagined devices: each claims as soon as it is free.
struct Simulation {
    queue: Queue,
    clock: Arc<ManualClock>,
    now: Micros,
    busy: BinaryHeap<Reverse<(Micros, usize)>>,
    claims: Vec<Option<Claim<u64>>>,
    /// GPU time by device.
    worked: Vec<Micros>,
}

impl Simulation {
    fn new(count: usize, rules: Rules) -> Self {
        let (mut settings, clock) = settings(rules);
        settings.history = 0;
        let queue = JobQueue::new(devices(count as u64), settings).unwrap();
        let claims = (0..count).map(|_| None).collect();
        let (now, busy) = (1000 * SECOND, BinaryHeap::new());
        Self { queue, clock, now, busy, claims, worked: vec![0; count] }
    }

    /// Has every idle device claim a job; `takes` says how long each runs.
    fn fill(&mut self, takes: &mut impl FnMut(&Job<u64>, usize) -> Micros) {
        for device in 0..self.claims.len() {
            if self.claims[device].is_none()
                && let Some(claim) = claim(&self.queue, device)
            {
                let took = takes(claim.job(), device);
                self.busy.push(Reverse((self.now + took, device)));
                self.worked[device] += took;
                self.claims[device] = Some(claim);
            }
        }
    }

    /// Goes on to the next end of a job, and ends it; false when nothing runs.
    fn step(&mut self) -> bool {
        let Some(Reverse((at, device))) = self.busy.pop() else { return false };
        self.now = at;
        self.clock.set(at);
        let claim = self.claims[device].take().unwrap();
        claim.finish(Outcome::done(0)).unwrap();
        true
    }
}

/// 1 when all have had the same, 1/n when one has had everything.
#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn jain(shares: &[Micros]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), share| {
        (sum + *share as f64, squares + (*share as f64).powi(2))
    });
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn sixteen_users_get_equal_gpu_time_whatever_their_jobs_take() {
    const USERS: usize = 16;
    let mut random = Random(7);
    let mut run = Simulation::new(8, plain());
    for user in 0..USERS {
        // Estimates that are wrong for everybody, and missing for half of them.
        for _ in 0..1000 {
            let mut job = spec(&format!("user {user}"));
            job.estimate = (user % 2 == 0).then_some(3 * SECOND);
            run.queue.submit(job).unwrap();
        }
    }
    let (mut had, mut started, mut left) = ([0; USERS], [0; USERS], [1000; USERS]);
    let mut longest = [0; USERS];
    let mut last = [run.now; USERS];
    let begun = run.now;
    let idle_before = run.worked.iter().sum::<Micros>();
    assert_eq!(idle_before, 0);
    let mut over = false;
    while !over {
        let now = run.now;
        run.fill(&mut |job, _| {
            let user: usize = job.user.strip_prefix("user ").unwrap().parse().unwrap();
            started[user] += 1;
            left[user] -= 1;
            longest[user] = longest[user].max(now - last[user]);
            last[user] = now;
            // Jobs of one user are up to twenty times as long as those of another.
            let took = SECOND / 2 * (1 + i64::try_from(user).unwrap())
                + i64::try_from(random.below(1000)).unwrap() * 1000;
            had[user] += took;
            over |= left[user] == 0;
            took
        });
        run.step();
    }
    let fairness = jain(&had);
    assert!(fairness >= 0.99, "Jain's index is {fairness}");
    // What still runs has been counted as worked, and reaches beyond the end by no more than a job.
    let worked: Micros = run.worked.iter().sum();
    let passed = (run.now - begun) * 8;
    assert!(worked * 100 >= passed * 98, "{worked} of {passed} microseconds were used");
    // Nobody waits longer between two of his jobs than it takes to serve everybody else once.
    assert!(longest.iter().all(|gap| *gap < 60 * SECOND), "{longest:?}");
    assert!(started.iter().all(|jobs| *jobs > 40), "{started:?}");
}

#[test]
fn a_user_of_twice_the_weight_gets_twice_the_time() {
    let mut run = Simulation::new(3, plain());
    for user in ["ann", "bob"] {
        run.queue.submit_all(vec![taking(user, 2); 900]).unwrap();
    }
    run.queue.set_limits(&"ann".into(), |limits| limits.weight = 2.0).unwrap();
    let mut had = [0, 0];
    for _ in 0..600 {
        run.fill(&mut |job, _| {
            had[usize::from(&*job.user == "bob")] += 2 * SECOND;
            2 * SECOND
        });
        run.step();
    }
    let [ann, bob] = had;
    assert!((ann - 2 * bob).abs() <= 6 * SECOND, "{ann} and {bob}");
}

#[test]
fn who_was_away_has_saved_up_nothing_and_who_was_ahead_stays_ahead() {
    let (settings, clock) = settings(plain());
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    queue.submit_all(vec![taking("ann", 10); 40]).unwrap();
    let mut now = 1000 * SECOND;
    let mut run = |queue: &Queue| {
        let claim = claimed(queue, 0);
        now += 10 * SECOND;
        clock.set(now);
        claim.finish(Outcome::done(0)).unwrap();
        claim.job().user.to_string()
    };
    for _ in 0..20 {
        assert_eq!(run(&queue), "ann");
    }
    // Ann had the device to herself for 200 s. Bob comes now, and they take turns from now on.
    queue.submit_all(vec![taking("bob", 10); 40]).unwrap();
    let turns: Vec<String> = (0..20).map(|_| run(&queue)).collect();
    assert_eq!(turns.iter().filter(|user| *user == "ann").count(), 10, "{turns:?}");
}

/// The names of the users whom a queue knows.
fn known(queue: &Queue) -> Vec<String> {
    queue.status().unwrap().users.iter().map(|user| user.name.to_string()).collect()
}

/// Settings of a queue that keeps no history, and remembers so many users who have nothing here.
fn remembering(users: usize) -> (Settings, Arc<ManualClock>) {
    let (settings, clock) = settings(Rules { remembered: users, ..plain() });
    (Settings { history: 0, ..settings }, clock)
}

#[test]
fn users_without_jobs_and_settings_are_forgotten_when_they_are_too_many() {
    let queue: Queue = JobQueue::new(devices(1), remembering(100).0).unwrap();
    queue.set_limits(&"weighty".into(), |limits| limits.weight = 2.0).unwrap();
    queue.pause(Some(&"paused".into()), true).unwrap();
    queue.submit(Spec { devices: Some(vec![name(0)]), ..spec("waits") }).unwrap();
    queue.pause(Some(&"waits".into()), true).unwrap();
    for number in 0..10_000 {
        queue.submit(spec(&format!("user {number}"))).unwrap();
        serve(&queue, 0);
        assert!(known(&queue).len() <= 103 || number % 100 != 0);
    }
    let users = known(&queue);
    assert_eq!(users.len(), 103);
    assert!(["paused", "waits", "weighty"].iter().all(|name| users.iter().any(|it| it == name)));
    queue.pause(Some(&"waits".into()), false).unwrap();
    assert_eq!(serve(&queue, 0), "waits");
    for name in ["waits", "paused"] {
        queue.pause(Some(&name.into()), false).unwrap();
    }
    queue.set_limits(&"weighty".into(), |limits| limits.weight = 1.0).unwrap();
    assert_eq!(known(&queue).len(), 100, "what nobody has any more is not remembered for ever");
}

#[test]
fn jobs_in_the_history_have_their_users() {
    let (settings, _) = settings(Rules { remembered: 0, ..plain() });
    let queue: Queue = JobQueue::new(devices(1), Settings { history: 2, ..settings }).unwrap();
    for user in ["ann", "bob", "cleo"] {
        queue.submit(spec(user)).unwrap();
        claimed(&queue, 0).finish(Outcome::failed("no")).unwrap();
    }
    assert_eq!(known(&queue), ["bob", "cleo"]);
    assert_eq!(queue.retry(&Selection::user("bob"), false).unwrap(), 1);
    assert_eq!(serve(&queue, 0), "bob");
    queue.delete(&Selection::default()).unwrap();
    assert_eq!(known(&queue), [""; 0]);
}

#[test]
fn nobody_gains_turns_by_being_forgotten_and_coming_again() {
    let (settings, clock) = remembering(1);
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    let mut now = 1000 * SECOND;
    let mut run = |queue: &Queue, seconds: i64| {
        let claim = claimed(queue, 0);
        now += seconds * SECOND;
        clock.set(now);
        claim.finish(Outcome::done(0)).unwrap();
        claim.job().user.to_string()
    };
    // Ann has had 40 s, and bob 60 s; cleo 50 s since she came when ann was forgotten, who began where
    // ann was.
    for (user, seconds) in [("ann", 40), ("bob", 60), ("cleo", 50)] {
        queue.submit(taking(user, seconds)).unwrap();
        assert_eq!(run(&queue, seconds), user);
    }
    assert_eq!(known(&queue), ["cleo"]);
    // Who comes again has had as much as who comes for the first time: nobody is better off.
    for user in ["bob", "ann", "dora", "cleo"] {
        queue.submit_all(vec![taking(user, 10); 10]).unwrap();
    }
    let turns: Vec<String> = (0..40).map(|_| run(&queue, 10)).collect();
    let of = |user: &str, until: usize| turns[..until].iter().filter(|it| *it == user).count();
    assert_eq!(of("cleo", 9), 0, "she has had 30 s more than those who were forgotten: {turns:?}");
    for until in 1..=30 {
        let (ann, bob, dora) = (of("ann", until), of("bob", until), of("dora", until));
        let least = ann.min(bob).min(dora);
        assert!(ann.max(bob).max(dora) - least <= 1, "{turns:?}");
    }
}

#[test]
fn deleting_history_gains_no_turns() {
    let (settings, clock) = settings(plain());
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    for user in ["ann", "bob"] {
        queue.submit_all(vec![taking(user, 10); 40]).unwrap();
    }
    let mut now = 1000 * SECOND;
    let mut turns = Vec::new();
    for _ in 0..40 {
        let claim = claimed(&queue, 0);
        now += 10 * SECOND;
        clock.set(now);
        claim.finish(Outcome::done(0)).unwrap();
        turns.push(claim.job().user.to_string());
        let done = Selection { state: Some(JobState::Done), ..Selection::user("ann") };
        queue.delete(&done).unwrap();
    }
    assert_eq!(turns.iter().filter(|user| *user == "ann").count(), 20);
    assert_eq!(queue.jobs(&Selection::user("ann"), None).unwrap().len(), 20);
}

#[test]
fn an_old_job_of_low_priority_comes_before_newer_ones_at_last() {
    let rules = Rules { ageing: Some(60 * SECOND), ..plain() };
    let (settings, clock) = settings(rules);
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    let low = queue.submit(spec("ann")).unwrap();
    let mut served = 0;
    while low.state() == JobState::Queued {
        clock.set((1000 + 10 * served) * SECOND);
        queue.submit(Spec { priority: 5, ..spec("ann") }).unwrap();
        serve(&queue, 0);
        served += 1;
        assert!(served <= 32, "it waits for ever");
    }
    assert!(served >= 30, "five levels are worth five minutes, not {served} jobs of 10 s");
}

#[test]
fn without_ageing_the_priority_decides_alone_among_a_users_jobs_and_not_between_users() {
    let rules = Rules { ageing: None, ..plain() };
    let (settings, clock) = settings(rules);
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    queue.submit(spec("ann")).unwrap();
    clock.set(100_000 * SECOND);
    let high = queue.submit(Spec { priority: 1, ..taking("ann", 10) }).unwrap();
    queue.submit(Spec { priority: 9, ..spec("bob") }).unwrap();
    let claim = claimed(&queue, 0);
    assert_eq!(claim.job().id, high.id);
    clock.set(100_010 * SECOND);
    claim.finish(Outcome::done(0)).unwrap();
    assert_eq!(serve(&queue, 0), "bob");
}

#[test]
fn where_the_operator_allows_it_a_priority_puts_a_user_ahead_by_so_much_and_no_more() {
    let rules = Rules { lead: 30 * SECOND, ..plain() };
    let (settings, clock) = settings(rules);
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    queue.submit_all(vec![taking("ann", 10); 20]).unwrap();
    queue.submit_all(vec![Spec { priority: 1, ..taking("bob", 10) }; 20]).unwrap();
    let mut now = 1000 * SECOND;
    let turns: Vec<String> = (0..13)
        .map(|_| {
            let claim = claimed(&queue, 0);
            now += 10 * SECOND;
            clock.set(now);
            claim.finish(Outcome::done(0)).unwrap();
            claim.job().user.to_string()
        })
        .collect();
    let of_bob = turns.iter().filter(|user| *user == "bob").count();
    assert_eq!(turns[..3], ["bob", "bob", "bob"]);
    assert_eq!(of_bob, 8, "three turns ahead, then as many as ann: {turns:?}");
}

#[test]
fn a_slow_device_is_charged_less_and_does_less() {
    let (mut settings, clock) = settings(plain());
    settings.speeds = [(name(1), 0.25)].into();
    let queue: Queue = JobQueue::new(devices(2), settings).unwrap();
    queue.submit_all(vec![taking("ann", 4); 4]).unwrap();
    let [fast, slow] = [claimed(&queue, 0), claimed(&queue, 1)];
    clock.set(1004 * SECOND);
    fast.finish(Outcome::done(0)).unwrap();
    clock.set(1016 * SECOND);
    slow.finish(Outcome::done(0)).unwrap();
    let status = queue.status().unwrap();
    assert_eq!(status.users[0].gpu_time, 8 * SECOND, "both have done the work of 4 s");
}

#[test]
fn fifo_is_one_line_for_all() {
    let rules = Rules { fifo: true, ..plain() };
    let (settings, clock) = settings(rules);
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    let mut users = Vec::new();
    for turn in 0..20 {
        clock.set((1000 + turn) * SECOND);
        let user = if turn % 5 == 0 { "bob" } else { "ann" };
        queue.submit(spec(user)).unwrap();
        users.push(user);
    }
    let served: Vec<String> = (0..20).map(|_| serve(&queue, 0)).collect();
    assert_eq!(served, users);
}

#[test]
fn a_limit_on_running_jobs_leaves_the_other_devices_to_others() {
    let queue = queue(4);
    queue.set_limits(&"ann".into(), |limits| limits.running = Some(2)).unwrap();
    queue.submit_all(vec![spec("ann"); 10]).unwrap();
    let claims: Vec<_> = (0..4).map(|device| claim(&queue, device)).collect();
    assert_eq!(claims.iter().filter(|claim| claim.is_some()).count(), 2);
    let blocked = queue.status().unwrap().users[0].blocked.clone();
    assert_eq!(blocked.as_deref(), Some("2 of 2 jobs run"));
    queue.submit(spec("bob")).unwrap();
    assert_eq!(serve(&queue, 2), "bob");
    claims[0].as_ref().unwrap().finish(Outcome::done(0)).unwrap();
    assert!(claim(&queue, 3).is_some());
}

#[test]
fn gpu_seconds_per_hour_are_those_of_any_sixty_minutes() {
    let (settings, clock) = settings(plain());
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    queue
        .set_limits(&"ann".into(), |limits| limits.gpu_time_per_hour = Some(100 * SECOND))
        .unwrap();
    queue.submit_all(vec![taking("ann", 60); 10]).unwrap();
    let mut now = 1000 * SECOND;
    for _ in 0..2 {
        let claim = claimed(&queue, 0);
        now += 60 * SECOND;
        clock.set(now);
        claim.finish(Outcome::done(0)).unwrap();
    }
    assert!(claim(&queue, 0).is_none());
    let blocked = queue.status().unwrap().users[0].blocked.clone();
    assert_eq!(blocked.as_deref(), Some("120 of 100 GPU seconds of the last hour are used"));
    // The first minute is more than an hour ago, and sixty seconds are left of the second.
    clock.set((1000 + 3600) * SECOND);
    let _running = claimed(&queue, 0);
    assert!(claim(&queue, 0).is_none());
}

#[test]
fn a_job_goes_where_its_weights_are_within_the_slack() {
    let rules = Rules { slack: 25 * SECOND, ..Rules::default() };
    let (settings, clock) = settings(rules);
    let queue: Queue = JobQueue::new(devices(1), settings).unwrap();
    let submit = |user: &str, key: &str| {
        let job = Spec { estimate: Some(10 * SECOND), ..needing(user, &[key]) };
        queue.submit(job).unwrap();
    };
    for _ in 0..10 {
        submit("ann", "flux");
        submit("bob", "sdxl");
    }
    let mut now = 1000 * SECOND;
    let turns: Vec<String> = (0..12)
        .map(|_| {
            let claim = claimed(&queue, 0);
            now += 10 * SECOND;
            clock.set(now);
            claim.finish(Outcome::done(0)).unwrap();
            claim.job().user.to_string()
        })
        .collect();
    let switches = turns.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((2..=5).contains(&switches), "weights stay, but not for ever: {turns:?}");
    let of_ann = turns.iter().filter(|user| *user == "ann").count();
    assert!((4..=8).contains(&of_ann), "{turns:?}");
}
