//! Primary contexts, and each thread's stack of current ones. There are no other contexts here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint};
use std::mem::ManuallyDrop;
use std::thread::ThreadId;

use crate::code::{Answer, Code};
use crate::device::Tally;
use crate::driver::{At, Driver, answer};
use crate::foreign::Out;
use crate::machine::Card;

/// A device's primary context, and what has become of the device.
#[derive(Default)]
pub struct Context {
    pub retained: u64,
    /// What all work comes to, since some of it failed.
    pub failed: Option<Code>,
    /// What every call comes to, since the device is gone.
    pub lost: Option<Code>,
    /// Whether streams begin nothing for now.
    pub held: bool,
    /// The stream that everybody means by 0.
    pub legacy: Option<usize>,
    /// The stream that a thread means by `CU_STREAM_PER_THREAD`.
    pub per_thread: HashMap<ThreadId, usize>,
}

impl Context {
    pub fn of(card: &Card) -> Self {
        Self { lost: card.lost.then_some(Code::DEVICE_UNAVAILABLE), ..Self::default() }
    }

    /// Whether work on it can still be done.
    pub fn healthy(&self) -> Answer {
        self.lost.or(self.failed).map_or(Ok(()), Err)
    }
}

thread_local! {
    /// Never dropped, so that a thread can still call while it ends.
    static CURRENT: RefCell<ManuallyDrop<Vec<usize>>> =
        const { RefCell::new(ManuallyDrop::new(Vec::new())) };
}

/// Runs something on this thread's stack.
fn stack<T>(look: impl FnOnce(&mut Vec<usize>) -> T) -> T {
    CURRENT.with_borrow_mut(|current| look(current))
}

/// The device whose context is current.
pub fn current() -> Option<usize> {
    stack(|stack| stack.last().copied())
}

const FIRST: usize = 0xC07E_0000;

/// A `CUcontext`, which stays the same for as long as the process lives. It leads nowhere.
pub fn handle_of(device: usize) -> usize {
    FIRST + (device << 8)
}

/// The device of a `CUcontext`.
pub fn device_of(handle: usize, devices: usize) -> Option<usize> {
    (0..devices).find(|&device| handle_of(device) == handle)
}

impl Driver {
    /// The device whose context is current and alive.
    pub fn bound(&self) -> Answer<usize> {
        let device = current().ok_or(Code::INVALID_CONTEXT)?;
        let alive = self.state().contexts[device].retained > 0;
        if alive { Ok(device) } else { Err(Code::CONTEXT_IS_DESTROYED) }
    }

    /// The same, if its work has not failed.
    pub fn current(&self) -> Answer<usize> {
        let device = self.bound()?;
        self.healthy(device)?;
        Ok(device)
    }

    pub fn healthy(&self, device: usize) -> Answer {
        self.state().contexts[device].healthy()
    }

    fn alive(&self, context: usize) -> Answer<usize> {
        let device = device_of(context, self.devices.len()).ok_or(Code::INVALID_CONTEXT)?;
        let alive = self.state().contexts[device].retained > 0;
        if alive { Ok(device) } else { Err(Code::INVALID_CONTEXT) }
    }
}

/// Makes the primary context, or shares it.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: c_int) -> Code {
    answer("cuDevicePrimaryCtxRetain", At::Device(device), |driver| {
        let index = driver.index(device)?;
        if context.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let mut state = driver.state();
        if state.contexts[index].retained == 0 {
            let device = &driver.devices[index];
            device.ledger.debit(device.card.context)?;
            Tally::add(&device.tally.contexts_created, 1);
        }
        state.contexts[index].retained += 1;
        context.set(handle_of(index))
    })
}

/// Gives the primary context back. With its last holder go its streams, its events and its memory.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    answer("cuDevicePrimaryCtxRelease_v2", At::Device(device), |driver| {
        let index = driver.index(device)?;
        let mut state = driver.state();
        let context = &mut state.contexts[index];
        context.retained = context.retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        if context.retained > 0 {
            return Ok(());
        }
        context.legacy = None;
        context.per_thread.clear();
        state.events.retain(|_, event| event.device != index);
        let streams = state.streams.values_mut().filter(|stream| stream.device == index);
        streams.for_each(|stream| {
            stream.drop_work();
            stream.destroyed = true;
        });
        driver.memory_mut().forget(index);
        driver.changed.notify_all();
        driver.devices[index].ledger.credit(driver.devices[index].card.context);
        Ok(())
    })
}

/// Whether somebody holds the primary context.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: Out<c_uint>,
    active: Out<c_int>,
) -> Code {
    answer("cuDevicePrimaryCtxGetState", At::Device(device), |driver| {
        let index = driver.index(device)?;
        flags.set(0)?;
        active.set((driver.state().contexts[index].retained > 0).into())
    })
}

/// The context on top of this thread's stack, or null.
#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<usize>) -> Code {
    answer("cuCtxGetCurrent", At::Nowhere, |_| context.set(current().map_or(0, handle_of)))
}

/// Replaces the context on top of this thread's stack; null takes it off.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> Code {
    answer("cuCtxSetCurrent", At::Context(context), |driver| {
        let device = if context == 0 { None } else { Some(driver.alive(context)?) };
        stack(|stack| {
            stack.pop();
            stack.extend(device);
        });
        Ok(())
    })
}

/// Puts a context on top of this thread's stack.
#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: usize) -> Code {
    answer("cuCtxPushCurrent_v2", At::Context(context), |driver| {
        let device = driver.alive(context)?;
        stack(|stack| stack.push(device));
        Ok(())
    })
}

/// Takes the context on top of this thread's stack off, and tells which it was.
#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(context: Out<usize>) -> Code {
    answer("cuCtxPopCurrent_v2", At::Nowhere, |_| {
        let popped = stack(Vec::pop).ok_or(Code::INVALID_CONTEXT)?;
        if context.is_null() { Ok(()) } else { context.set(handle_of(popped)) }
    })
}

/// The device of the current context.
#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: Out<c_int>) -> Code {
    answer("cuCtxGetDevice", At::Current, |driver| {
        device.set(c_int::try_from(driver.bound()?).map_err(|_| Code::UNKNOWN)?)
    })
}

/// Waits for all work of the current context.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    answer("cuCtxSynchronize", At::Current, |driver| {
        let device = driver.current()?;
        driver.no_capture_on(device)?;
        Tally::add(&driver.devices[device].tally.context_synchronizes, 1);
        driver.wait_for_all(device)
    })
}

/// The priorities that streams can have, of which 0 is the least.
#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) -> Code {
    answer("cuCtxGetStreamPriorityRange", At::Current, |driver| {
        driver.current()?;
        if !least.is_null() {
            least.set(0)?;
        }
        if greatest.is_null() { Ok(()) } else { greatest.set(-5) }
    })
}
