//! The memory of a virtual device: pages of host memory that behave like a GPU's. They are bounded, those
//! that are not committed cannot be touched, and copies are done later by streams out of step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::memory::{Address, DeviceMemory, Event, MemoryError, Piece, Pinning, Places, Stream};
use super::stream::{Order, Streams};
use super::virtual_device::VirtualSpec;
use super::{Name, addresses};

/// As on CUDA.
const PAGE: usize = 2 << 20;
/// What fresh memory has in it where a test wants to see what is not copied.
const GARBAGE: u8 = 0xA5;
/// How many released stretches of addresses are kept from use where memory moves.
const RELEASED: usize = 64;

/// The memory of one virtual device.
pub struct VirtualMemory {
    device: Name,
    bytes: u64,
    /// Bytes that are committed, or that somebody else occupies.
    used: AtomicU64,
    /// Which pages have memory, by where their addresses begin. Read while memory is touched.
    pages: RwLock<BTreeMap<Address, Vec<bool>>>,
    streams: Mutex<Option<Arc<Streams>>>,
    copies: Mutex<Option<Stream>>,
    bus: Bus,
    jitter: Option<u64>,
    /// Where memory moves, addresses that were released: nobody gets them for a while, so that memory
    /// comes elsewhere.
    released: Option<Mutex<VecDeque<(Address, usize)>>>,
}

/// What carries copies to the device: all of its streams share it.
struct Bus {
    bandwidth: Option<u64>,
    free_at: Mutex<Option<Instant>>,
}

impl Bus {
    /// No wait is shorter: threads that sleep wake up later than that. What follows at once waits for
    /// both, so that the bus is as fast as is said.
    const SHORT: Duration = Duration::from_micros(500);

    /// Waits until so many bytes have come, which began to be carried then.
    fn carry(&self, bytes: usize, began: Instant) {
        let Some(bandwidth) = self.bandwidth else { return };
        #[expect(clippy::cast_precision_loss, reason = "a time")]
        let takes = Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let free = free_at.filter(|at| *at + Self::SHORT > began).unwrap_or(began);
            *free_at.insert(free + takes)
        };
        let left = until.saturating_duration_since(Instant::now());
        if left >= Self::SHORT {
            std::thread::sleep(left);
        }
    }
}

impl VirtualMemory {
    pub(super) fn new(device: Name, bytes: u64, spec: VirtualSpec) -> Self {
        let VirtualSpec { bandwidth, jitter, moving, .. } = spec;
        Self {
            device,
            bytes,
            used: AtomicU64::new(0),
            pages: RwLock::default(),
            streams: Mutex::default(),
            copies: Mutex::default(),
            bus: Bus { bandwidth, free_at: Mutex::default() },
            jitter,
            released: moving.then(Mutex::default),
        }
    }

    /// Bytes that nobody has.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.bytes.saturating_sub(self.used.load(Ordering::SeqCst))
    }

    /// Bytes of it that have memory.
    #[must_use]
    pub fn committed(&self) -> u64 {
        let pages = self.read();
        (pages.values().flatten().filter(|page| **page).count() * PAGE) as u64
    }

    /// Takes bytes that are neither pages nor in anybody's budget, as another process would.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn occupy(self: &Arc<Self>, bytes: u64) -> Result<Occupied, MemoryError> {
        self.take(bytes)?;
        Ok(Occupied { memory: self.clone(), bytes: Mutex::new(bytes) })
    }

    fn take(&self, bytes: u64) -> Result<(), MemoryError> {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.bytes);
        let taken = self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits);
        taken.map(drop).map_err(|used| MemoryError::OutOfMemory {
            device: self.device,
            asked: bytes,
            free: self.bytes.saturating_sub(used),
        })
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Address, Vec<bool>>> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream, which is out of step with all others.
    pub fn stream(self: &Arc<Self>) -> Stream {
        self.streams().open()
    }

    fn streams(&self) -> Arc<Streams> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Streams::new(self.device, self.jitter));
        streams.get_or_insert_with(made).clone()
    }

    /// Has `work` done on `stream` after what is there already, as a kernel would be.
    pub fn launch(
        self: &Arc<Self>,
        stream: Stream,
        work: impl FnOnce(&Self) -> Result<(), MemoryError> + Send + 'static,
    ) {
        let memory = self.clone();
        self.streams().submit(stream, Order::Work(Box::new(move || work(&memory))));
    }

    /// Copies bytes out of it, as a stream would.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`].
    pub fn read_at(&self, from: Address, to: &mut [u8]) -> Result<(), MemoryError> {
        let pages = self.read();
        self.check(&pages, from, to.len())?;
        let from: *const u8 = std::ptr::with_exposed_provenance(from);
        // SAFETY: all of it has memory, which is not taken away while `pages` is read.
        #[expect(unsafe_code, reason = "memory of a device")]
        unsafe {
            to.as_mut_ptr().copy_from_nonoverlapping(from, to.len());
        }
        Ok(())
    }

    /// Copies one stretch into it.
    fn write(&self, piece: &Piece) -> Result<(), MemoryError> {
        let (began, mut done) = (Instant::now(), 0);
        while done < piece.length {
            // A little at a time: nothing is committed meanwhile.
            let length = (piece.length - done).min(PAGE);
            let pages = self.read();
            self.check(&pages, piece.to + done, length)?;
            let to = std::ptr::with_exposed_provenance_mut(piece.to + done);
            // SAFETY: all of it has memory, which is not taken away while `pages` is read. Others may
            // read it on other streams: that these come later is what fences are for.
            #[expect(unsafe_code, reason = "memory of a device")]
            let to = unsafe { std::slice::from_raw_parts_mut(to, length) };
            piece.source.copy_to(piece.from + done, to);
            done += length;
        }
        self.bus.carry(piece.length, began);
        Ok(())
    }

    /// Refuses to touch what has no memory.
    fn check(
        &self,
        pages: &BTreeMap<Address, Vec<bool>>,
        from: Address,
        length: usize,
    ) -> Result<(), MemoryError> {
        let unmapped = |address| Err(MemoryError::Unmapped { device: self.device, address });
        let Some((&start, pages)) = pages.range(..=from).next_back() else {
            return unmapped(from);
        };
        let (first, end) = ((from - start) / PAGE, (from - start + length).div_ceil(PAGE));
        let missing = (first..end).find(|page| !pages.get(*page).copied().unwrap_or(false));
        missing.map_or(Ok(()), |page| unmapped(from.max(start + page * PAGE)))
    }

    /// Says which pages have memory. Returns false if any of them had it, or had it not, before.
    fn mark(
        pages: &mut BTreeMap<Address, Vec<bool>>,
        start: Address,
        bytes: usize,
        memory: bool,
    ) -> bool {
        let Some((&first, known)) = pages.range_mut(..=start).next_back() else { return false };
        let at = (start - first) / PAGE;
        let Some(marked) = known.get_mut(at..at + bytes / PAGE) else { return false };
        let changes = marked.iter().all(|page| *page != memory);
        if changes {
            marked.fill(memory);
        }
        changes
    }

    fn lost(&self, why: &std::io::Error) -> MemoryError {
        MemoryError::Lost { device: self.device, why: why.to_string() }
    }
}

