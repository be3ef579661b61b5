//! Bringing mapped files into memory before they are needed, by several threads.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::Mmap;

use super::WeightsError;
use super::entry::Entry;
use super::slab::read_exact_at;
use crate::wait::{Parker, Patience, WaitError, Wake};

/// How much a thread populates between two looks at whether it is still wanted.
const PIECE: usize = 16 << 20;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(50);

/// A stretch of one mapped file.
struct Piece<'a> {
    memory: usize,
    map: &'a Mmap,
    file: &'a File,
    start: usize,
    length: usize,
}

/// What the threads and the caller share.
struct Work<'a> {
    entry: &'a Entry,
    pieces: Vec<Piece<'a>>,
    next: AtomicUsize,
    done: AtomicU64,
    stopped: AtomicBool,
    working: AtomicUsize,
    parker: Arc<Parker>,
}

/// Reads all of what is mapped. `progress` is told the bytes that are there, and all of them.
pub(super) fn prefetch(
    entry: &Entry,
    threads: usize,
    patience: &Patience<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let pieces: Vec<_> = entry.memories().iter().enumerate().flat_map(pieces_of).collect();
    let total: u64 = pieces.iter().map(|piece| piece.length as u64).sum();
    let threads = threads.clamp(1, pieces.len().max(1));
    let work = Work {
        entry,
        pieces,
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        working: AtomicUsize::new(threads),
        parker: Parker::new(),
    };
    let waker: Arc<dyn Wake> = work.parker.clone();
    let _listening = patience.cancel.map(|token| token.listen(waker));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        let waited = work.wait(total, patience, progress);
        work.stopped.store(waited.is_err(), Ordering::Relaxed);
        let outcomes = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        outcomes.fold(Ok(()), Result::and).and(waited)
    })?;
    progress(total, total);
    Ok(())
}

fn pieces_of((at, memory): (usize, &super::memory::Memory)) -> Vec<Piece<'_>> {
    let Some((map, file)) = memory.map() else { return Vec::new() };
    let starts = (0..map.len()).step_by(PIECE);
    let piece =
        |start| Piece { memory: at, map, file, start, length: PIECE.min(map.len() - start) };
    starts.map(piece).collect()
}

impl Work<'_> {
    fn run(&self) -> Result<(), WeightsError> {
        let outcome = self.populate_all();
        if outcome.is_err() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.working.fetch_sub(1, Ordering::AcqRel);
        self.parker.wake();
        outcome
    }

    fn populate_all(&self) -> Result<(), WeightsError> {
        while let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            populate(piece).map_err(|()| WeightsError::Cut {
                path: self.entry.path_of(piece.memory).to_owned(),
            })?;
            self.done.fetch_add(piece.length as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn wait(
        &self,
        total: u64,
        patience: &Patience<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightsError> {
        let started = Instant::now();
        let wants = || format!("the weights {:?} to be read", self.entry.key);
        while self.working.load(Ordering::Acquire) > 0 {
            if let Some(token) = patience.cancel.filter(|token| token.is_cancelled()) {
                return Err(WaitError::Cancelled { wants: wants(), reason: token.reason() }.into());
            }
            if let Some(after) = patience.timeout.filter(|timeout| started.elapsed() >= *timeout) {
                return Err(
                    WaitError::Timeout { wants: wants(), held: String::new(), after }.into()
                );
            }
            let tick = patience.interrupt.slice().map_or(TICK, |slice| slice.min(TICK));
            let left = patience.timeout.map_or(tick, |all| all.saturating_sub(started.elapsed()));
            self.parker.park(Some(Instant::now() + tick.min(left)));
            if patience.interrupt.interrupted() {
                return Err(WaitError::Interrupted.into());
            }
            progress(self.done.load(Ordering::Relaxed), total);
        }
        Ok(())
    }
}

/// Brings a stretch into memory; an error means that the file has no such bytes any more.
fn populate(piece: &Piece<'_>) -> Result<(), ()> {
    #[cfg(target_os = "linux")]
    {
        use std::io;
        let Piece { map, start, length, .. } = piece;
        match map.advise_range(memmap2::Advice::PopulateRead, *start, *length) {
            Ok(()) => return Ok(()),
            // Older than Linux 5.14: read it instead.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(_) => return Err(()),
        }
    }
    read(piece)
}

/// Reads a stretch: it is in the system's cache then, if not yet in the map's page tables.
fn read(piece: &Piece<'_>) -> Result<(), ()> {
    let mut buffer = vec![0; (1 << 20).min(piece.length)];
    for offset in (0..piece.length).step_by(buffer.len().max(1)) {
        let length = buffer.len().min(piece.length - offset);
        let from = (piece.start + offset) as u64;
        read_exact_at(piece.file, &mut buffer[..length], from).map_err(|_| ())?;
    }
    Ok(())
}
