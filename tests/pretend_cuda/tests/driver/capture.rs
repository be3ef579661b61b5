//! Streams in capture.

use std::{ptr, thread};

use cudarc::driver::sys::{self, CUstream, CUstreamCaptureMode_enum as Mode};

use crate::steer::{capture, peek};
use crate::{ONE, bind, blocking_stream, event, fails, ok, on, page, stream};

const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;
const RELAXED: i32 = 2;
const END: i32 = -1;

fn status(stream: CUstream) -> u32 {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    ok(unsafe { sys::cuStreamIsCapturing(stream, &raw mut status) });
    status as u32
}

#[test]
fn what_is_captured_is_not_done() {
    on(ONE, || unsafe {
        bind(0);
        let (stream, (address, _)) = (stream(), page(0));
        assert_eq!((status(stream), capture(stream, RELAXED), status(stream)), (0, 0, 1));
        ok(sys::cuMemsetD8Async(address, 1, 1, stream));
        assert_eq!((capture(stream, END), status(stream)), (0, 0));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(peek(address, 1).unwrap(), [0]);
    });
}

#[test]
fn waiting_for_a_capture_fails_it() {
    on(ONE, || unsafe {
        bind(0);
        let stream = stream();
        for wait in [sys::cuStreamSynchronize, sys::cuStreamQuery] {
            assert_eq!(capture(stream, RELAXED), 0);
            fails(wait(stream), 900);
            assert_eq!(status(stream), 2);
            fails(sys::cuMemsetD8Async(page(0).0, 1, 1, stream), 901);
            assert_eq!(capture(stream, END), 901);
        }
        assert_eq!(capture(stream, RELAXED), 0);
        fails(sys::cuCtxSynchronize(), 900);
        assert_eq!(capture(stream, END), 901);
    });
}

#[test]
fn unsafe_calls_go_by_the_modes() {
    on(ONE, || unsafe {
        let context = bind(0);
        let stream = stream();
        let mut address = 0;
        let context = context.addr();
        let elsewhere = move || {
            let allocate = move || {
                let mut address = 0;
                ok(sys::cuCtxSetCurrent(ptr::without_provenance_mut(context)));
                sys::cuMemAlloc_v2(&raw mut address, 1) as u32
            };
            thread::spawn(allocate).join().unwrap()
        };
        for (mode, here, there) in [(GLOBAL, 900, 900), (THREAD_LOCAL, 900, 0), (RELAXED, 0, 0)] {
            assert_eq!(capture(stream, mode), 0);
            assert_eq!(elsewhere(), there, "{mode}");
            fails(sys::cuMemAlloc_v2(&raw mut address, 1), here);
            capture(stream, END);
        }
        assert_eq!(capture(stream, GLOBAL), 0);
        let mut relaxed = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
        ok(sys::cuThreadExchangeStreamCaptureMode(&raw mut relaxed));
        assert_eq!(relaxed, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        ok(sys::cuMemAlloc_v2(&raw mut address, 1));
        ok(sys::cuThreadExchangeStreamCaptureMode(&raw mut relaxed));
        page(0);
        fails(sys::cuEventQuery(event()), 900);
        assert_eq!(capture(stream, END), 901);
    });
}

#[test]
fn the_legacy_stream_is_of_no_use_while_a_blocking_one_is_captured() {
    on(ONE, || unsafe {
        bind(0);
        let (address, _) = page(0);
        let mut code = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (free, blocking) = (stream(), blocking_stream());
        assert_eq!(capture(free, RELAXED), 0);
        ok(sys::cuMemsetD8Async(address, 1, 1, ptr::null_mut()));
        assert_eq!(capture(blocking, RELAXED), 0);
        fails(sys::cuStreamIsCapturing(ptr::null_mut(), &raw mut code), 906);
        assert_eq!(status(blocking), 1);
        fails(sys::cuMemsetD8Async(address, 1, 1, ptr::null_mut()), 906);
        assert_eq!((status(blocking), status(free)), (2, 1));
        assert_eq!(capture(blocking, END), 901);
        fails(sys::cuStreamSynchronize(free), 900);
    });
}

#[test]
fn events_do_not_cross_the_border_of_a_capture() {
    on(ONE, || unsafe {
        bind(0);
        let (stream, other, third) = (stream(), stream(), stream());
        let (inside, outside) = (event(), event());
        ok(sys::cuEventRecord(outside, other));
        assert_eq!(capture(stream, RELAXED), 0);
        ok(sys::cuEventRecord(inside, stream));
        fails(sys::cuEventQuery(inside), 907);
        fails(sys::cuEventSynchronize(inside), 907);
        ok(sys::cuStreamWaitEvent(third, inside, 0));
        assert_eq!(status(third), 1);
        fails(sys::cuStreamWaitEvent(stream, outside, 0), 905);
        assert_eq!(status(stream), 2);
    });
}
