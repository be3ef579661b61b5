//! Streams and events of a device.

use std::cell::OnceCell;
use std::ffi::c_uint;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUdevice_attribute, CUdeviceptr, CUevent, CUstream};

use super::blocks::Blocks;
use super::context::Primary;
use super::frames::Frames;
use super::library::{Code, NOT_READY};
use crate::device::{Address, Fence, MemoryError, Name, near_card};
use crate::wait::exiting;

/// `CU_STREAM_NON_BLOCKING`: out of step with the default stream, where torch computes.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`: it tells when it passed.
const WITH_TIME: c_uint = 0;
/// `CU_EVENT_DISABLE_TIMING`: faster.
const WITHOUT_TIME: c_uint = 2;
/// `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`.
const CAPTURE_IMPLICIT: Code = 906;
/// How long a wait sleeps between two looks, at first and at most.
const NAPS: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// How long to wait before a call is made again for which the driver was not ready.
const RETRIES: [Duration; 4] = [
    Duration::from_micros(20),
    Duration::from_micros(200),
    Duration::from_millis(2),
    Duration::from_millis(20),
];

/// What a call returns once the driver is ready for it, or in the end.
pub(super) fn once_ready(call: impl Fn() -> Code) -> Code {
    for nap in RETRIES {
        let code = call();
        if code != NOT_READY {
            return code;
        }
        thread::sleep(nap);
    }
    call()
}

/// A device's driver, for those who have something of it.
pub(super) struct Opened {
    pub(super) name: Name,
    pub(super) primary: Primary,
    /// Its plain allocations.
    pub(super) blocks: Blocks,
    /// What pages have left.
    pub(super) frames: Frames,
}

impl Opened {
    /// Runs `call` with the device's context current, and puts the thread's own back. Returns its code.
    pub(super) fn enter<T>(
        &self,
        call: impl FnOnce(&Primary) -> Result<T, Code>,
    ) -> Result<Result<T, Code>, MemoryError> {
        let _entered = self.primary.enter().map_err(|why| self.lost(why))?;
        Ok(call(&self.primary))
    }

    /// The same, for a call of which every code is an error.
    pub(super) fn within<T>(
        &self,
        what: &str,
        call: impl FnOnce(&Primary) -> Result<T, Code>,
    ) -> Result<T, MemoryError> {
        self.enter(call)?.map_err(|code| self.lost(self.told(what, code)))
    }

    /// A code as a sentence.
    pub(super) fn told(&self, what: &str, code: Code) -> String {
        format!("{what} says {}", self.primary.library.told(code))
    }

    /// Has the calling thread run near the device, where there are processors that are further away.
    pub(super) fn stay_near(&self) {
        use CUdevice_attribute as Known;
        let asked = [
            Known::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
            Known::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
            Known::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
        ];
        let [domain, bus, device] = asked.map(|what| self.primary.attribute(what as i32));
        let address = format!("{domain:04x}:{bus:02x}:{device:02x}.0");
        if let Some(near) = near_card(Path::new("/sys"), &address) {
            near.stay();
        }
    }

    pub(super) fn lost(&self, why: String) -> MemoryError {
        MemoryError::Lost { device: self.name, why }
    }

    /// A stream of our own, by its handle. It lives as long as the process.
    pub(super) fn stream(&self) -> Result<usize, MemoryError> {
        self.within("cuStreamCreate", |primary| {
            let mut stream: CUstream = null_mut();
            // SAFETY: it writes to where it is told.
            #[expect(unsafe_code, reason = "a function of a library")]
            let code = unsafe { primary.library.stream_create(&raw mut stream, NON_BLOCKING) };
            checked(code).map(|()| stream.expose_provenance())
        })
    }

    /// Whether a graph is captured on a stream, or on one that the default stream would wait for.
    pub(super) fn captures(&self, stream: usize) -> bool {
        let entered = self.enter(|primary| {
            let mut status = 0;
            // SAFETY: it writes to where it is told.
            #[expect(unsafe_code, reason = "a function of a library")]
            match unsafe { primary.library.is_capturing(handle(stream), &raw mut status) } {
                0 => Ok(status != 0),
                CAPTURE_IMPLICIT => Ok(true),
                code => Err(code),
            }
        });
        // Of a device that does not answer, the next call tells it.
        matches!(entered, Ok(Ok(true)))
    }

    /// Marks where a stream is.
    pub(super) fn record(self: &Arc<Self>, stream: usize) -> Result<Recorded, MemoryError> {
        self.event(stream, WITHOUT_TIME)
    }

    /// The same, so that it tells [when](Opened::between) that was.
    pub(super) fn mark(self: &Arc<Self>, stream: usize) -> Result<Recorded, MemoryError> {
        self.event(stream, WITH_TIME)
    }

