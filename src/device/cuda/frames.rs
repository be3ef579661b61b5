//! Physical memory of pages that have left, for those that come: taking some of the driver costs more than
//! giving what is there another address.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUdeviceptr, CUmemGenericAllocationHandle};

use super::context::Primary;
use super::library::Code;
use super::stream::once_ready;
use crate::device::Address;

/// What no addresses have, a page each, of one device.
#[derive(Default)]
pub(super) struct Frames(Mutex<Vec<CUmemGenericAllocationHandle>>);

impl Frames {
    fn all(&self) -> MutexGuard<'_, Vec<CUmemGenericAllocationHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all().len()
    }

    /// One of them.
    pub(super) fn take(&self) -> Option<CUmemGenericAllocationHandle> {
        self.all().pop()
    }

    /// Keeps what is mapped at an address, and is unmapped next.
    pub(super) fn keep(&self, primary: &Primary, at: Address) -> Option<Kept<'_>> {
        let mut handle: CUmemGenericAllocationHandle = 0;
        // SAFETY: it writes to where it is told.
        #[expect(unsafe_code, reason = "a function of a library")]
        let code = unsafe {
            let (handle, at) = (&raw mut handle, std::ptr::with_exposed_provenance_mut(at));
            once_ready(|| primary.library.retain_handle(handle, at))
        };
        (code == 0).then_some(Kept { frames: self, handle })
    }

    /// Gives all of them back to the driver.
    pub(super) fn give_back(&self, primary: &Primary) {
        let all = std::mem::take(&mut *self.all());
        for handle in all {
            release(primary, handle);
        }
    }
}

/// One that is still mapped.
pub(super) struct Kept<'a> {
    frames: &'a Frames,
    handle: CUmemGenericAllocationHandle,
}

impl Kept<'_> {
    /// It has been unmapped, or not: then it is lost with the device.
    pub(super) fn unmapped(self, primary: &Primary, code: Code) {
        if code == 0 {
            self.frames.all().push(self.handle);
        } else {
            release(primary, self.handle);
        }
    }
}

/// Lets a handle go. What is mapped keeps the memory.
pub(super) fn release(primary: &Primary, handle: CUmemGenericAllocationHandle) {
    // SAFETY: the handle is ours, and nobody uses it any more.
    #[expect(unsafe_code, reason = "a function of a library")]
    unsafe {
        primary.library.release(handle);
    }
}

/// Takes the memory of a page away. Returns what the driver says.
pub(super) fn unmap(primary: &Primary, at: Address, page: usize) -> Code {
    // SAFETY: a page was mapped here, and no stream uses it any more.
    #[expect(unsafe_code, reason = "a function of a library")]
    unsafe {
        once_ready(|| primary.library.unmap(at as CUdeviceptr, page))
    }
}
