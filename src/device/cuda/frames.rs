//! Physical memory of pages that have left, for those that come: taking some of the driver costs more than
//! giving what is there another address.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUmemGenericAllocationHandle;

use super::context::Primary;
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

    /// Keeps one that is mapped nowhere any more.
    pub(super) fn keep(&self, handle: CUmemGenericAllocationHandle) {
        self.all().push(handle);
    }

    /// Gives all of them back to the driver.
    pub(super) fn give_back(&self, primary: &Primary) {
        let all = std::mem::take(&mut *self.all());
        for handle in all {
            release(primary, handle);
        }
    }
}

/// A handle of what is mapped at an address.
pub(super) fn retain(primary: &Primary, at: Address) -> Option<CUmemGenericAllocationHandle> {
    let mut handle: CUmemGenericAllocationHandle = 0;
    // SAFETY: it writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe {
        let (handle, at) = (&raw mut handle, std::ptr::with_exposed_provenance_mut(at));
        once_ready(|| primary.library.retain_handle(handle, at))
    };
    (code == 0).then_some(handle)
}

/// Lets a handle go. What is mapped keeps the memory.
pub(super) fn release(primary: &Primary, handle: CUmemGenericAllocationHandle) {
    // SAFETY: the handle is ours, and nobody uses it any more.
    #[expect(unsafe_code, reason = "a function of a library")]
    unsafe {
        primary.library.release(handle);
    }
}
