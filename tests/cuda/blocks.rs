//! Devices without virtual memory management: what is asked of the driver, and when it may wait.

use std::sync::Arc;

use coresident::arena::{Area, Arena, Beside, Content, HostSide, Identity};
use coresident::budget::{Budget, Spec};
use coresident::device::{HostBytes, Piece, Pinning, Places, Stream};
use coresident::wait::Patience;
use coresident::weights::ElementType;

use super::bench::{Bench, NAME, PAGE, bench_with};
use super::helpers::somebody as owner;
use super::pretend;

const MIB: usize = 1 << 20;

struct All(u8);

impl HostBytes for All {
    fn copy_to(&self, _from: usize, to: &mut [u8]) {
        to.fill(self.0);
    }
}

/// A device of so many pages, and an arena of it.
fn house(pages: u64) -> (Arc<Bench>, Arena) {
    house_with(pages, true)
}

/// The same with virtual memory management or without.
fn house_with(pages: u64, moving: bool) -> (Arc<Bench>, Arena) {
    let device = bench_with(pages, moving);
    let budget = Budget::new(Spec { limit: pages * PAGE, ..Spec::named(NAME) });
    let arena = Arena::over(device.name, device.pages.clone(), &budget, HostSide::default());
    (device, arena)
}

fn area(arena: &Arena, number: u8, sizes: &[usize]) -> Area {
    let content = |(at, &nbytes): (usize, &usize)| Content {
        name: format!("t{at}"),
        element: ElementType::UInt8,
        shape: vec![nbytes],
        nbytes,
        bytes: Arc::new(All(number)),
    };
    let identity = Identity { of: number.into(), order: Vec::new() };
    let contents = || sizes.iter().enumerate().map(content).collect();
    arena.area("model", identity, &owner("main"), contents).unwrap()
}

/// Brings everything, and looks at it.
fn check(device: &Bench, area: &Area, number: u8) {
    let (all, me) = (area.all(), owner("main"));
    let patience = Patience::FOREVER;
    let (pins, _) = area.fault(&all, Beside::default(), Stream::Host, &me, &patience).unwrap();
    for (at, content) in area.contents().iter().enumerate() {
        let mut bytes = vec![0; content.nbytes];
        device.read_at(area.address(at).unwrap(), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == number), "tensor {at}");
    }
    drop(pins);
}

fn count(device: &Bench, what: &str) -> i64 {
    pretend::count(what, device.ordinal())
}

#[test]
fn models_of_one_shape_take_turns_and_nothing_waits_for_the_device() {
    let (device, arena) = house(7);
    let sizes = [5 * MIB, 700, 3 * MIB, 100];
    let areas = [1, 2, 3].map(|number| area(&arena, number, &sizes));
    check(&device, &areas[0], 1);
    let (waited, allocated) =
        (count(&device, "implicit_synchronizes"), count(&device, "cuMemAlloc_v2"));
    for turn in 1..20 {
        check(&device, &areas[turn % 3], (turn % 3 + 1).try_into().unwrap());
        assert_eq!(arena.budget().used(), device.committed(), "nothing is kept in between");
    }
    assert_eq!(count(&device, "implicit_synchronizes"), waited);
    assert_eq!(count(&device, "cuMemAlloc_v2"), allocated);
}

#[test]
fn models_that_take_turns_have_the_same_memory_of_the_driver() {
    let (device, arena) = house_with(7, false);
    let areas = [1, 2].map(|number| area(&arena, number, &[(5 + 4 * usize::from(number)) * MIB]));
    let turn = |at: usize| check(&device, &areas[at % 2], (at % 2 + 1).try_into().unwrap());
    (0..2).for_each(turn);
    let created = count(&device, "cuMemCreate");
    for at in 0..20 {
        turn(at);
        assert_eq!(arena.budget().used(), device.committed(), "nothing is kept in between");
    }
    assert_eq!(count(&device, "cuMemCreate"), created);
}

#[test]
fn blocks_that_fit_nobody_are_given_back_before_others_are_allocated() {
    let (device, arena) = house(8);
    let areas = [area(&arena, 1, &[6 * MIB, 9 * MIB]), area(&arena, 2, &[14 * MIB])];
    for turn in 0..6 {
        check(&device, &areas[turn % 2], (turn % 2 + 1).try_into().unwrap());
        assert_eq!(arena.budget().used(), device.committed());
    }
}

