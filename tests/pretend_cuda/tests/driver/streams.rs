//! Streams: in order each, out of step with each other, and late.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex, mpsc};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUstream};

use crate::steer::{bytes, count, hash, hold, launch_check, peek, set_bus, set_delay};
use crate::{ONE, PAGE, TWO, bind, blocking_stream, event, fails, ok, on, page, pinned, stream};

static NOTES: Mutex<Vec<usize>> = Mutex::new(Vec::new());

unsafe extern "C" fn note(number: *mut c_void) {
    NOTES.lock().unwrap().push(number.addr());
}

fn put_note(stream: CUstream, number: usize) {
    ok(unsafe { sys::cuLaunchHostFunc(stream, Some(note), ptr::without_provenance_mut(number)) });
}

#[test]
fn a_stream_keeps_its_order() {
    on("GPU:1GiB,delay:200us", || unsafe {
        bind(0);
        let stream = stream();
        (0..100).for_each(|number| put_note(stream, number));
        fails(sys::cuStreamQuery(stream), 600);
        ok(sys::cuStreamSynchronize(stream));
        ok(sys::cuStreamQuery(stream));
        assert_eq!(*NOTES.lock().unwrap(), (0..100).collect::<Vec<_>>());
    });
}

#[test]
fn streams_are_out_of_step() {
    on(ONE, || unsafe {
        bind(0);
        assert_eq!(set_delay(300, 7), 0);
        let streams: Vec<_> = (0..4).map(|_| stream()).collect();
        for number in 0..100 {
            put_note(streams[number % 4], number);
        }
        ok(sys::cuCtxSynchronize());
        let notes = NOTES.lock().unwrap();
        assert_eq!(notes.len(), 100);
        assert!(!notes.is_sorted());
        assert_eq!(count("context_synchronizes", 0), 1);
    });
}

static GATE: Barrier = Barrier::new(2);

unsafe extern "C" fn wait(_: *mut c_void) {
    GATE.wait();
}

#[test]
fn the_legacy_stream_keeps_order_with_blocking_streams_only() {
    on("GPU:1GiB,delay:300us", || unsafe {
        bind(0);
        let (free, first, second) = (stream(), blocking_stream(), blocking_stream());
        ok(sys::cuLaunchHostFunc(free, Some(wait), ptr::null_mut()));
        for round in 0..20 {
            put_note(first, 10 * round);
            put_note(ptr::null_mut(), 10 * round + 1);
            put_note(second, 10 * round + 2);
            put_note(ptr::without_provenance_mut(1), 10 * round + 3);
        }
        fails(sys::cuStreamQuery(ptr::null_mut()), 600);
        ok(sys::cuStreamSynchronize(ptr::null_mut()));
        ok(sys::cuStreamQuery(first));
        let notes = NOTES.lock().unwrap();
        assert!(notes.len() == 80 && notes.is_sorted());
        fails(sys::cuStreamQuery(free), 600);
        GATE.wait();
        ok(sys::cuStreamSynchronize(free));
    });
}

static CODE: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn call(_: *mut c_void) {
    CODE.store(unsafe { sys::cuCtxSynchronize() } as u32, Ordering::Relaxed);
}

#[test]
fn functions_of_the_host_must_not_call_the_driver() {
    on(ONE, || unsafe {
        bind(0);
        ok(sys::cuLaunchHostFunc(ptr::null_mut(), Some(call), ptr::null_mut()));
        ok(sys::cuCtxSynchronize());
        assert_eq!(CODE.load(Ordering::Relaxed), 800);
    });
}

#[test]
fn pinned_memory_is_read_when_the_copy_runs_and_pageable_memory_at_once() {
    on(ONE, || unsafe {
        bind(0);
        let stream = stream();
        let ((first, _), (second, _)) = (page(0), page(0));
        let (pinned, mut pageable) = (pinned(16), vec![1_u8; 16]);
        pinned.fill(1);
        hold(0, 1);
        ok(sys::cuMemcpyHtoDAsync_v2(first, pinned.as_ptr().cast(), 16, stream));
        ok(sys::cuMemcpyHtoDAsync_v2(second, pageable.as_ptr().cast(), 16, stream));
        pinned.fill(2);
        pageable.fill(2);
        hold(0, 0);
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(peek(first, 16).unwrap(), [2; 16]);
        assert_eq!(peek(second, 16).unwrap(), [1; 16]);
    });
}

