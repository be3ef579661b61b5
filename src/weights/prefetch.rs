//! Bringing mapped files into memory before they are needed, by several threads.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::WeightsError;
use super::entry::Entry;
use super::memory::Memory;
use super::slab::read_exact_at;
use crate::sync::Mutex;
use crate::wait::{Birth, Parker, Patience, WaitError, Wake};

/// How much a thread populates between two looks at whether it is still wanted.
const PIECE: usize = 16 << 20;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(50);

/// A stretch of one mapped file.
struct Piece {
    memory: usize,
    start: usize,
    length: usize,
}

/// What the threads and the caller share.
struct Work {
    entry: Arc<Entry>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    done: AtomicU64,
    stopped: AtomicBool,
    working: AtomicUsize,
    failed: Mutex<Option<WeightsError>>,
    parker: Arc<Parker>,
}

/// Reads all of what is mapped. `progress` is told the bytes that are there, and all of them.
pub(super) fn prefetch(
    entry: &Arc<Entry>,
    threads: usize,
    patience: &Patience<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let pieces: Vec<Piece> = entry.memories().iter().enumerate().flat_map(pieces_of).collect();
    let total: u64 = pieces.iter().map(|piece| piece.length as u64).sum();
    let threads = threads.clamp(1, pieces.len().max(1));
    let work = Arc::new(Work {
        entry: entry.clone(),
        pieces,
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        working: AtomicUsize::new(0),
        failed: Mutex::new(None),
        parker: Parker::new(),
    });
    let waker: Arc<dyn Wake> = work.parker.clone();
    let _listening = patience.cancel.map(|token| token.listen(waker));
    for _ in 0..threads {
        work.working.fetch_add(1, Ordering::AcqRel);
        let shared = work.clone();
        let builder = thread::Builder::new().name("coresident prefetch".to_owned());
        if builder.spawn(move || shared.run()).is_err() {
            // As many as there can be; without any, the caller does it.
            if work.working.load(Ordering::Acquire) == 1 {
                work.run();
            } else {
                work.working.fetch_sub(1, Ordering::AcqRel);
            }
            break;
        }
    }
    let waited = work.wait(total, patience, progress);
    work.stopped.store(true, Ordering::Relaxed);
    waited?;
    match work.failed.lock().take() {
        Some(error) => Err(error),
        None => {
            progress(total, total);
            Ok(())
        }
    }
}

fn pieces_of((memory, stretch): (usize, &Memory)) -> Vec<Piece> {
    let Some((map, _)) = stretch.map() else { return Vec::new() };
    let length = map.len();
    let piece = |start| Piece { memory, start, length: PIECE.min(length - start) };
    (0..length).step_by(PIECE).map(piece).collect()
}

impl Work {
    fn run(&self) {
        while let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            if let Err(why) = self.populate(piece) {
                let path = self.entry.path_of(piece.memory);
                let error = match why {
                    None => WeightsError::Cut { path: path.to_owned() },
                    Some(why) => WeightsError::unreadable(path, why),
                };
                self.stopped.store(true, Ordering::Relaxed);
                self.failed.lock().get_or_insert(error);
                break;
            }
            self.done.fetch_add(piece.length as u64, Ordering::Relaxed);
        }
        self.working.fetch_sub(1, Ordering::AcqRel);
        self.parker.wake();
    }

    /// Brings a stretch into memory. `Err(None)` means that the file has no such bytes any more.
    fn populate(&self, piece: &Piece) -> Result<(), Option<io::Error>> {
        let Some((map, file)) = self.entry.memory(piece.memory).map() else { return Ok(()) };
        #[cfg(target_os = "linux")]
        {
            /// What a page beyond the end of its file is, to `madvise`.
            const BAD_ADDRESS: i32 = 14;
            match map.advise_range(memmap2::Advice::PopulateRead, piece.start, piece.length) {
                Ok(()) => return Ok(()),
                // Older than Linux 5.14: read it instead.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) if error.raw_os_error() == Some(BAD_ADDRESS) => return Err(None),
                Err(error) => return Err(Some(error)),
            }
        }
        let _ = map;
        read(file, piece)
    }

    fn wait(
        &self,
        total: u64,
        patience: &Patience<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightsError> {
        let (started, birth) = (Instant::now(), Birth::default());
        let wants = || format!("the weights {:?} to be read", self.entry.key);
        while self.working.load(Ordering::Acquire) > 0 {
            if let Some(token) = patience.cancel.filter(|token| token.is_cancelled()) {
                return Err(WaitError::Cancelled { wants: wants(), reason: token.reason() }.into());
            }
            if let Some(after) = patience.timeout.filter(|timeout| started.elapsed() >= *timeout) {
                let (wants, held) = (wants(), String::new());
                return Err(WaitError::Timeout { wants, held, after }.into());
            }
            let tick = patience.interrupt.slice().map_or(TICK, |slice| slice.min(TICK));
            let left = patience.timeout.map_or(tick, |all| all.saturating_sub(started.elapsed()));
            self.parker.park(Some(Instant::now() + tick.min(left)));
            if patience.interrupt.interrupted() {
                return Err(WaitError::Interrupted.into());
            }
            progress(self.done.load(Ordering::Relaxed), total);
            // Forked by what was just called: the threads are the parent's.
            birth.check("wait")?;
        }
        Ok(())
    }
}

/// Reads a stretch: it is in the system's cache then, if not yet in the map's page tables.
fn read(file: &File, piece: &Piece) -> Result<(), Option<io::Error>> {
    let mut buffer = vec![0; (1 << 20).min(piece.length)];
    for offset in (0..piece.length).step_by(buffer.len().max(1)) {
        let length = buffer.len().min(piece.length - offset);
        let from = (piece.start + offset) as u64;
        read_exact_at(file, &mut buffer[..length], from)
            .map_err(|error| (error.kind() != io::ErrorKind::UnexpectedEof).then_some(error))?;
    }
    Ok(())
}
