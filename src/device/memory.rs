//! What a device with memory of its own must be able to do with it: pages, copies, streams, events.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::page_locks::PageLocks;
use super::{ByteSize, Name};

/// An address in a device's memory.
pub type Address = usize;

/// The order in which work happens on a device. Work of one stream is done in order; streams are out of
/// step with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The calling thread does the work itself: whatever it has called is over. The CPU.
    Host,
    /// A queue of the device, by the driver's handle.
    Device(usize),
}

/// Marks a place in a stream: it has passed once all the work before it is done.
pub trait Fence: Any + Send + Sync {
    /// Whether it has passed; never waits.
    ///
    /// # Errors
    /// [`MemoryError::Failed`] and [`MemoryError::Unmapped`]: the work before it is over, and has not
    /// been done. [`MemoryError::Lost`]: nobody knows.
    fn has_passed(&self) -> Result<bool, MemoryError>;

    /// Blocks until it has passed, or until then. Returns whether it has.
    ///
    /// # Errors
    /// As [`Fence::has_passed`].
    fn wait(&self, until: Option<Instant>) -> Result<bool, MemoryError>;

    /// Says that somebody will want to know when it has passed.
    fn watch(&self) {}

    /// When it has passed, as far as that was seen: whoever looks now sees it later.
    fn passed_at(&self) -> Option<Instant> {
        None
    }

    /// Whether it is known already that the work before it will not all be done, though it may not be
    /// over yet; never waits.
    fn has_failed(&self) -> bool {
        self.has_passed().is_err()
    }

    /// Whether streams can be told to wait for it by now: work that is still on its way to its own
    /// stream cannot be waited for by others.
    fn has_begun(&self) -> bool {
        true
    }
}

impl dyn Fence {
    /// Whether the work before it is over, done or not; false where nobody knows.
    pub fn is_over(&self) -> bool {
        match self.has_passed() {
            Ok(passed) => passed,
            Err(MemoryError::Lost { .. }) => false,
            Err(_) => true,
        }
    }
}

/// A fence as those who wait for it have it.
pub type Event = Arc<dyn Fence>;

/// Bytes in host memory that stay where they are.
pub trait HostBytes: Send + Sync {
    /// Copies as many of them as there is room for, from the byte `from` on.
    fn copy_to(&self, from: usize, to: &mut [u8]);

    /// Where they are, one after the other, if that is memory that a device may be let read: nobody
    /// writes it, and it is no file's own.
    fn lockable(&self) -> Option<(&PageLocks, Address)> {
        None
    }
}

/// How copies to a device leave host memory: what of that is page-locked, so that the device can read it
/// on its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pinning {
    /// Buffers, through which everything goes.
    #[default]
    Staging,
    /// These, and the weights themselves where they can be: large ones go from where they lie.
    All,
    /// Nothing: copies take longer, and no memory is kept from the system.
    Nothing,
}

/// Where a device's memory comes when it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// To addresses that were reserved before, page by page.
    Fixed,
    /// Wherever it does, somewhere else each time. Tensors share a block up to so many bytes, and lie
    /// in one as a whole; a larger one has its own.
    Moving {
        /// The bytes, a multiple of a page.
        block: usize,
    },
}

/// What is charged for page-locked buffers, for as long as they are there.
pub type Charge = Box<dyn Any + Send>;

/// One stretch of a copy.
pub struct Piece {
    /// Where the bytes come from.
    pub source: Arc<dyn HostBytes>,
    /// Which of them is the first.
    pub from: usize,
    /// Where on the device they go.
    pub to: Address,
    /// How many.
    pub length: usize,
}

/// A device's memory in pages. Called with no lock held, from any thread.
pub trait DeviceMemory: Send + Sync {
    /// Bytes of a page: what is committed at once.
    fn page(&self) -> usize;

    /// Bytes that nobody has now.
    fn free(&self) -> u64;