#[test]
fn copies_to_pageable_memory_are_done_when_the_call_returns() {
    on("GPU:1GiB,delay:2ms", || unsafe {
        bind(0);
        let (stream, (address, _)) = (stream(), page(0));
        ok(sys::cuMemsetD8Async(address, 7, 16, stream));
        let mut bytes = [0_u8; 16];
        ok(sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), address, 16, stream));
        assert_eq!(bytes, [7; 16]);
        let pinned = pinned(16);
        hold(0, 1);
        ok(sys::cuMemcpyDtoHAsync_v2(pinned.as_mut_ptr().cast(), address, 16, stream));
        assert_eq!(pinned[0], 0);
        hold(0, 0);
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(pinned, [7; 16]);
        assert_eq!(count("bytes_out", 0), 32);
    });
}

#[test]
fn memory_unmapped_too_early_fails_the_context_for_good() {
    on(TWO, || unsafe {
        bind(0);
        let (stream, (address, _)) = (stream(), page(0));
        let source = pinned(PAGE);
        hold(0, 1);
        ok(sys::cuMemcpyHtoDAsync_v2(address, source.as_ptr().cast(), PAGE, stream));
        ok(sys::cuMemUnmap(address, PAGE));
        hold(0, 0);
        fails(sys::cuStreamSynchronize(stream), 700);
        fails(sys::cuStreamQuery(stream), 700);
        fails(sys::cuCtxSynchronize(), 700);
        let (mut size, mut event) = (0, ptr::null_mut());
        fails(sys::cuMemGetInfo_v2(&raw mut size, &raw mut size), 700);
        fails(sys::cuEventCreate(&raw mut event, 0), 700);
        fails(crate::try_create(0, PAGE).unwrap_err(), 700);
        put_note_fails(stream);
        ok(sys::cuDeviceTotalMem_v2(&raw mut size, 0));
        bind(1);
        ok(sys::cuCtxSynchronize());
        page(1);
    });
}

fn put_note_fails(stream: CUstream) {
    fails(unsafe { sys::cuLaunchHostFunc(stream, Some(note), ptr::null_mut()) }, 700);
}

#[test]
fn a_kernel_sees_what_is_there_when_it_runs() {
    on(ONE, || unsafe {
        bind(0);
        let (stream, (address, _)) = (stream(), page(0));
        let mut results = [0_u32; 4];
        let bytes: Vec<u8> = (0..200).collect();
        ok(sys::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), 200, stream));
        let [one, two, three, four] = &mut results;
        assert_eq!(launch_check(stream, address, 200, hash(&bytes), one), 0);
        assert_eq!(launch_check(stream, address, 200, hash(&bytes[1..]), two), 0);
        assert_eq!(launch_check(stream, address + 7, 1, 7, three), 0);
        ok(sys::cuStreamSynchronize(stream));
        hold(0, 1);
        assert_eq!(launch_check(stream, address, 200, 0, four), 0);
        ok(sys::cuMemUnmap(address, PAGE));
        hold(0, 0);
        fails(sys::cuStreamSynchronize(stream), 700);
        assert_eq!(results, [1, 2, 1, 3]);
    });
}

#[test]
fn the_bus_is_shared_and_slow() {
    on(ONE, || unsafe {
        bind(0);
        assert_eq!(set_bus(0, 40 << 20), 0);
        let begun = Instant::now();
        for _ in 0..2 {
            let source = pinned(PAGE);
            ok(sys::cuMemcpyHtoDAsync_v2(page(0).0, source.as_ptr().cast(), PAGE, stream()));
        }
        ok(sys::cuCtxSynchronize());
        assert!(begun.elapsed() >= Duration::from_millis(99));
        assert_eq!(bytes("pinned_bytes_in", 0), 2 * PAGE);
    });
}

