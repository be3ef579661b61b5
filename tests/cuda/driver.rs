//! What the driver is asked for, and what it says.

use std::sync::Arc;
use std::thread;

use coresident::device::{
    CudaMemory, DeviceMemory, DeviceType, HostBytes, Inventory, MemoryError, Name, Piece, Pinning,
    Stream,
};

use super::bench::{PAGE, bench};
use super::helpers::refusal;
use super::pretend;

const BYTES: usize = 2 << 20;

fn device(ordinal: u32) -> Arc<CudaMemory> {
    CudaMemory::of(Name::new(DeviceType::Cuda, ordinal).unwrap())
}

struct All(u8);

impl HostBytes for All {
    fn copy_to(&self, _from: usize, to: &mut [u8]) {
        to.fill(self.0);
    }
}

fn piece(to: usize, length: usize) -> Piece {
    Piece { source: Arc::new(All(7)), from: 0, to, length }
}

/// Everything that can be asked of a device's memory, once, for work on a stream.
fn everything(memory: &dyn DeviceMemory, compute: Stream) -> Result<(), MemoryError> {
    let start = memory.reserve(BYTES)?;
    let outcome = memory.commit(start, BYTES).and_then(|()| {
        let copied = copy(memory, start, compute);
        // What was begun before something failed ends first.
        for stream in [memory.copies()?, compute] {
            let _ = memory.record(stream).and_then(|event| event.wait(None));
        }
        memory.decommit(start, BYTES);
        copied
    });
    memory.release(start, BYTES);
    outcome
}

fn copy(memory: &dyn DeviceMemory, to: usize, compute: Stream) -> Result<(), MemoryError> {
    let copied = memory.upload(&[], vec![piece(to, BYTES)], Pinning::Staging)?;
    memory.after(compute, &copied)?;
    memory.record(compute)?.wait(None).map(drop)
}

#[test]
fn looking_for_devices_makes_no_context_and_neither_does_asking_whether_they_have_pages() {
    pretend::library();
    let before = pretend::count("contexts_created", -1);
    let inventory = Inventory::take(&[]);
    for device in inventory.devices() {
        let _ = device.driver().memory();
    }
    drop(device(3));
    assert_eq!(pretend::count("contexts_created", -1), before);
}

#[test]
fn every_call_puts_the_callers_context_back() {
    let bench = bench(16, None);
    let other = pretend::primary(pretend::DEVICES - 1);
    for before in [0, other] {
        pretend::set_current(before);
        everything(bench.pages.as_ref(), bench.stream()).unwrap();
        assert!(bench.pages.free() > 0);
        assert_eq!(pretend::current(), before);
    }
    pretend::set_current(0);
}

#[test]
fn a_call_that_fails_puts_the_callers_context_back_too() {
    pretend::library();
    let memory = device(pretend::LOST);
    memory.copies().unwrap();
    let compute = memory.stream().unwrap();
    let other = pretend::primary(pretend::DEVICES - 1);
    pretend::set_current(other);
    // Of those that tell on which device they are: others run at the same time.
    let calls = [
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemcpyHtoDAsync_v2",
        "cuStreamWaitEvent",
        "cuEventQuery",
    ];
    for name in calls {
        pretend::fail(name, 999, 1, pretend::LOST);
        let told = everything(memory.as_ref(), compute).map_err(|error| error.to_string());
        let told = told.expect_err(name);
        assert!(told.contains("CUDA_ERROR_UNKNOWN"), "{name}: {told}");
        assert_eq!(pretend::current(), other, "{name}");
        assert_eq!(pretend::count("mappings", pretend::LOST.cast_signed()), 0, "{name}");
    }
    // What is to be marked is marked later, and what cannot be page-locked is copied without.
    for name in ["cuEventCreate", "cuEventRecord", "cuMemHostAlloc"] {
        pretend::fail(name, 999, 1, pretend::LOST);
        everything(memory.as_ref(), compute).expect(name);
        assert_eq!(pretend::current(), other, "{name}");
    }
    everything(memory.as_ref(), compute).unwrap();
    pretend::set_current(0);
}

