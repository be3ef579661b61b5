//! The planner on live arenas: it decides there as in replay, and knows who works for which job.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use coresident::arena::{Area, Arena, Beside, Content, HostSide, Identity, Pins};
use coresident::budget::{Budget, Reservation, Spec};
use coresident::device::{
    Address, DeviceMemory, DeviceType, Event, Fence, HostBytes, MemoryError, Name, Piece, Pinning,
    Stream, VirtualSpec, virtual_devices,
};
use coresident::pool::DevicePool;
use coresident::queue::{self, Clock, JobQueue, ManualClock, Outcome, Rules, Settings};
use coresident::residency::{
    Forecast, Needs, POLICIES, Planner, PolicyName, Request, Trace, steps,
};
use coresident::runtime;
use coresident::wait::{Owner, Patience};
use coresident::weights::ElementType;

use super::helpers::{at_once, somebody};
use super::residency::recorded;

/// Bytes of a page: much, so that there are few.
const PAGE: u64 = 128 << 20;

/// A device whose memory is nothing but addresses, so that there can be as much of it as in a trace.
#[derive(Default)]
struct Addresses(AtomicUsize);

/// What everything has that is done at once.
pub(super) struct Passed;

impl Fence for Passed {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        Ok(true)
    }

    fn wait(&self, _until: Option<Instant>) -> Result<bool, MemoryError> {
        Ok(true)
    }
}

impl DeviceMemory for Addresses {
    fn page(&self) -> usize {
        usize::try_from(PAGE).unwrap()
    }

    fn free(&self) -> u64 {
        u64::MAX
    }

    fn reserve(&self, bytes: usize) -> Result<Address, MemoryError> {
        Ok(self.0.fetch_add(bytes, Ordering::SeqCst))
    }

    fn release(&self, _start: Address, _bytes: usize) {}

    fn commit(&self, _start: Address, _bytes: usize) -> Result<(), MemoryError> {
        Ok(())
    }

    fn decommit(&self, _start: Address, _bytes: usize) {}

    fn copies(&self) -> Result<Stream, MemoryError> {
        Ok(Stream::Device(0))
    }

    fn stage(&self, charge: Box<dyn Any + Send>) -> Result<Box<dyn Any + Send>, MemoryError> {
        Ok(charge)
    }

    fn upload(
        &self,
        _after: &[Event],
        _pieces: Vec<Piece>,
        _how: Pinning,
    ) -> Result<Event, MemoryError> {
        Ok(Arc::new(Passed))
    }

    fn record(&self, _stream: Stream) -> Result<Event, MemoryError> {
        Ok(Arc::new(Passed))
    }

