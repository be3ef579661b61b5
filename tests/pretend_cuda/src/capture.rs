//! Streams in capture: what is put on them is never done, and much else is forbidden meanwhile.
//!
//! See `cuStreamBeginCapture` and `cuThreadExchangeStreamCaptureMode`. A capture begins and ends by
//! [`pretend_cuda_capture`](crate::control); what it captures is forgotten.

use std::cell::Cell;
use std::ffi::c_uint;
use std::thread::{self, ThreadId};

use crate::code::{Answer, Code};
use crate::driver::{At, Driver, State, answer};
use crate::foreign::{In, Out};

const GLOBAL: c_uint = 0;
const RELAXED: c_uint = 2;

/// A stream's part in a capture.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    pub mode: c_uint,
    pub thread: ThreadId,
    /// Something forbidden was tried.
    pub failed: bool,
}

thread_local! {
    static MODE: Cell<c_uint> = const { Cell::new(GLOBAL) };
}

impl State {
    /// Whether a stream captures what is put on it. The legacy stream cannot be used while a
    /// blocking one is captured.
    pub fn captures(&mut self, handle: usize) -> Answer<bool> {
        let stream = &self.streams[&handle];
        match stream.capture {
            Some(Capture { failed: true, .. }) => Err(Code::STREAM_CAPTURE_INVALIDATED),
            Some(_) => Ok(true),
            None if self.contexts[stream.device].legacy == Some(handle) => {
                let device = stream.device;
                self.fail_captures(Code::STREAM_CAPTURE_IMPLICIT, |stream, _| {
                    stream.0 == device && stream.1
                })?;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Nobody may wait for a stream in capture, nor, in most modes, for anything else meanwhile.
    pub fn not_captured(&mut self, handle: usize) -> Answer {
        if let Some(capture) = self.streams.get_mut(&handle).and_then(|s| s.capture.as_mut()) {
            capture.failed = true;
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        self.captures(handle)?;
        self.safe_to_call()
    }

    /// Calls that a capture would not see are forbidden, as the modes say.
    pub fn safe_to_call(&mut self) -> Answer {
        let (mode, me) = (MODE.get(), thread::current().id());
        if mode == RELAXED {
            return Ok(());
        }
        self.fail_captures(Code::STREAM_CAPTURE_UNSUPPORTED, |_, capture| {
            let ours = capture.thread == me && capture.mode != RELAXED;
            ours || (mode == GLOBAL && capture.mode == GLOBAL)
        })
    }

    /// Fails, and lets the captures fail that stand against it: chosen by the stream's device,
    /// whether it blocks, and its capture.
    fn fail_captures(
        &mut self,
        code: Code,
        against: impl Fn((usize, bool), &Capture) -> bool,
    ) -> Answer {
        let mut allowed = Ok(());
        for stream in self.streams.values_mut() {
            let of = (stream.device, stream.blocking);
            if let Some(capture) = stream.capture.as_mut().filter(|capture| against(of, capture)) {
                capture.failed = true;
                allowed = Err(code);
            }
        }
        allowed
    }
}

impl Driver {
    /// A device with a stream in capture cannot be waited for.
    pub fn no_capture_on(&self, device: usize) -> Answer {
        let code = Code::STREAM_CAPTURE_UNSUPPORTED;
        self.state().fail_captures(code, |(of, _), _| of == device)?;
        self.state().safe_to_call()
    }
}

/// Whether a stream is in capture (1), or was until something forbidden was tried (2).
#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: usize, status: Out<c_uint>) -> Code {
    answer("cuStreamIsCapturing", At::Stream(stream), |driver| {
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        let stream = &state.streams[&handle];
        let legacy = state.contexts[stream.device].legacy == Some(handle);
        let blocked = |other: &crate::stream::Stream| {
            other.device == stream.device && other.blocking && other.capture.is_some()
        };
        if legacy && state.streams.values().any(blocked) {
            return Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
        status.set(stream.capture.map_or(0, |capture| if capture.failed { 2 } else { 1 }))
    })
}

/// Exchanges how this thread gets along with captures.
#[unsafe(no_mangle)]
extern "C" fn cuThreadExchangeStreamCaptureMode(mode: Out<c_uint>) -> Code {
    answer("cuThreadExchangeStreamCaptureMode", At::Nowhere, |_| {
        let wanted = In::from(mode).get()?;
        if wanted > RELAXED {
            return Err(Code::INVALID_VALUE);
        }
        mode.set(MODE.replace(wanted))
    })
}
