//! What of the host's memory is page-locked, what that is charged to, and when it is let go.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use coresident::arena::{Area, Arena, ArenaError, Beside, Content, HostSide, Identity};
use coresident::budget::{Budget, Spec};
use coresident::device::{HostBytes, Piece, Pinning, Stream};
use coresident::wait::Patience;
use coresident::weights::{ElementType, Given, Memory, Opening, WeightStore, Weights};

use super::bench::{Bench, NAME, PAGE, bench};
use super::helpers::{Random, refusal, somebody as owner, until};
use super::pretend;

const MIB: usize = 1 << 20;
const RING: u64 = 32 << 20;

struct House {
    device: Arc<Bench>,
    ram: Budget,
    store: WeightStore,
    arena: Arena,
    /// What its device had done before.
    before: HashMap<&'static str, u64>,
}

/// What a device has done so far.
const DONE: [&str; 3] = ["cuMemcpyHtoDAsync_v2", "cuMemHostRegister_v2", "pageable_bytes_in"];

fn house(pages: u64, ram: u64, pinning: Pinning) -> House {
    let ram = Budget::new(Spec { limit: ram, ..Spec::named("ram") });
    let store = WeightStore::new(Some(ram.clone()));
    house_of(pages, &ram, &store, pinning)
}

/// The same with host memory that others use too.
fn house_of(pages: u64, ram: &Budget, store: &WeightStore, pinning: Pinning) -> House {
    let (device, ram, store) = (bench(pages, None), ram.clone(), store.clone());
    // Another test may have left buffers there, for which nobody pays.
    drop(device.pages.stage(Box::new(())).unwrap());
    until(|| pretend::count("pinned_bytes", device.ordinal()) == 0);
    let budget = Budget::new(Spec { limit: pages * PAGE, ..Spec::named(NAME) });
    let host = HostSide { pinning, budget: Some(ram.clone()) };
    let arena = Arena::over(device.name, device.pages.clone(), &budget, host);
    let count = |what| (what, pretend::count(what, device.ordinal()).cast_unsigned());
    let before = DONE.into_iter().map(count).collect();
    House { device, ram, store, arena, before }
}

impl House {
    /// Weights in the store's own memory, or where they were made, each tensor all one number.
    fn weights(&self, sizes: &[usize], private: bool) -> Weights {
        let given = |(at, &length): (usize, &usize)| {
            let bytes = vec![number(at); length];
            let memory = Memory::foreign(bytes.as_ptr(), length, false, Box::new(bytes));
            let (element, shape) = (ElementType::UInt8, vec![length]);
            Given { name: format!("t{at}"), element, shape, strides: None, memory, offset: 0 }
        };
        let tensors = sizes.iter().enumerate().map(given).collect();
        let opening = Opening { private: Some(private), ..Opening::default() };
        self.store.share("model", tensors, &opening, &owner("main"), &Patience::FOREVER).unwrap()
    }

    fn area(&self, weights: &Weights) -> Area {
        let content = |name: &str| Content::of(name, weights.tensor(name).unwrap());
        let contents = || weights.names().map(content).collect();
        let identity = Identity { of: weights.identity(), order: Vec::new() };
        self.arena.area("model", identity, &owner("main"), contents).unwrap()
    }

    /// Brings tensors to the device and compares every byte.
    fn check(&self, area: &Area, tensors: &[usize]) {
        self.try_check(area, tensors).unwrap();
    }

    /// The same, unless they cannot be brought.
    fn try_check(&self, area: &Area, tensors: &[usize]) -> Result<(), ArenaError> {
        let (block, me) = (area.block(tensors), owner("main"));
        let patience = Patience::FOREVER;
        let (pins, _) = area.fault(&block, Beside::default(), Stream::Host, &me, &patience)?;
        for tensor in tensors {
            let mut bytes = vec![0; area.contents()[*tensor].nbytes];
            let at = area.address(*tensor).unwrap();
            self.device.read_at(at, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == number(*tensor)), "tensor {tensor}");
        }
        drop(pins);
        Ok(())
    }

    /// What there is on the device, or what it has done for this house.
    fn count(&self, what: &str) -> u64 {
        let count = pretend::count(what, self.device.ordinal()).cast_unsigned();
        count - self.before.get(what).copied().unwrap_or(0)
    }

    fn locked(&self) -> u64 {
        self.store.status().unwrap().iter().map(|status| status.locked).sum()
    }
}

fn number(tensor: usize) -> u8 {
    u8::try_from(tensor % 250 + 1).unwrap()
}

