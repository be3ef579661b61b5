//! CUDA's driver: a device's memory in pages, its streams and events, and copies to it.
//!
//! Nothing is loaded and no context is made before a device's memory is first used. Then the library is
//! found at run time, and the device's primary context retained, which is torch's too. Every call
//! has it as the thread's current context and puts the one of before back, on every path.
//!
//! **Order.** Copies are read by a thread of the device, which keeps their sources until then, and done
//! on a stream that does not wait for the one where torch computes. Nothing synchronises the device:
//! fences are looked at.
//!
//! **Errors.** [`MemoryError::Lost`] with what the driver says, also if there is no CUDA here, and why;
//! [`MemoryError::OutOfMemory`].
//!
//! Has never run on a real GPU: its tests run on a library with the driver's face (`tests/pretend_cuda`).

mod blocks;
mod cards;
mod context;
mod direct;
mod frames;
mod library;
mod pages;
mod staging;
mod stream;
mod uploads;

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::wait::PerProcess;

use super::memory::{
    Address, Charge, DeviceMemory, Event, Fence, MemoryError, Piece, Pinning, Places, Stream,
};
use super::{DeviceType, Driver, Host, Name};
use blocks::Blocks;
pub(super) use cards::found;
use context::Primary;
use cudarc::driver::sys::CUdevice_attribute;
use frames::Frames;
use stream::{Opened, Recorded};
use uploads::{Promised, Uploads};

/// The memory of one CUDA device, opened when it is first used.
pub struct CudaMemory {
    name: Name,
    opened: OnceLock<State>,
    /// To ask how much is free of a device that is not opened.
    primary: OnceLock<Primary>,
}

struct State {
    device: Arc<Opened>,
    page: usize,
    places: Places,
    integrated: bool,
    uploads: Mutex<Option<Arc<Uploads>>>,
}

impl State {
    /// Bytes that nobody has and the driver has given us.
    fn kept_bytes(&self) -> u64 {
        let Opened { blocks, frames, .. } = &*self.device;
        blocks.kept_bytes() + (frames.count() * self.page) as u64
    }

    /// The stream for copies, begun when it is first wanted.
    fn uploads(&self) -> Result<Arc<Uploads>, MemoryError> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        match &*uploads {
            Some(uploads) => Ok(uploads.clone()),
            None => Ok(uploads.insert(Arc::new(Uploads::begin(&self.device)?)).clone()),
        }
    }

    /// The same, if `stream` is that one.
    fn uploads_on(&self, stream: usize) -> Option<Arc<Uploads>> {
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.as_ref().filter(|uploads| uploads.stream == stream).cloned()
    }
}

/// Whether there is a driver to load.
#[must_use]
pub fn cuda_is_present() -> bool {
    library::is_present()
}

