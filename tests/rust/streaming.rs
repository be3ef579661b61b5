//! `Streaming`: that blocks are always right, whatever comes in between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use coresident::arena::{Area, Arena, ArenaError, Beside, Content, HostSide, Identity, PageSet};
use coresident::budget::{Budget, Spec as BudgetSpec};
use coresident::device::{HostBytes, Stream};
use coresident::streaming::{Spec, Streaming, StreamingError};
use coresident::trace::{self, Kind, Timeline};
use coresident::wait::{CancelToken, Patience};
use coresident::weights::{ElementType, Given, Memory, Opening, Tensor, WeightStore};

use super::bench::{Bench, NAME, PAGE, bench};
use super::helpers::{Random, refusal, somebody as owner, until};

/// The way of bytes to one device: how many have gone, and whether they are held up.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) copied: AtomicUsize,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// How many copies wait.
    waiting: usize,
}

impl Host {
    fn pass(&self, bytes: usize) {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        while gate.closed {
            gate = self.opened.wait(gate).unwrap();
        }
        gate.waiting -= 1;
        drop(gate);
        self.copied.fetch_add(bytes, Ordering::SeqCst);
    }

    fn set_closed(&self, closed: bool) {
        self.gate.lock().unwrap().closed = closed;
        self.opened.notify_all();
    }
}

/// Bytes of one number.
struct Numbers {
    number: u8,
    host: Arc<Host>,
}

impl HostBytes for Numbers {
    fn copy_to(&self, _from: usize, to: &mut [u8]) {
        to.fill(self.number);
        self.host.pass(to.len());
    }
}

/// Bytes of weights that several devices have.
struct Shared {
    tensor: Tensor,
    host: Arc<Host>,
}

impl HostBytes for Shared {
    fn copy_to(&self, from: usize, to: &mut [u8]) {
        self.host.pass(to.len());
        HostBytes::copy_to(&self.tensor, from, to);
    }
}

/// A model of blocks of so many pages, beside one page that stays.
pub(crate) struct Model {
    pub(crate) device: Arc<Bench>,
    pub(crate) budget: Budget,
    pub(crate) area: Area,
    resident: Arc<PageSet>,
    blocks: Vec<Arc<PageSet>>,
    host: Arc<Host>,
    /// How many pages were not what they should have been.
    wrong: Arc<AtomicUsize>,
}

fn page() -> usize {
    usize::try_from(PAGE).unwrap()
}

fn number(block: usize) -> u8 {
    u8::try_from(block % 250).unwrap() + 1
}

pub(crate) fn model(pages_of_device: u64, blocks: &[usize], jitter: Option<u64>) -> Model {
    model_told(pages_of_device, blocks, jitter, &Timeline::new(1))
}

/// The same, of which a timeline has what happens.
fn model_told(
    pages_of_device: u64,
    blocks: &[usize],
    jitter: Option<u64>,
    timeline: &Timeline,
) -> Model {
    model_of((pages_of_device, pages_of_device), blocks, jitter, timeline, numbers)
}

/// The same of bytes of one's choice, on a device of so many pages with a budget of others.
fn model_of(
    (pages_of_device, pages_of_budget): (u64, u64),
    blocks: &[usize],
    jitter: Option<u64>,
    timeline: &Timeline,
    bytes: impl Fn(usize, &Arc<Host>) -> Arc<dyn HostBytes>,
) -> Model {
    let device = bench(pages_of_device, jitter);
    let limit = pages_of_budget * PAGE;
    let budget = Budget::new(BudgetSpec { limit, ..BudgetSpec::named(NAME) });
    let arena = Arena::over(device.name, device.pages.clone(), &budget, HostSide::default());
    arena.record_in(timeline);
    let host = Arc::new(Host::default());
    let place = area_of(&arena, page(), blocks, |at| bytes(at, &host));
    let resident = place.block(&[0]);
    let blocks = (1..=blocks.len()).map(|at| place.block(&[at])).collect();
    Model { device, budget, area: place, resident, blocks, host, wrong: Arc::default() }
}

/// What is in a tensor, if it is not weights.
pub(crate) fn numbers(tensor: usize, host: &Arc<Host>) -> Arc<dyn HostBytes> {
    Arc::new(Numbers { number: number(tensor), host: host.clone() })
}

