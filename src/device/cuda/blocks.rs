//! Memory of a device without virtual memory management: plain allocations, a block each.
//!
//! `cuMemFree` waits for all that the device does. So a block that leaves for others of the same length
//! is kept for them, and counts as free until it is theirs or given back.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUdeviceptr;

use super::context::Primary;
use super::library::{Code, OUT_OF_MEMORY};
use super::pages::address;
use super::stream::once_ready;
use crate::device::Address;

/// How large blocks are at most where tensors share them, and how many of them a device has at least.
const LARGEST: usize = 32 << 20;
const LEAST: usize = 256;

/// Bytes of a block that tensors share, by those of the device: less of it is lost to the last pages
/// of large ones, and less has to come for one tensor with small ones.
pub(super) fn size(total: usize, page: usize) -> usize {
    (total / LEAST).min(LARGEST).next_multiple_of(page)
}

/// The blocks of one device.
#[derive(Default)]
pub(super) struct Blocks {
    /// Where they begin.
    starts: Mutex<HashSet<Address>>,
    /// Those that nobody has, and their bytes.
    kept: Mutex<Vec<(Address, usize)>>,
}

impl Blocks {
    fn starts(&self) -> MutexGuard<'_, HashSet<Address>> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Address, usize)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a block begins here: what lies before is another one's, however near.
    pub(super) fn begin_at(&self, address: Address) -> bool {
        self.starts().contains(&address)
    }

    /// Bytes of those that nobody has.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept().iter().map(|(_, bytes)| *bytes as u64).sum()
    }

    /// A block, one that was kept if there is one of as many bytes.
    pub(super) fn allocate(&self, primary: &Primary, bytes: usize) -> Result<Address, Code> {
        let mut kept = self.kept();
        if let Some(at) = kept.iter().position(|(_, length)| *length == bytes) {
            return Ok(kept.swap_remove(at).0);
        }
        drop(kept);
        let mut allocated = allocate(primary, bytes);
        if allocated == Err(OUT_OF_MEMORY) && self.give_back(primary) {
            allocated = allocate(primary, bytes);
        }
        let start = allocated?;
        self.starts().insert(start);
        Ok(start)
    }

    /// Keeps a block for who wants as many bytes.
    pub(super) fn keep(&self, start: Address, bytes: usize) {
        self.kept().push((start, bytes));
    }

    /// Frees those that were kept; who comes meanwhile waits until they are free. Returns whether there
    /// were any.
    pub(super) fn give_back(&self, primary: &Primary) -> bool {
        let mut kept = self.kept();
        let any = !kept.is_empty();
        kept.drain(..).for_each(|(start, _)| self.free(primary, start));
        any
    }

    /// Frees a block. What the driver does not free is lost with the device.
    pub(super) fn free(&self, primary: &Primary, start: Address) {
        // Before somebody else gets the address.
        self.starts().remove(&start);
        // SAFETY: it was allocated so, and no stream uses it any more.
        #[expect(unsafe_code, reason = "a function of a library")]
        unsafe {
            once_ready(|| primary.library.free(start as CUdeviceptr))
        };
    }
}

fn allocate(primary: &Primary, bytes: usize) -> Result<Address, Code> {
    let mut start: CUdeviceptr = 0;
    // SAFETY: it writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe {
        let start = &raw mut start;
        once_ready(|| primary.library.allocate(start, bytes))
    };
    if code == 0 { Ok(address(start)) } else { Err(code) }
}
