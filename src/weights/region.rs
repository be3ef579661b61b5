//! Memory of our own that can be filled, sealed, and filled again.
//!
//! On Linux it is an anonymous file (`memfd_create`): it grows and shrinks without losing the pages that
//! it has, it can be mapped privately by whoever may write, and `/proc` calls it by its name. Its pages
//! are not asked to be huge: to find room for huge pages takes two to four times as long as to have
//! small ones, each time.

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapMut};

/// Where regions begin, as huge pages and chunks to pin have it.
const ALIGNMENT: usize = 2 << 20;
/// Smaller ones have no file: a process may not have many open.
pub(super) const WITH_FILE: usize = 1 << 20;

/// Memory that can be written.
pub(super) struct Region {
    map: MmapMut,
    /// Without one the memory is nobody else's, and cannot change its size.
    file: Option<File>,
    length: usize,
}

/// The same, read-only.
pub(super) struct Sealed {
    map: Mmap,
    file: Option<File>,
    length: usize,
}

impl Region {
    /// So many bytes, all zero, at a multiple of [`ALIGNMENT`].
    pub(super) fn fresh(length: usize) -> io::Result<Self> {
        let whole = whole(length)?;
        // The system refuses at once what it can never have; of a file it would only notice when its
        // pages are filled.
        drop(MmapMut::map_anon(whole)?);
        #[cfg(target_os = "linux")]
        if length >= WITH_FILE {
            // Where the system has no such files, or does not let us, memory without one does as well.
            if let Ok((map, file)) = with_file(whole) {
                return Ok(Self { map, file: Some(file), length });
            }
        }
        Ok(Self { map: MmapMut::map_anon(whole)?, file: None, length })
    }

    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let start = self.map.as_ptr().align_offset(ALIGNMENT);
        &mut self.map[start..start + self.length]
    }

    /// Makes it so long, of whatever content: keeps its pages, and gives back those that are too many.
    pub(super) fn resized(self, length: usize) -> io::Result<Self> {
        if length == self.length {
            return Ok(self);
        }
        #[cfg(target_os = "linux")]
        if self.file.is_some() && length >= WITH_FILE {
            drop(MmapMut::map_anon(whole(length)?.saturating_sub(self.map.len()).max(1))?);
            return self.remapped(length);
        }
        drop(self);
        Self::fresh(length)
    }

    /// The same with its file.
    #[cfg(target_os = "linux")]
    fn remapped(mut self, length: usize) -> io::Result<Self> {
        if let Some(file) = &self.file {
            use rustix::fs::{FallocateFlags, fallocate};
            let whole = whole(length)?;
            let punch = |from: usize, to: usize| {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                if from < to {
                    fallocate(file, flags, from as u64, (to - from) as u64)
                } else {
                    Ok(())
                }
            };
            file.set_len(whole.max(self.map.len()) as u64)?;
            // SAFETY: the file is as long as the longer of both maps, and there is no reference into
            // the map that moves.
            #[expect(unsafe_code, reason = "a map changes its place and size")]
            unsafe {
                self.map.remap(whole, memmap2::RemapOptions::new().may_move(true))?;
            }
            file.set_len(whole as u64)?;
            self.length = length;
            let start = self.map.as_ptr().align_offset(ALIGNMENT);
            punch(0, start)?;
            punch((start + length).next_multiple_of(4096), whole)?;
        }
        Ok(self)
    }

    /// Ends all writing.
    pub(super) fn seal(self) -> io::Result<Sealed> {
        let Self { map, file, length } = self;
        Ok(Sealed { map: map.make_read_only()?, file, length })
    }
}

impl Sealed {
    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        let start = self.map.as_ptr().align_offset(ALIGNMENT);
        &self.map[start..start + self.length]
    }

    /// The file that it is, and where in it the bytes begin.
    pub(super) fn file(&self) -> Option<(&File, usize)> {
        let start = self.map.as_ptr().align_offset(ALIGNMENT);
        self.file.as_ref().map(|file| (file, start))
    }

    /// Lets it be written again.
    pub(super) fn reopen(self) -> io::Result<Region> {
        let Self { map, file, length } = self;
        Ok(Region { map: map.make_mut()?, file, length })
    }
}

/// An anonymous file, and a map of it.
#[cfg(target_os = "linux")]
fn with_file(whole: usize) -> io::Result<(MmapMut, File)> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let file = File::from(memfd_create("coresident", MemfdFlags::CLOEXEC)?);
    file.set_len(whole as u64)?;
    // SAFETY: nobody else has the file, and it is only shortened where its map is.
    #[expect(unsafe_code, reason = "a map of a file")]
    let map = unsafe { memmap2::MmapOptions::new().len(whole).map_mut(&file) }?;
    Ok((map, file))
}

/// How long a map must be for so many bytes to begin where they should.
fn whole(length: usize) -> io::Result<usize> {
    length.max(1).checked_add(ALIGNMENT).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}
