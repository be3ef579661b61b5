//! Events: how far a stream had got when it was recorded.

use std::collections::HashMap;
use std::ffi::c_uint;
use std::time::Instant;

use crate::capture::Capture;
use crate::code::{Answer, Code};
use crate::driver::{At, answer};
use crate::foreign::Out;
use crate::stream::{Done, pending};
use crate::work::Work;

pub struct Event {
    pub device: usize,
    /// Whether it tells when it was.
    timed: bool,
    recorded: Recorded,
}

enum Recorded {
    Never,
    After(Done),
    InCapture(Capture),
}

const KNOWN_FLAGS: c_uint = 0b111;
const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;

fn find(events: &HashMap<usize, Event>, handle: usize) -> Answer<&Event> {
    events.get(&handle).ok_or(Code::INVALID_HANDLE)
}

impl Event {
    /// What is still to be done before it.
    fn pending(&self) -> Answer<Option<Done>> {
        match &self.recorded {
            Recorded::Never => Ok(None),
            Recorded::After(done) => Ok(Some(done.clone()).filter(pending)),
            Recorded::InCapture(_) => Err(Code::CAPTURED_EVENT),
        }
    }

    /// When it was.
    fn at(&self) -> Answer<Instant> {
        match &self.recorded {
            _ if !self.timed => Err(Code::INVALID_HANDLE),
            Recorded::Never => Err(Code::INVALID_HANDLE),
            Recorded::After(done) => done.get().copied().ok_or(Code::NOT_READY),
            Recorded::InCapture(_) => Err(Code::CAPTURED_EVENT),
        }
    }
}

/// Makes an event.
#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<usize>, flags: c_uint) -> Code {
    answer("cuEventCreate", At::Current, |driver| {
        let device = driver.current()?;
        let timed_between_processes = flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0;
        if flags & !KNOWN_FLAGS != 0 || timed_between_processes || event.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut state = driver.state();
        let handle = state.handle();
        let timed = flags & DISABLE_TIMING == 0;
        state.events.insert(handle, Event { device, timed, recorded: Recorded::Never });
        event.set(handle)
    })
}

/// Lets an event stand for all work on a stream so far; both must be of one context.
#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, stream: usize) -> Code {
    answer("cuEventRecord", At::Event(event), |driver| {
        driver.bound()?;
        let mut state = driver.state();
        let device = find(&state.events, event)?.device;
        let handle = driver.stream(&mut state, stream)?;
        if state.streams[&handle].device != device {
            return Err(Code::INVALID_HANDLE);
        }
        let done = driver.enqueue(&mut state, handle, Work::Nothing, Vec::new())?;
        let capture = state.streams[&handle].capture;
        if let Some(event) = state.events.get_mut(&event) {
            event.recorded = match (done, capture) {
                (Some(done), _) => Recorded::After(done),
                (None, Some(capture)) => Recorded::InCapture(capture),
                (None, None) => Recorded::Never,
            };
        }
        Ok(())
    })
}

/// Whether the work before an event is done.
#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> Code {
    answer("cuEventQuery", At::Event(event), |driver| {
        let mut state = driver.state();
        let found = find(&state.events, event)?;
        let (device, pending) = (found.device, found.pending()?);
        state.contexts[device].healthy()?;
        state.safe_to_call()?;
        if pending.is_some() { Err(Code::NOT_READY) } else { Ok(()) }
    })
}

/// Waits until the work before an event is done.
#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> Code {
    answer("cuEventSynchronize", At::Event(event), |driver| {
        driver.bound()?;
        let (device, pending) = {
            let mut state = driver.state();
            let found = find(&state.events, event)?;
            let (device, pending) = (found.device, found.pending()?);
            state.contexts[device].healthy()?;
            state.safe_to_call()?;
            (device, pending)
        };
        driver.wait_for(device, pending.as_slice())
    })
}

/// Milliseconds from one event to another of the same device, once both are done.
#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) -> Code {
    answer("cuEventElapsedTime", At::Event(start), |driver| {
        driver.bound()?;
        let state = driver.state();
        let (start, end) = (find(&state.events, start)?, find(&state.events, end)?);
        if start.device != end.device || milliseconds.is_null() {
            return Err(Code::INVALID_HANDLE);
        }
        state.contexts[start.device].healthy()?;
        let (start, end) = (start.at()?, end.at()?);
        let (later, sign) = if end >= start { (end - start, 1.0) } else { (start - end, -1.0) };
        milliseconds.set(later.as_secs_f32() * 1e3 * sign)
    })
}

/// Ends an event; who waits for it goes on waiting.
#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> Code {
    answer("cuEventDestroy_v2", At::Event(event), |driver| {
        driver.bound()?;
        let mut state = driver.state();
        let device = find(&state.events, event)?.device;
        state.contexts[device].healthy()?;
        state.events.remove(&event);
        Ok(())
    })
}

/// Lets what is put on a stream from now on wait for an event, which may be of another device.
///
/// A stream that waits for an event of a capture takes part in it; a stream in capture cannot wait
/// for work outside of it.
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> Code {
    answer("cuStreamWaitEvent", At::Stream(stream), |driver| {
        driver.bound()?;
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let after = match &find(&state.events, event)?.recorded {
            Recorded::Never => return Ok(()),
            Recorded::After(done) => done.clone(),
            Recorded::InCapture(capture) => {
                let capture = *capture;
                if state.contexts[state.streams[&handle].device].legacy == Some(handle) {
                    return Err(Code::STREAM_CAPTURE_IMPLICIT);
                }
                if let Some(stream) = state.streams.get_mut(&handle) {
                    stream.capture = stream.capture.or(Some(capture));
                }
                return Ok(());
            }
        };
        if let Some(capture) = state.streams.get_mut(&handle).and_then(|s| s.capture.as_mut()) {
            capture.failed = true;
            return Err(Code::STREAM_CAPTURE_ISOLATION);
        }
        driver.enqueue(&mut state, handle, Work::Nothing, vec![after]).map(drop)
    })
}