#[test]
fn large_tensors_go_from_where_they_lie_and_small_ones_together() {
    let house = house(16, 100 << 20, Pinning::All);
    let mut sizes = vec![5 * MIB, 3 * MIB];
    sizes.extend([700; 100]);
    let weights = house.weights(&sizes, true);
    assert_eq!(house.locked(), 0, "nothing is locked that nobody copies");
    let area = house.area(&weights);
    house.check(&area, &(0..sizes.len()).collect::<Vec<_>>());
    assert_eq!(house.count("cuMemcpyHtoDAsync_v2"), 3, "two large ones, and the others");
    assert_eq!(house.count("pageable_bytes_in"), 0);
    // What is locked is what is charged.
    assert_eq!(house.locked(), weights.nbytes());
    assert_eq!(house.ram.used(), weights.nbytes() + RING);
    assert_eq!(house.count("pinned_bytes"), house.ram.used(), "to the byte");
    drop(area);
    drop(weights);
    house.arena.evict(u64::MAX);
    house.store.clear().unwrap();
    until(|| house.count("pinned_bytes") == RING);
    let House { ram, arena, device, .. } = house;
    drop(arena);
    until(|| ram.used() == 0);
    assert_eq!(pretend::count("pinned_bytes", device.ordinal()), 0);
}

#[test]
fn a_tensor_across_two_chunks_is_copied_from_both_and_chunks_are_at_most_256_mib() {
    let house = house(16, 400 << 20, Pinning::All);
    let weights = house.weights(&[254 * MIB, 8 * MIB], true);
    house.check(&house.area(&weights), &[1]);
    assert_eq!(house.locked(), weights.nbytes());
    assert_eq!(house.count("cuMemHostRegister_v2"), 2);
}

#[test]
fn what_cannot_be_locked_goes_through_the_buffers() {
    let house = house(16, 100 << 20, Pinning::All);
    let weights = house.weights(&[5 * MIB, 3 * MIB], true);
    pretend::fail("cuMemHostRegister_v2", 801, 1, house.device.ordinal().cast_unsigned());
    house.check(&house.area(&weights), &[0, 1]);
    assert_eq!(house.locked(), 0);
    assert_eq!(house.count("pageable_bytes_in"), 0);
}

#[test]
fn memory_of_others_is_never_locked() {
    let house = house(16, 100 << 20, Pinning::All);
    let weights = house.weights(&[5 * MIB], false);
    house.check(&house.area(&weights), &[0]);
    assert_eq!((house.locked(), house.count("cuMemHostRegister_v2")), (0, 0));
}

#[test]
fn weights_stay_until_the_device_has_read_them() {
    let house = house(16, 100 << 20, Pinning::All);
    let weights = house.weights(&[6 * MIB], true);
    let area = house.area(&weights);
    let stream = house.device.stream();
    let (block, me, patience) = (area.all(), owner("main"), Patience::FOREVER);
    let (pins, _) = area.fault(&block, Beside::default(), stream, &me, &patience).unwrap();
    drop((pins, area, weights));
    until(|| {
        house.arena.evict(u64::MAX);
        house.store.clear().unwrap();
        house.ram.used() == RING
    });
    assert_eq!(house.locked(), 0);
}

#[test]
fn buffers_are_charged_while_an_arena_has_them() {
    let house = house(16, 100 << 20, Pinning::Staging);
    assert_eq!(house.ram.used(), 0, "nothing has been copied");
    let weights = house.weights(&[20 * MIB], true);
    house.check(&house.area(&weights), &[0]);
    assert_eq!((house.locked(), house.ram.used()), (0, weights.nbytes() + RING));
    assert_eq!(house.count("pinned_bytes"), RING, "from the first copy on");
    let House { device, ram, store, arena, .. } = house;
    drop(weights);
    store.clear().unwrap();
    drop(arena);
    until(|| ram.used() == 0);
    assert_eq!(pretend::count("pinned_bytes", device.ordinal()), 0);
}

#[test]
fn nobody_waits_for_buffers_that_the_host_has_no_room_for() {
    let house = house(16, 40 << 20, Pinning::Staging);
    let weights = house.weights(&[20 * MIB], true);
    let area = house.area(&weights);
    house.check(&area, &[0]);
    assert_eq!((house.ram.used(), house.count("pinned_bytes")), (weights.nbytes(), 0));
    house.ram.set_limit(100 << 20).unwrap();
    house.arena.evict(u64::MAX);
    house.check(&area, &[0]);
    assert_eq!(house.ram.used(), weights.nbytes() + RING, "as soon as there is room");
    assert!(house.count("pinned_bytes") > 0);
}