impl DeviceMemory for Arc<VirtualMemory> {
    fn page(&self) -> usize {
        PAGE
    }

    fn free(&self) -> u64 {
        VirtualMemory::free(self)
    }

    fn places(&self) -> Result<Places, MemoryError> {
        // So small that tests see several.
        Ok(self.released.as_ref().map_or(Places::Fixed, |_| Places::Moving { block: PAGE }))
    }

    fn reserve(&self, bytes: usize) -> Result<Address, MemoryError> {
        let start = addresses::reserve(bytes).map_err(|why| MemoryError::NoAddresses {
            device: self.device,
            asked: bytes as u64,
            why: why.to_string(),
        })?;
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        pages.insert(start, vec![false; bytes / PAGE]);
        Ok(start)
    }

    fn release(&self, start: Address, bytes: usize) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let left = pages.remove(&start);
        debug_assert!(left.is_some_and(|left| !left.contains(&true)));
        let Some(released) = &self.released else { return addresses::release(start, bytes) };
        let mut released = released.lock().unwrap_or_else(PoisonError::into_inner);
        released.push_back((start, bytes));
        if released.len() > RELEASED
            && let Some((start, bytes)) = released.pop_front()
        {
            addresses::release(start, bytes);
        }
    }

    fn exchanges(&self) -> bool {
        // As a card does without pages.
        self.released.is_some()
    }

    fn commit(&self, start: Address, bytes: usize) -> Result<(), MemoryError> {
        self.take(bytes as u64)?;
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        if let Err(why) = addresses::commit(start, bytes) {
            self.give_back(bytes as u64);
            return Err(self.lost(&why));
        }
        let fresh = VirtualMemory::mark(&mut pages, start, bytes, true);
        debug_assert!(fresh, "committed twice");
        if self.jitter.is_some() {
            // SAFETY: it has just been given memory, and `pages` is ours.
            #[expect(unsafe_code, reason = "memory of a device")]
            unsafe {
                std::ptr::with_exposed_provenance_mut::<u8>(start).write_bytes(GARBAGE, bytes);
            }
        }
        Ok(())
    }

    fn decommit(&self, start: Address, bytes: usize) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let had = VirtualMemory::mark(&mut pages, start, bytes, false);
        debug_assert!(had, "decommitted twice");
        // Without memory for the map's own books the pages stay, unused, until they are committed again.
        let _ = addresses::decommit(start, bytes);
        drop(pages);
        self.give_back(bytes as u64);
    }

    fn copies(&self) -> Result<Stream, MemoryError> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(*copies.get_or_insert_with(|| self.stream()))
    }

    fn upload(
        &self,
        after: &[Event],
        pieces: Vec<Piece>,
        _how: Pinning,
    ) -> Result<Event, MemoryError> {
        let stream = self.copies()?;
        for event in after {
            self.after(stream, event)?;
        }
        self.launch(stream, move |memory| pieces.iter().try_for_each(|piece| memory.write(piece)));
        self.record(stream)
    }

    fn record(&self, stream: Stream) -> Result<Event, MemoryError> {
        Ok(self.streams().record(stream))
    }

    fn mark(&self, stream: Stream) -> Result<Option<Event>, MemoryError> {
        self.record(stream).map(Some)
    }

    fn after(&self, stream: Stream, event: &Event) -> Result<(), MemoryError> {
        self.streams().submit(stream, Order::Wait(event.clone()));
        Ok(())
    }
}

/// Bytes of a virtual device's memory that somebody else has, until it is dropped.
pub struct Occupied {
    memory: Arc<VirtualMemory>,
    bytes: Mutex<u64>,
}

impl Occupied {
    /// How many.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has other bytes from now on.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`]; it has those of before then.
    pub fn resize(&self, bytes: u64) -> Result<(), MemoryError> {
        let mut has = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        match bytes.checked_sub(*has) {
            Some(more) => self.memory.take(more)?,
            None => self.memory.give_back(*has - bytes),
        }
        *has = bytes;
        Ok(())
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes());
    }
}
