//! Where tensors lie: memory that stays where it is, and as it is, for as long as somebody has it.

use std::any::Any;
use std::fmt;
use std::fs::File;

use memmap2::Mmap;

use super::region::Sealed;
use crate::device::PageLocks;

/// What holds bytes in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// A read-only map of a file: the system can drop it and read it again.
    Mapped,
    /// Memory of our own, sealed once it was filled.
    Slab,
    /// Somebody else's memory.
    Foreign,
    /// Somebody else's memory, locked for a GPU's copies.
    Pinned,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Slab => "slab",
            Self::Foreign => "foreign",
            Self::Pinned => "pinned",
        })
    }
}

/// One stretch of host memory.
pub struct Memory {
    kind: MemoryKind,
    start: *const u8,
    length: usize,
    locks: Option<PageLocks>,
    /// Always there, until it is dropped.
    keeper: Option<Keeper>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.unlock() {
            // A device that takes it for locked must not find something else there.
            std::mem::forget(self.keeper.take());
        }
    }
}

/// What keeps the memory, until it is dropped.
enum Keeper {
    Map { map: Mmap, file: File },
    Slab { region: Sealed },
    Foreign { _owner: Box<dyn Any + Send + Sync> },
}

// SAFETY: `start` points into what the keeper keeps, which is Send and Sync itself. Bytes are only
// read through it, and as slices only where nobody can write them.
#[expect(unsafe_code, reason = "a pointer stands for memory that any thread may read")]
unsafe impl Send for Memory {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a pointer stands for memory that any thread may read")]
unsafe impl Sync for Memory {}

impl Memory {
    /// A map of all of `file`.
    pub(super) fn mapped(map: Mmap, file: File) -> Self {
        let (start, length) = (map.as_ptr(), map.len());
        Self {
            kind: MemoryKind::Mapped,
            start,
            length,
            locks: None,
            keeper: Some(Keeper::Map { map, file }),
        }
    }

    /// Sealed memory of our own.
    pub(super) fn slab(region: Sealed) -> Self {
        let bytes = region.bytes();
        let (start, length) = (bytes.as_ptr(), bytes.len());
        // Shared, not private: the system would lock a copy of private pages.
        let locks =
            region.file().is_some().then(|| PageLocks::new(start.expose_provenance(), length));
        Self { kind: MemoryKind::Slab, start, length, locks, keeper: Some(Keeper::Slab { region }) }
    }

    /// The sealed memory of our own, if it is that and is locked no more.
    pub(super) fn into_slab(mut self) -> Option<Sealed> {
        if !self.unlock() {
            return None;
        }
        match self.keeper.take() {
            Some(Keeper::Slab { region }) => Some(region),
            _ => None,
        }
    }

    /// Bytes that are page-locked for copies to devices.
    pub(super) fn locked(&self) -> u64 {
        self.locks.as_ref().map_or(0, PageLocks::nbytes)
    }

    fn unlock(&self) -> bool {
        self.locks.as_ref().is_none_or(PageLocks::unlock)
    }

    /// Memory that `owner` keeps where it is. It is never looked at as bytes, because its owner may
    /// write it.
    #[must_use]
    pub fn foreign(
        start: *const u8,
        length: usize,
        pinned: bool,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let kind = if pinned { MemoryKind::Pinned } else { MemoryKind::Foreign };
        Self { kind, start, length, locks: None, keeper: Some(Keeper::Foreign { _owner: owner }) }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Where it begins.
    #[must_use]
    pub fn start(&self) -> *const u8 {
        self.start
    }

    /// Its bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes, where nobody can write them.
    #[must_use]
    pub fn sealed(&self) -> Option<&[u8]> {
        if matches!(self.kind, MemoryKind::Foreign | MemoryKind::Pinned) {
            return None;
        }
        // SAFETY: the keeper's map has this many bytes from `start` on, is never written, and lives
        // as long as `self`.
        #[expect(unsafe_code, reason = "a slice of a map")]
        Some(unsafe { std::slice::from_raw_parts(self.start, self.length) })
    }

    /// What of it is locked for copies to devices, if it may be: memory of our own that nobody writes.
    pub(super) fn locks(&self) -> Option<&PageLocks> {
        self.locks.as_ref()
    }

    /// The file in which the bytes are, and where in it they begin, if there is one.
    pub(super) fn file(&self) -> Option<(&File, usize)> {
        match self.keeper.as_ref()? {
            Keeper::Map { file, .. } => Some((file, 0)),
            Keeper::Slab { region } => region.file(),
            Keeper::Foreign { .. } => None,
        }
    }

    /// The map and its file, if it is one.
    pub(super) fn map(&self) -> Option<(&Mmap, &File)> {
        match self.keeper.as_ref()? {
            Keeper::Map { map, file } => Some((map, file)),
            _ => None,
        }
    }
}
