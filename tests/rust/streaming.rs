//! `Streaming`: what is moved beside the least possible, and that it is always right.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coresident::arena::{Area, Arena, Content, HostSide, Identity, PageSet};
use coresident::budget::{Budget, Spec as BudgetSpec};
use coresident::device::{
    Address, DeviceMemory, DeviceType, Event, Fence, HostBytes, MemoryError, Name, Piece, Pinning,
    Stream,
};
use coresident::residency::{Request, Trace, least_bytes};
use coresident::streaming::{Cost, Spec, Streaming, StreamingError, plan};
use coresident::trace::{Kind, Timeline};
use coresident::wait::{CancelToken, Patience};
use coresident::weights::ElementType;

use super::bench::{Bench, NAME, PAGE, bench};
use super::helpers::{Random, somebody as owner};

/// Bytes of one number; counts how many were copied.
struct Numbers {
    number: u8,
    copied: Arc<AtomicUsize>,
}

impl HostBytes for Numbers {
    fn copy_to(&self, _from: usize, to: &mut [u8]) {
        to.fill(self.number);
        self.copied.fetch_add(to.len(), Ordering::SeqCst);
    }
}

/// A model of blocks of so many pages, beside one page that stays.
struct Model {
    device: Arc<Bench>,
    budget: Budget,
    area: Area,
    resident: Arc<PageSet>,
    blocks: Vec<Arc<PageSet>>,
    /// How many pages were not what they should have been.
    wrong: Arc<AtomicUsize>,
}

fn page() -> usize {
    usize::try_from(PAGE).unwrap()
}

fn number(block: usize) -> u8 {
    u8::try_from(block % 250).unwrap() + 1
}

fn model(pages_of_device: u64, blocks: &[usize], jitter: Option<u64>) -> Model {
    model_told(pages_of_device, blocks, jitter, &Timeline::new(1))
}

/// The same, of which a timeline has what happens.
fn model_told(
    pages_of_device: u64,
    blocks: &[usize],
    jitter: Option<u64>,
    timeline: &Timeline,
) -> Model {
    let device = bench(pages_of_device, jitter);
    let limit = pages_of_device * PAGE;
    let budget = Budget::new(BudgetSpec { limit, ..BudgetSpec::named(NAME) });
    let host = HostSide::default();
    let arena = Arena::over(device.name, device.pages.clone(), &budget, host);
    arena.record_in(timeline);
    let (place, _) = area(&arena, page(), blocks);
    let resident = place.block(&[0]);
    let blocks = (1..=blocks.len()).map(|at| place.block(&[at])).collect();
    let wrong = Arc::default();
    Model { device, budget, area: place, resident, blocks, wrong }
}

/// An area of one page and blocks of so many pages, and how many bytes of it have been copied.
fn area(arena: &Arena, page: usize, blocks: &[usize]) -> (Area, Arc<AtomicUsize>) {
    let copied = Arc::new(AtomicUsize::new(0));
    let contents = || {
        let sizes = std::iter::once(1).chain(blocks.iter().copied());
        let content = |(at, pages): (usize, usize)| Content {
            name: at.to_string(),
            element: ElementType::UInt8,
            shape: vec![pages * page],
            nbytes: pages * page,
            bytes: Arc::new(Numbers { number: number(at), copied: copied.clone() }),
        };
        sizes.enumerate().map(content).collect()
    };
    let identity = Identity { of: 1, order: Vec::new() };
    let groups: Vec<usize> = (1..=blocks.len()).collect();
    let made = arena.area_in_groups("model", identity, &owner("main"), &groups, contents);
    (made.unwrap(), copied)
}

impl Model {
    fn open(&self) -> Result<Streaming, StreamingError> {
        let (resident, blocks) = (self.resident.clone(), self.blocks.clone());
        let spec = Spec { resident, blocks, working_memory: 0, leave: 0 };
        let patience = Patience::at_most(Duration::from_secs(20));
        Streaming::open(&self.area, spec, Stream::Host, &owner("main"), &patience)
            .map(|(streaming, _)| streaming)
    }

    /// Visits a block, and looks at all of it.
    fn visit(&self, streaming: &Streaming, block: usize, keep: usize, stream: Option<Stream>) {
        let on = stream.unwrap_or(Stream::Host);
        streaming.enter(block, on, &owner("main"), &Patience::FOREVER).unwrap();
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
        self.device.launch(on, look);
        streaming.leave(block, keep);
    }

