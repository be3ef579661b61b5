//! Copies and fills, put on streams.
//!
//! When a call returns, and what it has read by then, follows "API synchronization behavior": memory
//! that is not pinned is read at once and written before the call returns, and pinned memory is
//! read and written when the stream gets there, unless the call is not an asynchronous one.

use std::ffi::c_uchar;
use std::slice;

use crate::code::{Answer, Code};
use crate::driver::{At, Driver, answer};
use crate::foreign::DevicePtr;
use crate::memory::Host;
use crate::work::{Place, Work};

/// Puts something on a stream of the current context.
pub fn put(name: &'static str, stream: usize, work: impl FnOnce() -> Answer<Work>) -> Code {
    answer(name, At::Stream(stream), |driver| {
        let current = driver.current()?;
        let work = work()?;
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        if state.streams[&handle].device != current {
            return Err(Code::INVALID_HANDLE);
        }
        driver.enqueue(&mut state, handle, work, Vec::new()).map(drop)
    })
}

/// A copy between host and device.
struct Copy {
    host: usize,
    device: DevicePtr,
    size: usize,
    stream: usize,
    /// Whether the call may return earlier.
    asynchronous: bool,
}

impl Copy {
    /// The device of the stream, and how the host memory is used.
    fn check(&self, driver: &'static Driver) -> Answer<(usize, Host)> {
        driver.current()?;
        let device = {
            let mut state = driver.state();
            let handle = driver.stream(&mut state, self.stream)?;
            let device = state.streams[&handle].device;
            if !self.asynchronous {
                state.not_captured(handle)?;
            }
            device
        };
        let memory = driver.memory();
        if !memory.known(self.device, self.size) {
            return Err(Code::INVALID_VALUE);
        }
        Ok((device, memory.host(self.host as u64, self.size, device)?))
    }

    /// Puts it on its stream, and waits for it if need be.
    fn put(
        &self,
        driver: &'static Driver,
        device: usize,
        from: Place,
        to: Place,
        wait: bool,
    ) -> Answer {
        let done = {
            let mut state = driver.state();
            let handle = driver.stream(&mut state, self.stream)?;
            driver.enqueue(
                &mut state,
                handle,
                Work::Copy { from, to, size: self.size },
                Vec::new(),
            )?
        };
        match done {
            Some(done) if wait => driver.wait_for(device, &[done]),
            _ => Ok(()),
        }
    }

    fn to_device(&self, driver: &'static Driver) -> Answer {
        if self.size == 0 {
            return driver.current().map(drop);
        }
        let (device, host) = self.check(driver)?;
        let to = Place::Device(self.device);
        if let Host::Pinned { .. } = host {
            let from = Place::Pinned(self.host as u64);
            return self.put(driver, device, from, to, !self.asynchronous);
        }
        if !self.asynchronous {
            // The reference has the stream synchronized before such memory is read.
            let (from, to) = (Place::Staged(Vec::new()), Place::Device(self.device));
            Self { size: 0, ..*self }.put(driver, device, from, to, true)?;
        }
        let start: *const u8 = std::ptr::with_exposed_provenance(self.host);
        // SAFETY: the caller vouches for as many bytes as it wants copied, while we are called.
        let bytes = unsafe { slice::from_raw_parts(start, self.size) };
        self.put(driver, device, Place::Staged(bytes.to_vec()), to, false)
    }

    fn to_host(&self, driver: &'static Driver) -> Answer {
        if self.size == 0 {
            return driver.current().map(drop);
        }
        let (device, host) = self.check(driver)?;
        let from = Place::Device(self.device);
        match host {
            Host::Pinned { read_only: true } => Err(Code::INVALID_VALUE),
            Host::Pinned { .. } => {
                let to = Place::Pinned(self.host as u64);
                self.put(driver, device, from, to, !self.asynchronous)
            }
            Host::Pageable => self.put(driver, device, from, Place::Waiting(self.host), true),
        }
    }
}

/// Copies to a device, in the order of the legacy stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(device: DevicePtr, host: usize, size: usize) -> Code {
    answer("cuMemcpyHtoD_v2", At::Current, |driver| {
        Copy { host, device, size, stream: 0, asynchronous: false }.to_device(driver)
    })
}

/// Copies to the host, in the order of the legacy stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(host: usize, device: DevicePtr, size: usize) -> Code {
    answer("cuMemcpyDtoH_v2", At::Current, |driver| {
        Copy { host, device, size, stream: 0, asynchronous: false }.to_host(driver)
    })
}

/// Copies to a device, in the order of a stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    device: DevicePtr,
    host: usize,
    size: usize,
    stream: usize,
) -> Code {
    answer("cuMemcpyHtoDAsync_v2", At::Stream(stream), |driver| {
        Copy { host, device, size, stream, asynchronous: true }.to_device(driver)
    })
}

/// Copies to the host, in the order of a stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(
    host: usize,
    device: DevicePtr,
    size: usize,
    stream: usize,
) -> Code {
    answer("cuMemcpyDtoHAsync_v2", At::Stream(stream), |driver| {
        Copy { host, device, size, stream, asynchronous: true }.to_host(driver)
    })
}

/// Copies on a device, in the order of a stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(
    to: DevicePtr,
    from: DevicePtr,
    size: usize,
    stream: usize,
) -> Code {
    put("cuMemcpyDtoDAsync_v2", stream, || {
        known(to, size)?;
        known(from, size)?;
        Ok(Work::Copy { from: Place::Device(from), to: Place::Device(to), size })
    })
}

/// Fills device memory with a byte, in the order of a stream.
#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: DevicePtr, byte: c_uchar, size: usize, stream: usize) -> Code {
    put("cuMemsetD8Async", stream, || {
        known(to, size)?;
        Ok(Work::Fill { to, byte, size })
    })
}

fn known(at: DevicePtr, size: usize) -> Answer {
    if Driver::get()?.memory().known(at, size) { Ok(()) } else { Err(Code::INVALID_VALUE) }
}
