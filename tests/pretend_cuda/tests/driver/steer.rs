//! The functions by which tests steer the driver, found as any test would find them.

use std::ffi::{CString, c_char, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUstream, culib};

macro_rules! control {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal ($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)+) => {$(
        pub(crate) fn $name($($argument: $kind),*) $(-> $result)? {
            type Function = unsafe extern "C" fn($($kind),*) $(-> $result)?;
            unsafe { culib().get::<Function>($symbol).unwrap()($($argument),*) }
        }
    )+};
}

control! {
    set_taken = b"pretend_cuda_set_taken" (device: i32, bytes: u64) -> u32;
    set_bus = b"pretend_cuda_set_bus" (device: i32, bytes_per_second: u64) -> u32;
    set_delay = b"pretend_cuda_set_delay" (microseconds: u64, seed: u64) -> u32;
    fail_raw = b"pretend_cuda_fail" (function: *const c_char, code: u32, times: u64, after: u64, device: i32) -> u32;
    forgive = b"pretend_cuda_forgive" ();
    lose = b"pretend_cuda_lose" (device: i32, code: u32) -> u32;
    hold = b"pretend_cuda_hold" (device: i32, held: i32) -> u32;
    capture = b"pretend_cuda_capture" (stream: CUstream, mode: i32) -> u32;
    count_raw = b"pretend_cuda_count" (what: *const c_char, device: i32) -> i64;
    reset_counts = b"pretend_cuda_reset_counts" ();
    peek_raw = b"pretend_cuda_peek" (from: CUdeviceptr, to: *mut c_void, size: usize) -> u32;
    launch_check = b"pretend_cuda_launch_check" (stream: CUstream, at: CUdeviceptr, size: usize, expected: u64, result: *mut u32) -> u32;
    hash_raw = b"pretend_cuda_hash" (bytes: *const u8, size: usize) -> u64;
}

pub(crate) fn fail(function: &str, code: u32, times: u64, after: u64, device: i32) {
    let function = CString::new(function).unwrap();
    assert_eq!(fail_raw(function.as_ptr(), code, times, after, device), 0);
}

pub(crate) fn count(what: &str, device: i32) -> i64 {
    let what = CString::new(what).unwrap();
    count_raw(what.as_ptr(), device)
}

/// A number of bytes.
pub(crate) fn bytes(what: &str, device: i32) -> usize {
    usize::try_from(count(what, device)).unwrap()
}

pub(crate) fn peek(from: CUdeviceptr, size: usize) -> Result<Vec<u8>, u32> {
    let mut bytes = vec![0; size];
    match peek_raw(from, bytes.as_mut_ptr().cast(), size) {
        0 => Ok(bytes),
        code => Err(code),
    }
}

pub(crate) fn hash(bytes: &[u8]) -> u64 {
    hash_raw(bytes.as_ptr(), bytes.len())
}
