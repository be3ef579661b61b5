//! Ranges of addresses of this process, with and without memory behind them.

use std::ffi::c_void;
use std::ptr::{null_mut, with_exposed_provenance_mut};

use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed, munmap,
};

/// A range of addresses that is ours until it is dropped.
#[derive(Debug)]
pub struct Region {
    start: usize,
    size: usize,
}

impl Region {
    /// Addresses without memory, at the hint if it is free and aligned.
    pub fn reserve(size: usize, alignment: usize, hint: usize) -> Option<Self> {
        if hint != 0 && hint.is_multiple_of(alignment) {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
            let region = Self::map(hint, size, ProtFlags::empty(), flags);
            if let Some(region) = region.filter(|region| region.start == hint) {
                return Some(region);
            }
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let mut region = Self::map(0, size.checked_add(alignment)?, ProtFlags::empty(), flags)?;
        let start = region.start.next_multiple_of(alignment);
        let end = region.start + region.size;
        drop(Self { start: region.start, size: start - region.start });
        drop(Self { start: start + size, size: end - start - size });
        region.start = start;
        region.size = size;
        Some(region)
    }

    /// Memory which other addresses may show as well; it takes room only where it was written.
    pub fn shared(size: usize) -> Option<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        Self::map(0, size, ProtFlags::READ | ProtFlags::WRITE, flags)
    }

    fn map(start: usize, size: usize, protection: ProtFlags, flags: MapFlags) -> Option<Self> {
        // SAFETY: new memory replaces none: the flags never say so.
        let mapped = unsafe { mmap_anonymous(pointer(start), size, protection, flags) };
        Some(Self { start: mapped.ok()?.expose_provenance(), size })
    }

    pub fn start(&self) -> usize {
        self.start
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Shows memory at these addresses, too.
    pub fn show(&self, at: usize, size: usize, memory: &Self, writable: bool) -> Option<()> {
        let inside = at >= self.start && size <= memory.size && at + size <= self.start + self.size;
        inside.then_some(())?;
        let protection =
            if writable { MprotectFlags::READ | MprotectFlags::WRITE } else { MprotectFlags::READ };
        // SAFETY: the addresses are ours, and nothing of Rust's lies there. Of a shared mapping, an
        // old size of 0 asks for a second view (mremap(2)), so the first one stays.
        unsafe {
            mremap_fixed(pointer(memory.start), 0, size, MremapFlags::MAYMOVE, pointer(at)).ok()?;
            mprotect(pointer(at), size, protection).ok()
        }
    }

    /// Takes the memory at these addresses away again.
    pub fn hide(&self, at: usize, size: usize) {
        if at < self.start || at + size > self.start + self.size {
            return;
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the addresses are ours, and nothing of Rust's lies there.
        let hidden = unsafe { mmap_anonymous(pointer(at), size, ProtFlags::empty(), flags) };
        debug_assert!(hidden.is_ok());
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: the addresses are ours, and nobody looks at them any more.
            let unmapped = unsafe { munmap(pointer(self.start), self.size) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

fn pointer(address: usize) -> *mut c_void {
    if address == 0 { null_mut() } else { with_exposed_provenance_mut(address) }
}