#[test]
fn a_copy_that_fails_is_told_to_whoever_asked_for_it() {
    let bench = bench(16, None);
    let start = bench.pages.reserve(2 * MIB).unwrap();
    bench.pages.commit(start, 2 * MIB).unwrap();
    let copy = |byte: u8, at: usize| {
        let bytes = vec![byte; 100];
        let source = Arc::new(Bytes(bytes));
        let piece = Piece { source, from: 0, to: start + at, length: 100 };
        bench.pages.upload(&[], vec![piece], Pinning::Staging).unwrap()
    };
    pretend::fail("cuMemcpyHtoDAsync_v2", 999, 1, bench.ordinal().cast_unsigned());
    let (first, second) = (copy(1, 0), copy(2, 4096));
    assert!(second.wait(None).unwrap());
    assert!(refusal(first.wait(None)).contains("cuMemcpyHtoDAsync"));
    let mut byte = [0];
    bench.read_at(start + 4096, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    bench.pages.decommit(start, 2 * MIB);
    bench.pages.release(start, 2 * MIB);
}

struct Bytes(Vec<u8>);

impl HostBytes for Bytes {
    fn copy_to(&self, from: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.0[from..from + to.len()]);
    }
}

#[test]
fn memory_that_cannot_be_unlocked_is_not_used_again() {
    let house = house(16, 100 << 20, Pinning::All);
    let weights = house.weights(&[6 * MIB], true);
    house.check(&house.area(&weights), &[0]);
    let place = weights.tensor("t0").unwrap().start().addr();
    until(|| {
        house.arena.evict(u64::MAX);
        house.arena.status().unwrap().areas.is_empty()
    });
    // As often as it is tried, here and when the memory is dropped.
    pretend::fail("cuMemHostUnregister", 700, 20, house.device.ordinal().cast_unsigned());
    house.store.invalidate("model").unwrap();
    drop(weights);
    until(|| house.store.spare().unwrap() > 0);
    assert_eq!(house.store.locked().unwrap(), 6 * MIB as u64, "a spare slab stays locked");
    house.store.clear().unwrap();
    let other = house.weights(&[6 * MIB], true);
    assert_ne!(other.tensor("t0").unwrap().start().addr(), place);
    assert_eq!(house.store.locked().unwrap(), 0);
    pretend::forgive_unregistering(house.device.ordinal().cast_unsigned(), place);
}

#[test]
fn nothing_is_locked_when_nothing_is_to_be() {
    let house = house(16, 100 << 20, Pinning::Nothing);
    let weights = house.weights(&[20 * MIB, 100], true);
    house.check(&house.area(&weights), &[0, 1]);
    assert_eq!((house.locked(), house.ram.used()), (0, weights.nbytes()));
    assert_eq!(house.count("pinned_bytes"), 0);
    assert!(house.count("pageable_bytes_in") >= 20 * MIB as u64);
}

#[test]
fn several_devices_read_one_copy_whatever_fails_on_one_of_them() {
    const FAILING: [&str; 4] = ["cuMemCreate", "cuMemMap", "cuMemcpyHtoDAsync_v2", "cuEventRecord"];
    const OUT_OF_MEMORY: u32 = 2;
    const NOT_READY: u32 = 600;
    const UNKNOWN: u32 = 999;
    const SIZES: [usize; 5] = [3 * MIB, 700, 2 * MIB, 5 * MIB, 90_000];
    let ram = Budget::new(Spec { limit: 200 << 20, ..Spec::named("ram") });
    let store = WeightStore::new(Some(ram.clone()));
    let houses: Vec<House> = (0..3).map(|_| house_of(6, &ram, &store, Pinning::All)).collect();
    let weights = houses[0].weights(&SIZES, true);
    let failing = houses[0].device.ordinal().cast_unsigned();
    thread::scope(|scope| {
        for (number, house) in houses.iter().enumerate() {
            for part in 0..2 {
                let weights = &weights;
                scope.spawn(move || {
                    let area = house.area(weights);
                    let mut random = Random(number as u64 * 2 + part + 1);
                    for turn in 0..60 {
                        if number == 0 && part == 0 {
                            let call = FAILING[turn % FAILING.len()];
                            pretend::fail(
                                call,
                                [OUT_OF_MEMORY, NOT_READY, UNKNOWN][turn % 3],
                                1,
                                failing,
                            );
                        }
                        let tensors: Vec<usize> =
                            (0..SIZES.len()).filter(|_| random.below(2) == 0).collect();
                        match house.try_check(&area, &tensors) {
                            Ok(()) => {}
                            Err(_) if number == 0 => {}
                            Err(error) => panic!("on a device where nothing fails: {error}"),
                        }
                        if random.below(3) == 0 {
                            house.arena.evict(2 * PAGE);
                        }
                    }
                });
            }
        }
    });
    assert_eq!(houses[1].locked(), weights.nbytes(), "once for all devices");
    for house in &houses {
        // Some of the failures may not have come yet.
        until(|| house.try_check(&house.area(&weights), &[0, 1, 2, 3, 4]).is_ok());
        until(|| {
            house.arena.evict(u64::MAX);
            house.device.committed() == 0 && house.arena.budget().used() == 0
        });
    }
    drop(weights);
    drop(houses);
    until(|| {
        store.clear().unwrap();
        ram.used() == 0
    });
}
