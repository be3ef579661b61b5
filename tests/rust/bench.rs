//! Devices for the tests of pages: virtual ones, each with memory of its own.

use std::any::Any;
use std::sync::Arc;

use coresident::device::{
    Address, DeviceMemory, MemoryError, Name, Stream, VirtualMemory, VirtualSpec, virtual_devices,
};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 2 << 20;
/// What the device is called.
pub(crate) const NAME: &str = "virtual:0";

/// Whether memory comes to other addresses each time.
pub(crate) const MOVES: bool = false;

/// One device, and what only tests do with it.
pub(crate) struct Bench {
    pub(crate) name: Name,
    pub(crate) pages: Arc<dyn DeviceMemory>,
    memory: Arc<VirtualMemory>,
}

/// A device of so many pages, whose streams are late.
pub(crate) fn bench(pages: u64, jitter: Option<u64>) -> Arc<Bench> {
    bench_with(pages, jitter, false)
}

/// The same, of which memory moves or not.
pub(crate) fn bench_with(pages: u64, jitter: Option<u64>, moving: bool) -> Arc<Bench> {
    let memory = Some(pages * PAGE);
    let spec = VirtualSpec { memory, jitter, moving, ..VirtualSpec::default() };
    let device = virtual_devices(1, spec).unwrap().remove(0);
    let driver = device.driver();
    let (pages, memory) = (driver.memory().unwrap(), driver.virtual_memory().unwrap());
    Arc::new(Bench { name: device.name(), pages, memory })
}

impl Bench {
    /// Bytes of pages that have memory.
    pub(crate) fn committed(&self) -> u64 {
        self.memory.committed()
    }

    /// Copies bytes out of the device, as a stream would.
    pub(crate) fn read_at(&self, from: Address, to: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read_at(from, to)
    }

    /// A stream that computes.
    pub(crate) fn stream(&self) -> Stream {
        self.memory.stream()
    }

    /// Has `work` done on a stream when its turn comes.
    pub(crate) fn launch(&self, stream: Stream, work: impl FnOnce() + Send + 'static) {
        self.memory.launch(stream, move |_| {
            work();
            Ok(())
        });
    }

    /// Takes memory of the device, as another process would, until it is dropped.
    pub(crate) fn occupy(&self, bytes: u64) -> impl Any + Send {
        self.memory.occupy(bytes).unwrap()
    }
}
