//! Host memory that devices reach on their own.

use std::ffi::{c_uint, c_void};
use std::fs;

use crate::code::{Answer, Code};
use crate::driver::{At, answer};
use crate::foreign::{DevicePtr, Out};
use crate::memory::{HOST_PAGE, Kind, Memory, Pinned};
use crate::pages::Region;

const PORTABLE: c_uint = 1;
const IO_MEMORY: c_uint = 4;
const READ_ONLY: c_uint = 8;
const KNOWN_FLAGS: c_uint = 15;

/// Takes pinned memory.
#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(memory: Out<u64>, size: usize, flags: c_uint) -> Code {
    answer("cuMemHostAlloc", At::Current, |driver| {
        let device = driver.current()?;
        driver.state().safe_to_call()?;
        if size == 0 || flags > 7 || memory.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let region = Region::shared(size).ok_or(Code::OUT_OF_MEMORY)?;
        let start = region.start() as u64;
        let kind = Kind::Allocated { _memory: region };
        let pinned = Pinned { size: size as u64, device, kind, alias: None };
        driver.memory_mut().pinned.insert(start, pinned);
        memory.set(start)
    })
}

/// Gives pinned memory back.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(memory: *mut c_void) -> Code {
    answer("cuMemFreeHost", At::Current, |driver| {
        driver.current()?;
        driver.state().safe_to_call()?;
        let start = memory.addr() as u64;
        let mut memory = driver.memory_mut();
        match memory.pinned.get(&start).map(|pinned| &pinned.kind) {
            Some(Kind::Allocated { .. }) => {
                memory.pinned.remove(&start);
                Ok(())
            }
            _ => Err(Code::INVALID_VALUE),
        }
    })
}

/// Pins memory that the caller has.
#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(memory: *mut c_void, size: usize, flags: c_uint) -> Code {
    answer("cuMemHostRegister_v2", At::Current, |driver| {
        let device = driver.current()?;
        driver.state().safe_to_call()?;
        let start = memory.expose_provenance() as u64;
        let end = start.checked_add(size as u64).ok_or(Code::INVALID_VALUE)?;
        if start == 0 || size == 0 || flags & !KNOWN_FLAGS != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let read_only = flags & READ_ONLY != 0;
        if flags & IO_MEMORY != 0 || (read_only && !driver.devices[device].card.read_only) {
            return Err(Code::NOT_SUPPORTED);
        }
        let mut memory = driver.memory_mut();
        if overlaps(&memory, start, end) {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        let writable = writable(start, end).ok_or(Code::INVALID_VALUE)?;
        if !writable && !read_only {
            return Err(Code::INVALID_VALUE);
        }
        let alias = if driver.devices.iter().all(|device| device.card.host_pointer) {
            None
        } else {
            Some(Region::reserve(size, 4096, 0).ok_or(Code::OUT_OF_MEMORY)?)
        };
        let kind = Kind::Registered { read_only, portable: flags & PORTABLE != 0 };
        memory.pinned.insert(start, Pinned { size: size as u64, device, kind, alias });
        Ok(())
    })
}

/// Whether a page of the range is pinned already.
fn overlaps(memory: &Memory, start: u64, end: u64) -> bool {
    let (start, end) = (start / HOST_PAGE * HOST_PAGE, end.next_multiple_of(HOST_PAGE));
    let before_end = memory.pinned.range(..end).next_back();
    before_end.is_some_and(|(at, pinned)| (at + pinned.size).next_multiple_of(HOST_PAGE) > start)
}

/// Whether the process may write to all of a range; `None` when it cannot even read some of it.
fn writable(start: u64, end: u64) -> Option<bool> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut writable = true;
    let mut reached = start;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let to = u64::from_str_radix(to, 16).ok()?;
        if from > reached || to <= reached {
            continue;
        }
        if !rest.starts_with('r') {
            return None;
        }
        writable &= rest.as_bytes().get(1) == Some(&b'w');
        reached = to;
        if reached >= end {
            return Some(writable);
        }
    }
    None
}

/// Makes memory pageable again, without waiting for work that uses it.
#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(memory: *mut c_void) -> Code {
    answer("cuMemHostUnregister", At::Current, |driver| {
        driver.current()?;
        driver.state().safe_to_call()?;
        let start = memory.addr() as u64;
        let mut memory = driver.memory_mut();
        match memory.pinned.get(&start).map(|pinned| &pinned.kind) {
            Some(Kind::Registered { .. }) => {
                memory.pinned.remove(&start);
                Ok(())
            }
            _ => Err(Code::HOST_MEMORY_NOT_REGISTERED),
        }
    })
}

/// Where devices find pinned memory.
#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetDevicePointer_v2(
    address: Out<DevicePtr>,
    memory: *mut c_void,
    flags: c_uint,
) -> Code {
    answer("cuMemHostGetDevicePointer_v2", At::Current, |driver| {
        driver.current()?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let found: Answer<_> = {
            let at = memory.addr() as u64;
            let memory = driver.memory();
            let pinned = memory.pinned(at).ok_or(Code::INVALID_VALUE);
            pinned.map(|(start, pinned)| pinned.device_address(start) + (at - start))
        };
        address.set(found?)
    })
}
