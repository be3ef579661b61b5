//! Copies to the device from host memory that is pageable: through a ring of buffers, which are
//! page-locked unless somebody wants nothing to be.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread;

use super::stream::{Marked, Opened, checked};
use crate::device::{Address, MemoryError, Piece};
use crate::wait::exiting;

/// How many buffers there are, and how large: two are filled while others are read by the device.
const BUFFERS: usize = 4;
const BUFFER: usize = 8 << 20;
/// Bytes of a ring.
pub(super) const RING: usize = BUFFERS * BUFFER;
/// Gaps between tensors that are copied with them: as wide as they can be.
const GAP: usize = 256;
/// So many threads fill a buffer, each with so much at least.
const THREADS: usize = 4;
const SHARE: usize = 1 << 20;

/// Buffers, filled and read in turn; one thread's.
pub(super) struct Ring {
    device: Arc<Opened>,
    pinned: bool,
    buffers: RefCell<Buffers>,
}

#[derive(Default)]
struct Buffers {
    all: Vec<Buffer>,
    next: usize,
}

struct Buffer {
    start: usize,
    /// What it is, if it is not page-locked.
    pageable: Option<Box<[u8]>>,
    /// When the device has read it.
    read: Option<Marked>,
}

/// Pieces that lie side by side on the device.
struct Batch {
    to: Address,
    length: usize,
    pieces: Vec<Piece>,
}

impl Ring {
    pub(super) fn new(device: Arc<Opened>, pinned: bool) -> Self {
        Self { device, pinned, buffers: RefCell::default() }
    }

    /// Copies pieces on a stream. Returns when all have been read from where they are, so that small
    /// ones cost no call each.
    pub(super) fn upload(&self, stream: usize, pieces: Vec<Piece>) -> Result<(), MemoryError> {
        let mut buffers = self.buffers.borrow_mut();
        for batch in batches(pieces, |to| self.device.blocks.begin_at(to)) {
            if exiting() {
                break;
            }
            let at = self.next(&mut buffers)?;
            let buffer = &mut buffers.all[at];
            batch.fill(buffer.start);
            let copied = self.device.copy(stream, buffer.start, batch.to, batch.length);
            buffer.read = Some(Marked::new(&self.device, stream));
            copied?;
        }
        Ok(())
    }

    /// The next buffer, read by now.
    fn next(&self, buffers: &mut Buffers) -> Result<usize, MemoryError> {
        // All at once, so that what is charged is what is locked.
        while buffers.all.len() < BUFFERS {
            match self.buffer() {
                Ok(buffer) => buffers.all.push(buffer),
                // With fewer it goes on, only slower; with none, slower still.
                Err(_) if buffers.all.is_empty() => buffers.all.push(Buffer::pageable()),
                Err(_) => break,
            }
        }
        let at = buffers.next % buffers.all.len();
        buffers.next = at + 1;
        if let Some(read) = &buffers.all[at].read
            && !read.wait()?
        {
            return Err(self.device.lost("the process ends".to_owned()));
        }
        buffers.all[at].read = None;
        Ok(at)
    }

    /// A new buffer.
    fn buffer(&self) -> Result<Buffer, MemoryError> {
        if !self.pinned {
            return Ok(Buffer::pageable());
        }
        let start = self.device.within("cuMemHostAlloc", |primary| {
            let mut start: *mut c_void = null_mut();
            // SAFETY: it writes to where it is told.
            #[expect(unsafe_code, reason = "a function of a library")]
            let code = unsafe { primary.library.host_allocate(&raw mut start, BUFFER, 0) };
            checked(code).map(|()| start.expose_provenance())
        })?;
        Ok(Buffer { start, pageable: None, read: None })
    }

    /// Gives the buffers back once they are read. Returns whether all are; those of which nobody can
    /// tell stay.
    pub(super) fn clear(&self) -> bool {
        let mut buffers = self.buffers.borrow_mut();
        for buffer in std::mem::take(&mut buffers.all) {
            let over =
                buffer.read.as_ref().is_none_or(|read| read.wait().is_ok() || read.is_over());
            if exiting() || !over {
                buffers.all.push(buffer);
            } else if buffer.pageable.is_none() {
                let _ = self.device.within("cuMemFreeHost", |primary| {
                    let start = std::ptr::with_exposed_provenance_mut(buffer.start);
                    // SAFETY: it was allocated so, and nobody reads it.
                    #[expect(unsafe_code, reason = "a function of a library")]
                    checked(unsafe { primary.library.host_free(start) })
                });
            }
        }
        buffers.all.is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if exiting() || !self.device.primary.library.is_here() || !self.clear() {
            std::mem::forget(std::mem::take(&mut self.buffers.get_mut().all));
        }
    }
}

