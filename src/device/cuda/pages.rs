//! Pages of a device's memory, by the driver's virtual memory management.

use std::ffi::c_int;

use cudarc::driver::sys::{
    CUdevice_attribute, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc,
    CUmemAllocationGranularity_flags, CUmemAllocationProp, CUmemAllocationType,
    CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType,
};

use super::context::Primary;
use super::frames::{self, Frames};
use super::library::Code;
use super::stream::once_ready;
use crate::device::Address;

/// What pages are at least, so that tensors of all devices lie alike.
const PAGE: usize = 2 << 20;

/// Whether the device has virtual memory management; some cards that are shared have not.
pub(super) fn are_here(primary: &Primary) -> bool {
    let attribute =
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED as c_int;
    primary.attribute(attribute) != 0
}

/// Bytes of a page.
pub(super) fn size(primary: &Primary) -> usize {
    let properties = properties(primary);
    let option = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM as c_int;
    let mut bytes = 0;
    // SAFETY: it reads the properties, and writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code =
        unsafe { primary.library.granularity(&raw mut bytes, &raw const properties, option) };
    if code == 0 && bytes > 0 { PAGE.next_multiple_of(bytes) } else { PAGE }
}

/// Addresses that have no memory.
pub(super) fn reserve(primary: &Primary, bytes: usize, page: usize) -> Result<Address, Code> {
    let mut start: CUdeviceptr = 0;
    // SAFETY: it writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe {
        let start = &raw mut start;
        once_ready(|| primary.library.reserve(start, bytes, page, 0, 0))
    };
    if code == 0 { Ok(address(start)) } else { Err(code) }
}

/// Gives addresses back, of which none has memory.
pub(super) fn release(primary: &Primary, start: Address, bytes: usize) -> Code {
    // SAFETY: they are from `reserve`, and nobody uses them any more.
    #[expect(unsafe_code, reason = "a function of a library")]
    unsafe {
        once_ready(|| primary.library.free_addresses(start as CUdeviceptr, bytes))
    }
}

/// Gives addresses memory, a page at a time, so that each page can leave alone; all of them or none.
/// What was laid aside comes first.
pub(super) fn commit(
    primary: &Primary,
    frames: &Frames,
    start: Address,
    bytes: usize,
    page: usize,
) -> Result<(), Code> {
    let mut done = 0;
    let mut outcome = Ok(());
    while done < bytes && outcome.is_ok() {
        outcome = map(primary, frames, start + done, page);
        done += if outcome.is_ok() { page } else { 0 };
    }
    let outcome = outcome.and_then(|()| give_access(primary, start, bytes));
    if outcome.is_err() {
        decommit(primary, start, done, page);
    }
    outcome
}

fn map(primary: &Primary, frames: &Frames, at: Address, page: usize) -> Result<(), Code> {
    let handle = match frames.take() {
        Some(handle) => handle,
        None => create(primary, page)?,
    };
    // SAFETY: the addresses are reserved and have no memory; the memory lives for as long as it is
    // mapped, so that its handle is not needed.
    #[expect(unsafe_code, reason = "a function of a library")]
    let mapped =
        unsafe { once_ready(|| primary.library.map(at as CUdeviceptr, page, 0, handle, 0)) };
    frames::release(primary, handle);
    if mapped == 0 { Ok(()) } else { Err(mapped) }
}

fn create(primary: &Primary, page: usize) -> Result<CUmemGenericAllocationHandle, Code> {
    let properties = properties(primary);
    let mut handle: CUmemGenericAllocationHandle = 0;
    // SAFETY: it reads the properties, and writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe {
        let (handle, properties) = (&raw mut handle, &raw const properties);
        once_ready(|| primary.library.create(handle, page, properties, 0))
    };
    if code == 0 { Ok(handle) } else { Err(code) }
}

/// In one call for all pages.
fn give_access(primary: &Primary, start: Address, bytes: usize) -> Result<(), Code> {
    let access = CUmemAccessDesc {
        location: location(primary),
        flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // SAFETY: all of the addresses have memory; it reads one description.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe {
        let access = &raw const access;
        once_ready(|| primary.library.set_access(start as CUdeviceptr, bytes, access, 1))
    };
    if code == 0 { Ok(()) } else { Err(code) }
}

/// Takes the memory of addresses away: what was mapped as one is unmapped as one. What the driver does
/// not unmap is lost with the device: nothing else can be done about it.
pub(super) fn decommit(primary: &Primary, start: Address, bytes: usize, page: usize) {
    for at in (start..start + bytes).step_by(page) {
        unmap(primary, at, page);
    }
}

/// The same, but keeps the memory for who commits next.
pub(super) fn lay_aside(
    primary: &Primary,
    frames: &Frames,
    start: Address,
    bytes: usize,
    page: usize,
) {
    for at in (start..start + bytes).step_by(page) {
        let handle = frames::retain(primary, at);
        let unmapped = unmap(primary, at, page) == 0;
        match handle {
            Some(handle) if unmapped => frames.keep(handle),
            Some(handle) => frames::release(primary, handle),
            None => {}
        }
    }
}

/// Takes the memory of a page away. Returns what the driver says.
fn unmap(primary: &Primary, at: Address, page: usize) -> Code {
    // SAFETY: a page was mapped here, and no stream uses it any more.
    #[expect(unsafe_code, reason = "a function of a library")]
    unsafe {
        once_ready(|| primary.library.unmap(at as CUdeviceptr, page))
    }
}

fn location(primary: &Primary) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: primary.device }
}

fn properties(primary: &Primary) -> CUmemAllocationProp {
    // SAFETY: NVIDIA's reference has what is not set be zero.
    #[expect(unsafe_code, reason = "a structure of C")]
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location(primary);
    properties
}

#[expect(clippy::cast_possible_truncation, reason = "CUDA is there on machines of 64 bits alone")]
pub(super) fn address(start: CUdeviceptr) -> Address {
    start as Address
}
