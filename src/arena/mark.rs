//! Marks in streams that may fail to be made, and must not be taken for passed.

use std::sync::Arc;
use std::time::Instant;

use super::{Arena, Shared};
use crate::device::{DeviceMemory, Event, Fence, MemoryError, Stream};
use crate::sync::Mutex;

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
    pub(super) fn mark(&self, stream: Stream) -> Event {
        self.memory.record(stream).unwrap_or_else(|_| {
            let memory = self.memory.clone();
            Arc::new(Late { memory, stream, made: Mutex::new(None) })
        })
    }
}

impl Arena {
    /// Whether the device knows a stream.
    ///
    /// # Errors
    /// [`MemoryError::Lost`] with what its driver says.
    pub fn check_stream(&self, stream: Stream) -> Result<(), MemoryError> {
        self.0.memory.record(stream).map(drop)
    }
}
