//! Contexts: none at first, one per device, and a stack of current ones per thread.

use std::{ptr, thread};

use cudarc::driver::sys;

use crate::steer::count;
use crate::{ONE, TWO, bind, create, event, fails, ok, on, page, pinned, stream};

fn current() -> usize {
    let mut context = ptr::null_mut();
    ok(unsafe { sys::cuCtxGetCurrent(&raw mut context) });
    context.addr()
}

fn active(device: i32) -> i32 {
    let (mut flags, mut active) = (0, 7);
    ok(unsafe { sys::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) });
    active
}

#[test]
fn no_context_is_there_before_one_is_retained() {
    on(TWO, || unsafe {
        ok(sys::cuInit(0));
        assert_eq!((current(), active(0)), (0, 0));
        let (mut size, mut address) = (0, 0);
        let mut handle = ptr::null_mut();
        fails(sys::cuMemGetInfo_v2(&raw mut size, &raw mut size), 201);
        fails(sys::cuMemAlloc_v2(&raw mut address, 1), 201);
        fails(sys::cuStreamCreate(&raw mut handle, 0), 201);
        fails(sys::cuStreamSynchronize(ptr::null_mut()), 201);
        fails(sys::cuCtxSynchronize(), 201);
        fails(sys::cuDevicePrimaryCtxRelease_v2(0), 201);
        assert_eq!(count("contexts_created", -1), 0);
        bind(0);
        bind(0);
        assert_eq!((active(0), active(1), count("contexts_created", 0)), (1, 0, 1));
    });
}

#[test]
fn each_thread_has_its_own_stack() {
    on(TWO, || unsafe {
        let first = bind(0);
        let mut second = ptr::null_mut();
        let mut popped = ptr::null_mut();
        ok(sys::cuDevicePrimaryCtxRetain(&raw mut second, 1));
        assert_eq!(current(), first.addr());
        ok(sys::cuCtxPushCurrent_v2(second));
        let mut device = 9;
        ok(sys::cuCtxGetDevice(&raw mut device));
        assert_eq!((current(), device), (second.addr(), 1));
        assert_eq!(thread::spawn(current).join().unwrap(), 0);
        ok(sys::cuCtxPopCurrent_v2(&raw mut popped));
        assert_eq!((popped, current()), (second, first.addr()));
        ok(sys::cuCtxSetCurrent(second));
        ok(sys::cuCtxSetCurrent(ptr::null_mut()));
        assert_eq!(current(), 0);
        fails(sys::cuCtxPopCurrent_v2(&raw mut popped), 201);
        fails(sys::cuCtxSetCurrent(ptr::without_provenance_mut(0x10)), 201);
    });
}

#[test]
fn the_last_release_ends_all_that_the_context_had() {
    on("GPU:1GiB:100MiB-context,delay:0us", || unsafe {
        let context = bind(0);
        bind(0);
        let mut address = 0;
        ok(sys::cuMemAlloc_v2(&raw mut address, 100));
        let (stream, event, memory) = (stream(), event(), pinned(100));
        let physical = create(0, crate::PAGE);
        ok(sys::cuDevicePrimaryCtxRelease_v2(0));
        ok(sys::cuStreamSynchronize(stream));
        ok(sys::cuDevicePrimaryCtxRelease_v2(0));
        assert_eq!(active(0), 0);
        fails(sys::cuCtxSynchronize(), 709);
        fails(sys::cuCtxSetCurrent(context), 201);
        for gone in ["streams", "events", "pinned_bytes", "allocations"] {
            assert_eq!(count(gone, 0), 0, "{gone}");
        }
        assert_eq!(bind(0), context);
        fails(sys::cuStreamQuery(stream), 400);
        fails(sys::cuEventQuery(event), 400);
        fails(sys::cuMemFree_v2(address), 1);
        fails(sys::cuMemFreeHost(memory.as_mut_ptr().cast()), 1);
        ok(sys::cuMemRelease(physical));
        assert_eq!(count("contexts_created", 0), 2);
    });
}

#[test]
fn a_context_takes_memory_while_it_lives() {
    on("GPU:1GiB:300MiB-context,GPU:1GiB:900MiB-used:300MiB-context", || unsafe {
        bind(0);
        let (mut free, mut total) = (0, 0);
        ok(sys::cuMemGetInfo_v2(&raw mut free, &raw mut total));
        assert_eq!((free, total), (724 << 20, 1 << 30));
        assert_eq!(count("used_bytes", 0), 0);
        let mut context = ptr::null_mut();
        fails(sys::cuDevicePrimaryCtxRetain(&raw mut context, 1), 2);
        assert_eq!(active(1), 0);
    });
}

#[test]
fn virtual_memory_needs_no_context() {
    on(ONE, || {
        ok(unsafe { sys::cuInit(0) });
        page(0);
    });
}
