//! Hints: what they say holds, on recorded traces and on made ones.

use coresident::residency::{
    Conditions, Hint, HintKind, POLICIES, PolicyName, Recorded, Request, Trace, hints, least_bytes,
    steps_under,
};
use coresident::trace::Setting;

use super::helpers::Random;
use super::residency::recorded as traces;

const MIB: u64 = 1 << 20;

/// How a device of so much memory is set up.
fn setting(total: u64, limit: u64, headroom: u64, policy: PolicyName) -> Setting {
    let (device, policy) = ("cuda:0".to_owned(), policy.to_string());
    Setting { device, total, limit, headroom, page: 1, policy, lookahead: 2, ..Setting::default() }
}

/// What is copied again, though it was there before; all that is copied.
fn copied(trace: &Trace, policy: PolicyName, conditions: &Conditions) -> (u64, u64) {
    let steps = steps_under(trace, policy, 2, conditions).unwrap();
    let (mut again, mut all, mut known) = (0, 0, Vec::new());
    for (request, step) in trace.requests.iter().zip(steps) {
        all += step.moved;
        if known.contains(&request.component) {
            again += step.moved;
        } else {
            known.push(request.component.clone());
        }
    }
    (again, all)
}

/// What a budget can have of a device.
fn reach(setting: &Setting) -> u64 {
    setting.limit.min(setting.total - setting.outside - setting.headroom)
}

/// Applies what a hint says, by what its words mean, and checks that it comes true.
fn comes_true(recorded: &Recorded, hint: &Hint) {
    let Recorded { trace, setting, conditions, .. } = recorded;
    let policy: PolicyName = setting.policy.parse().unwrap();
    let (before, _) = copied(trace, policy, conditions);
    assert_eq!(hint.bytes, before, "{hint}");
    let (mut trace, mut conditions, mut policy) = (trace.clone(), conditions.clone(), policy);
    let mut changed = setting.clone();
    changed.limit = hint.advice.limit.unwrap_or(setting.limit);
    changed.headroom = hint.advice.headroom.unwrap_or(setting.headroom);
    assert!(changed.limit <= setting.total, "the device has no more than its memory: {hint}");
    assert!(changed.headroom <= setting.headroom, "{hint}");
    trace.capacity_bytes += reach(&changed) - reach(setting);
    if hint.advice.no_watermarks {
        conditions.watermarks = None;
        if policy == PolicyName::AlwaysEvict {
            policy = PolicyName::default();
        }
    }
    if let Some(other) = &hint.advice.policy {
        policy = other.parse().unwrap();
    }
    for (request, served) in trace.requests.iter_mut().zip(&recorded.served) {
        let of = |(component, _): &&(String, u64)| *component == request.component;
        if let Some((_, enough)) = hint.advice.working_memory.iter().find(of) {
            request.working_bytes -= served.beside.saturating_sub(*enough);
        }
    }
    let (after, all) = copied(&trace, policy, &conditions);
    assert_eq!(before - after, hint.spared, "{hint}");
    assert!(hint.spared * 5 >= before, "it is worth it: {hint}");
    if after == 0 {
        assert_eq!(all, least_bytes(&Trace { capacity_bytes: u64::MAX / 2, ..trace }));
        assert!(hint.text.contains("would have fitted"), "{hint}");
    } else {
        assert!(hint.text.contains("can be spared"), "{hint}");
    }
}

fn all_hints(trace: &Trace, setting: Setting) -> Vec<Hint> {
    let recorded = Recorded::imagined(trace.clone(), setting).unwrap();
    let found = hints(&recorded).unwrap();
    for hint in &found {
        comes_true(&recorded, hint);
    }
    let mut kinds: Vec<HintKind> = found.iter().map(|hint| hint.kind).collect();
    let given = kinds.len();
    kinds.dedup();
    assert_eq!(kinds.len(), given, "one for each cause");
    found
}

