//! Bringing mapped files into memory before they are needed, by several threads.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::WeightsError;
use super::crew::{self, Work};
use super::entry::Entry;
use super::memory::Memory;
use super::slab::read_exact_at;
use crate::wait::Patience;

/// How much a thread populates between two looks at whether it is still wanted.
const PIECE: usize = 16 << 20;

/// A stretch of one mapped file.
struct Piece {
    memory: usize,
    start: usize,
    length: usize,
}

/// All of what is mapped.
struct Populate {
    entry: Arc<Entry>,
    pieces: Vec<Piece>,
}

/// Reads all of what is mapped. `progress` is told the bytes that are there, and all of them.
pub(super) fn prefetch(
    entry: &Arc<Entry>,
    threads: usize,
    patience: &Patience<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let pieces = entry.memories().iter().enumerate().flat_map(pieces_of).collect();
    let work = Arc::new(Populate { entry: entry.clone(), pieces });
    let began = Instant::now();
    crew::complete(&work, threads, patience, progress)?;
    entry.note_cost(began.elapsed());
    Ok(())
}

fn pieces_of((memory, stretch): (usize, &Memory)) -> Vec<Piece> {
    let Some((map, _)) = stretch.map() else { return Vec::new() };
    let length = map.len();
    let piece = |start| Piece { memory, start, length: PIECE.min(length - start) };
    (0..length).step_by(PIECE).map(piece).collect()
}

impl Work for Populate {
    fn pieces(&self) -> usize {
        self.pieces.len()
    }

    fn nbytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.length as u64).sum()
    }

    fn run(&self, piece: usize) -> Result<u64, WeightsError> {
        let piece = &self.pieces[piece];
        self.populate(piece).map_err(|why| {
            let path = self.entry.path_of(piece.memory);
            match why {
                None => WeightsError::Cut { path: path.to_owned() },
                Some(why) => WeightsError::unreadable(path, why),
            }
        })?;
        Ok(piece.length as u64)
    }

    fn wants(&self) -> String {
        format!("the weights {:?} to be read", self.entry.key)
    }
}

impl Populate {
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
