//! `Streaming`: that what is moved is not much more than the least, and what a plan is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coresident::arena::{Arena, HostSide};
use coresident::budget::{Budget, Spec as BudgetSpec};
use coresident::device::{
    Address, DeviceMemory, DeviceType, Event, MemoryError, Name, Piece, Pinning, Stream,
};
use coresident::residency::{Request, Trace, least_bytes};
use coresident::streaming::{Cost, Spec, Streaming, plan};
use coresident::wait::Patience;

use super::bench::NAME;
use super::helpers::{Random, somebody as owner};
use super::planner::Passed;
use super::streaming::{Host, area_of, numbers};

/// A device on which everything is done at once, with pages that are small enough for many of them.
struct AtOnce;

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
    let host = Arc::new(Host::default());
    let place = area_of(&arena, SMALL, &sizes, |at| numbers(at, &host));
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
    host.copied.load(Ordering::SeqCst) / SMALL - 1
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