#[test]
fn a_driver_that_is_not_ready_is_asked_again() {
    let bench = bench(16, None);
    let compute = bench.stream();
    for name in ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap"] {
        pretend::fail(name, 600, 3, bench.ordinal().cast_unsigned());
        everything(bench.pages.as_ref(), compute).expect(name);
        assert_eq!(bench.committed(), 0, "{name}");
    }
}

#[test]
fn an_event_that_is_not_ready_is_asked_again() {
    let bench = bench(16, None);
    let stream = bench.pages.copies().unwrap();
    let event = bench.pages.record(stream).unwrap();
    assert!(event.wait(None).unwrap());
    everything(bench.pages.as_ref(), bench.stream()).unwrap();
}

#[test]
fn memory_is_freed_by_threads_without_a_context() {
    let bench = bench(16, None);
    let start = bench.pages.reserve(BYTES).unwrap();
    bench.pages.commit(start, BYTES).unwrap();
    assert_eq!(bench.committed(), PAGE);
    let pages = bench.pages.clone();
    thread::spawn(move || {
        assert_eq!(pretend::current(), 0);
        pages.decommit(start, BYTES);
        pages.release(start, BYTES);
        assert_eq!(pretend::current(), 0);
    })
    .join()
    .unwrap();
    assert_eq!(bench.committed(), 0);
}

#[test]
fn what_is_free_is_asked_of_this_device_and_not_of_the_callers() {
    let (one, other) = (bench(4, None), bench(16, None));
    pretend::set_current(pretend::primary(pretend::DEVICES - 1));
    assert_eq!((one.pages.free(), other.pages.free()), (4 * PAGE, 16 * PAGE));
    pretend::set_current(0);
}

#[test]
fn pages_come_all_or_none() {
    let bench = bench(3, None);
    let start = bench.pages.reserve(4 * BYTES).unwrap();
    let refused = bench.pages.commit(start, 4 * BYTES).unwrap_err();
    let (asked, free) = (4 * PAGE, 3 * PAGE);
    assert_eq!(refused, MemoryError::OutOfMemory { device: refused_by(&refused), asked, free });
    assert_eq!(bench.committed(), 0);
    bench.pages.commit(start, 3 * BYTES).unwrap();
    bench.pages.decommit(start + BYTES, BYTES);
    assert_eq!(bench.committed(), 2 * PAGE, "a page leaves alone");
    bench.pages.decommit(start, BYTES);
    bench.pages.decommit(start + 2 * BYTES, BYTES);
    bench.pages.release(start, 4 * BYTES);
}

fn refused_by(error: &MemoryError) -> Name {
    match error {
        MemoryError::OutOfMemory { device, .. } => *device,
        error => panic!("{error}"),
    }
}