    /// Where its memory comes. Where it moves it is [allocated](DeviceMemory::allocate), and not
    /// committed.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn places(&self) -> Result<Places, MemoryError> {
        Ok(Places::Fixed)
    }

    /// Reserves addresses, of which none has memory: so many bytes, a multiple of a page.
    ///
    /// # Errors
    /// [`MemoryError::NoAddresses`].
    fn reserve(&self, bytes: usize) -> Result<Address, MemoryError>;

    /// Gives addresses back, of which none has memory.
    fn release(&self, start: Address, bytes: usize);

    /// Gives addresses memory, of whatever content; all of them or none.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`] and [`MemoryError::Lost`].
    fn commit(&self, start: Address, bytes: usize) -> Result<(), MemoryError>;

    /// Takes the memory of addresses away. No stream may use it any more.
    fn decommit(&self, start: Address, bytes: usize);

    /// Memory of whatever content, somewhere: so many bytes, a multiple of a page.
    ///
    /// # Errors
    /// As [`DeviceMemory::reserve`] and [`DeviceMemory::commit`].
    fn allocate(&self, bytes: usize) -> Result<Address, MemoryError> {
        let start = self.reserve(bytes)?;
        let committed = self.commit(start, bytes);
        committed.inspect_err(|_| self.release(start, bytes)).map(|()| start)
    }

    /// Gives such memory back, all that was allocated at once. No stream may use it any more.
    fn deallocate(&self, start: Address, bytes: usize) {
        self.decommit(start, bytes);
        self.release(start, bytes);
    }

    /// As [`DeviceMemory::deallocate`], but may keep it for who allocates as many bytes next, where that
    /// is faster. It counts as free.
    fn set_aside(&self, start: Address, bytes: usize) {
        self.deallocate(start, bytes);
    }

    /// As [`DeviceMemory::decommit`], but may keep the memory for who commits next, as
    /// [`DeviceMemory::set_aside`].
    fn lay_aside(&self, start: Address, bytes: usize) {
        self.decommit(start, bytes);
    }

    /// Whether what is set aside is there sooner for who comes next.
    fn exchanges(&self) -> bool {
        false
    }

    /// Gives back what was set aside and nobody has got since.
    fn clear_aside(&self) {}

    /// The stream for copies to the device.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn copies(&self) -> Result<Stream, MemoryError>;

    /// Bytes of host memory that copies take beside, if they leave it so.
    fn staging(&self, _how: Pinning) -> u64 {
        0
    }

    /// Keeps these bytes until it is dropped, by the last one to do so.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn stage(&self, charge: Charge) -> Result<Box<dyn Any + Send>, MemoryError> {
        Ok(charge)
    }

    /// Copies to the device, later, on the stream for copies, when all of `after` have passed. Pieces
    /// that touch each other go at once. Returns what passes when it is done, or tells why it is not.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn upload(
        &self,
        after: &[Event],
        pieces: Vec<Piece>,
        how: Pinning,
    ) -> Result<Event, MemoryError>;

    /// Marks where `stream` is now. Of [`Stream::Host`] everything has passed.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn record(&self, stream: Stream) -> Result<Event, MemoryError>;

    /// Marks where `stream` is now, so that times [between](DeviceMemory::between) marks are known;
    /// nothing where they never are.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn mark(&self, _stream: Stream) -> Result<Option<Event>, MemoryError> {
        Ok(None)
    }

    /// How long the device took from one mark to a later one; `None` if they have not passed. Never
    /// waits.
    fn between(&self, earlier: &Event, later: &Event) -> Option<Duration> {
        Some(later.passed_at()?.saturating_duration_since(earlier.passed_at()?))
    }

    /// Whether a graph is captured on `stream`: what comes there is not done now, and nothing on it can be
    /// marked.
    fn captures(&self, _stream: Stream) -> bool {
        false
    }

    /// Has the work that comes on `stream` from now on wait for `event`; the caller does not, if it
    /// [has begun](Fence::has_begun).
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    fn after(&self, stream: Stream, event: &Event) -> Result<(), MemoryError>;
}

/// What can go wrong in a device's memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// It has not so many bytes left, whatever a budget says.
    #[error("{device} is out of memory: {} was asked for, {} is free", ByteSize(*.asked), ByteSize(*.free))]
    OutOfMemory {
        /// The device.
        device: Name,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that nobody had then.
        free: u64,
    },
    /// It has no addresses for so many bytes.
    #[error("{device} has no addresses for {}: {why}", ByteSize(*.asked))]
    NoAddresses {
        /// The device.
        device: Name,
        /// Bytes asked for.
        asked: u64,
        /// What the system says.
        why: String,
    },
    /// Work on a stream has used an address that has no memory.
    #[error("{device} was made to use address {address:#x}, which has no memory")]
    Unmapped {
        /// The device.
        device: Name,
        /// The first such address.
        address: Address,
    },
    /// Work has failed, and is over.
    #[error("{device} has not done what it was told: {why}")]
    Failed {
        /// The device.
        device: Name,
        /// What the driver says.
        why: String,
    },
    /// It does not answer any more.
    #[error("{device} is lost: {why}")]
    Lost {
        /// The device.
        device: Name,
        /// What the driver says.
        why: String,
    },
}
