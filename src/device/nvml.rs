//! NVIDIA's cards as NVML sees them: no `cuInit`, no context. Where there is no NVML, CUDA is asked itself.
//!
//! Indices follow `CUDA_VISIBLE_DEVICES` as CUDA reads it. NVML counts cards in the order of the PCI
//! bus; CUDA does the same with `CUDA_DEVICE_ORDER=PCI_BUS_ID`, and otherwise puts the fastest
//! first: on machines with unlike cards that are not sorted by speed, set it, or `cuda:0` here and in
//! CUDA are different cards.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use nvml_wrapper::Nvml;

use super::cuda::{self, CudaMemory, cuda_is_present};
use super::memory::DeviceMemory;
use super::near::{Near, near_card};
use super::{DeviceType, Driver, Found, Name};

/// NVML, loaded at first use; `None` where there is no NVIDIA driver. Kept for the process: loading
/// takes milliseconds, and the library has no state that a fork would break.
fn nvml() -> Option<&'static Nvml> {
    static LOADED: OnceLock<Option<Nvml>> = OnceLock::new();
    // Drivers ship the versioned name; the plain one comes with developers' packages and on Windows.
    let load =
        || Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().or_else(|_| Nvml::init());
    LOADED.get_or_init(|| load().ok()).as_ref()
}

/// One card, asked again by its lasting identity.
struct Card {
    uuid: String,
    memory: Arc<CudaMemory>,
}

impl Driver for Card {
    fn free_memory(&self) -> Option<u64> {
        match card(nvml()?, &self.uuid)?.memory_info() {
            Ok(memory) => Some(memory.free.saturating_add(self.memory.kept())),
            // NVML does not tell of memory that is the host's; CUDA does, once it is used.
            Err(_) => self.memory.free_if_used(),
        }
    }

    fn near(&self) -> Option<Near> {
        let address = card(nvml()?, &self.uuid)?.pci_info().ok()?.bus_id.to_lowercase();
        // NVML gives the bus's domain eight digits; the kernel, four.
        near_card(Path::new("/sys"), address.get(4..).filter(|_| address.len() == 16)?)
    }

    fn memory(&self) -> Option<Arc<dyn DeviceMemory>> {
        let memory: Arc<dyn DeviceMemory> = self.memory.clone();
        cuda_is_present().then_some(memory)
    }
}

/// The cards that CUDA would show this process; where there is no NVML, those that it shows.
pub(super) fn found() -> Vec<Found> {
    let Some(nvml) = nvml() else { return cuda::found() };
    let count = nvml.device_count().unwrap_or(0);
    // A lost card keeps its place, so that no other gets its number.
    let uuid = |index| nvml.device_by_index(index).and_then(|card| card.uuid());
    let uuids: Vec<String> =
        (0..count).map(|index| uuid(index).unwrap_or_else(|_| format!("lost {index}"))).collect();
    // What is no text names no card either.
    let setting = std::env::var_os("CUDA_VISIBLE_DEVICES");
    let setting = setting.as_ref().map(|setting| setting.to_string_lossy());
    let visible = visible_devices(setting.as_deref(), &uuids);
    (0u32..).zip(visible).filter_map(|(index, uuid)| found_card(nvml, index, uuid)).collect()
}

/// The card with this UUID. NVML's own search fails while any card is lost, but only it knows the
/// instances of a card.
fn card<'nvml>(nvml: &'nvml Nvml, uuid: &str) -> Option<nvml_wrapper::Device<'nvml>> {
    let count = nvml.device_count().ok()?;
    let mut cards = (0..count).filter_map(|index| nvml.device_by_index(index).ok());
    let found = cards.find(|card| card.uuid().is_ok_and(|known| known == uuid));
    found.or_else(|| nvml.device_by_uuid(uuid).ok())
}

fn found_card(nvml: &Nvml, index: u32, uuid: String) -> Option<Found> {
    let device = card(nvml, &uuid)?;
    let name = Name::new(DeviceType::Cuda, index).ok()?;
    Some(Found {
        name,
        model: device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned()),
        memory: device.memory_info().ok().map(|memory| memory.total),
        unified: false,
        driver: Arc::new(Card { uuid, memory: CudaMemory::of(name) }),
    })
}

/// Which cards, by UUID and in which order, `CUDA_VISIBLE_DEVICES` leaves visible.
///
/// As in NVIDIA's CUDA C++ Programming Guide: indices or (prefixes of) UUIDs, up to the first that
/// is not valid; one given twice hides all; an empty setting hides all.
#[must_use]
pub fn visible_devices(setting: Option<&str>, uuids: &[String]) -> Vec<String> {
    let Some(setting) = setting else { return uuids.to_vec() };
    let mut visible: Vec<String> = Vec::new();
    for entry in setting.split(',').map(str::trim) {
        let Some(uuid) = identify(entry, uuids) else { break };
        if visible.contains(&uuid) {
            return Vec::new();
        }
        visible.push(uuid);
    }
    visible
}

fn identify(entry: &str, uuids: &[String]) -> Option<String> {
    if entry.starts_with("MIG-") {
        return Some(entry.to_owned());
    }
    if entry.starts_with("GPU-") {
        let mut alike = uuids.iter().filter(|uuid| uuid.starts_with(entry));
        return alike.next().filter(|_| alike.next().is_none()).cloned();
    }
    uuids.get(entry.parse::<usize>().ok()?).cloned()
}
