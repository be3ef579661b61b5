//! What tests do to the pretended machine while it runs.
//!
//! Each function can be called by its name through `dlsym` or `ctypes`, returns a `CUresult` unless
//! it says otherwise, and needs a `cuInit` before it unless it says otherwise. A device of -1 means
//! any or all of them.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::hash::Hasher;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::calls::{self, Failure};
use crate::capture::Capture;
use crate::code::{Answer, Code};
use crate::copy;
use crate::device::{Device, Tally};
use crate::driver::Driver;
use crate::foreign::{DevicePtr, In};
use crate::memory::{Memory, Piece};
use crate::work::{Check, Sum, Work};

fn steer(steering: impl FnOnce(&'static Driver) -> Answer) -> Code {
    Driver::get().and_then(steering).into()
}

/// Says how many bytes of a device's memory others have taken.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_set_taken(device: c_int, bytes: u64) -> Code {
    steer(|driver| {
        driver.devices[driver.index(device)?].ledger.set_taken(bytes);
        Ok(())
    })
}

/// Sets the speed of a device's bus, in bytes per second; 0 for that of the host.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_set_bus(device: c_int, bytes_per_second: u64) -> Code {
    steer(|driver| {
        driver.devices[driver.index(device)?].bus.set_speed(bytes_per_second);
        Ok(())
    })
}

/// Sets up to how many microseconds late work begins, by a chance that streams made from now on
/// begin with this seed.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_set_delay(microseconds: u64, seed: u64) -> Code {
    steer(|driver| {
        driver.delay.store(microseconds.saturating_mul(1000), Ordering::Relaxed);
        driver.seed.store(seed, Ordering::Relaxed);
        Ok(())
    })
}

/// Lets the next `times` calls of a function (`u64::MAX`: all), after the next `after` ones, return
/// a code without doing anything; on one device, as far as the call tells it. With the code 0 those that
/// were to fail there do not. Needs no `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_fail(
    function: In<c_char>,
    code: c_uint,
    times: u64,
    after: u64,
    device: c_int,
) -> Code {
    let fail = || {
        if Driver::is_forked() {
            return Err(Code::NOT_INITIALIZED);
        }
        let failure = Failure::new(code, times, after, usize::try_from(device).ok());
        let function = function.text()?;
        calls::with(|calls| calls.fail(&function, failure));
        Ok(())
    };
    fail().into()
}

/// Takes all failures of `pretend_cuda_fail` and of the description back. Needs no `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_forgive() {
    if Driver::is_forked() {
        return;
    }
    calls::with(calls::Calls::forgive);
}

/// Loses a device. With a code from 700 to 799, work on it has failed: calls that need its context
/// or its memory return the code. With any other, every call on the device returns it. With 0 it is
/// all right again.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_lose(device: c_int, code: c_uint) -> Code {
    steer(|driver| {
        let device = driver.index(device)?;
        let mut state = driver.state();
        let context = &mut state.contexts[device];
        let of_work = (700..800).contains(&code);
        context.failed = of_work.then_some(Code(code));
        context.lost = (code != 0 && !of_work).then_some(Code(code));
        drop(state);
        driver.changed.notify_all();
        Ok(())
    })
}

/// Lets the streams of a device begin nothing (1), or go on (0). Who waits for them waits.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_hold(device: c_int, held: c_int) -> Code {
    steer(|driver| {
        let device = driver.index(device)?;
        driver.state().contexts[device].held = held != 0;
        driver.changed.notify_all();
        Ok(())
    })
}

/// Puts a stream in capture, in the mode of `CUstreamCaptureMode` and for this thread, or ends its
/// capture (-1), which then returns `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED` if something forbidden
/// was tried.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_capture(stream: usize, mode: c_int) -> Code {
    steer(|driver| {
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        let legacy = state.contexts.iter().any(|context| context.legacy == Some(handle));
        if legacy || mode > 2 {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        let Some(stream) = state.streams.get_mut(&handle) else { return Err(Code::INVALID_HANDLE) };
        let Ok(mode) = c_uint::try_from(mode) else {
            let failed = stream.capture.take().is_some_and(|capture| capture.failed);
            return if failed { Err(Code::STREAM_CAPTURE_INVALIDATED) } else { Ok(()) };
        };
        if stream.capture.is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        stream.capture = Some(Capture { mode, thread: thread::current().id(), failed: false });
        Ok(())
    })
}

/// Tells a number, or -1 for one that there is not, and in a forked child. Before `cuInit`, all of
/// them are 0.
///
/// By the name of a function: how often it was called; per device as far as the call tells it. And:
///
/// | name | number |
/// |---|---|
/// | `contexts_created` | primary contexts made so far |
/// | `context_synchronizes` | waits for whole devices so far, by `cuCtxSynchronize` |
/// | `implicit_synchronizes` | the same, by `cuMemFree` |
/// | `pinned_bytes_in`, `pageable_bytes_in`, `bytes_out` | bytes copied to the device, or from it, so far |
/// | `pinned_bytes` | bytes pinned now |
/// | `used_bytes` | bytes of physical memory taken now, without contexts' |
/// | `handles` | handles of physical memory now |
/// | `mappings` | mappings of `cuMemMap` now |
/// | `allocations` | what `cuMemAlloc` gave, now |
/// | `reservations`, `reserved_bytes` | reservations of addresses now; they have no device |
/// | `events`, `streams` | events and streams now |
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_count(what: In<c_char>, device: c_int) -> i64 {
    let count = || {
        if Driver::is_forked() {
            return Err(Code::NOT_INITIALIZED);
        }
        let what = what.text()?;
        let device = usize::try_from(device).ok();
        if what.starts_with("cu") {
            return Ok(calls::with(|calls| calls.count(&what, device)));
        }
        match Driver::get() {
            Ok(driver) => driver.count(&what, device),
            Err(_) => Ok(0),
        }
    };
    count().ok().and_then(|count: u64| i64::try_from(count).ok()).unwrap_or(-1)
}

