//! What a key stands for: its tensors, the memory that they lie in, and how to tell it from others.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use indexmap::IndexMap;

use super::header::Described;
use super::memory::{Memory, MemoryKind};
use super::placed::{Placed, copy_elements};
use super::reaper::Remains;
use super::slab::{self, Room};
use super::source::{Identity, Part, Source};
use super::spare::Spares;
use super::{ElementType, WeightsError};
use crate::budget::Reservation;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::wait::{Patience, forks};

/// Nanoseconds that a byte is taken for that is mapped, and may have to be read: as of a disk with 1 GiB/s.
const UNREAD: u64 = 1;

/// What a caller says of the weights beside where they are: `dtype`, `fp16`. Two who mean the same key
/// must agree.
pub type Settings = Vec<(String, String)>;

/// A tensor that somebody else has in memory.
pub struct Given {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub element: ElementType,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// In elements, if it is not row-major.
    pub strides: Option<Vec<i64>>,
    /// What it lies in.
    pub memory: Memory,
    /// Where in it its first element lies.
    pub offset: usize,
}

impl Given {
    /// Bytes of its elements; as many as there can be for more than that.
    pub(super) fn nbytes(&self) -> usize {
        let count = self.shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        count.and_then(|count| self.element.bytes(count)).unwrap_or(usize::MAX)
    }

    /// The addresses of the memory that it lies in.
    fn span(&self) -> Range<usize> {
        let start = self.memory.start().addr();
        start..start + self.memory.len()
    }

    /// Copies as many bytes of its elements, in row-major order, as there is room for, from the byte
    /// `from` of that order on.
    pub(super) fn copy_to(&self, from: usize, bytes: &mut [u8]) {
        let start = self.memory.start().wrapping_add(self.offset);
        // SAFETY: whoever made this said where the elements lie, in memory that it keeps.
        #[expect(unsafe_code, reason = "a copy out of memory that is somebody else's")]
        unsafe {
            copy_elements(start, self.element, &self.shape, self.strides.as_deref(), from, bytes);
        }
    }
}

/// What a key stands for.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) version: u64,
    pub(super) path: Option<PathBuf>,
    /// The index that names the files, as it was, if there is one.
    pub(super) index: Option<(PathBuf, Identity)>,
    /// The file of each stretch of memory, as it was; none for tensors that were given.
    pub(super) sources: Vec<(PathBuf, Identity)>,
    pub(super) settings: Settings,
    pub(super) private: bool,
    /// In the order in which they lie.
    pub(super) tensors: IndexMap<String, Placed>,
    pub(super) metadata: HashMap<String, String>,
    pub(super) nbytes: u64,
    kinds: Vec<(MemoryKind, u64)>,
    /// Nanoseconds that it takes to bring it back, as far as they were measured.
    cost: AtomicU64,
    pub(super) retired: AtomicBool,
    /// Who gets the slab in the end, and how often the process had forked when it was filled.
    spares: Weak<Spares>,
    pub(super) forks: Option<u64>,
    memories: Vec<Memory>,
    reserved: Option<Reservation>,
}

/// Everything of an entry but its contents.
pub(super) struct Draft {
    pub(super) key: String,
    pub(super) path: Option<PathBuf>,
    pub(super) settings: Settings,
    pub(super) private: bool,
    /// Whether what is there already may be the other way.
    pub(super) either: bool,
}

impl Draft {
    /// Bytes that tensors read from `source` will take.
    pub(super) fn bytes_of_source(&self, source: &Source) -> u64 {
        if self.private {
            return slab::places(&source.parts).1 as u64;
        }
        source.parts.iter().map(|part| data_of(part).len() as u64).sum()
    }

    /// The entry of the tensors in `source`, mapped.
    pub(super) fn mapped(
        self,
        source: Source,
        reserved: Option<Reservation>,
        version: u64,
    ) -> Entry {
        let mut contents = Contents {
            kinds: vec![(MemoryKind::Mapped, self.bytes_of_source(&source))],
            index: source.index,
            metadata: source.metadata,
            ..Contents::default()
        };
        for Part { path, identity, file, map, tensors } in source.parts {
            let at = contents.memories.len();
            let places = tensors.iter().map(|tensor| tensor.bytes.start).collect();
            contents.describe(tensors, at, places);
            contents.sources.push((path, identity));
            contents.memories.push(Memory::mapped(map, file));
        }
        self.entry(version, contents, reserved)
    }

