//! Sealed memory of our own, filled by several threads that read files.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use memmap2::MmapMut;

use super::memory::Memory;
use super::source::Part;
use super::{Given, WeightsError};

/// Where slabs begin, and so that huge pages can back them.
const ALIGNMENT: usize = 2 << 20;
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

/// Where each of a part's tensors goes in its slab; and how long that gets.
pub(super) fn places(part: &Part) -> (Vec<usize>, usize) {
    laid_out(part.tensors.iter().map(|tensor| tensor.bytes.len()))
}

/// The same for tensors that somebody has in memory.
pub(super) fn places_of(tensors: &[Given]) -> (Vec<usize>, usize) {
    laid_out(tensors.iter().map(Given::nbytes))
}

/// Memory of so many bytes at a multiple of [`ALIGNMENT`], and where in the map it begins.
fn fresh(length: usize) -> io::Result<(MmapMut, usize)> {
    let map = MmapMut::map_anon(length.max(1).saturating_add(ALIGNMENT))?;
    let skipped = map.as_ptr().align_offset(ALIGNMENT);
    #[cfg(target_os = "linux")]
    // Without huge pages it is only slower.
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok((map, skipped))
}

/// A sealed copy of tensors that somebody has in memory, at `places`.
pub(super) fn copied(tensors: &[Given], places: &[usize], length: usize) -> io::Result<Memory> {
    let (mut map, skipped) = fresh(length)?;
    for (tensor, place) in tensors.iter().zip(places) {
        let start = skipped + place;
        tensor.copy_to(&mut map[start..start + tensor.nbytes()]);
    }
    Ok(Memory::slab(map.make_read_only()?, skipped))
}

/// One piece of a file, and where it goes.
struct Piece<'a> {
    to: &'a mut [u8],
    from: u64,
}

/// A copy of a part's tensors at `places`, read by several threads and sealed.
pub(super) fn filled(part: &Part, places: &[usize], length: usize) -> Result<Memory, WeightsError> {
    let unreadable = |why| WeightsError::unreadable(&part.path, why);
    let (mut map, skipped) = fresh(length).map_err(unreadable)?;
    let ranges = part.tensors.iter().map(|tensor| tensor.bytes.clone());
    let pieces = pieces(&mut map[skipped..skipped + length], places, ranges);
    read(&part.file, &part.path, pieces)?;
    Ok(Memory::slab(map.make_read_only().map_err(unreadable)?, skipped))
}

fn pieces<'a>(
    mut slab: &'a mut [u8],
    places: &[usize],
    ranges: impl Iterator<Item = Range<usize>>,
) -> Vec<Piece<'a>> {
    let (mut pieces, mut reached) = (Vec::new(), 0);
    for (&place, range) in places.iter().zip(ranges) {
        let (_, rest) = slab.split_at_mut(place - reached);
        let (tensor, rest) = rest.split_at_mut(range.len());
        (slab, reached) = (rest, place + range.len());
        let starts = (range.start as u64..).step_by(PIECE);
        pieces.extend(tensor.chunks_mut(PIECE).zip(starts).map(|(to, from)| Piece { to, from }));
    }
    pieces
}

/// Reads all pieces; several threads share them.
fn read(file: &File, path: &Path, pieces: Vec<Piece<'_>>) -> Result<(), WeightsError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let threads = threads.min(pieces.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let pieces: Vec<_> =
        pieces.into_iter().map(|piece| std::sync::Mutex::new(Some(piece))).collect();
    let work = || -> io::Result<()> {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let piece = piece.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(Piece { to, from }) = piece.filter(|_| !failed.load(Ordering::Relaxed)) {
                read_exact_at(file, to, from)
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
        }
        Ok(())
    };
    let outcome = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().fold(own, |outcome, other| {
            outcome.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    });
    outcome.map_err(|why| match why.kind() {
        io::ErrorKind::UnexpectedEof => WeightsError::Cut { path: path.to_owned() },
        _ => WeightsError::unreadable(path, why),
    })
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
