//! The land of one area: where its pages are in the device's memory, and the bytes reserved for them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::Layout;
use crate::budget::Reservation;
use crate::device::{Address, DeviceMemory, MemoryError};
use crate::sync::Mutex;
use crate::trace::Track;
use crate::wait::exiting;

/// Where pages are when they have memory, and the bytes that are reserved for them.
pub(super) struct Land {
    memory: Arc<dyn DeviceMemory>,
    ground: Ground,
    pub(super) reservation: Reservation,
    /// Whether some of the pages could leave.
    spare: Arc<AtomicBool>,
    /// Where what happens to them is recorded.
    pub(super) track: Option<Track>,
}

enum Ground {
    /// So many bytes of addresses from here on.
    Fixed { start: Address, bytes: usize },
    /// Blocks by their pages, and where each is, if it has memory. Never locked for longer than a look.
    Moving { blocks: Vec<Range<usize>>, starts: Mutex<Vec<Option<Address>>> },
}

impl Land {
    /// Land for a layout, of which no page has memory.
    ///
    /// # Errors
    /// [`MemoryError::NoAddresses`].
    pub(super) fn new(
        memory: &Arc<dyn DeviceMemory>,
        layout: &Layout,
        reservation: Reservation,
        track: Option<Track>,
    ) -> Result<Self, MemoryError> {
        let ground = match &layout.blocks {
            Some(blocks) => Ground::Moving {
                blocks: blocks.clone(),
                starts: Mutex::new(vec![None; blocks.len()]),
            },
            None => {
                let bytes = layout.pages() * memory.page();
                let start = if bytes == 0 { 0 } else { memory.reserve(bytes)? };
                Ground::Fixed { start, bytes }
            }
        };
        let spare = Arc::new(AtomicBool::new(false));
        reservation.spare_when(spare.clone());
        Ok(Self { memory: memory.clone(), ground, reservation, spare, track })
    }

    /// Says how many pages have memory, and how many are pinned; under the arena's mutex.
    pub(super) fn count(&self, resident: usize, pinned: usize) {
        self.spare.store(resident > pinned, Ordering::SeqCst);
    }

    /// Where a byte of the layout is on the device; `None` if it is nowhere.
    pub(super) fn address(&self, offset: usize) -> Option<Address> {
        match &self.ground {
            Ground::Fixed { start, .. } => Some(start + offset),
            Ground::Moving { blocks, starts } => {
                let page = self.memory.page();
                let at = block_of(blocks, offset / page);
                let start = starts.lock().get(at).copied().flatten()?;
                Some(start + (offset - blocks[at].start * page))
            }
        }
    }

    /// Whether pages before this one can leave while it and those after it stay.
    pub(super) fn parts_at(&self, page: usize) -> bool {
        match &self.ground {
            Ground::Fixed { .. } => true,
            Ground::Moving { blocks, .. } => {
                blocks.get(block_of(blocks, page)).is_none_or(|block| block.start == page)
            }
        }
    }

    /// Gives pages memory that have none; all of them or none. Of a block, all.
    ///
    /// # Errors
    /// As [`DeviceMemory::commit`].
    pub(super) fn commit(&self, pages: &Range<usize>) -> Result<(), MemoryError> {
        let page = self.memory.page();
        match &self.ground {
            Ground::Fixed { start, .. } => {
                self.memory.commit(start + pages.start * page, pages.len() * page)
            }
            Ground::Moving { blocks, starts } => {
                for (at, block) in blocks_of(blocks, pages) {
                    match self.memory.allocate(block.len() * page) {
                        Ok(start) => starts.lock()[at] = Some(start),
                        Err(error) => {
                            self.decommit(&(pages.start..block.start));
                            return Err(self.of_all(error, pages.len() * page));
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// As many bytes are missing as all blocks together have.
    fn of_all(&self, error: MemoryError, asked: usize) -> MemoryError {
        match error {
            MemoryError::OutOfMemory { device, .. } => {
                let (asked, free) = (asked as u64, self.memory.free());
                MemoryError::OutOfMemory { device, asked, free }
            }
            error => error,
        }
    }

    /// Takes the memory of pages away. No stream may use them any more. Of a block, all.
    pub(super) fn decommit(&self, pages: &Range<usize>) {
        self.take_away(pages, false);
    }

    /// The same, for somebody who is about to want as much.
    pub(super) fn set_aside(&self, pages: &Range<usize>) {
        self.take_away(pages, true);
    }

    fn take_away(&self, pages: &Range<usize>, aside: bool) {
        let (memory, page) = (&self.memory, self.memory.page());
        match &self.ground {
            Ground::Fixed { start, .. } => {
                let (start, bytes) = (start + pages.start * page, pages.len() * page);
                if aside { memory.lay_aside(start, bytes) } else { memory.decommit(start, bytes) }
            }
            Ground::Moving { blocks, starts } => {
                for (at, block) in blocks_of(blocks, pages) {
                    let start = starts.lock()[at].take();
                    let Some(start) = start else { continue };
                    let bytes = block.len() * page;
                    if aside {
                        memory.set_aside(start, bytes);
                    } else {
                        memory.deallocate(start, bytes);
                    }
                }
            }
        }
    }
}

/// Which of the blocks, one after the other, has this page.
fn block_of(blocks: &[Range<usize>], page: usize) -> usize {
    blocks.partition_point(|block| block.end <= page)
}

/// The blocks that have these pages, with their numbers.
fn blocks_of<'a>(
    blocks: &'a [Range<usize>],
    pages: &Range<usize>,
) -> impl Iterator<Item = (usize, &'a Range<usize>)> {
    let numbers = block_of(blocks, pages.start)..block_of(blocks, pages.end);
    numbers.clone().zip(&blocks[numbers])
}

impl Drop for Land {
    fn drop(&mut self) {
        let Ground::Fixed { start, bytes } = self.ground else { return };
        // A forked child has none of the device's memory, and an exit takes everything.
        if bytes > 0 && self.reservation.check().is_ok() && !exiting() {
            self.memory.release(start, bytes);
        }
    }
}
