//! Host memory that devices may be let read on their own: page-locked where it lies, in chunks.

use std::any::Any;
use std::ops::Range;
use std::sync::OnceLock;

/// A driver that locks more at once needs as much of the system in one piece.
const CHUNK: usize = 256 << 20;

/// What keeps a chunk locked, until it is dropped.
pub type Locked = Box<dyn Any + Send + Sync>;

/// The chunks of one stretch of memory, each locked when its first byte is wanted.
///
/// Whoever has the memory drops this first, and no earlier than when no device reads it any more.
pub struct PageLocks {
    start: usize,
    length: usize,
    /// `None` in it is one that cannot be locked.
    chunks: Vec<OnceLock<Option<Locked>>>,
}

impl PageLocks {
    /// Of so many bytes at an address, of which none is locked.
    #[must_use]
    pub fn new(start: usize, length: usize) -> Self {
        let chunks = (0..length.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { start, length, chunks }
    }

    fn chunk(&self, at: usize) -> Range<usize> {
        let start = self.start + at * CHUNK;
        start..(start + CHUNK).min(self.start + self.length)
    }

    /// How many bytes from this address on lie in one chunk, once `lock` has locked it; 0 if it could
    /// not be. Who comes while somebody locks it waits for that.
    pub fn reach(
        &self,
        address: usize,
        lock: impl FnOnce(Range<usize>) -> Option<Locked>,
    ) -> usize {
        let Some(at) = address.checked_sub(self.start).map(|from| from / CHUNK) else { return 0 };
        let Some(chunk) = self.chunks.get(at) else { return 0 };
        let range = self.chunk(at);
        let locked = chunk.get_or_init(|| lock(range.clone())).is_some();
        if locked { range.end.saturating_sub(address) } else { 0 }
    }

    /// Bytes of the chunks that are locked.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        let locked = |at: &usize| self.chunks[*at].get().is_some_and(Option::is_some);
        (0..self.chunks.len()).filter(locked).map(|at| self.chunk(at).len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_locked_chunk_by_chunk_and_each_chunk_once() {
        let start = 1 << 40;
        let locks = PageLocks::new(start, 2 * CHUNK + 10);
        let asked = std::sync::Mutex::new(Vec::new());
        let reach = |address| {
            locks.reach(address, |range| {
                asked.lock().unwrap().push((range.start - start, range.len()));
                Some(Box::new(()))
            })
        };
        assert_eq!(locks.nbytes(), 0);
        assert_eq!(reach(start + 5), CHUNK - 5);
        assert_eq!(reach(start + CHUNK - 1), 1);
        assert_eq!(reach(start + 2 * CHUNK + 4), 6);
        assert_eq!(*asked.lock().unwrap(), [(0, CHUNK), (2 * CHUNK, 10)]);
        assert_eq!(locks.nbytes(), CHUNK as u64 + 10);
        assert_eq!((reach(start - 1), reach(start + 3 * CHUNK)), (0, 0));
    }

    #[test]
    fn what_cannot_be_locked_is_not_tried_again() {
        let locks = PageLocks::new(4096, 100);
        assert_eq!(locks.reach(4096, |_| None), 0);
        assert_eq!(locks.reach(4096, |_| Some(Box::new(()))), 0);
        assert_eq!(locks.nbytes(), 0);
    }
}