impl Buffer {
    fn pageable() -> Self {
        let pageable = vec![0; BUFFER].into_boxed_slice();
        let start = pageable.as_ptr().expose_provenance();
        Self { start, pageable: Some(pageable), read: None }
    }
}

impl Batch {
    /// Writes what it copies to a buffer, as it will lie on the device.
    fn fill(&self, buffer: usize) {
        let share = self.length.div_ceil(THREADS).max(SHARE).next_multiple_of(GAP);
        let parts: Vec<Part<'_>> = self
            .pieces
            .iter()
            .flat_map(|piece| {
                let to = buffer + piece.to - self.to;
                (0..piece.length).step_by(share).map(move |from| Part {
                    to: to + from,
                    piece,
                    from,
                    length: share.min(piece.length - from),
                })
            })
            .collect();
        thread::scope(|scope| {
            let mut rest = parts.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let end = rest.iter().position(|part| {
                    bytes += part.length;
                    bytes >= share
                });
                let (own, others) = rest.split_at(end.map_or(rest.len(), |last| last + 1));
                rest = others;
                let helped = !rest.is_empty()
                    && thread::Builder::new()
                        .spawn_scoped(scope, move || own.iter().for_each(Part::write))
                        .is_ok();
                if !helped {
                    own.iter().for_each(Part::write);
                }
            }
        });
    }
}

/// A stretch of a piece, and where in a buffer it goes.
struct Part<'a> {
    to: usize,
    piece: &'a Piece,
    from: usize,
    length: usize,
}

impl Part<'_> {
    fn write(&self) {
        let to = std::ptr::with_exposed_provenance_mut(self.to);
        // SAFETY: this stretch of the buffer is this part's alone, and the device has read what was there.
        #[expect(unsafe_code, reason = "memory of a library")]
        let to = unsafe { std::slice::from_raw_parts_mut(to, self.length) };
        self.piece.source.copy_to(self.piece.from + self.from, to);
    }
}

/// Pieces together that lie side by side, as much as a buffer holds; none across the beginning of
/// another block.
fn batches(pieces: Vec<Piece>, begins: impl Fn(Address) -> bool) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for piece in pieces {
        let mut from = 0;
        while from < piece.length {
            let to = piece.to + from;
            let last = batches.last_mut().filter(|last| {
                let end = last.to + last.length;
                (end..end + GAP).contains(&to) && to - last.to < BUFFER && !begins(to)
            });
            let batch = match last {
                Some(batch) => batch,
                None => {
                    batches.push(Batch { to, length: 0, pieces: Vec::new() });
                    let last = batches.len() - 1;
                    &mut batches[last]
                }
            };
            let length = (piece.length - from).min(BUFFER - (to - batch.to));
            let source = piece.source.clone();
            batch.pieces.push(Piece { source, from: piece.from + from, to, length });
            batch.length = to + length - batch.to;
            from += length;
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HostBytes;

    struct Nothing;

    impl HostBytes for Nothing {
        fn copy_to(&self, _from: usize, _to: &mut [u8]) {}
    }

    #[test]
    fn pieces_side_by_side_go_together_but_never_into_another_block() {
        const LENGTH: usize = 1 << 20;
        let piece = |at: usize| Piece {
            source: Arc::new(Nothing),
            from: 0,
            to: at * LENGTH,
            length: LENGTH,
        };
        let spans = |begins: &dyn Fn(Address) -> bool| -> Vec<(usize, usize)> {
            let batches = batches(vec![piece(1), piece(2), piece(3), piece(5)], begins);
            batches.iter().map(|batch| (batch.to / LENGTH, batch.length / LENGTH)).collect()
        };
        assert_eq!(spans(&|_| false), [(1, 3), (5, 1)]);
        assert_eq!(spans(&|to| to == 3 * LENGTH), [(1, 2), (3, 1), (5, 1)]);
    }
}
