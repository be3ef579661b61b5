//! The pretended driver as cudarc finds and calls it. Each test has a process of its own, and in
//! it the machine that it describes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so a test fails")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "nearly every one is a call of the driver, to which a test gives what it must check"
)]

mod capture;
mod context;
mod events;
mod failures;
mod memory;
mod pinned;
mod safe;
mod start;
mod steer;
mod streams;

use std::any::type_name;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::{env, fs, ptr};

use cudarc::driver::sys::{self, CUcontext, CUdeviceptr, CUevent, CUresult, CUstream};
use pretend_cuda as _;

const PAGE: usize = 2 << 20;
/// One device, which begins its work at once.
const ONE: &str = "GPU:1GiB,delay:0us";
/// Two of them.
const TWO: &str = "GPU:1GiB,GPU:1GiB,delay:0us";

#[track_caller]
fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

#[track_caller]
fn fails(result: CUresult, code: u32) {
    assert_eq!(result as u32, code, "{result:?}");
}

/// A folder in which the library has the name that drivers have.
fn folder() -> PathBuf {
    let built = env::current_exe().unwrap().parent().unwrap().join("libpretend_cuda.so");
    assert!(built.exists(), "{} was not built", built.display());
    let folder = built.with_file_name("pretend_cuda");
    fs::create_dir_all(&folder).unwrap();
    match symlink(built, folder.join("libcuda.so.1")) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("{error}"),
        _ => folder,
    }
}

/// Runs the body of a test in a process of its own, with this machine, and returns how that ended.
fn end_of<F: FnOnce()>(machine: &str, body: F) -> Option<ExitStatus> {
    if env::var_os("PRETEND_CUDA_ALONE").is_some() {
        body();
        return None;
    }
    let name = type_name::<F>().strip_suffix("::{{closure}}").unwrap();
    let (_, name) = name.split_once("::").unwrap();
    let mut alone = Command::new(env::current_exe().unwrap());
    alone.args(["--exact", name, "--nocapture"]).env("PRETEND_CUDA_ALONE", "1");
    alone.env("PRETEND_CUDA", machine).env("LD_LIBRARY_PATH", folder());
    let ended = alone.env_remove("CUDA_VISIBLE_DEVICES").output().unwrap();
    print!("{}", String::from_utf8_lossy(&ended.stdout));
    eprint!("{}", String::from_utf8_lossy(&ended.stderr));
    Some(ended.status)
}

/// The same, and it must end well.
#[track_caller]
fn on<F: FnOnce()>(machine: &str, body: F) {
    if let Some(end) = end_of(machine, body) {
        assert!(end.success(), "{end}");
    }
}

/// Makes the primary context of a device current.
fn bind(device: i32) -> CUcontext {
    let mut context = ptr::null_mut();
    unsafe {
        ok(sys::cuInit(0));
        ok(sys::cuDevicePrimaryCtxRetain(&raw mut context, device));
        ok(sys::cuCtxSetCurrent(context));
    }
    context
}

fn location(device: i32) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

fn properties(device: i32) -> sys::CUmemAllocationProp {
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location(device);
    properties
}

fn try_create(device: i32, size: usize) -> Result<u64, CUresult> {
    let (mut handle, properties) = (0, properties(device));
    match unsafe { sys::cuMemCreate(&raw mut handle, size, &raw const properties, 0) } {
        CUresult::CUDA_SUCCESS => Ok(handle),
        code => Err(code),
    }
}

fn create(device: i32, size: usize) -> u64 {
    try_create(device, size).unwrap()
}

fn reserve(size: usize) -> CUdeviceptr {
    let mut address = 0;
    ok(unsafe { sys::cuMemAddressReserve(&raw mut address, size, 0, 0, 0) });
    address
}

fn allow(device: i32, address: CUdeviceptr, size: usize) -> CUresult {
    let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    let access = sys::CUmemAccessDesc { location: location(device), flags };
    unsafe { sys::cuMemSetAccess(address, size, &raw const access, 1) }
}

/// A page of a device's memory, mapped and accessible, and its handle.
fn page(device: i32) -> (CUdeviceptr, u64) {
    let (address, handle) = (reserve(PAGE), create(device, PAGE));
    ok(unsafe { sys::cuMemMap(address, PAGE, 0, handle, 0) });
    ok(allow(device, address, PAGE));
    (address, handle)
}

fn stream() -> CUstream {
    let mut stream = ptr::null_mut();
    ok(unsafe { sys::cuStreamCreate(&raw mut stream, 1) });
    stream
}

fn blocking_stream() -> CUstream {
    let mut stream = ptr::null_mut();
    ok(unsafe { sys::cuStreamCreate(&raw mut stream, 0) });
    stream
}

fn event() -> CUevent {
    let mut event = ptr::null_mut();
    ok(unsafe { sys::cuEventCreate(&raw mut event, 2) });
    event
}

/// Pinned memory.
fn pinned(size: usize) -> &'static mut [u8] {
    let mut start = ptr::null_mut();
    ok(unsafe { sys::cuMemHostAlloc(&raw mut start, size, 1) });
    unsafe { std::slice::from_raw_parts_mut(start.cast(), size) }
}
