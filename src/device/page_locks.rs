//! Host memory that devices may be let read on their own: page-locked where it lies, in chunks.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// A driver that locks more at once needs as much of the system in one piece.
const CHUNK: usize = 256 << 20;

/// What keeps a chunk locked.
pub trait Lock: Send + Sync {
    /// Lets it go, when no device reads it any more. Returns whether it is: otherwise a device may
    /// take whatever comes to lie there for what lies there now.
    fn unlock(&self) -> bool;
}

/// Why a chunk is not locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlockable {
    /// It may go well the next time.
    Now,
    /// The system cannot lock it.
    Ever,
}

/// A chunk on its way.
#[derive(Default)]
enum Chunk {
    #[default]
    Fresh,
    Locked(Box<dyn Lock>),
    Unlockable,
}

/// The chunks of one stretch of memory, each locked when its first byte is wanted. Whoever has the
/// memory unlocks it before he lets it go.
pub struct PageLocks {
    start: usize,
    length: usize,
    chunks: Vec<Mutex<Chunk>>,
}

impl PageLocks {
    /// Of so many bytes at an address, of which none is locked.
    #[must_use]
    pub fn new(start: usize, length: usize) -> Self {
        let chunks = (0..length.div_ceil(CHUNK)).map(|_| Mutex::default()).collect();
        Self { start, length, chunks }
    }

    fn range(&self, at: usize) -> Range<usize> {
        let start = self.start + at * CHUNK;
        start..(start + CHUNK).min(self.start + self.length)
    }

    /// How many bytes from this address on lie in one chunk, once `lock` has locked it; 0 if it is not.
    /// Who comes while somebody locks it waits for that.
    pub fn reach(
        &self,
        address: usize,
        lock: impl FnOnce(Range<usize>) -> Result<Box<dyn Lock>, Unlockable>,
    ) -> usize {
        let Some(at) = address.checked_sub(self.start).map(|from| from / CHUNK) else { return 0 };
        let Some(chunk) = self.chunks.get(at) else { return 0 };
        let range = self.range(at);
        let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*chunk, Chunk::Fresh) {
            match lock(range.clone()) {
                Ok(locked) => *chunk = Chunk::Locked(locked),
                Err(Unlockable::Ever) => *chunk = Chunk::Unlockable,
                Err(Unlockable::Now) => {}
            }
        }
        match *chunk {
            Chunk::Locked(_) => range.end.saturating_sub(address),
            _ => 0,
        }
    }

    /// Lets go of all that is locked. Returns whether nothing is any more.
    pub fn unlock(&self) -> bool {
        self.chunks.iter().fold(true, |all, chunk| {
            let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
            let free = match &*chunk {
                Chunk::Locked(locked) => locked.unlock(),
                _ => true,
            };
            if free {
                *chunk = Chunk::Fresh;
            }
            all && free
        })
    }

    /// Bytes of the chunks that are locked.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        let locked = |at: &usize| {
            let chunk = self.chunks[*at].lock().unwrap_or_else(PoisonError::into_inner);
            matches!(*chunk, Chunk::Locked(_))
        };
        (0..self.chunks.len()).filter(locked).map(|at| self.range(at).len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it can be let go.
    struct Free(bool);

    impl Lock for Free {
        fn unlock(&self) -> bool {
            self.0
        }
    }

    fn free(free: bool) -> Box<dyn Lock> {
        Box::new(Free(free))
    }

    #[test]
    fn a_stretch_is_locked_chunk_by_chunk_and_each_chunk_once() {
        let start = 1 << 40;
        let locks = PageLocks::new(start, 2 * CHUNK + 10);
        let asked = Mutex::new(Vec::new());
        let reach = |address| {
            locks.reach(address, |range| {
                asked.lock().unwrap().push((range.start - start, range.len()));
                Ok(free(true))
            })
        };
        assert_eq!(locks.nbytes(), 0);
        assert_eq!(reach(start + 5), CHUNK - 5);
        assert_eq!(reach(start + CHUNK - 1), 1);
        assert_eq!(reach(start + 2 * CHUNK + 4), 6);
        assert_eq!(*asked.lock().unwrap(), [(0, CHUNK), (2 * CHUNK, 10)]);
        assert_eq!(locks.nbytes(), CHUNK as u64 + 10);
        assert_eq!((reach(start - 1), reach(start + 3 * CHUNK)), (0, 0));
        assert!(locks.unlock());
        assert_eq!(locks.nbytes(), 0);
    }

    #[test]
    fn what_can_never_be_locked_is_not_tried_again_and_what_could_be_is() {
        let locks = PageLocks::new(4096, 100);
        assert_eq!(locks.reach(4096, |_| Err(Unlockable::Now)), 0);
        assert_eq!(locks.reach(4096, |_| Ok(free(true))), 100);
        let locks = PageLocks::new(4096, 100);
        assert_eq!(locks.reach(4096, |_| Err(Unlockable::Ever)), 0);
        assert_eq!(locks.reach(4096, |_| Ok(free(true))), 0);
        assert_eq!(locks.nbytes(), 0);
    }

    #[test]
    fn what_cannot_be_let_go_is_told() {
        let locks = PageLocks::new(4096, CHUNK + 1);
        locks.reach(4096, |_| Ok(free(false)));
        locks.reach(4096 + CHUNK, |_| Ok(free(true)));
        assert!(!locks.unlock());
        assert_eq!(locks.nbytes(), CHUNK as u64);
    }
}