#[test]
fn no_hint_is_wrong_on_recorded_traces() {
    let mut given = 0;
    // No more memory than the budget has, a little more, much more; and with a headroom.
    let set_up = [(100, 0), (104, 0), (160, 0), (140, 30), (400, 5)];
    for (at, trace) in traces().into_iter().enumerate() {
        let capacity = trace.capacity_bytes;
        for (number, (_, policy)) in POLICIES.into_iter().enumerate() {
            let (total, headroom) = set_up[(at + number) % set_up.len()];
            let (total, headroom) = (capacity / 100 * total, capacity / 100 * headroom);
            let limit = capacity.min(total.max(capacity) - headroom);
            let mut trace = Trace { capacity_bytes: limit, ..trace.clone() };
            // The first jobs are enough: each hint takes some twenty replays.
            trace.requests.truncate(60);
            if trace.check().is_ok() {
                let total = total.max(capacity);
                given += all_hints(&trace, setting(total, limit, headroom, policy)).len();
            }
        }
    }
    assert!(given > 20, "{given}: there was much to be told");
}

/// Jobs of a few pipelines, by chance, in whole MiB.
fn made(random: &mut Random) -> Trace {
    let sizes: Vec<u64> = (0..6).map(|_| (random.below(40) + 2) * MIB).collect();
    let (mut requests, mut kind) = (Vec::new(), 0);
    for job in 0..random.below(25) + 5 {
        if random.below(4) == 0 {
            kind = random.below(3);
        }
        for stage in 0..3 {
            let of = usize::try_from((kind * 2 + stage) % 6).unwrap();
            let (component, bytes) = (format!("model {of}"), sizes[of]);
            let working_bytes = random.below(4) * MIB;
            requests.push(Request { job, component, bytes, working_bytes });
        }
    }
    let least = requests.iter().map(|request| request.bytes + request.working_bytes).max();
    let all: u64 = sizes.iter().sum::<u64>() + 4 * MIB;
    // Too little by much, by a bit, or enough.
    let capacity_bytes = least.unwrap().max(all * (random.below(70) + 40) / 100);
    Trace { name: "made".into(), capacity_bytes, requests }
}

#[test]
fn no_hint_is_wrong_on_made_traces() {
    let mut kinds = Vec::new();
    for seed in 0..100 {
        let mut random = Random(seed * 77 + 1);
        let trace = made(&mut random);
        let capacity = trace.capacity_bytes;
        let policy = POLICIES[usize::try_from(random.below(6)).unwrap()].1;
        let headroom = random.below(3) * 8 * MIB;
        let total = capacity + headroom + random.below(3) * 24 * MIB;
        let mut setting = setting(total, capacity, headroom, policy);
        setting.outside = random.below(2) * (total - capacity - headroom) / 2;
        if random.below(4) == 0 {
            setting.high = Some(random.below(capacity));
            setting.low = setting.high.unwrap() / 2;
        }
        kinds.extend(all_hints(&trace, setting).into_iter().map(|hint| hint.kind));
    }
    for kind in [HintKind::AlwaysEvict, HintKind::Watermarks, HintKind::Budget, HintKind::Policy] {
        assert!(kinds.contains(&kind), "{kind:?} never happened");
    }
}

/// A pipeline of two models, so many times.
fn pipeline(capacity: u64, times: u64) -> Trace {
    let request = |job, component: &str, bytes| Request {
        job,
        component: component.into(),
        bytes,
        working_bytes: MIB,
    };
    let jobs =
        (0..times).flat_map(|job| [request(job, "unet", 8 * MIB), request(job, "vae", 4 * MIB)]);
    Trace { name: "made".into(), capacity_bytes: capacity, requests: jobs.collect() }
}

#[test]
fn a_limit_that_is_too_low_is_raised_as_far_as_it_takes() {
    // 13 MiB are needed; the working memory is for one at a time.
    let found = all_hints(&pipeline(12 * MIB, 9), setting(64 * MIB, 12 * MIB, 0, PolicyName::Lru));
    let [hint] = &found[..] else { panic!("{found:?}") };
    assert_eq!((hint.kind, hint.advice.limit), (HintKind::Budget, Some(13 * MIB)));
    assert_eq!(hint.spared, hint.bytes);
    assert!(
        hint.text.ends_with(
            "on cuda:0, although they would have fitted: raise the budget's limit to 13 MiB"
        ),
        "{hint}"
    );
}