impl CudaMemory {
    /// That of `cuda:N`, by the ordinal that CUDA and torch give it; there is one in a process. Does not
    /// look whether the device is there.
    #[must_use]
    pub fn of(name: Name) -> Arc<Self> {
        static ALL: PerProcess<Mutex<HashMap<Name, Arc<CudaMemory>>>> = PerProcess::new();
        debug_assert_eq!(name.kind(), DeviceType::Cuda);
        let all = ALL.get_or_init(Mutex::default);
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Self { name, opened: OnceLock::new(), primary: OnceLock::new() });
        all.entry(name).or_insert_with(made).clone()
    }

    fn state(&self) -> Result<&State, MemoryError> {
        let state = match self.opened.get() {
            Some(opened) => opened,
            None => {
                // What fails may go well the next time.
                let opened = self.open()?;
                self.opened.get_or_init(|| opened)
            }
        };
        // A forked child has what its parent opened, and must not use it.
        library::library().map_err(|why| self.without_cuda(&why))?;
        Ok(state)
    }

    fn open(&self) -> Result<State, MemoryError> {
        let lost = |why: String| self.without_cuda(&why);
        let primary = Primary::retain(self.name.index()).map_err(lost)?;
        let page = {
            let _entered = primary.enter().map_err(lost)?;
            pages::size(&primary)
        };
        let integrated =
            primary.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED as i32);
        let places = if pages::are_here(&primary) {
            Places::Fixed
        } else {
            Places::Moving { block: blocks::size(primary.memory(), page) }
        };
        let (blocks, frames) = (Blocks::default(), Frames::default());
        let device = Arc::new(Opened { name: self.name, primary, blocks, frames });
        let uploads = Mutex::default();
        Ok(State { device, page, places, integrated: integrated != 0, uploads })
    }

    /// A new stream.
    ///
    /// # Errors
    /// [`MemoryError::Lost`].
    pub fn stream(&self) -> Result<Stream, MemoryError> {
        Ok(Stream::Device(self.state()?.device.stream()?))
    }

    /// Bytes that are kept for whoever wants memory, so that others do not count them as free.
    pub(super) fn kept(&self) -> u64 {
        self.opened.get().map_or(0, State::kept_bytes)
    }

    /// Bytes that nobody has of a device that somebody uses here; `None` of another.
    pub(super) fn free_if_used(&self) -> Option<u64> {
        self.opened.get().map(|_| self.free())
    }

    /// Bytes that nobody has, also of a device that is not opened; `None` if it does not tell.
    fn known_free(&self) -> Option<u64> {
        match self.opened.get() {
            Some(state) => {
                let free = free_of(&state.device.primary)?;
                Some(free.saturating_add(state.kept_bytes()))
            }
            _ => {
                let retained = match self.primary.get() {
                    Some(primary) => primary,
                    None => {
                        let primary = Primary::retain(self.name.index()).ok()?;
                        self.primary.get_or_init(|| primary)
                    }
                };
                free_of(retained)
            }
        }
    }

    fn without_cuda(&self, why: &str) -> MemoryError {
        MemoryError::Lost { device: self.name, why: format!("no CUDA here, because {why}") }
    }

    fn out_of_memory(&self, asked: usize) -> MemoryError {
        MemoryError::OutOfMemory { device: self.name, asked: asked as u64, free: self.free() }
    }
}

impl DeviceMemory for CudaMemory {
    fn page(&self) -> usize {
        // Where there are none, nothing else comes to it.
        self.state().map_or(2 << 20, |state| state.page)
    }

    fn free(&self) -> u64 {
        let Ok(state) = self.state() else { return 0 };
        let free = if state.integrated {
            // Its memory is the host's, of which the driver calls only what nobody has cached free.
            Host.free_memory()
        } else {
            free_of(&state.device.primary)
        };
        free.unwrap_or(0).saturating_add(self.kept())
    }

    fn places(&self) -> Result<Places, MemoryError> {
        self.state().map(|state| state.places)
    }

    fn reserve(&self, bytes: usize) -> Result<Address, MemoryError> {
        let State { device, page, .. } = self.state()?;
        let outcome = device.enter(|primary| pages::reserve(primary, bytes, *page))?;
        outcome.map_err(|code| {
            let why = device.told("cuMemAddressReserve", code);
            match code {
                library::OUT_OF_MEMORY => {
                    MemoryError::NoAddresses { device: self.name, asked: bytes as u64, why }
                }
                _ => device.lost(why),
            }
        })
    }

    fn release(&self, start: Address, bytes: usize) {
        if let Ok(State { device, .. }) = self.state() {
            let released = device.within("cuMemAddressFree", |primary| {
                stream::checked(pages::release(primary, start, bytes))
            });
            debug_assert!(released.is_ok(), "{released:?}");
        }
    }

    fn commit(&self, start: Address, bytes: usize) -> Result<(), MemoryError> {
        let State { device, page, .. } = self.state()?;
        let outcome =
            device.enter(|primary| pages::commit(primary, &device.frames, start, bytes, *page))?;
        outcome.map_err(|code| match code {
            library::OUT_OF_MEMORY => self.out_of_memory(bytes),
            code => device.lost(device.told("mapping", code)),
        })
    }

    fn decommit(&self, start: Address, bytes: usize) {
        if let Ok(State { device, page, .. }) = self.state() {
            let _ = device.within("cuMemUnmap", |primary| {
                pages::decommit(primary, start, bytes, *page);
                Ok(())
            });
        }
    }

    fn allocate(&self, bytes: usize) -> Result<Address, MemoryError> {
        let State { device, .. } = self.state()?;
        let outcome = device.enter(|primary| device.blocks.allocate(primary, bytes))?;
        outcome.map_err(|code| match code {
            library::OUT_OF_MEMORY => self.out_of_memory(bytes),
            code => device.lost(device.told("cuMemAlloc", code)),
        })
    }

