//! The devices, and what they tell about themselves without a context.

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::Bus;
use crate::code::{Answer, Code};
use crate::driver::{At, answer};
use crate::foreign::Out;
use crate::machine::Card;

pub struct Device {
    pub card: Card,
    pub ledger: Arc<Ledger>,
    pub bus: Bus,
    pub tally: Tally,
}

impl Device {
    pub fn new(card: Card) -> Self {
        let bytes = Bytes { taken: card.taken, used: 0 };
        let ledger = Ledger { total: card.total, bytes: Mutex::new(bytes) };
        let bus = Bus::new(card.bus);
        Self { card, ledger: Arc::new(ledger), bus, tally: Tally::default() }
    }
}

/// What happened on a device so far.
#[derive(Default)]
pub struct Tally {
    pub contexts_created: AtomicU64,
    pub context_synchronizes: AtomicU64,
    pub implicit_synchronizes: AtomicU64,
    pub pinned_bytes_in: AtomicU64,
    pub pageable_bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
}

impl Tally {
    pub fn add(number: &AtomicU64, more: u64) {
        number.fetch_add(more, Ordering::Relaxed);
    }

    /// Begins counting anew.
    pub fn reset(&self) {
        let Self {
            contexts_created,
            context_synchronizes,
            implicit_synchronizes,
            pinned_bytes_in,
            pageable_bytes_in,
            bytes_out,
        } = self;
        let numbers = [
            contexts_created,
            context_synchronizes,
            implicit_synchronizes,
            pinned_bytes_in,
            pageable_bytes_in,
            bytes_out,
        ];
        for number in numbers {
            number.store(0, Ordering::Relaxed);
        }
    }
}

/// The memory of a device, in bytes.
pub struct Ledger {
    pub total: u64,
    bytes: Mutex<Bytes>,
}

struct Bytes {
    taken: u64,
    used: u64,
}

impl Ledger {
    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn free(&self) -> u64 {
        let bytes = self.bytes();
        self.total.saturating_sub(bytes.taken).saturating_sub(bytes.used)
    }

    pub fn used(&self) -> u64 {
        self.bytes().used
    }

    /// Says how much others have taken.
    pub fn set_taken(&self, taken: u64) {
        self.bytes().taken = taken;
    }

    pub fn debit(&self, size: u64) -> Answer {
        let mut bytes = self.bytes();
        let left = self.total.saturating_sub(bytes.taken).saturating_sub(bytes.used);
        if size > left {
            return Err(Code::OUT_OF_MEMORY);
        }
        bytes.used += size;
        Ok(())
    }

    pub fn credit(&self, size: u64) {
        self.bytes().used -= size;
    }
}

/// How many devices there are.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> Code {
    answer("cuDeviceGetCount", At::Nowhere, |driver| {
        count.set(c_int::try_from(driver.devices.len()).map_err(|_| Code::UNKNOWN)?)
    })
}

/// The device with this number, which is its handle.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) -> Code {
    answer("cuDeviceGet", At::Nowhere, |driver| {
        driver.index(ordinal)?;
        device.set(ordinal)
    })
}

/// The product name, shortened to the space for it.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: Out<c_char>, space: c_int, device: c_int) -> Code {
    answer("cuDeviceGetName", At::Device(device), |driver| {
        name.set_text(&driver.devices[driver.index(device)?].card.name, space)
    })
}

/// The UUID.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: c_int) -> Code {
    answer("cuDeviceGetUuid", At::Device(device), |driver| {
        uuid.set(driver.devices[driver.index(device)?].card.uuid)
    })
}

/// The UUID; no device here is split.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) -> Code {
    cuDeviceGetUuid(uuid, device)
}

/// All memory, in bytes.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) -> Code {
    answer("cuDeviceTotalMem_v2", At::Device(device), |driver| {
        let total = driver.devices[driver.index(device)?].card.total;
        bytes.set(usize::try_from(total).map_err(|_| Code::UNKNOWN)?)
    })
}

/// One of the attributes that `CUdevice_attribute` numbers.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) -> Code {
    answer("cuDeviceGetAttribute", At::Device(device), |driver| {
        value.set(attribute_of(&driver.devices[driver.index(device)?].card, attribute)?)
    })
}

/// `CUdevice_attribute`, as far as somebody looks here.
mod attribute {
    use std::ffi::c_int;

    pub const MAX_THREADS_PER_BLOCK: c_int = 1;
    pub const WARP_SIZE: c_int = 10;
    pub const GPU_OVERLAP: c_int = 15;
    pub const MULTIPROCESSOR_COUNT: c_int = 16;
    pub const INTEGRATED: c_int = 18;
    pub const CAN_MAP_HOST_MEMORY: c_int = 19;
    pub const CONCURRENT_KERNELS: c_int = 31;
    pub const PCI_BUS_ID: c_int = 33;
    pub const MAX_THREADS_PER_MULTIPROCESSOR: c_int = 39;
    pub const ASYNC_ENGINE_COUNT: c_int = 40;
    pub const UNIFIED_ADDRESSING: c_int = 41;
    pub const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    pub const COMPUTE_CAPABILITY_MINOR: c_int = 76;
    pub const STREAM_PRIORITIES_SUPPORTED: c_int = 78;
    pub const CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: c_int = 91;
    pub const HOST_REGISTER_SUPPORTED: c_int = 99;
    pub const VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: c_int = 102;
    pub const READ_ONLY_HOST_REGISTER_SUPPORTED: c_int = 113;
    pub const HOST_NUMA_ID: c_int = 134;
    /// The last that CUDA 12 has. Those not named here are 0, such as `PCI_DEVICE_ID`,
    /// `PCI_DOMAIN_ID` and `MEMORY_POOLS_SUPPORTED`.
    pub const LAST: c_int = 144;
}

fn attribute_of(card: &Card, attribute: c_int) -> Answer<c_int> {
    Ok(match attribute {
        attribute::MAX_THREADS_PER_BLOCK => 1024,
        attribute::WARP_SIZE => 32,
        attribute::MULTIPROCESSOR_COUNT => 82,
        attribute::MAX_THREADS_PER_MULTIPROCESSOR => 1536,
        attribute::ASYNC_ENGINE_COUNT => 2,
        attribute::GPU_OVERLAP
        | attribute::CAN_MAP_HOST_MEMORY
        | attribute::CONCURRENT_KERNELS
        | attribute::UNIFIED_ADDRESSING
        | attribute::STREAM_PRIORITIES_SUPPORTED
        | attribute::HOST_REGISTER_SUPPORTED => 1,
        attribute::INTEGRATED => card.integrated.into(),
        attribute::PCI_BUS_ID => card.pci,
        attribute::COMPUTE_CAPABILITY_MAJOR => card.compute.0,
        attribute::COMPUTE_CAPABILITY_MINOR => card.compute.1,
        attribute::CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM => card.host_pointer.into(),
        attribute::VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED => card.virtual_memory.into(),
        attribute::READ_ONLY_HOST_REGISTER_SUPPORTED => card.read_only.into(),
        attribute::HOST_NUMA_ID => card.numa,
        other if (1..=attribute::LAST).contains(&other) => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}