#[test]
fn a_headroom_that_is_too_large_is_lowered_as_far_as_it_takes() {
    let setting = setting(20 * MIB, 20 * MIB, 8 * MIB, PolicyName::Lru);
    let found = all_hints(&pipeline(12 * MIB, 9), setting);
    let [hint] = &found[..] else { panic!("{found:?}") };
    assert_eq!((hint.advice.limit, hint.advice.headroom), (None, Some(7 * MIB)));
    assert!(hint.text.ends_with("lower the headroom by 1 MiB"), "{hint}");
}

#[test]
fn nothing_is_said_where_nothing_would_help() {
    let fits = pipeline(13 * MIB, 9);
    assert_eq!(all_hints(&fits, setting(64 * MIB, 13 * MIB, 0, PolicyName::Lru)), []);
    // The device has no more, or others have it.
    let full = pipeline(12 * MIB, 9);
    assert_eq!(all_hints(&full, setting(12 * MIB, 12 * MIB, 0, PolicyName::LookAhead)), []);
    let others = Setting { outside: 52 * MIB, ..setting(64 * MIB, 12 * MIB, 0, PolicyName::Lru) };
    assert!(all_hints(&full, others).iter().all(|hint| hint.kind != HintKind::Budget));
    // Nobody knows how much it has.
    let unknown = setting(0, 12 * MIB, 0, PolicyName::LookAhead);
    let recorded = Recorded::imagined(full, unknown).unwrap();
    assert_eq!(hints(&recorded).unwrap(), []);
}

#[test]
fn weights_that_leave_at_once_are_told_to_stay() {
    let mut always = setting(13 * MIB, 13 * MIB, 0, PolicyName::Lru);
    always.high = Some(0);
    for setting in [always, setting(13 * MIB, 13 * MIB, 0, PolicyName::AlwaysEvict)] {
        let found = all_hints(&pipeline(13 * MIB, 9), setting);
        let [hint] = &found[..] else { panic!("{found:?}") };
        assert_eq!(hint.kind, HintKind::AlwaysEvict);
        assert!(hint.advice.no_watermarks && hint.spared == hint.bytes, "{hint}");
    }
}

#[test]
fn working_memory_that_nobody_used_is_told_by_how_much() {
    let mut trace = pipeline(20 * MIB, 9);
    trace.requests.iter_mut().for_each(|request| request.working_bytes = 9 * MIB);
    let mut recorded =
        Recorded::imagined(trace, setting(20 * MIB, 20 * MIB, 0, PolicyName::LookAhead)).unwrap();
    assert_eq!(hints(&recorded).unwrap(), [], "nobody has measured it");
    for (served, request) in recorded.served.iter_mut().zip(&recorded.trace.requests) {
        served.peak = Some(if request.component == "vae" { 8 * MIB } else { 9 * MIB });
    }
    let found = hints(&recorded).unwrap();
    let [hint] = &found[..] else { panic!("{found:?}") };
    comes_true(&recorded, hint);
    assert!(hint.spared < hint.bytes, "the unet still has too little room: {hint}");
    for served in &mut recorded.served {
        served.peak = Some(7 * MIB);
    }
    let found = hints(&recorded).unwrap();
    let [hint] = &found[..] else { panic!("{found:?}") };
    comes_true(&recorded, hint);
    assert_eq!(hint.kind, HintKind::WorkingMemory);
    assert!(hint.text.contains("7 MiB instead of 9 MiB"), "{hint}");
}

#[test]
fn what_a_replay_does_not_explain_is_no_ground_for_a_hint() {
    let setting = setting(64 * MIB, 12 * MIB, 0, PolicyName::Lru);
    let mut recorded = Recorded::imagined(pipeline(12 * MIB, 9), setting).unwrap();
    assert_eq!(hints(&recorded).unwrap().len(), 1);
    // Somebody has evicted by hand.
    recorded.served[10].copied += 4 * MIB;
    assert_eq!(hints(&recorded).unwrap(), []);
    recorded.served[10].copied -= 4 * MIB;
    recorded.setting.policy = "of tomorrow".into();
    hints(&recorded).unwrap_err();
}
