//! Failures that tests ask for.

use std::ptr;

use cudarc::driver::sys;

use crate::steer::{count, fail, forgive, hold, lose, reset_counts};
use crate::{ONE, PAGE, TWO, bind, create, event, fails, ok, on, page, stream, try_create};

#[test]
fn the_next_calls_of_a_function_fail_on_one_device() {
    on(TWO, || {
        bind(0);
        fail("cuMemCreate", 2, 2, 1, 1);
        for code in [None, Some(2), Some(2), None] {
            create(0, PAGE);
            assert_eq!(try_create(1, PAGE).err().map(|code| code as u32), code);
        }
        assert_eq!((count("cuMemCreate", 0), count("cuMemCreate", -1)), (4, 8));
        assert_eq!((count("handles", 0), count("handles", 1)), (4, 2));
        fail("cuMemAlloc", 999, u64::MAX, 0, -1);
        let mut address = 0;
        fails(unsafe { sys::cuMemAlloc_v2(&raw mut address, 1) }, 999);
        fails(unsafe { sys::cuMemAlloc_v2(&raw mut address, 1) }, 999);
        forgive();
        ok(unsafe { sys::cuMemAlloc_v2(&raw mut address, 1) });
        reset_counts();
        assert_eq!((count("cuMemAlloc_v2", -1), count("allocations", -1)), (0, 1));
        assert_eq!(count("nonsense", -1), -1);
    });
}

#[test]
fn failures_can_be_described() {
    on("GPU:1GiB,fail:cuCtxSynchronize=719*1+1,fail:cuStreamCreate=2", || unsafe {
        bind(0);
        ok(sys::cuCtxSynchronize());
        fails(sys::cuCtxSynchronize(), 719);
        ok(sys::cuCtxSynchronize());
        let mut stream = ptr::null_mut();
        fails(sys::cuStreamCreate(&raw mut stream, 0), 2);
        fails(sys::cuStreamCreate(&raw mut stream, 0), 2);
    });
}

#[test]
fn every_call_on_a_lost_device_says_so() {
    on(TWO, || unsafe {
        let context = bind(0);
        let (stream, event, (address, handle)) = (stream(), event(), page(0));
        hold(0, 1);
        ok(sys::cuMemsetD8Async(address, 1, 1, stream));
        let wait = std::thread::spawn(move || {
            bind(0);
            sys::cuCtxSynchronize() as u32
        });
        while count("context_synchronizes", 0) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(lose(0, 46), 0);
        hold(0, 0);
        assert_eq!(wait.join().unwrap(), 46);
        let (mut size, mut value, mut found) = (0, 0, ptr::null_mut());
        fails(sys::cuCtxSynchronize(), 46);
        fails(sys::cuCtxGetDevice(&raw mut value), 46);
        fails(sys::cuStreamQuery(stream), 46);
        fails(sys::cuEventQuery(event), 46);
        fails(sys::cuMemRelease(handle), 46);
        fails(sys::cuMemUnmap(address, PAGE), 46);
        fails(sys::cuMemGetInfo_v2(&raw mut size, &raw mut size), 46);
        fails(sys::cuDeviceTotalMem_v2(&raw mut size, 0), 46);
        fails(sys::cuDevicePrimaryCtxRetain(&raw mut found, 0), 46);
        fails(sys::cuCtxSetCurrent(context), 46);
        ok(sys::cuDeviceGetCount(&raw mut value));
        bind(1);
        ok(sys::cuCtxSynchronize());
        assert_eq!(lose(0, 0), 0);
        bind(0);
        ok(sys::cuCtxSynchronize());
    });
}

#[test]
fn a_device_can_be_lost_from_the_start() {
    on("GPU:1GiB,GPU:1GiB,lost:1", || unsafe {
        bind(0);
        let mut context = ptr::null_mut();
        fails(sys::cuDevicePrimaryCtxRetain(&raw mut context, 1), 46);
    });
}

#[test]
fn a_lost_driver_of_work_fails_only_work() {
    on(ONE, || unsafe {
        bind(0);
        assert_eq!(lose(0, 719), 0);
        fails(sys::cuCtxSynchronize(), 719);
        let mut size = 0;
        ok(sys::cuDeviceTotalMem_v2(&raw mut size, 0));
    });
}