    fn deallocate(&self, start: Address, _bytes: usize) {
        if let Ok(State { device, .. }) = self.state() {
            let _ = device.within("cuMemFree", |primary| {
                device.blocks.free(primary, start);
                Ok(())
            });
        }
    }

    fn set_aside(&self, start: Address, bytes: usize) {
        if let Ok(State { device, .. }) = self.state() {
            device.blocks.keep(start, bytes);
        }
    }

    fn lay_aside(&self, start: Address, bytes: usize) {
        if let Ok(State { device, page, .. }) = self.state() {
            let _ = device.within("cuMemUnmap", |primary| {
                pages::lay_aside(primary, &device.frames, start, bytes, *page);
                Ok(())
            });
        }
    }

    fn exchanges(&self) -> bool {
        true
    }

    fn clear_aside(&self) {
        if let Ok(state) = self.state()
            && state.kept_bytes() > 0
        {
            let device = &state.device;
            let _ = device.within("giving memory back", |primary| {
                device.frames.give_back(primary);
                Ok(device.blocks.give_back(primary))
            });
        }
    }

    fn copies(&self) -> Result<Stream, MemoryError> {
        Ok(Stream::Device(self.state()?.uploads()?.stream))
    }

    fn staging(&self, how: Pinning) -> u64 {
        if how == Pinning::Nothing { 0 } else { staging::RING as u64 }
    }

    fn stage(&self, charge: Charge) -> Result<Box<dyn Any + Send>, MemoryError> {
        Ok(self.state()?.uploads()?.stage(charge))
    }

    fn upload(
        &self,
        after: &[Event],
        pieces: Vec<Piece>,
        how: Pinning,
    ) -> Result<Event, MemoryError> {
        Ok(self.state()?.uploads()?.copy(after, pieces, how))
    }

    fn record(&self, stream: Stream) -> Result<Event, MemoryError> {
        let Stream::Device(stream) = stream else { return Ok(Arc::new(Passed)) };
        let state = self.state()?;
        match state.uploads_on(stream) {
            Some(uploads) => Ok(uploads.record()),
            None => Ok(Arc::new(state.device.record(stream)?)),
        }
    }

    fn mark(&self, stream: Stream) -> Result<Option<Event>, MemoryError> {
        let Stream::Device(stream) = stream else { return Ok(None) };
        Ok(Some(Arc::new(self.state()?.device.mark(stream)?)))
    }

    fn between(&self, earlier: &Event, later: &Event) -> Option<Duration> {
        let (earlier, later): (&dyn Any, &dyn Any) = (earlier.as_ref(), later.as_ref());
        let (earlier, later) = (earlier.downcast_ref()?, later.downcast_ref()?);
        self.state().ok()?.device.between(earlier, later)
    }

    fn captures(&self, stream: Stream) -> bool {
        let Stream::Device(stream) = stream else { return false };
        self.state().is_ok_and(|state| state.device.captures(stream))
    }

    fn after(&self, stream: Stream, event: &Event) -> Result<(), MemoryError> {
        let state = self.state()?;
        let Stream::Device(stream) = stream else { return event.wait(None).map(drop) };
        if let Some(uploads) = state.uploads_on(stream) {
            // What was asked for before comes before.
            uploads.after(event);
            return Ok(());
        }
        let known: &dyn Any = event.as_ref();
        if let Some(promised) = known.downcast_ref::<Promised>() {
            return promised.precede(&state.device, stream);
        }
        match known.downcast_ref::<Recorded>() {
            Some(recorded) => state.device.after(stream, recorded),
            None => event.wait(None).map(drop),
        }
    }
}

/// Bytes of a device that nobody has, as its driver tells.
fn free_of(primary: &Primary) -> Option<u64> {
    let _entered = primary.enter().ok()?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: it writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe { primary.library.memory_info(&raw mut free, &raw mut total) };
    (code == 0).then_some(free as u64)
}

/// What the host has done when it comes to it.
struct Passed;

impl Fence for Passed {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        Ok(true)
    }

    fn wait(&self, _until: Option<Instant>) -> Result<bool, MemoryError> {
        Ok(true)
    }
}