    /// The entry of the tensors in `source`, copied to a slab.
    pub(super) fn read(
        self,
        source: Source,
        room: Room,
        version: u64,
        patience: &Patience<'_>,
    ) -> Result<Entry, WeightsError> {
        let (places, length) = slab::places(&source.parts);
        let mut contents = Contents {
            kinds: vec![(MemoryKind::Slab, length as u64)],
            index: source.index,
            metadata: source.metadata,
            ..Contents::default()
        };
        let pieces = slab::pieces(&source.parts, &places);
        let (mut places, mut files) = (places.into_iter(), Vec::new());
        for Part { path, identity, file, tensors, .. } in source.parts {
            let places = places.by_ref().take(tensors.len()).collect();
            contents.describe(tensors, 0, places);
            contents.sources.push((path.clone(), identity));
            files.push((file, path));
        }
        let (memory, reserved) = slab::read(&self.key, room, pieces, files, patience)?;
        contents.memories.push(memory);
        Ok(self.entry(version, contents, reserved))
    }

    /// Bytes that given tensors will take.
    pub(super) fn bytes_of_given(&self, tensors: &[Given]) -> u64 {
        if self.private {
            return slab::places_of(tensors).1 as u64;
        }
        covered(tensors.iter().map(Given::span).collect())
    }

    /// The entry of a sealed copy of tensors that somebody else has.
    pub(super) fn copied(
        self,
        tensors: Vec<Given>,
        room: Room,
        version: u64,
        patience: &Patience<'_>,
    ) -> Result<Entry, WeightsError> {
        let (places, length) = slab::places_of(&tensors);
        let mut contents =
            Contents { kinds: vec![(MemoryKind::Slab, length as u64)], ..Contents::default() };
        for (given, &offset) in tensors.iter().zip(&places) {
            let Given { element, shape, .. } = given;
            let (element, shape, nbytes) = (*element, shape.clone(), given.nbytes());
            let (strides, packing) = (None, None);
            let tensor = Placed { element, shape, strides, packing, memory: 0, offset, nbytes };
            contents.tensors.insert(given.name.clone(), tensor);
        }
        let (memory, reserved) = slab::copied(&self.key, room, tensors, &places, patience)?;
        contents.memories.push(memory);
        Ok(self.entry(version, contents, reserved))
    }

    /// The entry of tensors that lie where somebody else has them.
    pub(super) fn given(
        self,
        tensors: Vec<Given>,
        reserved: Option<Reservation>,
        version: u64,
    ) -> Entry {
        let mut spans: HashMap<MemoryKind, Vec<Range<usize>>> = HashMap::new();
        let mut contents = Contents::default();
        for given in tensors {
            spans.entry(given.memory.kind()).or_default().push(given.span());
            let nbytes = given.nbytes();
            let Given { name, element, shape, strides, memory, offset } = given;
            let at = contents.memories.len();
            let tensor =
                Placed { element, shape, strides, packing: None, memory: at, offset, nbytes };
            contents.tensors.insert(name, tensor);
            contents.memories.push(memory);
        }
        contents.kinds = spans.into_iter().map(|(kind, spans)| (kind, covered(spans))).collect();
        self.entry(version, contents, reserved)
    }

    fn entry(self, version: u64, contents: Contents, reserved: Option<Reservation>) -> Entry {
        let Contents { index, sources, tensors, memories, metadata, kinds } = contents;
        Entry {
            key: self.key,
            version,
            path: self.path,
            index,
            sources,
            settings: self.settings,
            private: self.private,
            tensors,
            metadata,
            nbytes: kinds.iter().map(|(_, bytes)| bytes).sum(),
            kinds,
            cost: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            spares: Weak::new(),
            forks: forks(),
            memories,
            reserved,
        }
    }
}

/// What an entry has in it.
#[derive(Default)]
struct Contents {
    index: Option<(PathBuf, Identity)>,
    sources: Vec<(PathBuf, Identity)>,
    tensors: IndexMap<String, Placed>,
    memories: Vec<Memory>,
    metadata: HashMap<String, String>,
    kinds: Vec<(MemoryKind, u64)>,
}

