//! Virtual devices: the CPU under another name.

use std::sync::Arc;

use super::memory::DeviceMemory;
use super::virtual_memory::VirtualMemory;
use super::{Description, Device, DeviceError, DeviceType, Driver, Host, Name};

/// More virtual devices than anyone has meant so far.
pub(super) const MOST: u32 = 1024;

/// What the virtual devices of one set are like.
#[derive(Debug, Clone, Copy, Default)]
pub struct VirtualSpec {
    /// Bytes of its own, counted as VRAM; `None` for a unified device, which copies nothing.
    pub memory: Option<u64>,
    /// Bytes per second of an imitated bus; only with `memory`.
    pub bandwidth: Option<u64>,
    /// Seed of random delays of everything that a stream does, for tests; only with `memory`. Fresh
    /// memory has garbage in it then.
    pub jitter: Option<u64>,
    /// Whether memory comes to other addresses each time, as on GPUs without virtual memory
    /// management; only with `memory`.
    pub moving: bool,
}

/// A virtual device with memory of its own.
struct Bounded(Arc<VirtualMemory>);

impl Driver for Bounded {
    fn free_memory(&self) -> Option<u64> {
        Some(self.0.free())
    }

    fn memory(&self) -> Option<Arc<dyn DeviceMemory>> {
        Some(Arc::new(self.0.clone()))
    }

    fn virtual_memory(&self) -> Option<Arc<VirtualMemory>> {
        Some(self.0.clone())
    }
}

/// `count` virtual devices, `virtual:0` onwards.
///
/// # Errors
/// [`DeviceError::Count`], [`DeviceError::Zero`] or [`DeviceError::NeedsMemory`].
pub fn virtual_devices(count: u64, spec: VirtualSpec) -> Result<Vec<Device>, DeviceError> {
    let known = u32::try_from(count).ok().filter(|count| (1..=MOST).contains(count));
    let count = known.ok_or(DeviceError::Count { given: count })?;
    for (what, figure) in [("the memory", spec.memory), ("the bandwidth", spec.bandwidth)] {
        if figure == Some(0) {
            return Err(DeviceError::Zero { what });
        }
    }
    let of_a_bus = [
        ("bandwidth", spec.bandwidth.is_some()),
        ("jitter", spec.jitter.is_some()),
        ("moving", spec.moving),
    ];
    if let (None, Some((what, _))) = (spec.memory, of_a_bus.iter().find(|(_, given)| *given)) {
        return Err(DeviceError::NeedsMemory { what });
    }
    (0..count).map(|index| virtual_device(index, spec, count > 1)).collect()
}

fn virtual_device(index: u32, spec: VirtualSpec, numbered: bool) -> Result<Device, DeviceError> {
    let name = Name::new(DeviceType::Virtual, index)?;
    let driver: Arc<dyn Driver> = match spec.memory {
        Some(memory) => {
            let memory = VirtualMemory::new(name, memory, spec);
            Arc::new(Bounded(Arc::new(memory)))
        }
        None => Arc::new(Host),
    };
    Ok(Device::new(Description {
        name,
        model: if spec.memory.is_some() { "virtual GPU" } else { "unified virtual GPU" }.to_owned(),
        number: numbered.then_some(index + 1),
        memory: spec.memory,
        unified: spec.memory.is_none(),
        bandwidth: spec.bandwidth,
        driver,
    }))
}

/// The unified virtual device that a bare name stands for.
pub(super) fn named(name: Name) -> Result<Device, DeviceError> {
    virtual_device(name.index(), VirtualSpec::default(), true)
}