#[test]
fn streams_of_another_context_take_copies_but_no_kernels() {
    on(TWO, || unsafe {
        bind(1);
        let (other, (address, _)) = (stream(), page(1));
        let context = bind(0);
        ok(sys::cuMemcpyHtoDAsync_v2(address, b"x".as_ptr().cast(), 1, other));
        fails(sys::cuMemsetD8Async(address, 0, 1, other), 400);
        fails(sys::cuEventRecord(event(), other), 400);
        ok(sys::cuStreamSynchronize(other));
        let mut found = ptr::null_mut();
        ok(sys::cuStreamGetCtx(other, &raw mut found));
        assert_ne!(found, context);
        ok(sys::cuStreamGetCtx(ptr::null_mut(), &raw mut found));
        assert_eq!(found, context);
    });
}

#[test]
fn a_destroyed_stream_finishes_its_work() {
    on(ONE, || unsafe {
        bind(0);
        let (stream, (address, _)) = (stream(), page(0));
        hold(0, 1);
        ok(sys::cuMemsetD8Async(address, 3, 8, stream));
        ok(sys::cuStreamDestroy_v2(stream));
        assert_eq!(count("streams", 0), 0);
        fails(sys::cuStreamQuery(stream), 400);
        fails(sys::cuStreamDestroy_v2(stream), 400);
        fails(sys::cuStreamDestroy_v2(ptr::null_mut()), 400);
        hold(0, 0);
        ok(sys::cuCtxSynchronize());
        assert_eq!(peek(address, 8).unwrap(), [3; 8]);
    });
}

#[test]
fn freeing_memory_waits_for_its_device() {
    on(ONE, || unsafe {
        bind(0);
        let mut address = 0;
        ok(sys::cuMemAlloc_v2(&raw mut address, 8));
        let stream = stream();
        hold(0, 1);
        ok(sys::cuMemsetD8Async(address, 3, 8, stream));
        let (begun, waited) = mpsc::channel();
        let free = std::thread::spawn(move || {
            bind(0);
            begun.send(()).unwrap();
            ok(sys::cuMemFree_v2(address));
        });
        waited.recv().unwrap();
        hold(0, 0);
        free.join().unwrap();
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(count("implicit_synchronizes", 0), 1);
    });
}

#[test]
fn many_threads_page_memory_in_and_out_at_once() {
    on("GPU:64MiB,GPU:64MiB:bus=8GiB/s,delay:50us", || {
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                scope.spawn(move || page_in_and_out(thread));
            }
        });
        for nothing in ["handles", "mappings", "reservations", "streams", "events", "used_bytes"] {
            assert_eq!(count(nothing, -1), 0, "{nothing}");
        }
        assert_eq!(bytes("pinned_bytes_in", -1), 8 * 40 * PAGE);
        assert_eq!(count("context_synchronizes", -1), 0);
    });
}

/// Each round has its byte, and its page is unmapped only when an event says that it was used.
fn page_in_and_out(thread: u8) {
    let device = i32::from(thread % 2);
    bind(device);
    let (copies, kernels, arrived, used) = (stream(), stream(), event(), event());
    let source = pinned(PAGE);
    for round in 0..40 {
        let byte = thread * 30 + round % 30;
        source.fill(byte);
        let (address, handle) = page(device);
        let mut result = 0;
        unsafe {
            ok(sys::cuMemcpyHtoDAsync_v2(address, source.as_ptr().cast(), PAGE, copies));
            ok(sys::cuEventRecord(arrived, copies));
            ok(sys::cuStreamWaitEvent(kernels, arrived, 0));
            assert_eq!(launch_check(kernels, address, PAGE, byte.into(), &raw mut result), 0);
            ok(sys::cuEventRecord(used, kernels));
            ok(sys::cuEventSynchronize(used));
            assert_eq!(result, 1);
            ok(sys::cuMemUnmap(address, PAGE));
            ok(sys::cuMemRelease(handle));
            ok(sys::cuMemAddressFree(address, PAGE));
        }
    }
    unsafe {
        for event in [arrived, used] {
            ok(sys::cuEventDestroy_v2(event));
        }
        for stream in [copies, kernels] {
            ok(sys::cuStreamDestroy_v2(stream));
        }
    }
}
