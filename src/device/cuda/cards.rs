//! Cards as CUDA itself counts them, where there is no NVML to ask: some boards with integrated memory.
//!
//! Asking begins the driver, so that a process must not be forked after it; it makes no context.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice, CUdevice_attribute};

use super::CudaMemory;
use super::library::{Library, is_present, library};
use crate::device::{DeviceMemory, DeviceType, Driver, Found, Host, Name};

/// One card, by the number that CUDA gives it.
struct Card {
    library: &'static Library,
    device: CUdevice,
    /// Whether its memory is the host's.
    integrated: bool,
    memory: Arc<CudaMemory>,
}

impl Driver for Card {
    fn free_memory(&self) -> Option<u64> {
        if self.integrated {
            return Some(Host.free_memory()?.saturating_add(self.memory.kept()));
        }
        // Only a context tells, and none is made to ask.
        self.has_context().then(|| self.memory.known_free()).flatten()
    }

    fn memory(&self) -> Option<Arc<dyn DeviceMemory>> {
        let memory: Arc<dyn DeviceMemory> = self.memory.clone();
        Some(memory)
    }
}

impl Card {
    /// Whether somebody in this process uses the device already.
    fn has_context(&self) -> bool {
        if !self.library.is_here() {
            return false;
        }
        let (mut flags, mut active): (c_uint, c_int) = (0, 0);
        // SAFETY: it writes to where it is told.
        #[expect(unsafe_code, reason = "a function of a library")]
        let code =
            unsafe { self.library.context_state(self.device, &raw mut flags, &raw mut active) };
        code == 0 && active != 0
    }
}

/// Every card that CUDA shows this process.
pub(in crate::device) fn found() -> Vec<Found> {
    if !is_present() {
        return Vec::new();
    }
    let Ok(library) = library() else { return Vec::new() };
    let mut count: c_int = 0;
    // SAFETY: it writes to where it is told.
    #[expect(unsafe_code, reason = "a function of a library")]
    let code = unsafe { library.device_count(&raw mut count) };
    let count = if code == 0 { u32::try_from(count).unwrap_or(0) } else { 0 };
    (0..count).filter_map(|ordinal| card(library, ordinal)).collect()
}

fn card(library: &'static Library, ordinal: u32) -> Option<Found> {
    let name = Name::new(DeviceType::Cuda, ordinal).ok()?;
    let mut device: CUdevice = 0;
    let (mut text, mut bytes, mut integrated) = ([0; 256], 0_usize, 0);
    let known = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED as c_int;
    // SAFETY: they write to where they are told, of the text no more than there is room for, and end it
    // with 0.
    #[expect(unsafe_code, reason = "functions of a library")]
    let (model, bytes) = unsafe {
        if library.device(&raw mut device, ordinal.cast_signed()) != 0 {
            return None;
        }
        let start: *mut c_char = text.as_mut_ptr();
        let named = library.device_name(start, 256, device) == 0;
        let known_bytes = library.total_memory(&raw mut bytes, device) == 0;
        library.attribute(&raw mut integrated, known, device);
        let model = named.then(|| CStr::from_ptr(start).to_string_lossy().into_owned());
        (model, known_bytes.then_some(bytes as u64))
    };
    let (memory, integrated) = (CudaMemory::of(name), integrated != 0);
    Some(Found {
        name,
        model: model.unwrap_or_else(|| "NVIDIA GPU".to_owned()),
        memory: bytes,
        unified: false,
        driver: Arc::new(Card { library, device, integrated, memory }),
    })
}