/// An area of one page and blocks of so many pages.
pub(crate) fn area_of(
    arena: &Arena,
    page: usize,
    blocks: &[usize],
    bytes: impl Fn(usize) -> Arc<dyn HostBytes>,
) -> Area {
    let contents = || {
        let sizes = std::iter::once(1).chain(blocks.iter().copied());
        let content = |(at, pages): (usize, usize)| Content {
            name: at.to_string(),
            element: ElementType::UInt8,
            shape: vec![pages * page],
            nbytes: pages * page,
            bytes: bytes(at),
        };
        sizes.enumerate().map(content).collect()
    };
    let identity = Identity { of: 1, order: Vec::new() };
    let groups: Vec<usize> = (1..=blocks.len()).collect();
    arena.area_in_groups("model", identity, &owner("main"), &groups, contents).unwrap()
}

impl Model {
    pub(crate) fn open(&self) -> Result<Streaming, StreamingError> {
        let (resident, blocks) = (self.resident.clone(), self.blocks.clone());
        let spec = Spec { resident, blocks, working_memory: 0, leave: 0 };
        let patience = Patience::at_most(Duration::from_secs(20));
        Streaming::open(&self.area, spec, Stream::Host, &owner("main"), &patience)
            .map(|(streaming, _)| streaming)
    }

    /// Visits a block, and looks at all of it.
    pub(crate) fn visit(
        &self,
        streaming: &Streaming,
        block: usize,
        keep: usize,
        stream: Option<Stream>,
    ) {
        self.try_visit(streaming, block, keep, stream).unwrap();
    }

