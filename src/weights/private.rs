//! Private maps: the same bytes, for one who may write them. What he writes is his own, a page at a
//! time; it is found, and undone, by asking the system which pages are no longer the file's.

use std::ops::Range;
use std::sync::Arc;
use std::{io, iter};

use memmap2::{MmapMut, MmapOptions};

use super::WeightsError;
use super::entry::Entry;
use super::tensor::Tensor;

/// Weights that may be written. Clones share what is written.
#[derive(Clone)]
pub struct PrivateWeights {
    entry: Arc<Entry>,
    maps: Arc<Maps>,
}

/// A private map of each stretch of memory.
pub(super) struct Maps(Vec<Map>);

struct Map {
    own: MmapMut,
    /// Where the bytes begin.
    skipped: usize,
    /// Whether it is a copy: all of its pages are its own.
    copied: bool,
}

impl Maps {
    /// Where a stretch begins.
    pub(super) fn start(&self, memory: usize) -> *const u8 {
        let Map { own: map, skipped, .. } = &self.0[memory];
        map.as_ptr().wrapping_add(*skipped)
    }
}

impl PrivateWeights {
    pub(super) fn of(entry: &Arc<Entry>) -> Result<Self, WeightsError> {
        let mut maps = Vec::with_capacity(entry.memories().len());
        let no_memory = |why| WeightsError::no_memory(&entry.key, why);
        for memory in entry.memories() {
            let Some((file, skipped)) = memory.file() else {
                let not_private = || WeightsError::NotPrivate { key: entry.key.clone() };
                let sealed = memory.sealed().ok_or_else(not_private)?;
                let mut map = MmapMut::map_anon(sealed.len().max(1)).map_err(no_memory)?;
                map[..sealed.len()].copy_from_slice(sealed);
                maps.push(Map { own: map, skipped: 0, copied: true });
                continue;
            };
            let mut options = MmapOptions::new();
            options.len(skipped + memory.len()).no_reserve_swap();
            // SAFETY: what is written to the map stays there. That nobody shortens the file cannot be
            // had from the system, as for the map of the weights themselves.
            #[expect(unsafe_code, reason = "a map of a file")]
            let map = unsafe { options.map_copy(file) }.map_err(no_memory)?;
            maps.push(Map { own: map, skipped, copied: false });
        }
        Ok(Self { entry: entry.clone(), maps: Arc::new(Maps(maps)) })
    }

    /// A number that no other map has for as long as somebody has this one.
    #[must_use]
    pub fn identity(&self) -> usize {
        Arc::as_ptr(&self.maps).addr()
    }

