//! What streams do.

use std::ffi::{c_uint, c_void};
use std::hash::Hasher;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::code::{Answer, Code};
use crate::device::Tally;
use crate::driver::{Driver, call_back};
use crate::foreign::DevicePtr;
use crate::memory::{Access, By, Memory, Piece};

/// How much goes over the bus at once. A copy reads each piece of pinned memory when its turn comes.
const PIECE: usize = 256 << 10;

/// A `CUhostFn`.
pub type HostFunction = extern "C" fn(*mut c_void);

pub enum Work {
    /// For events: it only keeps its place.
    Nothing,
    Copy {
        from: Place,
        to: Place,
        size: usize,
    },
    Fill {
        to: DevicePtr,
        byte: u8,
        size: usize,
    },
    Check(Check),
    Call {
        function: HostFunction,
        data: usize,
    },
}

/// One end of a copy.
pub enum Place {
    Device(DevicePtr),
    Pinned(u64),
    /// What pageable memory held when the copy was asked for.
    Staged(Vec<u8>),
    /// Memory of a caller who waits.
    Waiting(usize),
}

/// The kernel of `pretend_cuda_launch_check`.
pub struct Check {
    pub at: DevicePtr,
    pub size: usize,
    pub expected: u64,
    /// Where an `AtomicU32` is, as long as the caller lets the stream work.
    pub result: usize,
}

impl Work {
    /// Does it, on a stream of this device.
    pub fn perform(self, driver: &Driver, device: usize) -> Answer {
        match self {
            Self::Nothing => Ok(()),
            Self::Copy { from, to, size } => copy(driver, device, &from, &to, size),
            Self::Fill { to, byte, size } => fill(driver, device, to, byte, size),
            Self::Check(check) => check.perform(driver, device),
            Self::Call { function, data } => {
                call_back(|| function(ptr::with_exposed_provenance_mut(data)));
                Ok(())
            }
        }
    }
}

impl Place {
    fn piece(
        &self,
        memory: &Memory,
        at: usize,
        want: usize,
        by: By,
        needed: Access,
    ) -> Answer<Piece> {
        match self {
            Self::Device(start) => memory.device_piece(start + at as u64, want, by, needed),
            Self::Pinned(start) => memory.pinned_piece(start + at as u64, want),
            Self::Staged(bytes) => {
                Ok(Piece { start: bytes.as_ptr().wrapping_add(at).cast_mut(), size: want })
            }
            Self::Waiting(start) => {
                Ok(Piece { start: ptr::with_exposed_provenance_mut(start + at), size: want })
            }
        }
    }
}

fn copy(driver: &Driver, device: usize, from: &Place, to: &Place, size: usize) -> Answer {
    let Tally { pinned_bytes_in, pageable_bytes_in, bytes_out, .. } = &driver.devices[device].tally;
    let counted = match (from, to) {
        (Place::Pinned(_), _) => Some(pinned_bytes_in),
        (Place::Staged(_), _) => Some(pageable_bytes_in),
        (_, Place::Pinned(_) | Place::Waiting(_)) => Some(bytes_out),
        _ => None,
    };
    let by = By::Copy(device);
    let mut at = 0;
    while at < size {
        let mut left = PIECE.min(size - at);
        if let Some(counted) = counted {
            driver.devices[device].bus.pass(left);
            Tally::add(counted, left as u64);
        }
        let memory = driver.memory();
        while left > 0 {
            let source = from.piece(&memory, at, left, by, Access::Read)?;
            let target = to.piece(&memory, at, source.size, by, Access::ReadWrite)?;
            // SAFETY: both pieces are there for as long as the memory is locked, or until the work
            // is done; that others may write at the same time is the caller's affair, as on a GPU.
            unsafe { ptr::copy(source.start, target.start, target.size) };
            at += target.size;
            left -= target.size;
        }
    }
    Ok(())
}

fn fill(driver: &Driver, device: usize, to: DevicePtr, byte: u8, size: usize) -> Answer {
    kernel(driver, device, to, size, Access::ReadWrite, |piece| {
        // SAFETY: the memory is locked while we are called.
        unsafe { piece.start.write_bytes(byte, piece.size) };
    })
}

/// Runs something on each piece of device memory, with the rights of a kernel.
fn kernel(
    driver: &Driver,
    device: usize,
    start: DevicePtr,
    size: usize,
    needed: Access,
    mut each: impl FnMut(Piece),
) -> Answer {
    let mut at = 0;
    while at < size {
        let memory = driver.memory();
        let want = PIECE.min(size - at);
        let piece = memory.device_piece(start + at as u64, want, By::Kernel(device), needed)?;
        each(piece);
        at += piece.size;
    }
    Ok(())
}

impl Check {
    const RIGHT: u32 = 1;
    const WRONG: u32 = 2;
    const ILLEGAL: u32 = 3;

    fn perform(&self, driver: &Driver, device: usize) -> Answer {
        let mut sum = Sum::default();
        let byte = u8::try_from(self.expected);
        let mut right = true;
        let outcome = kernel(driver, device, self.at, self.size, Access::Read, |piece| {
            // SAFETY: the memory is locked while we are called; that another stream may write to it
            // at the same time is what the check is there to notice.
            let bytes = unsafe { slice::from_raw_parts(piece.start, piece.size) };
            match byte {
                // The first is the byte, and every other is like the one before it.
                Ok(byte) => right &= bytes[0] == byte && bytes[1..] == bytes[..bytes.len() - 1],
                Err(_) => sum.write(bytes),
            }
        });
        right &= byte.is_ok() || sum.finish() == self.expected;
        let result: *mut u32 = ptr::with_exposed_provenance_mut(self.result);
        // SAFETY: the caller keeps the place, aligned, until the stream has worked.
        let result = unsafe { AtomicU32::from_ptr(result) };
        let noted = match outcome {
            Err(_) => Self::ILLEGAL,
            Ok(()) if right => Self::RIGHT,
            Ok(()) => Self::WRONG,
        };
        result.store(noted, Ordering::Release);
        outcome
    }
}

/// FNV-1a in 64 bits.
pub struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for Sum {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Lets a stream call a function of the host, which must not call the driver.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(
    stream: usize,
    function: Option<HostFunction>,
    data: *mut c_void,
) -> c_uint {
    crate::copy::put("cuLaunchHostFunc", stream, || {
        let function = function.ok_or(Code::INVALID_VALUE)?;
        Ok(Work::Call { function, data: data.expose_provenance() })
    })
    .0
}
