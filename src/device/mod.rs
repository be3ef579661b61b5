//! Devices: their names, what is there, and how much memory is free.
//!
//! Asking creates no CUDA context and imports nothing: NVIDIA's cards are read through NVML, which
//! does not poison forked children as `cuInit` does; that is called only where there is no NVML. Other accelerators come from registered
//! [`Provider`]s. A virtual device is the CPU under another name, for machines without a GPU.
//!
//! # Errors
//! [`DeviceError`], one kind per kind of mistake; [`NameError`] for a text that names no device.
//!
//! # Example
//! ```
//! use coresident::device::{Inventory, Selection, VirtualSpec, virtual_devices};
//!
//! let two = virtual_devices(2, VirtualSpec::default())?;
//! assert_eq!(two[1].to_string(), "virtual:1");
//! assert!(Inventory::of(vec![]).select(&Selection::parse("cuda:9")?).is_err());
//! # Ok::<(), coresident::device::DeviceError>(())
//! ```

mod addresses;
mod cgroup;
mod cuda;
mod driver;
mod host;
mod inventory;
mod memory;
mod name;
mod near;
mod nvml;
mod page_locks;
mod size;
mod stream;
mod virtual_device;
mod virtual_memory;

use std::fmt;
use std::sync::Arc;

pub use cgroup::{ContainerMemory, container_memory};
pub use cuda::{CudaMemory, cuda_is_present};
pub use driver::Driver;
pub use host::{Host, host_memory};
pub use inventory::{Choice, Found, Inventory, Provider, Selection};
pub use memory::{
    Address, Charge, DeviceMemory, Event, Fence, HostBytes, MemoryError, Piece, Pinning, Places,
    Stream,
};
pub use name::{DeviceType, Name, NameError};
pub use near::{Near, near_card};
pub use nvml::visible_devices;
pub use page_locks::{Lock, PageLocks, Unlockable};
pub use size::{ByteSize, SizeError};
pub use virtual_device::{VirtualSpec, virtual_devices};
pub use virtual_memory::{Occupied, VirtualMemory};

/// Something to run on: a name, a label for people, and a driver that knows its memory.
///
/// Equal when the names are: a device is itself, however it was found.
#[derive(Clone)]
pub struct Device(Arc<Description>);

/// What there is to say about a device.
pub struct Description {
    /// Its name.
    pub name: Name,
    /// The product, as people say it: `RTX 3090`.
    pub model: String,
    /// Its number among those of the same model on this machine, from 1; `None` when it is alone.
    pub number: Option<u32>,
    /// Its memory in bytes, where it is known.
    pub memory: Option<u64>,
    /// Whether weights are used where they lie in host memory, without a copy.
    pub unified: bool,
    /// Bytes per second of an imitated bus; real devices have their own.
    pub bandwidth: Option<u64>,
    /// How to ask it.
    pub driver: Arc<dyn Driver>,
}

impl Device {
    /// A device as described.
    #[must_use]
    pub fn new(description: Description) -> Self {
        Self(Arc::new(description))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.0.name
    }

    /// The product and, when several are alike, which: `RTX 3090 #2`.
    #[must_use]
    pub fn model(&self) -> String {
        match self.0.number {
            Some(number) => format!("{} #{number}", self.0.model),
            None => self.0.model.clone(),
        }
    }

    /// For people: `RTX 3090 #2 (cuda:1)`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} ({})", self.model(), self.0.name)
    }

    /// Its memory in bytes, where it is known.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.0.memory
    }

    /// Whether weights are used where they lie in host memory, without a copy.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.0.unified
    }

    /// Bytes per second of the imitated bus of a virtual device.
    #[must_use]
    pub fn bandwidth(&self) -> Option<u64> {
        self.0.bandwidth
    }

    /// How to ask it.
    #[must_use]
    pub fn driver(&self) -> Arc<dyn Driver> {
        self.0.driver.clone()
    }

    /// Has the calling thread run on processors near it, where there are some that are further away.
    pub fn stay_near(&self) {
        if let Some(near) = self.0.driver.near() {
            near.stay();
        }
    }

    /// Bytes that nobody uses now, by the driver; `None` where it cannot be known.
    #[must_use]
    pub fn free_memory(&self) -> Option<u64> {
        self.0.driver.free_memory()
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Device {}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.name.fmt(f)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device('{}', '{}'", self.0.name, self.model())?;
        if let Some(bytes) = self.0.memory {
            write!(f, ", {}", ByteSize(bytes))?;
        }
        f.write_str(")")
    }
}

/// Why a choice of devices is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A text that names no device.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A list without devices.
    #[error("the list of devices is empty: name at least one, or pass 'auto'")]
    Empty,
    /// A device that this machine does not have.
    #[error("there is no {name} here: this machine has {}", listed(.present))]
    Absent {
        /// The missing device.
        name: Name,
        /// What is there instead.
        present: Vec<Name>,
    },
    /// Zero virtual devices, or more than can be meant.
    #[error("virtual_devices needs a number from 1 to {}, not {given}", virtual_device::MOST)]
    Count {
        /// The number given.
        given: u64,
    },
    /// A figure of zero where one is needed.
    #[error("{what} of a virtual device must be more than 0 bytes")]
    Zero {
        /// Which figure.
        what: &'static str,
    },
    /// Something of memory of its own for a device that has none.
    #[error("{what} needs memory: a unified virtual device copies nothing")]
    NeedsMemory {
        /// Which figure.
        what: &'static str,
    },
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::to_string).collect::<Vec<_>>().join(", ")
}
