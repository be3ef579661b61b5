//! The driver that `cuInit` makes: its devices, their memory and their work, and the one way in.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{
    Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use rustix::process::{Pid, getpid};

use crate::calls;
use crate::code::{Answer, Code};
use crate::context::{self, Context};
use crate::device::Device;
use crate::event::Event;
use crate::foreign::{DevicePtr, Out, Properties};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::stream::Stream;

static DRIVER: OnceLock<Driver> = OnceLock::new();
static INITIALIZING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread runs a function for `cuLaunchHostFunc`, which must not call the driver.
    static CALLED_BACK: Cell<bool> = const { Cell::new(false) };
}

pub struct Driver {
    process: Pid,
    pub devices: Vec<Device>,
    /// The longest that work begins late, in nanoseconds, and where that chance begins.
    pub delay: AtomicU64,
    pub seed: AtomicU64,
    state: Mutex<State>,
    /// Anything in the state changed.
    pub changed: Condvar,
    memory: RwLock<Memory>,
}

/// What calls and streams share. Who needs the memory as well locks that after this.
pub struct State {
    pub contexts: Vec<Context>,
    pub streams: HashMap<usize, Stream>,
    pub events: HashMap<usize, Event>,
    handles: usize,
}

impl State {
    /// A handle that nothing had before. It leads nowhere.
    pub fn handle(&mut self) -> usize {
        self.handles += 1;
        0xDEED_0000 + (self.handles << 4)
    }
}

/// Which device a call is about, as far as its arguments tell.
#[derive(Debug, Clone, Copy)]
pub enum At {
    Nowhere,
    Current,
    Device(c_int),
    Context(usize),
    Stream(usize),
    Event(usize),
    Address(DevicePtr),
    Physical(u64),
}

impl At {
    /// The device that properties of memory name.
    pub fn properties(properties: Answer<Properties>) -> Self {
        properties.and_then(Properties::device).map_or(Self::Nowhere, Self::Device)
    }
}

/// Runs a call of the driver, unless it must fail.
pub fn answer(name: &'static str, at: At, call: impl FnOnce(&'static Driver) -> Answer) -> Code {
    let Ok(driver) = Driver::get() else { return Code::NOT_INITIALIZED };
    if CALLED_BACK.get() {
        return Code::NOT_PERMITTED;
    }
    let answered = catch_unwind(AssertUnwindSafe(|| {
        let device = driver.device_at(at);
        calls::with(|calls| calls.admit(name, device))?;
        if let Some(lost) = device.and_then(|device| driver.state().contexts[device].lost) {
            return Err(lost);
        }
        call(driver)
    }));
    answered.unwrap_or(Err(Code::UNKNOWN)).into()
}

/// Runs a function of the caller's on a stream.
pub fn call_back(function: impl FnOnce()) {
    CALLED_BACK.set(true);
    function();
    CALLED_BACK.set(false);
}

impl Driver {
    /// The driver of this process; a forked child has none.
    pub fn get() -> Answer<&'static Self> {
        let driver = DRIVER.get().filter(|driver| driver.process == getpid());
        driver.ok_or(Code::NOT_INITIALIZED)
    }

    /// Whether this is a child, forked after `cuInit`: who held a lock then is not here to let it go.
    pub fn is_forked() -> bool {
        DRIVER.get().is_some_and(|driver| driver.process != getpid())
    }

    fn new(machine: &Machine) -> Self {
        let devices: Vec<_> = machine.cards.iter().cloned().map(Device::new).collect();
        let contexts = machine.cards.iter().map(Context::of).collect();
        let (streams, events) = (HashMap::new(), HashMap::new());
        let nanos = u64::try_from(machine.delay.as_nanos()).unwrap_or(u64::MAX);
        Self {
            process: getpid(),
            devices,
            delay: AtomicU64::new(nanos),
            seed: AtomicU64::new(machine.seed),
            state: Mutex::new(State { contexts, streams, events, handles: 0 }),
            changed: Condvar::new(),
            memory: RwLock::new(Memory::new(machine.visible)),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the state to others until something changes.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of a device that exists.
    pub fn index(&self, device: c_int) -> Answer<usize> {
        let index = usize::try_from(device).ok();
        index.filter(|&index| index < self.devices.len()).ok_or(Code::INVALID_DEVICE)
    }

    fn device_at(&self, at: At) -> Option<usize> {
        match at {
            At::Nowhere => None,
            At::Current => context::current(),
            At::Device(device) => self.index(device).ok(),
            At::Context(handle) => context::device_of(handle, self.devices.len()),
            At::Stream(handle) => {
                let stream = self.state().streams.get(&handle).map(|stream| stream.device);
                stream.or_else(context::current)
            }
            At::Event(handle) => self.state().events.get(&handle).map(|event| event.device),
            At::Address(address) => {
                let memory = self.memory();
                memory.mapping(address).map(|(_, mapping)| mapping.physical.device)
            }
            At::Physical(handle) => Some(self.memory().physical.get(&handle)?.device),
        }
    }
}

/// Reads `PRETEND_CUDA` and makes the driver.
#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> Code {
    if Driver::is_forked() {
        return Code::NOT_INITIALIZED;
    }
    let _alone = INITIALIZING.lock().unwrap_or_else(PoisonError::into_inner);
    if DRIVER.get().is_some() {
        return answer("cuInit", At::Nowhere, |_| flags_are_none(flags));
    }
    initialize(flags).into()
}

fn flags_are_none(flags: c_uint) -> Answer {
    if flags == 0 { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

fn initialize(flags: c_uint) -> Answer {
    let machine = Machine::described().map_err(|entry| {
        eprintln!("pretend_cuda: `{entry}` in PRETEND_CUDA makes no sense");
        Code::UNKNOWN
    })?;
    calls::with(|calls| {
        calls.describe(&machine.failures);
        calls.admit("cuInit", None)
    })?;
    flags_are_none(flags)?;
    if machine.cards.is_empty() {
        return Err(Code::NO_DEVICE);
    }
    DRIVER.get_or_init(|| Driver::new(&machine));
    Ok(())
}

/// The newest version of CUDA that the driver knows, also before `cuInit`.
#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> Code {
    match Machine::described() {
        Ok(machine) => version.set(machine.version).into(),
        Err(_) => Code::UNKNOWN,
    }
}