impl Driver {
    fn count(&self, what: &str, device: Option<usize>) -> Answer<u64> {
        let tally = |number: fn(&Tally) -> &AtomicU64| {
            self.sum(device, |_, it| number(&it.tally).load(Ordering::Relaxed))
        };
        let on = |of: usize| device.is_none_or(|device| device == of);
        let pinned = |memory: &Memory| -> u64 {
            memory.pinned.values().filter(|p| on(p.device)).map(|p| p.size).sum()
        };
        let mappings = |given| {
            let memory = self.memory();
            let kind = memory.mappings.values().filter(|mapping| mapping.given.is_some() == given);
            kind.filter(|mapping| on(mapping.physical.device)).count() as u64
        };
        Ok(match what {
            "contexts_created" => tally(|tally| &tally.contexts_created),
            "context_synchronizes" => tally(|tally| &tally.context_synchronizes),
            "implicit_synchronizes" => tally(|tally| &tally.implicit_synchronizes),
            "pinned_bytes_in" => tally(|tally| &tally.pinned_bytes_in),
            "pageable_bytes_in" => tally(|tally| &tally.pageable_bytes_in),
            "bytes_out" => tally(|tally| &tally.bytes_out),
            "pinned_bytes" => pinned(&self.memory()),
            "used_bytes" => self.sum(device, |index, it| {
                let context = self.state().contexts[index].retained > 0;
                it.ledger.used() - if context { it.card.context } else { 0 }
            }),
            "handles" => {
                let memory = self.memory();
                memory.physical.values().filter(|physical| on(physical.device)).count() as u64
            }
            "mappings" => mappings(false),
            "allocations" => mappings(true),
            "reservations" => self.memory().reservations.len() as u64,
            "reserved_bytes" => {
                self.memory().reservations.values().map(|region| region.size() as u64).sum()
            }
            "events" => {
                self.state().events.values().filter(|event| on(event.device)).count() as u64
            }
            "streams" => self.sum(device, |index, _| self.state().streams_of(index) as u64),
            _ => return Err(Code::NOT_FOUND),
        })
    }

    fn sum(&self, device: Option<usize>, of: impl Fn(usize, &Device) -> u64) -> u64 {
        let devices = self.devices.iter().enumerate();
        let chosen = devices.filter(|(index, _)| device.is_none_or(|device| device == *index));
        chosen.map(|(index, device)| of(index, device)).sum()
    }
}

/// Sets what is counted so far, not what there is now, to 0. Needs no `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_reset_counts() {
    if Driver::is_forked() {
        return;
    }
    calls::with(calls::Calls::reset);
    if let Ok(driver) = Driver::get() {
        driver.devices.iter().for_each(|device| device.tally.reset());
    }
}

/// Reads device memory at once, whatever streams do and whoever may; 700 if some of it is not mapped.
///
/// # Safety
/// `to` is valid for writing `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pretend_cuda_peek(from: DevicePtr, to: *mut c_void, size: usize) -> Code {
    steer(|driver| {
        let memory = driver.memory();
        let mut at = 0;
        while at < size {
            let piece = memory.peek(from + at as u64, size - at)?;
            // SAFETY: the piece is there while the memory is locked, and the caller vouches for `to`.
            unsafe { ptr::copy(piece.start, to.cast::<u8>().add(at), piece.size) };
            at += piece.size;
        }
        Ok(())
    })
}

/// Puts a kernel on a stream that looks, when its turn comes, whether device memory is as expected:
/// every byte, up to 255, or else the sum of `pretend_cuda_hash`. It stores 1 for yes, 2 for no, and
/// 3 for memory that it may not read, whereupon the context fails as after any such kernel.
///
/// `result` has room for 32 bits, aligned, until the stream has done that.
#[unsafe(no_mangle)]
pub extern "C" fn pretend_cuda_launch_check(
    stream: usize,
    at: DevicePtr,
    size: usize,
    expected: u64,
    result: *mut u32,
) -> Code {
    copy::put("pretend_cuda_launch_check", stream, || {
        if result.is_null() || !result.is_aligned() {
            return Err(Code::INVALID_VALUE);
        }
        Ok(Work::Check(Check { at, size, expected, result: result.expose_provenance() }))
    })
}

/// The FNV-1a sum of some bytes, in 64 bits.
///
/// # Safety
/// `bytes` is valid for reading `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pretend_cuda_hash(bytes: *const u8, size: usize) -> u64 {
    let mut sum = Sum::default();
    if size > 0 {
        // SAFETY: the caller vouches for it.
        sum.write(unsafe { slice::from_raw_parts(bytes, size) });
    }
    sum.finish()
}

impl Memory {
    fn peek(&self, at: DevicePtr, want: usize) -> Answer<Piece> {
        let (start, mapping) = self.mapping(at).ok_or(Code::ILLEGAL_ADDRESS)?;
        Ok(mapping.view(at - start, want))
    }
}