    /// The same, unless it cannot be visited.
    pub(crate) fn try_visit(
        &self,
        streaming: &Streaming,
        block: usize,
        keep: usize,
        stream: Option<Stream>,
    ) -> Result<(), StreamingError> {
        let on = stream.unwrap_or(Stream::Host);
        streaming.enter(block, on, &owner("main"), &Patience::FOREVER)?;
        let start = self.area.address(block + 1).unwrap();
        let (device, pages, wrong) =
            (self.device.clone(), self.blocks[block].len(), self.wrong.clone());
        let look = move || {
            for page_of_it in 0..pages {
                let mut ends = [0; 2];
                let at = start + page_of_it * page();
                let seen = device.read_at(at, &mut ends[..1]).is_ok()
                    && device.read_at(at + page() - 1, &mut ends[1..]).is_ok();
                if !seen || ends != [number(block + 1); 2] {
                    wrong.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        match stream {
            Some(stream) => self.device.launch(stream, look),
            None => look(),
        }
        streaming.leave(block, keep);
        Ok(())
    }

    /// Whether the bytes of the budget are those that the blocks may have, beside what stays.
    pub(crate) fn has_all_bytes(&self, streaming: &Streaming) -> bool {
        self.budget.used() == (streaming.allotted() as u64 + 1) * PAGE
    }

    pub(crate) fn is_clean(&self) -> bool {
        let status = self.area.arena().status().unwrap();
        status.pinned == 0
            && status.resident == self.budget.used()
            && status.resident == self.device.committed()
            && self.wrong.load(Ordering::SeqCst) == 0
    }
}

#[test]
fn streams_that_are_late_see_what_is_right_in_any_order() {
    let made = model(14, &[3; 8], Some(7));
    let streaming = made.open().unwrap();
    let stream = made.device.stream();
    let mut random = Random(9);
    let kept = streaming.plan(streaming.allotted()).unwrap().kept;
    for turn in 0..200 {
        let block = if turn % 3 == 0 { random.place(8) } else { turn % 8 };
        made.visit(&streaming, block, kept[block], Some(stream));
        if turn % 50 == 10 {
            assert!(streaming.shrink(2, &owner("main"), &Patience::FOREVER).unwrap() <= 2);
        } else if turn % 50 == 30 {
            assert!(streaming.grow(0, &owner("main")).unwrap() <= 2);
        }
        assert!(made.budget.used() <= 14 * PAGE);
    }
    drop(streaming);
    made.device.pages.record(stream).unwrap().wait(None).unwrap();
    assert!(made.is_clean());
}

#[test]
fn several_threads_visit_blocks_and_one_closes_meanwhile() {
    let made = model(12, &[2; 6], Some(3));
    let streaming = Arc::new(made.open().unwrap());
    let visits: Arc<[AtomicUsize; 3]> = Arc::default();
    let visitors: Vec<_> = (0..3)
        .map(|number| {
            let (visits, streaming) = (visits.clone(), streaming.clone());
            thread::spawn(move || {
                for turn in 0.. {
                    let block = (turn + number) % 6;
                    match streaming.enter(
                        block,
                        Stream::Host,
                        &owner("visitor"),
                        &Patience::FOREVER,
                    ) {
                        Ok(()) => streaming.leave(block, 0),
                        Err(StreamingError::NoRoom { .. }) => {}
                        Err(StreamingError::Closed { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                    visits[number].fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let before = |visits: &AtomicUsize| visits.load(Ordering::SeqCst) > 5;
    until(|| visits.iter().all(before));
    streaming.close(&owner("main"));
    for visitor in visitors {
        visitor.join().unwrap();
    }
    assert!(made.is_clean());
}

#[test]
fn a_visit_that_is_cancelled_leaves_nothing() {
    let made = model(8, &[2; 6], Some(3));
    let streaming = made.open().unwrap();
    let token = CancelToken::new();
    token.cancel(None);
    let mut cancelled = 0;
    for turn in 0..50 {
        let patience = Patience::FOREVER.or_cancelled(&token);
        match streaming.enter(turn * 5 % 6, Stream::Host, &owner("main"), &patience) {
            Ok(()) => streaming.leave(turn * 5 % 6, 0),
            Err(StreamingError::Wait(_) | StreamingError::Arena(_)) => cancelled += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(cancelled > 0);
    for block in 0..6 {
        made.visit(&streaming, block, 0, None);
    }
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn what_can_never_fit_is_refused_with_figures() {
    let made = model(4, &[2, 5], None);
    let refused = made.open().err().unwrap().to_string();
    assert!(refused.contains("10 MiB") && refused.contains("8 MiB"), "{refused}");
    assert!(made.is_clean());
}

#[test]
fn nobody_else_has_pages_of_what_is_streamed() {
    let made = model(8, &[2; 6], Some(5));
    let (me, all, patience) = (owner("main"), made.area.all(), Patience::FOREVER);
    let fault = |set: &Arc<PageSet>| {
        made.area.fault(set, Beside::default(), Stream::Host, &me, &patience).map(|(pins, _)| pins)
    };
    let used = fault(&made.blocks[2]).unwrap();
    assert!(refusal(made.open()).contains("while others use pages of them"));
    drop(used);
    let streaming = made.open().unwrap();
    for set in [&made.resident, &made.blocks[2], &all] {
        assert!(matches!(fault(set), Err(ArenaError::Exclusive { .. })));
        let pinned = made.area.pin(set, Stream::Host, &me);
        assert!(matches!(pinned, Err(ArenaError::Exclusive { .. })));
    }
    assert!(made.area.pinned(0, Stream::Host, &me, &patience).is_err());
    assert!(refusal(made.open()).contains("are streamed on"));
    for turn in 0..30 {
        made.visit(&streaming, turn % 6, 0, None);
        // Nothing leaves by that but what is over.
        made.area.arena().evict(u64::MAX);
        if turn % 7 == 3 {
            made.area.renew();
        }
    }
    until(|| made.has_all_bytes(&streaming));
    streaming.close(&me);
    assert!(matches!(
        streaming.enter(0, Stream::Host, &me, &patience),
        Err(StreamingError::Closed { .. })
    ));
    // Before the last one lets go of it.
    drop(fault(&made.blocks[2]).unwrap());
    let again = made.open().unwrap();
    for block in 0..6 {
        let _ = again.keep_at_most(block, 0);
    }
    made.visit(&again, 4, 0, None);
    drop((streaming, again));
    assert!(made.is_clean());
}

#[test]
fn what_stays_may_become_less_while_it_is_visited() {
    let made = model(14, &[4; 6], Some(9));
    let streaming = made.open().unwrap();
    let mut random = Random(3);
    for _ in 0..200 {
        let (block, keep) = (random.place(6), random.place(3));
        made.visit(&streaming, block, keep, None);
        let _ = streaming.keep_at_most(random.place(6), random.place(3));
    }
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn what_others_take_of_the_memory_is_done_without() {
    let made = model_of((6, 12), &[2; 6], Some(3), &Timeline::new(1), numbers);
    let streaming = made.open().unwrap();
    assert!(streaming.allotted() > 5, "more than there is");
    for turn in 0..60 {
        made.visit(&streaming, turn * 5 % 6, 0, None);
    }
    until(|| made.has_all_bytes(&streaming));
    drop(streaming);
    assert!(made.is_clean());
}

#[test]
fn who_waits_for_a_stream_gives_up_when_his_time_is_over_and_an_end_waits_for_none() {
    let made = model(4, &[2; 3], None);
    let streaming = made.open().unwrap();
    let stream = made.device.stream();
    let gate = Arc::new(Barrier::new(2));
    streaming.enter(0, stream, &owner("main"), &Patience::FOREVER).unwrap();
    let held = gate.clone();
    made.device.launch(stream, move || {
        held.wait();
    });
    streaming.leave(0, 0);
    let soon = Patience::at_most(Duration::from_millis(50));
    let refused = streaming.enter(1, Stream::Host, &owner("main"), &soon);
    assert!(matches!(refused, Err(StreamingError::Wait(_))), "{refused:?}");
    streaming.close(&owner("main"));
    until(|| {
        made.area.arena().evict(u64::MAX);
        made.area.arena().status().unwrap().resident <= 2 * PAGE
    });
    assert_eq!(made.budget.used(), 2 * PAGE, "what the stream uses stays");
    gate.wait();
    made.device.pages.record(stream).unwrap().wait(None).unwrap();
    assert!(made.is_clean());
}

/// Models on two devices of blocks of so many pages, of one host copy of the weights.
fn two_of_one_copy(pages: u64, blocks: [&[usize]; 2]) -> [Model; 2] {
    let store = WeightStore::new(None);
    let largest = blocks.iter().flat_map(|sizes| sizes.iter()).max().unwrap() * page();
    let count = blocks.iter().map(|sizes| sizes.len()).max().unwrap() + 1;
    let given = |at: usize| {
        let bytes = vec![number(at); largest];
        let memory = Memory::foreign(bytes.as_ptr(), largest, false, Box::new(bytes));
        let (element, shape) = (ElementType::UInt8, vec![largest]);
        Given { name: at.to_string(), element, shape, strides: None, memory, offset: 0 }
    };
    let opening = Opening { private: Some(true), ..Opening::default() };
    let tensors = (0..count).map(given).collect();
    let weights =
        store.share("model", tensors, &opening, &owner("main"), &Patience::FOREVER).unwrap();
    blocks.map(|sizes| {
        model_of((pages, pages), sizes, Some(7), &Timeline::new(1), |at, host| {
            let tensor = weights.tensor(&at.to_string()).unwrap();
            Arc::new(Shared { tensor, host: host.clone() })
        })
    })
}

#[test]
fn a_copy_that_does_not_end_holds_up_no_other_device() {
    let models = two_of_one_copy(5, [&[2; 4], &[2; 4]]);
    let streamed = models.each_ref().map(|model| model.open().unwrap());
    for (stuck, other) in [(0, 1), (1, 0)] {
        models[stuck].host.set_closed(true);
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                (0..8).for_each(|turn| models[stuck].visit(&streamed[stuck], turn % 4, 0, None));
            });
            until(|| models[stuck].host.gate.lock().unwrap().waiting > 0);
            for turn in 0..40 {
                models[other].visit(&streamed[other], turn % 4, 0, None);
            }
            models[stuck].host.set_closed(false);
            visitor.join().unwrap();
        });
    }
    drop(streamed);
    assert!(models.iter().all(Model::is_clean));
}

#[test]
fn of_two_devices_that_read_one_copy_each_gets_its_share() {
    const ALL: usize = 600;
    // One is asked for far more at a time.
    let models = two_of_one_copy(14, [&[1; 20], &[6; 4]]);
    let streamed = models.each_ref().map(|model| model.open().unwrap());
    let moved = |at: usize| models[at].host.copied.load(Ordering::SeqCst) / page();
    let before: Vec<usize> = (0..2).map(moved).collect();
    let moved = |at: usize| moved(at) - before[at];
    let barrier = Barrier::new(2);
    // What the other one has when one is the first to have all.
    let shares: Vec<usize> = thread::scope(|scope| {
        let visit = |at: usize| {
            let (models, streamed, barrier, moved) = (&models, &streamed, &barrier, &moved);
            scope.spawn(move || {
                let blocks = models[at].blocks.len();
                barrier.wait();
                let mut others = None;
                for turn in 0.. {
                    models[at].visit(&streamed[at], turn % blocks, 0, None);
                    if others.is_none() && moved(at) >= ALL {
                        others = Some(moved(1 - at));
                    }
                    if moved(0) >= ALL && moved(1) >= ALL {
                        break;
                    }
                }
                others.unwrap_or(ALL)
            })
        };
        let visitors = [visit(0), visit(1)];
        visitors.into_iter().map(|visitor| visitor.join().unwrap()).collect()
    });
    let least = shares.iter().min().unwrap();
    // Whoever shares the processors takes part: as much as that is no starving.
    assert!(least * 10 >= ALL, "while one has moved {ALL} pages, the other one has moved {least}");
    drop(streamed);
    assert!(models.iter().all(Model::is_clean));
}

/// How long something takes on a device, so that it is seen.
const WORK: Duration = Duration::from_millis(4);

#[test]
fn a_device_tells_how_long_blocks_compute_and_wait_for_their_copies() {
    let timeline = Timeline::new(1000);
    let made = model_told(8, &[2; 6], None, &timeline);
    let streaming = made.open().unwrap();
    let (stream, copies) = (made.device.stream(), made.device.pages.copies().unwrap());
    let (gate, mut opened) = (Arc::new(Barrier::new(2)), 0);
    let shut = gate.clone();
    made.device.launch(copies, move || {
        shut.wait();
    });
    let began = timeline.now();
    for block in [3, 4, 5, 0] {
        streaming.enter(block, stream, &owner("main"), &Patience::FOREVER).unwrap();
        made.device.launch(stream, || thread::sleep(WORK));
        if block == 3 {
            // The stream waits for what is copied for its first visit.
            thread::sleep(5 * WORK);
            opened = timeline.now();
            gate.wait();
        }
        // One within another is the same.
        streaming.enter(block, stream, &owner("main"), &Patience::FOREVER).unwrap();
        streaming.leave(block, 0);
        streaming.leave(block, 0);
    }
    made.device.pages.record(stream).unwrap().wait(None).unwrap();
    // Its thread may be about to tell.
    let told = |event: &trace::Event| event.kind == Kind::Visit;
    until(|| timeline.recording().unwrap().events.iter().filter(|event| told(event)).count() == 4);
    let status = streaming.status().unwrap();
    let events = timeline.recording().unwrap().events;
    let of = |kind: Kind| events.iter().filter(move |event| event.kind == kind);
    let work = u64::try_from(WORK.as_nanos()).unwrap();
    assert_eq!((status.visits, of(Kind::Visit).count()), (4, 4));
    assert!(of(Kind::Visit).all(|visit| visit.took >= work && visit.bytes == 2 * PAGE));
    let took: u64 = of(Kind::Visit).map(|visit| visit.took).sum();
    assert!(took <= timeline.now() - began, "one after the other");
    let first = of(Kind::Stall).next().unwrap();
    assert!(first.ended() >= opened, "{first:?}");
    assert!(first.ended() <= of(Kind::Visit).next().unwrap().ended());
    let stalled = Duration::from_nanos(of(Kind::Stall).map(|stall| stall.took).sum());
    assert!((status.stalled - stalled.as_secs_f64()).abs() < 1e-5, "{status:?} and {stalled:?}");
    assert_eq!(status.late, of(Kind::Stall).count() as u64);
    assert!(status.copying > 0.0);
}

#[test]
fn whoever_computes_himself_is_timed_by_his_own_clock() {
    let timeline = Timeline::new(1000);
    let made = model_told(8, &[2; 6], None, &timeline);
    let streaming = made.open().unwrap();
    for block in 0..6 {
        streaming.enter(block, Stream::Host, &owner("main"), &Patience::FOREVER).unwrap();
        thread::sleep(WORK);
        streaming.leave(block, 0);
    }
    let events = timeline.recording().unwrap().events;
    let visits: Vec<_> = events.iter().filter(|event| event.kind == Kind::Visit).collect();
    assert_eq!(visits.len(), 6);
    assert!(visits.iter().all(|visit| u128::from(visit.took) >= WORK.as_nanos()));
    assert!(visits.windows(2).all(|two| two[0].ended() <= two[1].at), "one after the other");
    drop(streaming);
    assert!(made.is_clean());
}