impl Contents {
    /// Adds the tensors of one file, which lie at `places` in one of the stretches of memory.
    fn describe(&mut self, tensors: Vec<Described>, memory: usize, places: Vec<usize>) {
        for (described, offset) in tensors.into_iter().zip(places) {
            let Described { name, element, shape, packing, bytes } = described;
            let (strides, nbytes) = (None, bytes.len());
            let tensor = Placed { element, shape, strides, packing, memory, offset, nbytes };
            self.tensors.insert(name, tensor);
        }
    }
}

/// Bytes that at least one of the ranges covers: tied tensors and views count once.
fn covered(mut ranges: Vec<Range<usize>>) -> u64 {
    ranges.sort_by_key(|range| range.start);
    let mut reached = 0;
    let mut bytes = 0;
    for range in ranges {
        bytes += range.end.saturating_sub(range.start.max(reached)) as u64;
        reached = reached.max(range.end);
    }
    bytes
}

/// Where in the file a part's tensors lie.
fn data_of(part: &Part) -> Range<usize> {
    let start = part.tensors.iter().map(|tensor| tensor.bytes.start).min().unwrap_or(0);
    let end = part.tensors.iter().map(|tensor| tensor.bytes.end).max().unwrap_or(0);
    start..end
}

impl Drop for Entry {
    fn drop(&mut self) {
        let remains = self.remains();
        if remains.memories.is_empty() {
            return;
        }
        let left = match self.spares.upgrade() {
            Some(spares) => spares.keep(remains, self.forks),
            None => Some(remains),
        };
        left.into_iter().for_each(Remains::let_go);
    }
}

impl Entry {
    /// Takes out what has to be let go of.
    pub(super) fn remains(&mut self) -> Remains {
        Remains { memories: std::mem::take(&mut self.memories), reserved: self.reserved.take() }
    }

    /// Says how long it took, and to whom its slab is left in the end; and the budget, what of it is in
    /// memory now.
    pub(super) fn loaded(mut self, took: Duration, spares: &Arc<Spares>) -> Self {
        self.spares = Arc::downgrade(spares);
        self.note_cost(took);
        if let Some(reservation) = &self.reserved {
            // What is mapped can be dropped by the system: a probe sees it as free.
            let mapped = |(kind, _): &&(MemoryKind, u64)| *kind != MemoryKind::Mapped;
            let filled = self.kinds.iter().filter(mapped).map(|(_, bytes)| bytes).sum();
            // Nobody else has the reservation, and these are bytes of it.
            let _ = reservation.fill(filled);
        }
        self
    }

    /// It took so long to bring it, or to read it.
    pub(super) fn note_cost(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.cost.fetch_max(nanoseconds, Ordering::Relaxed);
    }

    /// How long it takes to bring it back, as far as is known.
    pub(super) fn cost(&self) -> Duration {
        let mapped =
            |(kind, bytes): &(MemoryKind, u64)| (*kind == MemoryKind::Mapped).then_some(*bytes);
        // Who evicts has the system forget the file.
        let unread: u64 = self.kinds.iter().filter_map(mapped).sum();
        let least = Duration::from_nanos(unread.saturating_mul(UNREAD));
        Duration::from_nanos(self.cost.load(Ordering::Relaxed)).max(least)
    }

    /// The same in seconds, for each byte.
    pub(super) fn cost_per_byte(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let bytes = self.nbytes.max(1) as f64;
        self.cost().as_secs_f64() / bytes
    }

    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.tensors.get_index_of(name)
    }

    pub(super) fn placed(&self, at: usize) -> &Placed {
        &self.tensors[at]
    }

    pub(super) fn memory(&self, at: usize) -> &Memory {
        &self.memories[at]
    }

    pub(super) fn memories(&self) -> &[Memory] {
        &self.memories
    }

    /// Bytes that are page-locked for copies to devices.
    pub(super) fn locked(&self) -> u64 {
        self.memories.iter().map(Memory::locked).sum()
    }

    /// Bytes by what holds them.
    pub(super) fn kinds(&self) -> &[(MemoryKind, u64)] {
        &self.kinds
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// The file of each stretch of mapped memory.
    pub(super) fn path_of(&self, memory: usize) -> &Path {
        self.sources.get(memory).map_or(Path::new(""), |(path, _)| path)
    }
}