    fn after(&self, _stream: Stream, _event: &Event) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// Bytes that nobody copies.
struct Nothing;

impl HostBytes for Nothing {
    fn copy_to(&self, _from: usize, _to: &mut [u8]) {}
}

fn device() -> Name {
    Name::new(DeviceType::Virtual, 0).unwrap()
}

fn planner(policy: PolicyName) -> Planner {
    Planner::new(device(), policy, None)
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

/// What was said to come.
#[derive(Default)]
struct Said(Mutex<Vec<Needs>>);

impl Said {
    fn say(&self, jobs: &[&[String]]) {
        *self.0.lock().unwrap() = jobs.iter().map(|&job| job.into()).collect();
    }
}

impl Forecast for Said {
    fn coming(&self, device: Name, most: usize) -> Vec<Needs> {
        assert_eq!(device, self::device());
        self.0.lock().unwrap().iter().take(most).cloned().collect()
    }
}

/// A device of so many bytes, whose arena asks a planner.
struct House {
    arena: Arena,
    planner: Planner,
    forecast: Arc<Said>,
    areas: BTreeMap<String, Area>,
    me: Owner,
}

impl House {
    fn new(capacity: u64, policy: PolicyName) -> Self {
        let budget = Budget::new(Spec { limit: capacity, ..Spec::named("virtual:0") });
        let (planner, forecast) = (planner(policy), Arc::new(Said::default()));
        planner.set_forecast(Some(forecast.clone()));
        let (memory, order) = (Arc::new(Addresses::default()), Arc::new(planner.clone()));
        let host = HostSide::default();
        let arena = Arena::over_with_order(device(), memory, &budget, host, order);
        if policy == PolicyName::AlwaysEvict {
            arena.set_watermarks(0, Some(0)).unwrap();
        }
        Self { arena, planner, forecast, areas: BTreeMap::new(), me: somebody("me") }
    }

    fn area(&mut self, key: &str, bytes: u64) -> Area {
        let of = self.areas.len();
        let arena = &self.arena;
        let made = self.areas.entry(key.to_owned()).or_insert_with(|| {
            let nbytes = usize::try_from(PAGE).unwrap();
            let page = |at: u64| Content {
                name: at.to_string(),
                element: ElementType::UInt8,
                shape: vec![nbytes],
                nbytes,
                bytes: Arc::new(Nothing),
            };
            let identity = Identity { of, order: Vec::new() };
            let contents = || (0..bytes / PAGE).map(page).collect();
            arena.area(key, identity, &somebody("main"), contents).unwrap()
        });
        made.clone()
    }

    fn fault(&mut self, key: &str, bytes: u64, working: u64) -> (Pins, Option<Reservation>) {
        let (area, beside) = (self.area(key, bytes), Beside { bytes: working });
        area.fault(&area.all(), beside, Stream::Host, &self.me, &Patience::FOREVER).unwrap()
    }

    /// Uses so many pages, and is done with them.
    fn stage(&mut self, key: &str, pages: u64) {
        drop(self.fault(key, pages * PAGE, 0));
    }

    /// Bytes that are there, by key.
    fn resident(&self) -> HashMap<String, u64> {
        let resident = |area: &Area| {
            let pages = area.residency().into_iter().filter(|page| *page > 0);
            pages.count() as u64 * PAGE
        };
        self.areas.iter().map(|(key, area)| (key.clone(), resident(area))).collect()
    }

    /// The keys of what is there, as many pages of each as there are.
    fn pages(&self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self.resident().into_iter().filter(|(_, bytes)| *bytes > 0).collect();
        all.sort();
        all.into_iter().map(|(key, bytes)| (key, bytes / PAGE)).collect()
    }
}

/// A trace in whole pages: what has to fit does so all the same.
fn in_pages(trace: &Trace) -> Trace {
    let up = |bytes: u64| bytes.next_multiple_of(PAGE);
    let request = |request: &Request| Request {
        bytes: up(request.bytes),
        working_bytes: up(request.working_bytes),
        ..request.clone()
    };
    let requests = trace.requests.iter().map(request).collect();
    Trace { capacity_bytes: up(trace.capacity_bytes), requests, name: trace.name.clone() }
}

/// Bytes moved, and what has left for that, of each request.
type Moved = Vec<(u64, BTreeMap<String, u64>)>;

/// Serves one request.
fn moved(house: &mut House, request: &Request) -> (u64, BTreeMap<String, u64>) {
    let before = house.resident();
    let held = house.fault(&request.component, request.bytes, request.working_bytes);
    let after = house.resident();
    let key = &request.component;
    let moved = after[key] - before.get(key).copied().unwrap_or(0);
    let gone = |(key, bytes): (String, u64)| {
        let gone = bytes.saturating_sub(after.get(&key).copied().unwrap_or(0));
        (gone > 0).then_some((key, gone))
    };
    let gone = before.into_iter().filter_map(gone).collect();
    drop(held);
    (moved, gone)
}

fn live(trace: &Trace, policy: PolicyName, lookahead: usize) -> Moved {
    let mut house = House::new(trace.capacity_bytes, policy);
    let jobs: Vec<&[Request]> = trace.requests.chunk_by(|a, b| a.job == b.job).collect();
    let components = |job: &&[Request]| -> Vec<String> {
        job.iter().map(|request| request.component.clone()).collect()
    };
    let needs: Vec<Vec<String>> = jobs.iter().map(components).collect();
    let mut all = Vec::new();
    for (at, job) in jobs.into_iter().enumerate() {
        let next: Vec<&[String]> =
            needs[at + 1..].iter().take(lookahead).map(Vec::as_slice).collect();
        house.forecast.say(&next);
        let _job = house.planner.begin(Some(&needs[at]), &house.me).unwrap();
        for request in job {
            all.push(moved(&mut house, request));
        }
    }
    all
}

#[test]
fn live_arenas_decide_as_replay_does() {
    for trace in recorded() {
        let trace = in_pages(&trace);
        for (name, policy) in POLICIES {
            let looks = policy == PolicyName::LookAhead;
            for lookahead in if looks { 0..=2 } else { 2..=2 } {
                let steps = steps(&trace, policy, lookahead).unwrap();
                let live = live(&trace, policy, lookahead);
                assert_eq!(live.len(), steps.len());
                for (at, (step, live)) in steps.into_iter().zip(live).enumerate() {
                    let told = format!("request {at} of {} by {name}", trace.name);
                    assert_eq!(live.0, step.moved, "{told}");
                    // There what is not used leaves at the end of its use, not with the next one.
                    if policy != PolicyName::AlwaysEvict {
                        assert_eq!(live.1, step.evicted.into_iter().collect(), "{told}");
                    }
                }
            }
        }
    }
}

/// The same, with a queue of all the jobs in place of what is said.
fn queued(trace: &Trace, policy: PolicyName) -> Moved {
    let mut house = House::new(trace.capacity_bytes, policy);
    let devices = virtual_devices(1, VirtualSpec::default()).unwrap();
    let clock = Arc::new(ManualClock::default());
    // Placement would take jobs first whose weights are there.
    let rules = Rules { fifo: true, slack: 0, ..Rules::default() };
    let settings = Settings { rules, clock: clock.clone(), ..Settings::default() };
    let queue: JobQueue<()> = JobQueue::new(devices, settings).unwrap();
    let _connection =
        runtime::connect(&queue, vec![house.planner.clone()], vec![house.arena.clone()]);
    let jobs: Vec<&[Request]> = trace.requests.chunk_by(|a, b| a.job == b.job).collect();
    for job in &jobs {
        let needs = job.iter().map(|request| request.component.as_str().into()).collect();
        queue.submit(queue::Spec { needs, ..queue::Spec::of("ann", b"") }).unwrap();
    }
    let mut all = Vec::new();
    for job in jobs {
        let claim = queue.claim(device(), &house.me, &Patience::FOREVER).unwrap();
        let needs: Vec<String> = claim.job().needs.iter().map(ToString::to_string).collect();
        let _job = house.planner.begin(Some(&needs), &house.me).unwrap();
        for request in job {
            all.push(moved(&mut house, request));
        }
        clock.set(clock.now() + 1_000_000);
        claim.finish(Outcome::done(())).unwrap();
    }
    all
}

#[test]
fn a_queue_forecasts_as_well_as_whoever_knows_all_jobs() {
    for trace in recorded() {
        let trace = in_pages(&trace);
        for (name, policy) in POLICIES {
            // A planner asks for so many jobs.
            assert_eq!(queued(&trace, policy), live(&trace, policy, 8), "{} by {name}", trace.name);
        }
    }
}

#[test]
fn what_a_declared_job_still_needs_stays() {
    let mut house = House::new(5 * PAGE, PolicyName::LookAhead);
    let stages = keys(&["clip", "unet", "vae", "unet"]);
    let _job = house.planner.begin(Some(&stages), &house.me).unwrap();
    house.stage("clip", 2);
    house.stage("unet", 3);
    // The least recently used is not what leaves: it is not needed any more.
    house.stage("clip", 2);
    house.stage("vae", 1);
    assert_eq!(house.pages(), [("clip".into(), 1), ("unet".into(), 3), ("vae".into(), 1)]);
}

#[test]
fn a_job_that_begins_as_one_before_is_expected_to_go_on_like_it() {
    let mut house = House::new(6 * PAGE, PolicyName::LookAhead);
    for _ in 0..2 {
        let _job = house.planner.begin(None, &house.me).unwrap();
        house.stage("clip", 1);
        house.stage("unet", 3);
        house.stage("vae", 1);
        house.stage("unet", 3);
    }
    let _job = house.planner.begin(None, &house.me).unwrap();
    house.stage("clip", 1);
    house.stage("other", 3);
    // It departs: of what was expected nothing is held against it, and it goes on.
    house.stage("unet", 3);
    assert_eq!(house.resident()["unet"], 3 * PAGE);
}

#[test]
fn the_rest_of_a_job_that_was_seen_before_is_known_without_a_word() {
    // Within leases, and without any bounds at all.
    let pool = DevicePool::new(virtual_devices(1, VirtualSpec::default()).unwrap()).unwrap();
    let me = somebody("me");
    for leases in [true, false] {
        let planner = runtime::planner(device(), PolicyName::Known, leases.then_some(&pool));
        let run = |stages: &[&str]| {
            let lease = leases.then(|| pool.try_lease(None, &me).unwrap().unwrap());
            for stage in stages {
                planner.note_use(stage, 1, None, &me);
            }
            lease
        };
        drop(run(&["clip", "unet", "vae", "upscaler"]));
        let _lease = run(&["clip", "unet"]);
        // By last use alone it would be vae, upscaler, clip, unet.
        let all = keys(&["clip", "unet", "vae", "upscaler"]);
        assert_eq!(planner.order(&all), keys(&["clip", "unet", "upscaler", "vae"]), "{leases}");
    }
}

#[test]
fn what_a_job_turns_out_to_use_is_what_it_is_remembered_by() {
    let planner = planner(PolicyName::LookAhead);
    let me = somebody("me");
    let all = keys(&["a", "b", "c", "x"]);
    for key in &all {
        planner.note_use(key, 1, None, &me);
    }
    for _ in 0..20 {
        // Said to use x, which it never does.
        let _job = planner.begin(Some(&keys(&["a", "x"])), &me).unwrap();
        for key in ["a", "b", "c"] {
            planner.note_use(key, 1, None, &me);
        }
    }
    assert_eq!(planner.order(&all)[0], "x");
    // One that is given up is none.
    for _ in 0..20 {
        drop(planner.begin(Some(&keys(&["x"])), &me).unwrap());
    }
    assert_eq!(planner.order(&all)[0], "x");
}

#[test]
fn what_the_next_jobs_need_first_leaves_last() {
    let planner = planner(PolicyName::Known);
    let (said, me) = (Arc::new(Said::default()), somebody("me"));
    planner.set_forecast(Some(said.clone()));
    said.say(&[&keys(&["c", "a"]), &keys(&["b"])]);
    for key in ["a", "b", "c", "d"] {
        planner.note_use(key, 1, None, &me);
    }
    assert_eq!(planner.order(&keys(&["a", "b", "c", "d"])), keys(&["d", "b", "a", "c"]));
    // Those that were never used, too.
    said.say(&[&keys(&["new", "d"])]);
    assert_eq!(planner.order(&keys(&["d", "new", "c"])), keys(&["c", "d", "new"]));
    drop(planner.set_forecast(None));
    assert_eq!(planner.order(&keys(&["d", "new", "c"])), keys(&["new", "c", "d"]));
}

#[test]
fn jobs_beside_each_other_keep_their_own_places() {
    let planner = planner(PolicyName::Known);
    let (ann, bob, worker) = (somebody("ann"), somebody("bob"), somebody("worker"));
    let of_ann = planner.begin(Some(&keys(&["a1", "a2", "a3"])), &ann).unwrap();
    let of_bob = planner.begin(Some(&keys(&["b1", "b2"])), &bob).unwrap();
    planner.note_use("a1", 1, None, &ann);
    planner.note_use("b1", 1, None, &bob);
    let all = keys(&["a1", "b1", "a2", "a3", "b2"]);
    // Whoever was active last goes first, and they take turns.
    assert_eq!(planner.order(&all), keys(&["a1", "b1", "a3", "a2", "b2"]));
    // Somebody who has begun no job works for the one that he names.
    planner.note_use("a2", 1, Some(&of_ann), &worker);
    assert_eq!(planner.order(&all), keys(&["a1", "b1", "a2", "b2", "a3"]));
    assert!(of_ann.end() && !of_ann.end() && of_ann.has_ended());
    assert_eq!(planner.order(&all), keys(&["a3", "a1", "b1", "a2", "b2"]));
    drop(of_bob);
    assert_eq!(planner.order(&all), keys(&["a3", "b2", "a1", "b1", "a2"]));
}

#[test]
fn a_job_within_a_job_comes_before_the_rest_of_the_outer_one() {
    let planner = planner(PolicyName::Known);
    let me = somebody("me");
    let outer = planner.begin(Some(&keys(&["a", "b", "c"])), &me).unwrap();
    planner.note_use("a", 1, None, &me);
    let inner = planner.begin(Some(&keys(&["x", "y"])), &me).unwrap();
    planner.note_use("x", 1, None, &me);
    let all = keys(&["a", "b", "c", "x", "y"]);
    assert_eq!(planner.order(&all), keys(&["a", "x", "c", "b", "y"]));
    // Whichever ends first.
    let innermost = planner.begin(Some(&keys(&["z"])), &me).unwrap();
    assert_eq!(planner.order(&all), keys(&["a", "x", "c", "b", "y"]));
    drop(innermost);
    assert_eq!(planner.order(&all), keys(&["a", "x", "c", "b", "y"]));
    drop(outer);
    assert_eq!(planner.order(&all), keys(&["b", "c", "a", "x", "y"]));
    drop(inner);
}

#[test]
fn what_is_in_use_in_part_leaves_after_everything_else() {
    let mut house = House::new(6 * PAGE, PolicyName::Lru);
    house.stage("unet", 3);
    house.stage("clip", 2);
    let unet = house.area("unet", 3 * PAGE);
    let first = unet.block(&[0]);
    let pins = unet.pin(&first, Stream::Host, &house.me).unwrap();
    house.stage("vae", 2);
    assert_eq!(house.pages(), [("clip".into(), 1), ("unet".into(), 3), ("vae".into(), 2)]);
    house.stage("upscaler", 4);
    assert_eq!(house.pages(), [("unet".into(), 2), ("upscaler".into(), 4)]);
    drop(pins);
}

#[test]
fn priorities_come_before_policies() {
    let mut house = House::new(6 * PAGE, PolicyName::Lru);
    house.stage("unet", 3);
    house.stage("clip", 2);
    house.area("unet", 0).set_priority(1);
    house.stage("vae", 2);
    assert_eq!(house.pages(), [("clip".into(), 1), ("unet".into(), 3), ("vae".into(), 2)]);
    house.area("unet", 0).set_priority(0);
    house.area("clip", 0).set_priority(-1);
    house.stage("upscaler", 1);
    let right = [("unet".into(), 3), ("upscaler".into(), 1), ("vae".into(), 2)];
    assert_eq!(house.pages(), right);
}

#[test]
fn jobs_of_many_threads_end_with_nothing_left_to_come() {
    let planner = planner(PolicyName::LookAhead);
    at_once(4, {
        let planner = planner.clone();
        move |at| {
            let me = somebody("worker");
            for round in 0..50 {
                let stages: Vec<String> =
                    (0..4).map(|stage| format!("{at}.{}", (stage + round) % 5)).collect();
                let job = planner.begin(Some(&stages), &me).unwrap();
                for stage in &stages {
                    planner.note_use(stage, 1, (round % 2 == 0).then_some(&job), &me);
                    assert_eq!(planner.order(&stages).len(), 4);
                    planner.note_left(stage);
                }
            }
        }
    });
    let me = somebody("me");
    for key in ["x", "y"] {
        planner.note_use(key, 1, None, &me);
    }
    assert_eq!(planner.policy(), PolicyName::LookAhead);
    assert_eq!(planner.order(&keys(&["y", "x"])).len(), 2);
}
