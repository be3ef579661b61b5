//! Sealed memory of our own, filled by several threads that read files.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use super::crew::{self, Work};
use super::memory::Memory;
use super::region::Region;
use super::source::Part;
use super::{Given, WeightsError};
use crate::budget::Reservation;
use crate::wait::Patience;

/// Where tensors begin in a slab: as wide loads, and torch's own allocations, have it.
const TENSOR: usize = 64;
/// How much a thread reads at once.
const PIECE: usize = 8 << 20;
/// More threads than that read no faster.
const MOST_THREADS: usize = 8;

/// Where tensors of so many bytes go in a slab; and how long that gets.
fn laid_out(lengths: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let mut end = 0_usize;
    let places = lengths.map(|length| {
        let start = end.next_multiple_of(TENSOR);
        end = start.saturating_add(length);
        start
    });
    (places.collect(), end)
}

/// Where the tensors of all parts go in a slab, one after the other; and how long that gets.
pub(super) fn places(parts: &[Part]) -> (Vec<usize>, usize) {
    laid_out(parts.iter().flat_map(|part| &part.tensors).map(|tensor| tensor.bytes.len()))
}

/// The same for tensors that somebody has in memory.
pub(super) fn places_of(tensors: &[Given]) -> (Vec<usize>, usize) {
    laid_out(tensors.iter().map(Given::nbytes))
}

/// Memory for a slab, and what is reserved for it.
pub(super) struct Room {
    // Dropped first: the bytes are given back once they are free.
    pub(super) region: Region,
    pub(super) reserved: Option<Reservation>,
}

impl Room {
    /// The same with so many bytes of memory, of whatever content.
    pub(super) fn resized(self, length: usize) -> io::Result<Self> {
        Ok(Self { region: self.region.resized(length)?, reserved: self.reserved })
    }

    /// Ends all writing.
    fn seal(self) -> io::Result<(Memory, Option<Reservation>)> {
        Ok((Memory::slab(self.region.seal()?), self.reserved))
    }
}

/// A piece of what is copied, and where it goes.
pub(super) struct Piece {
    /// Which of the files or tensors.
    source: usize,
    /// Where in it.
    from: usize,
    /// Where in the slab.
    to: usize,
    length: usize,
}

impl Piece {
    /// The pieces of so many bytes.
    fn of(source: usize, from: usize, to: usize, length: usize) -> impl Iterator<Item = Self> {
        (0..length).step_by(PIECE).map(move |at| {
            let length = PIECE.min(length - at);
            Self { source, from: from + at, to: to + at, length }
        })
    }
}

/// The pieces of the tensors of all parts, of which each goes to its place.
pub(super) fn pieces(parts: &[Part], places: &[usize]) -> Vec<Piece> {
    let tensors = parts.iter().enumerate().flat_map(|(number, part)| {
        part.tensors.iter().map(move |tensor| (number, tensor.bytes.start, tensor.bytes.len()))
    });
    let pieces = tensors.zip(places);
    pieces.flat_map(|((source, from, length), &to)| Piece::of(source, from, to, length)).collect()
}

/// What a slab is filled from.
trait Source: Send + Sync + 'static {
    /// Copies a piece to `to`, which is as long.
    fn copy(&self, piece: &Piece, to: &mut [u8]) -> Result<(), WeightsError>;
}

/// A slab that is being filled.
struct Filling<S> {
    key: String,
    room: Room,
    /// Where the slab begins.
    start: *mut u8,
    pieces: Vec<Piece>,
    source: S,
}

// SAFETY: `start` points into the memory of `room`, which is Send and Sync, and is only written through
// it: by whoever runs a piece, to that piece's own bytes.
#[expect(unsafe_code, reason = "a pointer stands for memory that several threads write")]
unsafe impl<S: Send> Send for Filling<S> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a pointer stands for memory that several threads write")]
unsafe impl<S: Sync> Sync for Filling<S> {}

impl<S: Source> Work for Filling<S> {
    fn pieces(&self) -> usize {
        self.pieces.len()
    }

    fn nbytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.length as u64).sum()
    }

    fn run(&self, piece: usize) -> Result<u64, WeightsError> {
        let piece = &self.pieces[piece];
        // SAFETY: the pieces lie in the slab, side by side, and each is run once.
        #[expect(unsafe_code, reason = "several threads write one slab")]
        let to = unsafe { std::slice::from_raw_parts_mut(self.start.add(piece.to), piece.length) };
        self.source.copy(piece, to)?;
        Ok(piece.length as u64)
    }

    fn wants(&self) -> String {
        format!("the weights {:?} to be copied", self.key)
    }
}

/// Fills a slab and seals it.
fn filled<S: Source>(
    key: &str,
    mut room: Room,
    pieces: Vec<Piece>,
    source: S,
    patience: &Patience<'_>,
) -> Result<(Memory, Option<Reservation>), WeightsError> {
    let slab = room.region.bytes();
    let end = pieces.iter().map(|piece| piece.to + piece.length).max().unwrap_or(0);
    assert!(end <= slab.len(), "a slab has room for what goes there");
    let start = slab.as_mut_ptr();
    let work = Arc::new(Filling { key: key.to_owned(), room, start, pieces, source });
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    crew::complete(&work, threads, patience, &mut |_, _| {})?;
    let Some(Filling { room, .. }) = Arc::into_inner(work) else {
        unreachable!("nobody else has the work when it is complete")
    };
    room.seal().map_err(|why| WeightsError::no_memory(key, why))
}

/// A sealed copy of pieces of files.
pub(super) fn read(
    key: &str,
    room: Room,
    pieces: Vec<Piece>,
    files: Vec<(File, PathBuf)>,
    patience: &Patience<'_>,
) -> Result<(Memory, Option<Reservation>), WeightsError> {
    filled(key, room, pieces, Files(files), patience)
}

struct Files(Vec<(File, PathBuf)>);

impl Source for Files {
    fn copy(&self, piece: &Piece, to: &mut [u8]) -> Result<(), WeightsError> {
        let (file, path) = &self.0[piece.source];
        read_exact_at(file, to, piece.from as u64).map_err(|why| match why.kind() {
            io::ErrorKind::UnexpectedEof => WeightsError::Cut { path: path.clone() },
            _ => WeightsError::unreadable(path, why),
        })
    }
}

/// A sealed copy of tensors that somebody has in memory, at `places`.
pub(super) fn copied(
    key: &str,
    room: Room,
    tensors: Vec<Given>,
    places: &[usize],
    patience: &Patience<'_>,
) -> Result<(Memory, Option<Reservation>), WeightsError> {
    let places = tensors.iter().zip(places).enumerate();
    let pieces =
        places.flat_map(|(source, (tensor, &to))| Piece::of(source, 0, to, tensor.nbytes()));
    let pieces = pieces.collect();
    filled(key, room, pieces, Tensors(tensors), patience)
}

struct Tensors(Vec<Given>);

impl Source for Tensors {
    fn copy(&self, piece: &Piece, to: &mut [u8]) -> Result<(), WeightsError> {
        self.0[piece.source].copy_to(piece.from, to);
        Ok(())
    }
}

#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, to: &mut [u8], from: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, from)
}

#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut to: &mut [u8], mut from: u64) -> io::Result<()> {
    while !to.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, to, from)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => (to, from) = (&mut to[read..], from + read as u64),
        }
    }
    Ok(())
}
