//! Plain device memory, and what pointers are.

use std::ffi::{c_int, c_uint};

use crate::code::{Answer, Code};
use crate::context;
use crate::device::Tally;
use crate::driver::{At, answer};
use crate::foreign::{DevicePtr, Out};
use crate::memory::{GRANULARITY, Kind, Memory, Physical};

/// The memory of the current context's device that is free, and all of it, in bytes.
#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Code {
    answer("cuMemGetInfo_v2", At::Current, |driver| {
        let ledger = &driver.devices[driver.current()?].ledger;
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| Code::UNKNOWN);
        free.set(size(ledger.free())?)?;
        total.set(size(ledger.total)?)
    })
}

/// Takes memory, in whole granules.
#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: Out<DevicePtr>, size: usize) -> Code {
    answer("cuMemAlloc_v2", At::Current, |driver| {
        let device = driver.current()?;
        driver.state().safe_to_call()?;
        if size == 0 || address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let granules = size.checked_next_multiple_of(GRANULARITY).ok_or(Code::OUT_OF_MEMORY)?;
        let physical = Physical::new(&driver.devices[device].ledger, device, granules)?;
        let given = driver.memory_mut().give(driver.devices.len(), physical, size as u64)?;
        address.set(given)
    })
}

/// Gives memory back, once all work of its device is done.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: DevicePtr) -> Code {
    answer("cuMemFree_v2", At::Address(address), |driver| {
        driver.current()?;
        driver.state().safe_to_call()?;
        if address == 0 {
            return Ok(());
        }
        let given = |memory: &Memory| {
            let mapping = memory.mappings.get(&address).filter(|mapping| mapping.given.is_some());
            mapping.map(|mapping| mapping.physical.device).ok_or(Code::INVALID_VALUE)
        };
        let device = given(&driver.memory())?;
        Tally::add(&driver.devices[device].tally.implicit_synchronizes, 1);
        driver.wait_for_all(device)?;
        let mut memory = driver.memory_mut();
        given(&memory)?;
        memory.mappings.remove(&address);
        Ok(())
    })
}

/// What there is at an address.
struct Found {
    /// The device, and its context unless the memory belongs to none.
    device: usize,
    context: usize,
    on_device: bool,
    device_pointer: DevicePtr,
    host_pointer: Option<u64>,
    start: u64,
    size: u64,
    number: u64,
}

fn find(memory: &Memory, at: DevicePtr) -> Option<Found> {
    if let Some((start, mapping)) = memory.mapping(at) {
        let device = mapping.physical.device;
        let (start, size) = match (&mapping.given, memory.reservation(at)) {
            (None, Some((start, region))) => (start, region.size() as u64),
            (Some((asked, _)), _) => (start, *asked),
            (None, None) => (start, mapping.size),
        };
        return Some(Found {
            device,
            context: if mapping.given.is_some() { context::handle_of(device) } else { 0 },
            on_device: true,
            device_pointer: at,
            host_pointer: None,
            start,
            size,
            number: mapping.number,
        });
    }
    let own = memory.pinned(at).map(|_| at);
    let own = own.or_else(|| memory.pinned_for_device(at).map(|(own, _)| own))?;
    let (start, pinned) = memory.pinned(own)?;
    Some(Found {
        device: pinned.device,
        context: context::handle_of(pinned.device),
        on_device: false,
        device_pointer: pinned.device_address(start) + (own - start),
        host_pointer: Some(own),
        start,
        size: pinned.size,
        number: if matches!(pinned.kind, Kind::Allocated { .. }) { start } else { 0 },
    })
}

/// One of the attributes that `CUpointer_attribute` numbers; those that say yes or no fill a byte.
#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttribute(value: Out<u8>, attribute: c_uint, at: DevicePtr) -> Code {
    answer("cuPointerGetAttribute", At::Address(at), |driver| {
        let memory = driver.memory();
        let found = find(&memory, at);
        match (attribute, &found, memory.reservation(at)) {
            (13, _, _) => return value.set(found.is_some().into()), // MAPPED
            (11, None, Some((start, _))) => return value.cast().set(start),
            (12, None, Some((_, region))) => return value.cast().set(region.size()),
            _ => {}
        }
        let found = found.ok_or(Code::INVALID_VALUE)?;
        match attribute {
            1 => value.cast().set(found.context),
            2 => value.cast::<c_uint>().set(if found.on_device { 2 } else { 1 }), // MEMORY_TYPE
            3 => {
                let current = context::current().ok_or(Code::INVALID_CONTEXT)?;
                let reached = !found.on_device || found.device == current;
                reached.then_some(()).ok_or(Code::INVALID_VALUE)?;
                value.cast().set(found.device_pointer)
            }
            4 => value.cast().set(found.host_pointer.ok_or(Code::INVALID_VALUE)?),
            7 => value.cast().set(found.number), // BUFFER_ID
            8 | 10 => value.set(0),              // IS_MANAGED, IS_LEGACY_CUDA_IPC_CAPABLE
            9 => value.cast().set(ordinal(found.device)?),
            11 => value.cast().set(found.start),
            12 => value.cast().set(found.size),
            _ => Err(Code::NOT_SUPPORTED),
        }
    })
}

fn ordinal(device: usize) -> Answer<c_int> {
    c_int::try_from(device).map_err(|_| Code::UNKNOWN)
}
