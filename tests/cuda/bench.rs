//! Devices for the tests of pages: pretended CUDA ones, each with memory of its own.

use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use coresident::device::{
    Address, CudaMemory, DeviceMemory, DeviceType, MemoryError, Name, Stream,
};

use super::helpers::until;
use super::pretend;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 2 << 20;
/// What errors call the device: whichever test has it, a number follows.
pub(crate) const NAME: &str = "cuda:0";

/// Whether memory comes to other addresses each time.
pub(crate) const MOVES: bool = false;

/// One device, and what only tests do with it.
pub(crate) struct Bench {
    pub(crate) name: Name,
    pub(crate) pages: Arc<dyn DeviceMemory>,
    memory: Arc<CudaMemory>,
    free: &'static Free,
    ordinal: u32,
    taken: u64,
}

/// Those that no test has; each test has one at a time of its own.
struct Free {
    ordinals: Mutex<Option<Vec<u32>>>,
    came: Condvar,
    all: Range<u32>,
}

static PAGED: Free = Free::new(0..pretend::DEVICES);
static MOVING: Free = Free::new(pretend::MOVING);

impl Free {
    const fn new(all: Range<u32>) -> Self {
        Self { ordinals: Mutex::new(None), came: Condvar::new(), all }
    }

    fn take(&self) -> u32 {
        let mut free = self.ordinals.lock().unwrap();
        loop {
            match free.get_or_insert_with(|| self.all.clone().collect()).pop() {
                Some(ordinal) => return ordinal,
                None => free = self.came.wait(free).unwrap(),
            }
        }
    }

    fn give_back(&self, ordinal: u32) {
        self.ordinals.lock().unwrap().get_or_insert_default().push(ordinal);
        self.came.notify_one();
    }
}

/// A device of so many pages, whose streams are late.
pub(crate) fn bench(pages: u64, _jitter: Option<u64>) -> Arc<Bench> {
    bench_with(pages, false)
}

/// The same, with virtual memory management or without.
pub(crate) fn bench_with(pages: u64, moving: bool) -> Arc<Bench> {
    pretend::library();
    let free = if moving { &MOVING } else { &PAGED };
    let ordinal = free.take();
    let device = Name::new(DeviceType::Cuda, ordinal).unwrap();
    let memory = CudaMemory::of(device);
    // Begins the driver.
    memory.copies().unwrap();
    // A thread of the test before may still have something.
    until(|| pretend::count("used_bytes", ordinal.cast_signed()) == 0);
    let taken = pretend::BYTES - pages * PAGE;
    pretend::set_taken(ordinal, taken);
    let name = Name::new(DeviceType::Cuda, 0).unwrap();
    Arc::new(Bench { name, pages: memory.clone(), memory, free, ordinal, taken })
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.free.give_back(self.ordinal);
    }
}

/// Memory that others have, until it is dropped.
struct Taken {
    ordinal: u32,
    before: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        pretend::set_taken(self.ordinal, self.before);
    }
}

impl Bench {
    /// Bytes of pages that have memory.
    pub(crate) fn committed(&self) -> u64 {
        pretend::count("used_bytes", self.ordinal.cast_signed()).cast_unsigned()
    }

    /// As the pretended library counts devices.
    pub(crate) fn ordinal(&self) -> i32 {
        self.ordinal.cast_signed()
    }

    /// Copies bytes out of the device, as a stream would.
    #[allow(unsafe_code, reason = "a function of a library")]
    pub(crate) fn read_at(&self, from: Address, to: &mut [u8]) -> Result<(), MemoryError> {
        let peek: unsafe extern "C" fn(u64, *mut c_void, usize) -> u32 =
            pretend::function("pretend_cuda_peek");
        // SAFETY: there is room for so many bytes.
        let code = unsafe { peek(from as u64, to.as_mut_ptr().cast(), to.len()) };
        if code == 0 {
            return Ok(());
        }
        Err(MemoryError::Unmapped { device: self.name, address: from })
    }

    /// A stream that computes.
    pub(crate) fn stream(&self) -> Stream {
        self.memory.stream().unwrap()
    }

    /// Has `work` done on a stream when its turn comes.
    pub(crate) fn launch(&self, stream: Stream, work: impl FnOnce() + Send + 'static) {
        let Stream::Device(stream) = stream else { panic!("the host is no stream of CUDA") };
        pretend::launch(self.ordinal, stream, Box::new(work));
    }

    /// Takes memory of the device, as another process would, until it is dropped.
    pub(crate) fn occupy(&self, bytes: u64) -> impl Any + Send {
        pretend::set_taken(self.ordinal, self.taken + bytes);
        Taken { ordinal: self.ordinal, before: self.taken }
    }
}