    fn is_clean(&self) -> bool {
        let status = self.area.arena().status().unwrap();
        status.pinned == 0
            && status.resident == self.budget.used()
            && status.resident == self.device.committed()
            && self.wrong.load(Ordering::SeqCst) == 0
    }
}

/// A device on which everything is done at once, with pages that are small enough for many of them.
struct AtOnce;

struct Passed;

impl Fence for Passed {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        Ok(true)
    }

    fn wait(&self, _until: Option<Instant>) -> Result<bool, MemoryError> {
        Ok(true)
    }
}

const SMALL: usize = 256;

impl DeviceMemory for AtOnce {
    fn page(&self) -> usize {
        SMALL
    }

    fn free(&self) -> u64 {
        u64::MAX
    }

    fn reserve(&self, _bytes: usize) -> Result<Address, MemoryError> {
        Ok(SMALL)
    }

    fn release(&self, _start: Address, _bytes: usize) {}

    fn commit(&self, _start: Address, _bytes: usize) -> Result<(), MemoryError> {
        Ok(())
    }

    fn decommit(&self, _start: Address, _bytes: usize) {}

    fn copies(&self) -> Result<Stream, MemoryError> {
        Ok(Stream::Device(1))
    }

    fn upload(
        &self,
        _after: &[Event],
        pieces: Vec<Piece>,
        _how: Pinning,
    ) -> Result<Event, MemoryError> {
        for piece in pieces {
            piece.source.copy_to(piece.from, &mut vec![0; piece.length]);
        }
        Ok(Arc::new(Passed))
    }

    fn record(&self, _stream: Stream) -> Result<Event, MemoryError> {
        Ok(Arc::new(Passed))
    }

