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