#[test]
fn what_leaves_while_somebody_waits_is_given_back() {
    let (device, arena) = house(4);
    let (one, other) = (area(&arena, 1, &[6 * MIB]), area(&arena, 2, &[6 * MIB]));
    check(&device, &one, 1);
    // As torch would, for activations.
    let reserved =
        arena.budget().reserve(3 * PAGE, None, &owner("torch"), &Patience::FOREVER).unwrap();
    assert_eq!(device.committed(), 0);
    drop(reserved);
    check(&device, &other, 2);
}

#[test]
fn memory_is_freed_by_threads_without_a_context_and_the_callers_stays() {
    let (device, _) = house(4);
    let start = device.pages.allocate(2 * MIB).unwrap();
    assert_eq!(device.committed(), PAGE);
    let pages = device.pages.clone();
    std::thread::spawn(move || {
        pages.deallocate(start, 2 * MIB);
        assert_eq!(pretend::current(), 0);
    })
    .join()
    .unwrap();
    let other = pretend::primary(0);
    pretend::set_current(other);
    let start = device.pages.allocate(2 * MIB).unwrap();
    device.pages.set_aside(start, 2 * MIB);
    assert_eq!((device.committed(), device.pages.free()), (PAGE, 4 * PAGE), "it counts as free");
    device.pages.clear_aside();
    assert_eq!((device.committed(), pretend::current()), (0, other));
    pretend::set_current(0);
}

#[test]
fn what_was_set_aside_makes_room_for_other_sizes() {
    let (device, _) = house(4);
    let start = device.pages.allocate(6 * MIB).unwrap();
    device.pages.set_aside(start, 6 * MIB);
    let start = device.pages.allocate(8 * MIB).unwrap();
    assert_eq!(device.committed(), 4 * PAGE);
    device.pages.deallocate(start, 8 * MIB);
}

#[test]
fn a_driver_that_is_not_ready_is_asked_again() {
    let (device, _) = house(4);
    for name in ["cuMemAlloc_v2", "cuMemFree_v2"] {
        pretend::fail(name, 600, 3, device.ordinal().cast_unsigned());
        let start = device.pages.allocate(2 * MIB).expect(name);
        device.pages.deallocate(start, 2 * MIB);
        assert_eq!(device.committed(), 0, "{name}");
    }
}

#[test]
fn neighbours_are_filled_by_copies_of_their_own() {
    let (device, _) = house(8);
    assert_eq!(device.pages.places(), Ok(Places::Moving { block: 2 * MIB }));
    let mut starts: Vec<usize> = (0..8).map(|_| device.pages.allocate(2 * MIB).unwrap()).collect();
    starts.sort_unstable();
    let piece = |&to: &usize| Piece { source: Arc::new(All(7)), from: 0, to, length: 2 * MIB };
    let pieces = starts.iter().map(piece).collect();
    let before = count(&device, "cuMemcpyHtoDAsync_v2");
    device.pages.upload(&[], pieces, Pinning::Staging).unwrap().wait(None).unwrap();
    assert_eq!(count(&device, "cuMemcpyHtoDAsync_v2") - before, 8);
    let mut bytes = vec![0; 2 * MIB];
    for start in starts {
        device.read_at(start, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        device.pages.deallocate(start, 2 * MIB);
    }
}

#[test]
fn an_eviction_never_overtakes_a_copy() {
    for moving in [false, true] {
        let (device, arena) = house_with(4, moving);
        let areas = [area(&arena, 1, &[6 * MIB]), area(&arena, 2, &[6 * MIB])];
        check(&device, &areas[0], 1);
        arena.evict(u64::MAX);
        let (all, me, stream) = (areas[0].all(), owner("main"), device.stream());
        pretend::hold(device.ordinal(), true);
        let fault = areas[0].fault(&all, Beside::default(), stream, &me, &Patience::FOREVER);
        drop(fault.unwrap());
        assert_eq!(arena.evict(u64::MAX), 0, "its copy has not begun");
        assert_eq!(areas[0].residency(), [1; 3]);
        let wanted = areas[1].all();
        let soon = Patience::at_most(std::time::Duration::from_millis(50));
        let refused = areas[1].fault(&wanted, Beside::default(), Stream::Host, &me, &soon);
        assert!(refused.is_err(), "nobody else gets the memory meanwhile");
        pretend::hold(device.ordinal(), false);
        check(&device, &areas[1], 2);
        assert_eq!(areas[0].residency(), [u8::from(!moving), 0, 0]);
    }
}