    fn after(&self, _stream: Stream, _event: &Event) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// Pages that were copied for twenty steps of visits in order, on a device with room for so many.
fn moved(blocks: usize, pages: usize, room: usize) -> usize {
    let budget =
        Budget::new(BudgetSpec { limit: (room * SMALL) as u64, ..BudgetSpec::named(NAME) });
    let name = Name::new(DeviceType::Virtual, 0).unwrap();
    let arena = Arena::over(name, Arc::new(AtOnce), &budget, HostSide::default());
    let sizes = vec![pages; blocks];
    let (place, copied) = area(&arena, SMALL, &sizes);
    let sets = (1..=blocks).map(|at| place.block(&[at])).collect();
    let spec = Spec { resident: place.block(&[0]), blocks: sets, working_memory: 0, leave: 0 };
    let me = owner("main");
    let streaming = Streaming::open(&place, spec, Stream::Host, &me, &Patience::FOREVER).unwrap().0;
    let kept = streaming.plan(streaming.allotted()).unwrap().kept;
    for _ in 0..20 {
        for (block, keep) in kept.iter().enumerate() {
            streaming.enter(block, Stream::Host, &me, &Patience::FOREVER).unwrap();
            streaming.leave(block, *keep);
        }
    }
    drop(streaming);
    copied.load(Ordering::SeqCst) / SMALL - 1
}

/// Pages that somebody would copy for it who knows all of it, with room for so many.
fn least(blocks: usize, pages: usize, room: usize) -> u64 {
    let request = |visit: usize| Request {
        job: 0,
        component: (visit % blocks).to_string(),
        bytes: pages as u64,
        working_bytes: 0,
    };
    let requests = (0..blocks * 20).map(request).collect();
    least_bytes(&Trace { name: "steps".into(), capacity_bytes: room as u64, requests })
}

#[test]
fn bytes_moved_are_at_most_a_tenth_more_than_the_least() {
    let sizes = [(57, 3), (57, 40), (60, 2), (100, 9), (20, 7), (12, 6), (8, 40), (6, 12), (4, 50)];
    for (blocks, pages) in sizes {
        for of_device in [15, 20, 30, 40] {
            let room = blocks * pages * 10 / of_device;
            // With few blocks the one that is on its way counts: somebody who has less room by that.
            let less = if blocks >= 57 { 0 } else { pages };
            if room - less < pages {
                continue;
            }
            let (moved, least) =
                (moved(blocks, pages, room + 1), least(blocks, pages, room - less));
            assert!(
                moved as u64 * 10 <= least * 11,
                "{blocks} blocks of {pages} pages in {room}: {moved} pages, and {least} at least"
            );
        }
    }
}

#[test]
fn what_is_planned_fits_and_nothing_is_kept_in_vain() {
    let mut random = Random(5);
    for _ in 0..300 {
        let count = 1 + random.place(40);
        let blocks: Vec<Cost> = (0..count)
            .map(|_| Cost {
                pages: 1 + random.place(30),
                seconds: 0.001 * f64::from(1 + u8::try_from(random.below(20)).unwrap()),
            })
            .collect();
        let all: usize = blocks.iter().map(|block| block.pages).sum();
        let largest = blocks.iter().map(|block| block.pages).max().unwrap();
        let room = largest + random.place(all - largest + 1);
        let rate = *random.pick(&[None, Some(100.0), Some(5000.0)]);
        let made = plan(&blocks, rate, room).unwrap();
        let kept: usize = made.kept.iter().sum();
        assert!(kept + made.ring <= room, "{made:?} in {room}");
        let fits = |(kept, block): (&usize, &Cost)| {
            *kept <= block.pages && block.pages - kept <= made.ring
        };
        assert!(made.kept.iter().zip(&blocks).all(fits), "{made:?}");
        if room == all {
            assert_eq!(kept, all, "what fits stays");
        }
        assert_eq!(plan(&blocks, rate, largest - 1), None);
    }
}

#[test]
fn a_plan_by_time_is_taken_where_it_is_faster() {
    // One block computes for long, and another one for nearly no time.
    let blocks: Vec<Cost> =
        (0..10).map(|at| Cost { pages: 10, seconds: if at == 3 { 1.0 } else { 0.001 } }).collect();
    let by_bytes = plan(&blocks, None, 60).unwrap();
    let by_time = plan(&blocks, Some(40.0), 60).unwrap();
    assert!(by_bytes.kept.iter().all(|kept| *kept < 10), "all of them stream a little");
    assert!(by_time.kept[4] < by_bytes.kept[4], "most comes while the long one computes");
    assert_eq!(plan(&blocks, Some(0.001), 60).unwrap(), by_bytes, "the bus decides");
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
    let made = Arc::new(model(12, &[2; 6], Some(3)));
    let streaming = Arc::new(made.open().unwrap());
    let visitors: Vec<_> = (0..3)
        .map(|number| {
            let (made, streaming) = (made.clone(), streaming.clone());
            thread::spawn(move || {
                let mut visits = 0;
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
                    visits += 1;
                }
                drop(made);
                visits
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(50));
    streaming.close(&owner("main"));
    let visits: Vec<i32> = visitors.into_iter().map(|visitor| visitor.join().unwrap()).collect();
    assert!(visits.iter().all(|visits| *visits > 0));
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

/// How long something takes on a device, so that it is seen.
const WORK: Duration = Duration::from_millis(4);

#[test]
fn a_device_tells_how_long_blocks_compute_and_wait_for_their_copies() {
    let timeline = Timeline::new(1000);
    let made = model_told(8, &[2; 6], None, &timeline);
    let streaming = made.open().unwrap();
    let (stream, copies) = (made.device.stream(), made.device.pages.copies().unwrap());
    // What is copied for the first visit comes after it.
    made.device.launch(copies, || thread::sleep(WORK));
    let began = timeline.now();
    for block in [3, 4, 5, 0] {
        streaming.enter(block, stream, &owner("main"), &Patience::FOREVER).unwrap();
        made.device.launch(stream, || thread::sleep(WORK));
        // One within another is the same.
        streaming.enter(block, stream, &owner("main"), &Patience::FOREVER).unwrap();
        streaming.leave(block, 0);
        streaming.leave(block, 0);
    }
    made.device.pages.record(stream).unwrap().wait(None).unwrap();
    let status = streaming.status().unwrap();
    let events = timeline.recording().unwrap().events;
    let of = |kind: Kind| events.iter().filter(move |event| event.kind == kind);
    let work = u64::try_from(WORK.as_nanos()).unwrap();
    assert_eq!((status.visits, of(Kind::Visit).count()), (4, 4));
    assert!(of(Kind::Visit).all(|visit| visit.took >= work && visit.bytes == 2 * PAGE));
    let took: u64 = of(Kind::Visit).map(|visit| visit.took).sum();
    assert!(took <= timeline.now() - began, "one after the other");
    let first = of(Kind::Stall).next().unwrap();
    assert!(first.took >= work / 2, "{first:?}");
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
