//! Events.

use std::ptr;

use cudarc::driver::sys;

use crate::steer::{count, hold, peek};
use crate::{ONE, TWO, bind, event, fails, ok, on, page, stream};

#[test]
fn an_event_stands_for_the_work_before_it() {
    on(ONE, || unsafe {
        bind(0);
        let (stream, event) = (stream(), event());
        ok(sys::cuEventQuery(event));
        ok(sys::cuEventSynchronize(event));
        hold(0, 1);
        ok(sys::cuEventRecord(event, stream));
        fails(sys::cuEventQuery(event), 600);
        hold(0, 0);
        ok(sys::cuEventSynchronize(event));
        ok(sys::cuEventQuery(event));
        assert_eq!(count("events", 0), 1);
        ok(sys::cuEventDestroy_v2(event));
        fails(sys::cuEventDestroy_v2(event), 400);
        fails(sys::cuEventQuery(event), 400);
        fails(sys::cuEventQuery(ptr::null_mut()), 400);
        assert_eq!(count("events", 0), 0);
    });
}

#[test]
fn a_stream_waits_for_an_event_of_another_device() {
    on(TWO, || unsafe {
        bind(1);
        let (other, recorded) = (stream(), event());
        hold(1, 1);
        ok(sys::cuEventRecord(recorded, other));
        bind(0);
        let (stream, (address, _)) = (stream(), page(0));
        ok(sys::cuStreamWaitEvent(stream, recorded, 0));
        ok(sys::cuEventDestroy_v2(recorded));
        ok(sys::cuMemsetD8Async(address, 1, 1, stream));
        fails(sys::cuStreamQuery(stream), 600);
        assert_eq!(peek(address, 1).unwrap(), [0]);
        hold(1, 0);
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(peek(address, 1).unwrap(), [1]);
        fails(sys::cuStreamWaitEvent(stream, recorded, 0), 400);
    });
}

#[test]
fn recording_again_does_not_change_who_waits_already() {
    on(TWO, || unsafe {
        bind(0);
        let (first, event) = (stream(), event());
        ok(sys::cuEventRecord(event, first));
        ok(sys::cuEventSynchronize(event));
        let second = stream();
        ok(sys::cuStreamWaitEvent(second, event, 0));
        ok(sys::cuStreamSynchronize(second));
        hold(0, 1);
        ok(sys::cuEventRecord(event, first));
        fails(sys::cuEventQuery(event), 600);
        ok(sys::cuStreamQuery(second));
        hold(0, 0);
    });
}

#[test]
fn events_tell_how_long_the_work_between_them_took() {
    on("GPU:64MiB,delay:5ms,seed:3", || unsafe {
        bind(0);
        let (stream, mut took) = (stream(), 0.0_f32);
        let timed = || {
            let mut event = ptr::null_mut();
            ok(sys::cuEventCreate(&raw mut event, 0));
            event
        };
        let (start, end, untimed) = (timed(), timed(), event());
        fails(sys::cuEventElapsedTime(&raw mut took, start, end), 400);
        hold(0, 1);
        ok(sys::cuEventRecord(start, stream));
        ok(sys::cuEventRecord(end, stream));
        ok(sys::cuEventRecord(untimed, stream));
        fails(sys::cuEventElapsedTime(&raw mut took, start, end), 600);
        hold(0, 0);
        ok(sys::cuStreamSynchronize(stream));
        fails(sys::cuEventElapsedTime(&raw mut took, start, untimed), 400);
        ok(sys::cuEventElapsedTime(&raw mut took, start, end));
        let mut back = 0.0_f32;
        ok(sys::cuEventElapsedTime(&raw mut back, end, start));
        assert!(took > 0.0 && took + back == 0.0, "{took} and {back}");
    });
}
