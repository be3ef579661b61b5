//! Virtual memory management: addresses, physical memory, and the one mapped to the other. None of
//! it needs a context.

use std::ffi::{c_int, c_uint};

use crate::code::{Answer, Code};
use crate::driver::{At, Driver, answer};
use crate::foreign::{AccessOf, DevicePtr, In, Location, Out, Properties};
use crate::memory::{Access, GRANULARITY, HOST_PAGE, Physical};
use crate::pages::Region;

fn aligned(number: u64) -> Answer {
    if number.is_multiple_of(GRANULARITY as u64) { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

fn none(flags: u64) -> Answer {
    if flags == 0 { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

impl Driver {
    /// A device that manages virtual memory, and whose work has not failed.
    fn with_virtual_memory(&self, device: c_int) -> Answer<usize> {
        let index = self.index(device)?;
        if !self.devices[index].card.virtual_memory {
            return Err(Code::NOT_SUPPORTED);
        }
        self.healthy(index)?;
        Ok(index)
    }

    /// Nothing works on mappings while the device behind one of them is lost or failed.
    fn owners_healthy(&self, at: DevicePtr, size: u64) -> Answer {
        let owners = self.memory().owners(at, size)?;
        owners.into_iter().try_for_each(|owner| self.healthy(owner))
    }
}

/// Reserves addresses.
#[unsafe(no_mangle)]
extern "C" fn cuMemAddressReserve(
    address: Out<DevicePtr>,
    size: usize,
    alignment: usize,
    hint: DevicePtr,
    flags: u64,
) -> Code {
    answer("cuMemAddressReserve", At::Nowhere, |driver| {
        if !driver.devices.iter().any(|device| device.card.virtual_memory) {
            return Err(Code::NOT_SUPPORTED);
        }
        none(flags)?;
        aligned(size as u64)?;
        let power = alignment == 0 || alignment.is_power_of_two();
        if size == 0 || !power || !hint.is_multiple_of(HOST_PAGE) || address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let hint = usize::try_from(hint).map_err(|_| Code::INVALID_VALUE)?;
        let region = Region::reserve(size, alignment.max(GRANULARITY), hint);
        let region = region.ok_or(Code::OUT_OF_MEMORY)?;
        let start = region.start() as u64;
        driver.memory_mut().reservations.insert(start, region);
        address.set(start)
    })
}

/// Gives addresses back, exactly those of one reservation, without anything mapped.
#[unsafe(no_mangle)]
extern "C" fn cuMemAddressFree(address: DevicePtr, size: usize) -> Code {
    answer("cuMemAddressFree", At::Nowhere, |driver| {
        let mut memory = driver.memory_mut();
        let known = memory.reservations.get(&address).is_some_and(|region| region.size() == size);
        let mapped = || memory.mappings.range(address..address + size as u64).next().is_some();
        if !known || mapped() {
            return Err(Code::INVALID_VALUE);
        }
        memory.reservations.remove(&address);
        Ok(())
    })
}

/// Takes physical memory of a device.
#[unsafe(no_mangle)]
extern "C" fn cuMemCreate(handle: Out<u64>, size: usize, prop: In<Properties>, flags: u64) -> Code {
    answer("cuMemCreate", At::properties(prop.get()), |driver| {
        none(flags)?;
        aligned(size as u64)?;
        if size == 0 || handle.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let device = driver.with_virtual_memory(prop.get()?.device()?)?;
        let physical = Physical::new(&driver.devices[device].ledger, device, size)?;
        let mut memory = driver.memory_mut();
        let number = memory.number();
        memory.physical.insert(number, physical);
        handle.set(number)
    })
}

/// Lets a handle go. What is mapped keeps the memory.
#[unsafe(no_mangle)]
extern "C" fn cuMemRelease(handle: u64) -> Code {
    answer("cuMemRelease", At::Physical(handle), |driver| {
        let device = driver.memory().physical.get(&handle).map(|physical| physical.device);
        driver.healthy(device.ok_or(Code::INVALID_VALUE)?)?;
        let released = driver.memory_mut().physical.remove(&handle);
        released.map(drop).ok_or(Code::INVALID_VALUE)
    })
}

/// A handle more of what is mapped at an address.
#[unsafe(no_mangle)]
extern "C" fn cuMemRetainAllocationHandle(handle: Out<u64>, address: DevicePtr) -> Code {
    answer("cuMemRetainAllocationHandle", At::Address(address), |driver| {
        let physical = driver.memory().mapped_at(address).ok_or(Code::INVALID_VALUE)?;
        driver.healthy(physical.device)?;
        if handle.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut memory = driver.memory_mut();
        let number = memory.number();
        memory.physical.insert(number, physical);
        handle.set(number)
    })
}

/// Maps physical memory, from its beginning, to reserved addresses.
#[unsafe(no_mangle)]
extern "C" fn cuMemMap(
    address: DevicePtr,
    size: usize,
    offset: usize,
    handle: u64,
    flags: u64,
) -> Code {
    answer("cuMemMap", At::Physical(handle), |driver| {
        none(flags)?;
        aligned(address)?;
        aligned(size as u64)?;
        none(offset as u64)?;
        let device = driver.memory().physical.get(&handle).map(|physical| physical.device);
        driver.healthy(device.ok_or(Code::INVALID_VALUE)?)?;
        driver.memory_mut().map(driver.devices.len(), address, size as u64, handle)
    })
}

/// Takes whole mappings away, without waiting for work that uses them.
#[unsafe(no_mangle)]
extern "C" fn cuMemUnmap(address: DevicePtr, size: usize) -> Code {
    answer("cuMemUnmap", At::Address(address), |driver| {
        driver.owners_healthy(address, size as u64)?;
        driver.memory_mut().unmap(address, size as u64)
    })
}

/// Says which devices may read or write whole mappings: only the one whose memory it is can.
#[unsafe(no_mangle)]
extern "C" fn cuMemSetAccess(
    address: DevicePtr,
    size: usize,
    wanted: In<AccessOf>,
    count: usize,
) -> Code {
    answer("cuMemSetAccess", At::Address(address), |driver| {
        if count == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let mut grants = Vec::new();
        for wanted in wanted.get_all(count)? {
            let device = driver.with_virtual_memory(wanted.location.device()?)?;
            grants.push((device, Access::of(wanted.flags)?));
        }
        driver.owners_healthy(address, size as u64)?;
        let mut memory = driver.memory_mut();
        let owners = memory.owners(address, size as u64)?;
        for &(device, access) in &grants {
            if access != Access::None && owners.iter().any(|&owner| owner != device) {
                return Err(Code::INVALID_DEVICE);
            }
        }
        let grant = |(device, access)| memory.grant(address, size as u64, device, access);
        grants.into_iter().try_for_each(grant)
    })
}

/// What a device may do at an address.
#[unsafe(no_mangle)]
extern "C" fn cuMemGetAccess(flags: Out<u64>, location: In<Location>, address: DevicePtr) -> Code {
    answer("cuMemGetAccess", At::Address(address), |driver| {
        let device = driver.index(location.get()?.device()?)?;
        flags.set(match driver.memory().access(address, device).ok_or(Code::INVALID_VALUE)? {
            Access::None => 0,
            Access::Read => 1,
            Access::ReadWrite => 3,
        })
    })
}

/// What addresses and sizes are multiples of.
#[unsafe(no_mangle)]
extern "C" fn cuMemGetAllocationGranularity(
    granularity: Out<usize>,
    prop: In<Properties>,
    option: c_uint,
) -> Code {
    answer("cuMemGetAllocationGranularity", At::properties(prop.get()), |driver| {
        let device = driver.index(prop.get()?.device()?)?;
        if !driver.devices[device].card.virtual_memory {
            return Err(Code::NOT_SUPPORTED);
        }
        if option > 1 {
            return Err(Code::INVALID_VALUE);
        }
        granularity.set(GRANULARITY)
    })
}
