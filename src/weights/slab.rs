//! Sealed memory of our own, filled by several threads that read files.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::memory::Memory;
use super::region::Region;
use super::source::Part;
use super::{Given, WeightsError};

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

/// A sealed copy of tensors that somebody has in memory, at `places`.
pub(super) fn copied(
    mut region: Region,
    tensors: &[Given],
    places: &[usize],
) -> io::Result<Memory> {
    let bytes = region.bytes();
    for (tensor, &place) in tensors.iter().zip(places) {
        tensor.copy_to(&mut bytes[place..place + tensor.nbytes()]);
    }
    Ok(Memory::slab(region.seal()?))
}

/// A sealed copy of the tensors of all parts at `places`, read by several threads.
pub(super) fn filled(
    mut region: Region,
    parts: &[Part],
    places: &[usize],
) -> Result<Memory, WeightsError> {
    read(pieces(region.bytes(), parts, places))?;
    let first = parts.first().map_or(Path::new(""), |part| &part.path);
    let sealed = region.seal().map_err(|why| WeightsError::unreadable(first, why))?;
    Ok(Memory::slab(sealed))
}

/// One piece of a file, and where it goes.
struct Piece<'a> {
    part: &'a Part,
    to: &'a mut [u8],
    from: u64,
}

fn pieces<'a>(mut slab: &'a mut [u8], parts: &'a [Part], places: &[usize]) -> Vec<Piece<'a>> {
    let (mut pieces, mut reached) = (Vec::new(), 0);
    let tensors =
        parts.iter().flat_map(|part| part.tensors.iter().map(move |tensor| (part, tensor)));
    for (&place, (part, tensor)) in places.iter().zip(tensors) {
        let range = &tensor.bytes;
        let (_, rest) = slab.split_at_mut(place - reached);
        let (own, rest) = rest.split_at_mut(range.len());
        (slab, reached) = (rest, place + range.len());
        let starts = (range.start as u64..).step_by(PIECE);
        let piece = |(to, from)| Piece { part, to, from };
        pieces.extend(own.chunks_mut(PIECE).zip(starts).map(piece));
    }
    pieces
}

/// Reads all pieces; several threads share them.
fn read(pieces: Vec<Piece<'_>>) -> Result<(), WeightsError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let threads = threads.min(pieces.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let pieces: Vec<_> =
        pieces.into_iter().map(|piece| std::sync::Mutex::new(Some(piece))).collect();
    let work = || -> Result<(), WeightsError> {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let piece = piece.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(piece) = piece.filter(|_| !failed.load(Ordering::Relaxed)) {
                piece.read().inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().fold(own, |outcome, other| {
            outcome.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })
}

impl Piece<'_> {
    fn read(self) -> Result<(), WeightsError> {
        let Part { file, path, .. } = self.part;
        read_exact_at(file, self.to, self.from).map_err(|why| match why.kind() {
            io::ErrorKind::UnexpectedEof => WeightsError::Cut { path: path.clone() },
            _ => WeightsError::unreadable(path, why),
        })
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