    /// The key of the weights.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.entry.key
    }

    /// The names of the tensors, in the order in which they lie.
    #[must_use]
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entry.names()
    }

    /// All tensors, in that order.
    #[must_use]
    pub fn tensors(&self) -> Vec<Tensor> {
        let tensor = |at| Tensor::private(self.entry.clone(), at, self.maps.clone());
        (0..self.names().len()).map(tensor).collect()
    }

    /// The names of those that are no longer what the weights are.
    ///
    /// # Errors
    /// [`WeightsError::NoMemory`] if the system cannot be asked.
    pub fn changed(&self) -> Result<Vec<&str>, WeightsError> {
        Ok(self.changed_in(&self.touched()?))
    }

    /// The same, by which bytes lie in pages that were written.
    fn changed_in(&self, touched: &[Vec<Range<usize>>]) -> Vec<&str> {
        let mut changed = Vec::new();
        for (at, name) in self.entry.names().enumerate() {
            let placed = self.entry.placed(at);
            let bytes = placed.offset..placed.offset + placed.nbytes;
            let ranges = &touched[placed.memory];
            let first = ranges.partition_point(|range| range.end <= bytes.start);
            let near = ranges[first..].iter().take_while(|range| range.start < bytes.end);
            let mut written =
                near.map(|range| range.start.max(bytes.start)..range.end.min(bytes.end));
            if written.any(|range| self.differs(placed.memory, range)) {
                changed.push(name);
            }
        }
        changed
    }

    /// Undoes all that was written. Returns the names of those that were changed.
    ///
    /// # Errors
    /// As [`PrivateWeights::changed`].
    pub fn restore(&self) -> Result<Vec<&str>, WeightsError> {
        let touched = self.touched()?;
        let changed = self.changed_in(&touched);
        for (memory, ranges) in touched.into_iter().enumerate() {
            for range in ranges {
                self.forget(memory, range)
                    .map_err(|why| WeightsError::no_memory(&self.entry.key, why))?;
            }
        }
        Ok(changed)
    }

    fn differs(&self, memory: usize, range: Range<usize>) -> bool {
        let Map { own: map, skipped, .. } = &self.maps.0[memory];
        let own = &map[skipped + range.start..skipped + range.end];
        self.entry.memory(memory).sealed().is_none_or(|sealed| own != &sealed[range])
    }

    /// For each stretch, which of its bytes lie in pages that were written.
    fn touched(&self) -> Result<Vec<Vec<Range<usize>>>, WeightsError> {
        let stretch = |(number, Map { own: map, skipped, copied }): (usize, &Map)| {
            let length = self.entry.memory(number).len();
            let ranges =
                if *copied { iter::once(0..length).collect() } else { written_pages(map)? };
            let own = ranges.into_iter().map(|range| {
                range.start.saturating_sub(*skipped)..range.end.saturating_sub(*skipped).min(length)
            });
            Ok(own.filter(|range| !range.is_empty()).collect())
        };
        let found: io::Result<_> = self.maps.0.iter().enumerate().map(stretch).collect();
        found.map_err(|why| WeightsError::no_memory(&self.entry.key, why))
    }

    /// Makes a stretch of whole pages what it was.
    fn forget(&self, memory: usize, range: Range<usize>) -> io::Result<()> {
        let Map { own: map, skipped, copied } = &self.maps.0[memory];
        #[cfg(target_os = "linux")]
        if !copied {
            let page = rustix::param::page_size();
            let start = (skipped + range.start) / page * page;
            let length = skipped + range.end - start;
            // SAFETY: the pages are replaced by the file's, of which they are copies: any bytes are
            // a tensor's.
            #[expect(unsafe_code, reason = "a map's pages are dropped")]
            return unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length)
            };
        }
        let _ = copied;
        if let Some(sealed) = self.entry.memory(memory).sealed() {
            let sealed = &sealed[range.clone()];
            let start = map[skipped + range.start..].as_ptr().cast_mut();
            // SAFETY: the map may be written, and has as many bytes there.
            #[expect(unsafe_code, reason = "tensors of the map may be in use")]
            unsafe {
                start.copy_from_nonoverlapping(sealed.as_ptr(), sealed.len());
            }
        }
        Ok(())
    }
}

/// The bytes of a private map whose pages are its own, in runs.
#[cfg(target_os = "linux")]
fn written_pages(map: &MmapMut) -> io::Result<Vec<Range<usize>>> {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// Of an entry of `/proc/self/pagemap`: the page is in memory, or in swap; and it is the file's.
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    const ENTRIES: usize = 64 << 10;

    let page = rustix::param::page_size();
    let (first, count) = (map.as_ptr().addr() / page, map.len().div_ceil(page));
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut entries = vec![0_u8; ENTRIES.min(count) * 8];
    let mut runs: Vec<Range<usize>> = Vec::new();
    for start in (0..count).step_by(ENTRIES) {
        let some = ENTRIES.min(count - start);
        pagemap.read_exact_at(&mut entries[..some * 8], ((first + start) * 8) as u64)?;
        for (number, entry) in entries[..some * 8].as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_ne_bytes(*entry);
            if entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
                continue;
            }
            let bytes = (start + number) * page..(start + number + 1) * page;
            match runs.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => runs.push(bytes),
            }
        }
    }
    Ok(runs)
}

/// All of it: which pages were written is not known.
#[cfg(not(target_os = "linux"))]
fn written_pages(map: &MmapMut) -> io::Result<Vec<Range<usize>>> {
    Ok(vec![0..map.len()])
}