    fn event(self: &Arc<Self>, stream: usize, flags: c_uint) -> Result<Recorded, MemoryError> {
        // The event would be the graph's, and never pass.
        if self.captures(stream) {
            return Err(self.lost("a graph is captured on the stream".to_owned()));
        }
        let event = self.within("cuEventCreate", |primary| {
            let mut event: CUevent = null_mut();
            // SAFETY: it writes to where it is told.
            #[expect(unsafe_code, reason = "a function of a library")]
            let code = unsafe { primary.library.event_create(&raw mut event, flags) };
            checked(code).map(|()| event.expose_provenance())
        })?;
        let recorded = Recorded { device: self.clone(), event };
        self.within("cuEventRecord", |primary| {
            // SAFETY: the event was just made, and the stream is one of this context.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe { primary.library.event_record(recorded.handle(), handle(stream)) })
        })?;
        Ok(recorded)
    }

    /// How long it took from one mark to a later one, to half a microsecond; `None` if they have not
    /// passed.
    pub(super) fn between(&self, earlier: &Recorded, later: &Recorded) -> Option<Duration> {
        let mut milliseconds = 0.0_f32;
        let code = self.enter(|primary| {
            let (start, end) = (earlier.handle(), later.handle());
            // SAFETY: both events live, and it writes to where it is told.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe { primary.library.event_time(&raw mut milliseconds, start, end) })
        });
        code.ok()?.ok()?;
        Duration::try_from_secs_f32(milliseconds.max(0.0) / 1e3).ok()
    }

    /// Copies bytes of the host to the device, on a stream.
    pub(super) fn copy(
        &self,
        stream: usize,
        from: usize,
        to: Address,
        bytes: usize,
    ) -> Result<(), MemoryError> {
        self.within("cuMemcpyHtoDAsync", |primary| {
            let (from, to) = (std::ptr::with_exposed_provenance(from), to as CUdeviceptr);
            // SAFETY: whoever asks keeps the bytes as they are until the stream has passed; all of the
            // device's addresses have memory until then.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe { primary.library.copy_to_device(to, from, bytes, handle(stream)) })
        })
    }

    /// Has a stream wait.
    pub(super) fn after(&self, stream: usize, event: &Recorded) -> Result<(), MemoryError> {
        self.within("cuStreamWaitEvent", |primary| {
            // SAFETY: both are of this context, and the driver keeps what it needs of the event.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe { primary.library.stream_wait(handle(stream), event.handle(), 0) })
        })
    }
}

fn handle(stream: usize) -> CUstream {
    std::ptr::with_exposed_provenance_mut(stream)
}

pub(super) fn checked(code: Code) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// A place in a stream.
pub(super) struct Recorded {
    device: Arc<Opened>,
    event: usize,
}

impl Recorded {
    fn handle(&self) -> CUevent {
        std::ptr::with_exposed_provenance_mut(self.event)
    }
}

/// The end of what a thread has given a stream to do. Where it could not be marked it is marked later,
/// which is as good.
pub(super) struct Marked {
    device: Arc<Opened>,
    stream: usize,
    event: OnceCell<Recorded>,
}

impl Marked {
    pub(super) fn new(device: &Arc<Opened>, stream: usize) -> Self {
        let marked = Self { device: device.clone(), stream, event: OnceCell::new() };
        // It is tried again when somebody asks.
        let _ = marked.event();
        marked
    }

    fn event(&self) -> Result<&Recorded, MemoryError> {
        match self.event.get() {
            Some(event) => Ok(event),
            None => {
                let event = self.device.record(self.stream)?;
                Ok(self.event.get_or_init(|| event))
            }
        }
    }

    /// Whether it is done, or will not be; false where nobody knows.
    pub(super) fn is_over(&self) -> bool {
        let known: Result<&dyn Fence, _> = self.event().map(|event| event as &dyn Fence);
        known.is_ok_and(<dyn Fence>::is_over)
    }

    /// Waits until it is over. Returns false if the process ends.
    pub(super) fn wait(&self) -> Result<bool, MemoryError> {
        self.event()?.wait(None)
    }
}

impl Fence for Recorded {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        self.device.within("cuEventQuery", |primary| {
            // SAFETY: the event lives.
            #[expect(unsafe_code, reason = "a function of a library")]
            match unsafe { primary.library.event_query(self.handle()) } {
                0 => Ok(true),
                NOT_READY => Ok(false),
                code => Err(code),
            }
        })
    }

    fn wait(&self, until: Option<Instant>) -> Result<bool, MemoryError> {
        // Looked at, not synchronised with: that could not be ended, nor be done while somebody
        // captures a graph.
        let (mut nap, longest) = NAPS;
        while !self.has_passed()? {
            let now = Instant::now();
            let left = until.map(|until| until.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) || exiting() {
                return Ok(false);
            }
            thread::sleep(left.map_or(nap, |left| left.min(nap)));
            nap = (nap * 2).min(longest);
        }
        Ok(true)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if exiting() || !self.device.primary.library.is_here() {
            return;
        }
        // An event that cannot be destroyed is the driver's.
        let _ = self.device.within("cuEventDestroy", |primary| {
            // SAFETY: nobody has it any more.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe { primary.library.event_destroy(self.handle()) })
        });
    }
}
