//! Marks in streams of where a use ends: which of two is the later one, and those that cannot be made.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use super::{Arena, Shared};
use crate::device::{DeviceMemory, Event, Fence, MemoryError, Stream};
use crate::sync::{Mutant, Mutex, Ordering, planted};

/// Until where a stream has used pages.
#[derive(Clone)]
pub(super) struct Mark {
    pub(super) stream: Stream,
    pub(super) event: Event,
    /// When it was made: some time between these.
    made: RangeInclusive<u64>,
}

impl Mark {
    /// Whether who waits for it need not wait for the other one: it is later in the same stream. Of two
    /// that were made at the same time neither is.
    fn covers(&self, other: &Self) -> bool {
        self.stream == other.stream && self.made.start() > other.made.end()
    }

    /// Adds it to those that have to be waited for. Somebody who has used the same pages meanwhile may
    /// have been here before.
    pub(super) fn add_to(&self, marks: &mut Vec<Self>) {
        if planted(Mutant::LastMarkWins) {
            marks.retain(|other| self.stream != other.stream);
        }
        if !marks.iter().any(|other| other.covers(self)) {
            marks.retain(|other| !self.covers(other));
            marks.push(self.clone());
        }
    }
}

/// A mark that could not be made when it was wanted: it is made later in the stream, which is as good.
struct Late {
    memory: Arc<dyn DeviceMemory>,
    stream: Stream,
    made: Mutex<Option<Event>>,
}

impl Late {
    fn event(&self) -> Result<Event, MemoryError> {
        let made = self.made.lock().clone();
        if let Some(made) = made {
            return Ok(made);
        }
        let event = self.memory.record(self.stream)?;
        Ok(self.made.lock().get_or_insert(event).clone())
    }
}

impl Fence for Late {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        self.event()?.has_passed()
    }

    fn wait(&self, until: Option<Instant>) -> Result<bool, MemoryError> {
        self.event()?.wait(until)
    }
}

impl Shared {
    /// Marks where a stream is now.
    pub(super) fn mark(&self, stream: Stream) -> Mark {
        let now = || self.marks.fetch_add(1, Ordering::SeqCst);
        let began = now();
        let event = self.memory.record(stream).unwrap_or_else(|_| {
            let memory = self.memory.clone();
            Arc::new(Late { memory, stream, made: Mutex::new(None) })
        });
        Mark { stream, event, made: began..=now() }
    }
}

impl Arena {
    /// Whether the device knows a stream.
    ///
    /// # Errors
    /// [`MemoryError::Lost`] with what its driver says.
    pub fn check_stream(&self, stream: Stream) -> Result<(), MemoryError> {
        if self.captures(stream) { Ok(()) } else { self.0.memory.record(stream).map(drop) }
    }

    /// Whether a graph is captured on a stream.
    #[must_use]
    pub fn captures(&self, stream: Stream) -> bool {
        self.0.memory.captures(stream)
    }
}
