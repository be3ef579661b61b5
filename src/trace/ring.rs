//! The last events, for any number of threads that record and read at once; nobody waits for anybody.
//!
//! Each place has a number beside its words: odd while somebody writes them, and another one after
//! every time. Who reads looks at it before and after, as in a sequence lock; who writes claims the
//! place by it. Of two who come to one place at once, because the ring went round while one of them
//! was kept from running, one gives up his event, and it counts as lost.

use std::sync::OnceLock;

use super::event::{Event, WORDS};
use crate::sync::{AtomicU64, Mutant, Ordering, fence, planted};

/// How many places get memory at once.
const CHUNK: usize = 1024;

/// One event.
struct Place {
    /// `2 n + 1` while event number `n` is written here, `2 n + 2` when it is.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Place {
    fn new() -> Self {
        Self { version: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    fn write(&self, number: u64, event: &Event) {
        let (before, writing) = (self.version.load(Ordering::Relaxed), 2 * number + 1);
        let taken = before % 2 == 1 || before > writing;
        let claim = || {
            let (claimed, failed) = (Ordering::Acquire, Ordering::Relaxed);
            self.version.compare_exchange(before, writing, claimed, failed).is_ok()
        };
        if (taken || !claim()) && !planted(Mutant::PlaceIsNotClaimed) {
            return;
        }
        // Whoever sees one of the words sees that they are being written.
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(event.pack()) {
            word.store(value, Ordering::Relaxed);
        }
        self.version.store(writing + 1, Ordering::Release);
    }

    fn read(&self, number: u64) -> Option<Event> {
        let written = 2 * number + 2;
        if self.version.load(Ordering::Acquire) != written {
            return None;
        }
        let words = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let same = self.version.load(Ordering::Relaxed) == written;
        (same || planted(Mutant::TornEventIsRead)).then(|| Event::unpack(words)).flatten()
    }
}

/// So many of the last events.
pub(super) struct Ring {
    chunks: Vec<OnceLock<Box<[Place]>>>,
    places: u64,
    /// How many there have been.
    head: AtomicU64,
    /// Those before this one are forgotten.
    floor: AtomicU64,
}

impl Ring {
    /// Room for so many, at least one. Their memory comes when it is used.
    pub(super) fn new(places: usize) -> Self {
        let places = places.max(1);
        let chunks = (0..places.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        let (places, head, floor) = (places as u64, AtomicU64::new(0), AtomicU64::new(0));
        let ring = Self { chunks, places, head, floor };
        if cfg!(feature = "model") {
            // loom does not see that whoever finds a piece comes after whoever made it.
            for number in 0..places {
                let _ = ring.place(number, true);
            }
        }
        ring
    }

    /// Adds one.
    #[inline]
    pub(super) fn push(&self, event: &Event) {
        let number = self.head.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = self.place(number, true) {
            place.write(number, event);
        }
    }

    /// How many there is room for.
    pub(super) fn places(&self) -> u64 {
        self.places
    }

    /// Those that are there, in the order in which they were added; and how many others there were.
    pub(super) fn read(&self) -> (Vec<Event>, u64) {
        let (head, floor) = (self.head.load(Ordering::Acquire), self.floor.load(Ordering::Relaxed));
        let first = head.saturating_sub(self.places).max(floor);
        let events: Vec<Event> =
            (first..head).filter_map(|number| self.place(number, false)?.read(number)).collect();
        let lost = head.saturating_sub(floor).saturating_sub(events.len() as u64);
        (events, lost)
    }

    /// Forgets those that are there.
    pub(super) fn clear(&self) {
        self.floor.store(self.head.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn place(&self, number: u64, make: bool) -> Option<&Place> {
        let at = usize::try_from(number % self.places).ok()?;
        let chunk = self.chunks.get(at / CHUNK)?;
        let all = if make {
            let rest = usize::try_from(self.places).ok()? - at / CHUNK * CHUNK;
            chunk.get_or_init(|| (0..rest.min(CHUNK)).map(|_| Place::new()).collect())
        } else {
            chunk.get()?
        };
        all.get(at % CHUNK)
    }
}