#[test]
fn copies_come_from_pinned_memory_in_few_calls_and_whole() {
    let bench = bench(32, None);
    let length = 20 << 20;
    let start = bench.pages.reserve(length).unwrap();
    bench.pages.commit(start, length).unwrap();
    // Many small tensors as they lie in an area, one larger than a buffer, and one far from them.
    let mut pieces: Vec<Piece> = (0..2000).map(|at| piece(start + at * 1024, 900)).collect();
    pieces.push(piece(start + (2 << 20), 17 << 20));
    pieces.push(piece(start + length - 10, 10));
    let count = |what| pretend::count(what, bench.ordinal());
    let (copies, pageable) = (count("cuMemcpyHtoDAsync_v2"), count("pageable_bytes_in"));
    bench.pages.upload(&[], pieces, Pinning::Staging).unwrap().wait(None).unwrap();
    // The small ones; the large one in three buffers; and the one that is far.
    assert_eq!(count("cuMemcpyHtoDAsync_v2") - copies, 5);
    assert_eq!(count("pageable_bytes_in"), pageable);
    let mut bytes = vec![0; length];
    bench.read_at(start, &mut bytes).unwrap();
    assert!((0..2000).all(|at| bytes[at * 1024..at * 1024 + 900].iter().all(|byte| *byte == 7)));
    assert!(bytes[2 << 20..19 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[length - 10..].iter().all(|byte| *byte == 7));
    bench.pages.decommit(start, length);
    bench.pages.release(start, length);
}

#[test]
fn access_to_pages_that_come_together_is_given_in_one_call() {
    let bench = bench(8, None);
    let start = bench.pages.reserve(5 * BYTES).unwrap();
    let before = pretend::count("cuMemSetAccess", bench.ordinal());
    bench.pages.commit(start, 5 * BYTES).unwrap();
    assert_eq!(pretend::count("cuMemSetAccess", bench.ordinal()) - before, 1);
    bench.pages.decommit(start, 5 * BYTES);
    bench.pages.release(start, 5 * BYTES);
}

#[test]
fn pages_that_come_have_the_memory_of_those_that_were_laid_aside() {
    let bench = bench(4, None);
    let counts = |what: &str| pretend::count(what, bench.ordinal());
    let (start, created) = (bench.pages.reserve(8 * BYTES).unwrap(), counts("cuMemCreate"));
    bench.pages.commit(start, 4 * BYTES).unwrap();
    for turn in 0..4 {
        let (from, to) = (turn % 2 * 4 * BYTES, (turn + 1) % 2 * 4 * BYTES);
        bench.pages.lay_aside(start + from, 4 * BYTES);
        assert_eq!(bench.pages.free(), 4 * PAGE, "it counts as free");
        bench.pages.commit(start + to, 4 * BYTES).unwrap();
    }
    assert_eq!(counts("cuMemCreate") - created, 4);
    bench.pages.lay_aside(start, 4 * BYTES);
    bench.pages.commit(start, BYTES).unwrap();
    assert_eq!((counts("mappings"), bench.committed()), (1, 4 * PAGE));
    bench.pages.clear_aside();
    assert_eq!((counts("mappings"), counts("handles"), bench.committed()), (1, 0, PAGE));
    bench.pages.decommit(start, BYTES);
    bench.pages.release(start, 8 * BYTES);
}

#[test]
fn what_cannot_be_laid_aside_is_given_back_and_what_cannot_be_mapped_is_nowhere() {
    let bench = bench(4, None);
    let start = bench.pages.reserve(4 * BYTES).unwrap();
    let counts = |what: &str| pretend::count(what, bench.ordinal());
    let fail = |name: &str| {
        pretend::fail(name, 999, 1, bench.ordinal().cast_unsigned());
    };
    bench.pages.commit(start, 2 * BYTES).unwrap();
    fail("cuMemRetainAllocationHandle");
    bench.pages.lay_aside(start, 2 * BYTES);
    assert_eq!((bench.committed(), bench.pages.free()), (PAGE, 4 * PAGE));
    fail("cuMemMap");
    assert!(bench.pages.commit(start, 2 * BYTES).is_err());
    assert_eq!((counts("mappings"), counts("handles"), bench.committed()), (0, 0, 0));
    bench.pages.commit(start, 4 * BYTES).unwrap();
    bench.pages.decommit(start, 4 * BYTES);
    bench.pages.release(start, 4 * BYTES);
}

#[test]
fn a_device_that_is_not_there_says_so() {
    pretend::library();
    let told = refusal(device(99).copies());
    assert!(told.contains("cuda:99 is lost: no CUDA here, because cuDeviceGet says"), "{told}");
    assert!(told.contains("CUDA_ERROR_INVALID_DEVICE"), "{told}");
}

#[test]
fn of_the_host_everything_has_passed() {
    let bench = bench(4, None);
    assert!(bench.pages.record(Stream::Host).unwrap().has_passed().unwrap());
}

#[test]
fn nothing_is_left_of_what_is_not_used_any_more() {
    let bench = bench(8, None);
    let before = pretend::count("events", -1);
    for _ in 0..20 {
        everything(bench.pages.as_ref(), bench.stream()).unwrap();
    }
    assert_eq!(bench.committed(), 0);
    // Others run at the same time: no more than they can have, and not twenty times as many.
    assert!(pretend::count("events", -1) < before + 200);
    assert_eq!(pretend::count("context_synchronizes", -1), 0, "nobody waits for whole devices");
}
