//! The pretended library, found before cudarc looks for one, and steered.

#![allow(unsafe_code, reason = "functions of a library")]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// How many devices there are, and bytes of each.
pub(crate) const DEVICES: u32 = 32;
pub(crate) const BYTES: u64 = 64 << 20;
/// One more is for what leaves a device unusable.
pub(crate) const LOST: u32 = DEVICES;
/// The last ones have no virtual memory management.
pub(crate) const MOVING: Range<u32> = DEVICES + 1..DEVICES + 17;

/// The library. cudarc finds it by its name, because it is loaded already.
pub(crate) fn library() -> &'static Library {
    static LOADED: OnceLock<Library> = OnceLock::new();
    LOADED.get_or_init(|| {
        let paged = (0..=DEVICES).map(|_| "Pretended:64MiB,");
        let moving = MOVING.map(|_| "Pretended:64MiB:no-vmm,");
        let devices = paged.chain(moving).collect::<String>();
        // SAFETY: no other thread of this process reads the environment before the library does.
        unsafe {
            std::env::set_var("PRETEND_CUDA", format!("{devices}delay:300us"));
        }
        // Where cargo has built it, beside this test.
        let test = std::env::current_exe().unwrap();
        let path = test.parent().unwrap().join("libpretend_cuda.so");
        // SAFETY: its constructors do nothing.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.unwrap()
    })
}

/// One of its functions.
pub(crate) fn function<T: Copy>(name: &str) -> T {
    // SAFETY: the caller says what the function is.
    *unsafe { library().get::<T>(name.as_bytes()) }.unwrap()
}

/// A number that it tells; of all devices for -1.
pub(crate) fn count(what: &str, device: i32) -> i64 {
    let count: unsafe extern "C" fn(*const c_char, c_int) -> i64 = function("pretend_cuda_count");
    let what = CString::new(what).unwrap();
    // SAFETY: as its documentation has it.
    unsafe { count(what.as_ptr(), device) }
}

/// Has the next `times` calls of a function on a device return a code.
pub(crate) fn fail(name: &str, code: u32, times: u64, device: u32) {
    let fail: unsafe extern "C" fn(*const c_char, c_uint, u64, u64, c_int) -> u32 =
        function("pretend_cuda_fail");
    let name = CString::new(name).unwrap();
    // SAFETY: as its documentation has it.
    let code = unsafe { fail(name.as_ptr(), code, times, 0, device.cast_signed()) };
    assert_eq!(code, 0);
}

/// Ends the failures of unregistering memory on a device, and unregisters some.
pub(crate) fn forgive_unregistering(device: u32, start: usize) {
    let unregister: unsafe extern "C" fn(usize) -> u32 = function("cuMemHostUnregister");
    let before = current();
    set_current(primary(device));
    // SAFETY: nobody reads it.
    while unsafe { unregister(start) } != 0 {}
    set_current(before);
}

/// Has others take so many bytes of a device.
pub(crate) fn set_taken(device: u32, bytes: u64) {
    let set: unsafe extern "C" fn(c_int, u64) -> u32 = function("pretend_cuda_set_taken");
    // SAFETY: as its documentation has it.
    assert_eq!(unsafe { set(device.cast_signed(), bytes) }, 0);
}

/// Has the streams of a device begin nothing, or go on.
pub(crate) fn hold(device: i32, held: bool) {
    let set: unsafe extern "C" fn(c_int, c_int) -> u32 = function("pretend_cuda_hold");
    // SAFETY: as its documentation has it.
    assert_eq!(unsafe { set(device, held.into()) }, 0);
}

/// Has every call on a device return a code; 0 has it be all right again.
pub(crate) fn lose(device: i32, code: u32) {
    let lose: unsafe extern "C" fn(c_int, c_uint) -> u32 = function("pretend_cuda_lose");
    // SAFETY: as its documentation has it.
    assert_eq!(unsafe { lose(device, code) }, 0);
}

/// Begins to capture a graph on a stream, in the mode that minds whatever any thread does, or ends
/// that. Returns the code.
pub(crate) fn capture(stream: usize, begin: bool) -> u32 {
    let capture: unsafe extern "C" fn(usize, c_int) -> u32 = function("pretend_cuda_capture");
    // SAFETY: as its documentation has it.
    unsafe { capture(stream, if begin { 0 } else { -1 }) }
}

/// The context that is current in this thread; 0 for none.
pub(crate) fn current() -> usize {
    let get: unsafe extern "C" fn(*mut usize) -> u32 = function("cuCtxGetCurrent");
    let mut context = 0;
    // SAFETY: it writes to where it is told.
    assert_eq!(unsafe { get(&raw mut context) }, 0);
    context
}

/// Makes a context current in this thread; 0 for none.
pub(crate) fn set_current(context: usize) {
    let set: unsafe extern "C" fn(usize) -> u32 = function("cuCtxSetCurrent");
    // SAFETY: it is a context, or none.
    assert_eq!(unsafe { set(context) }, 0);
}

/// The primary context of a device, retained once more.
pub(crate) fn primary(device: u32) -> usize {
    let init: unsafe extern "C" fn(c_uint) -> u32 = function("cuInit");
    let retain: unsafe extern "C" fn(*mut usize, c_int) -> u32 =
        function("cuDevicePrimaryCtxRetain");
    let mut context = 0;
    // SAFETY: it writes to where it is told.
    unsafe {
        assert_eq!(init(0), 0);
        assert_eq!(retain(&raw mut context, device.cast_signed()), 0);
    }
    context
}

/// Runs work on a stream, late; with the device's context current.
pub(crate) fn launch(device: u32, stream: usize, work: Box<dyn FnOnce() + Send>) {
    type Work = Box<dyn FnOnce() + Send>;
    unsafe extern "C" fn run(work: *mut c_void) {
        // SAFETY: it was made of a box, and is run once.
        let work: Box<Work> = unsafe { Box::from_raw(work.cast()) };
        work();
    }
    let launch: unsafe extern "C" fn(usize, unsafe extern "C" fn(*mut c_void), *mut c_void) -> u32 =
        function("cuLaunchHostFunc");
    let before = current();
    set_current(primary(device));
    let work = Box::into_raw(Box::new(work)).cast();
    // SAFETY: as NVIDIA's reference has it.
    assert_eq!(unsafe { launch(stream, run, work) }, 0);
    set_current(before);
}
