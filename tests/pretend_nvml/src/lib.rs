//! A library with the face of NVIDIA's NVML, for machines without its driver or cards.
//!
//! Found as `libnvidia-ml.so.1`, it shows the cards that the environment variable `PRETEND_NVML`
//! describes: entries with commas between them, looked at anew in every call, so that a test can
//! have a card fail while it watches.
//!
//! | entry | means |
//! |---|---|
//! | `NVIDIA GeForce RTX 3090:24GiB` | the next card, with its memory, all of it free |
//! | `NVIDIA GeForce RTX 3090:24GiB:8GiB-used` | the same, with memory in use |
//! | `lost:1` | card 1 has fallen off the bus |
//! | `nomemory:0` | card 0 does not tell its memory |
//! | `fail:init` | the driver is not loaded |
//! | `fail:count` | nobody knows how many cards there are |
//!
//! Card 1 has the UUID `GPU-00000001-0000-0000-0000-000000000000`. What each function returns and
//! when follows NVIDIA's NVML reference, where it is at its least helpful: while any card is lost,
//! `nvmlDeviceGetHandleByUUID` finds none ("if any GPU has fallen off the bus").

#![allow(non_snake_case, reason = "the names are NVIDIA's")]

use std::env;
use std::ffi::{CStr, c_char, c_uint, c_ulonglong, c_void};
use std::ptr::without_provenance_mut;

/// The part of `nvmlReturn_t` that is needed.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// It is done.
    Success = 0,
    /// Something given makes no sense.
    InvalidArgument = 2,
    /// The card cannot do that.
    NotSupported = 3,
    /// There is no such card.
    NotFound = 6,
    /// The text is longer than the space for it.
    InsufficientSize = 7,
    /// The kernel module is not there.
    DriverNotLoaded = 9,
    /// A card has fallen off the bus.
    GpuIsLost = 15,
    /// The structure is of another version.
    ArgumentVersionMismatch = 25,
    /// Anything else.
    Unknown = 999,
}

/// What NVML calls `nvmlDevice_t`: here the index of the card, and one more.
pub type Handle = *mut c_void;

/// NVML's `nvmlMemory_v2_t`.
#[repr(C)]
#[derive(Debug)]
pub struct Memory {
    /// The size of this structure, and its version in the highest byte.
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// One card as described.
struct Card {
    model: String,
    total: u64,
    used: u64,
    lost: bool,
    tells_memory: bool,
}

/// All that the variable describes.
#[derive(Default)]
struct Machine {
    cards: Vec<Card>,
    fails: Vec<String>,
}

impl Machine {
    /// The machine as it is described now; `None` when the description makes no sense.
    fn now() -> Option<Self> {
        let mut machine = Self::default();
        let described = env::var("PRETEND_NVML").ok()?;
        for entry in described.split(',').filter(|entry| !entry.is_empty()) {
            let (what, rest) = entry.split_once(':')?;
            match what {
                "fail" => machine.fails.push(rest.to_owned()),
                "lost" => machine.card_mut(rest)?.lost = true,
                "nomemory" => machine.card_mut(rest)?.tells_memory = false,
                model => machine.cards.push(Card::described(model, rest)?),
            }
        }
        Some(machine)
    }

    fn card_mut(&mut self, index: &str) -> Option<&mut Card> {
        self.cards.get_mut(index.parse::<usize>().ok()?)
    }

    fn check(&self, call: &str) -> Result<(), Return> {
        if self.fails.iter().any(|fails| fails == call) { Err(Return::Unknown) } else { Ok(()) }
    }
}

impl Card {
    fn described(model: &str, memory: &str) -> Option<Self> {
        let (total, used) = match memory.split_once(':') {
            Some((total, used)) => (gibibytes(total)?, gibibytes(used.strip_suffix("-used")?)?),
            None => (gibibytes(memory)?, 0),
        };
        Some(Self { model: model.to_owned(), total, used, lost: false, tells_memory: true })
    }
}

fn gibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("GiB")?.parse::<u64>().ok()?.checked_mul(1 << 30)
}

fn uuid(index: usize) -> String {
    format!("GPU-{index:08x}-0000-0000-0000-000000000000")
}

/// Runs a call on the machine as it is now.
fn answer(call: impl FnOnce(Machine) -> Result<(), Return>) -> Return {
    let machine = Machine::now().ok_or(Return::Unknown);
    machine.and_then(call).err().unwrap_or(Return::Success)
}

/// Runs a call on one card, unless it is lost.
fn answer_of(handle: Handle, call: impl FnOnce(usize, &Card) -> Result<(), Return>) -> Return {
    answer(|machine| {
        let index = handle.addr().checked_sub(1).ok_or(Return::InvalidArgument)?;
        let card = machine.cards.get(index).ok_or(Return::InvalidArgument)?;
        if card.lost { Err(Return::GpuIsLost) } else { call(index, card) }
    })
}

/// Writes where the caller wants the result.
///
/// # Safety
/// `place` is null or valid for writing a `T`.
unsafe fn write<T>(place: *mut T, value: T) -> Result<(), Return> {
    if place.is_null() {
        return Err(Return::InvalidArgument);
    }
    // SAFETY: it is not null, and the caller vouches for the rest.
    unsafe { place.write(value) };
    Ok(())
}

/// Writes a text, ended by a zero byte.
///
/// # Safety
/// `place` is null or valid for writing `length` bytes.
unsafe fn write_text(place: *mut c_char, length: c_uint, text: &str) -> Result<(), Return> {
    if place.is_null() {
        return Err(Return::InvalidArgument);
    }
    if text.len() >= length as usize {
        return Err(Return::InsufficientSize);
    }
    // SAFETY: the text and its end are at most `length` bytes, which the caller vouches for, and
    // nothing of ours lies in memory that the caller may write to.
    unsafe {
        place.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        place.add(text.len()).write(0);
    }
    Ok(())
}

/// Loads the driver, as far as there is one.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Return {
    answer(|machine| machine.check("init").map_err(|_| Return::DriverNotLoaded))
}

/// Does nothing: nothing was taken.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Return {
    Return::Success
}

/// A version that nobody has released.
///
/// # Safety
/// `version` is null or valid for writing `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(
    version: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: as the caller vouches.
    answer(|_| unsafe { write_text(version, length, "999.0") })
}

/// The number of cards, lost ones included.
///
/// # Safety
/// `count` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Return {
    answer(|machine| {
        machine.check("count")?;
        let cards = c_uint::try_from(machine.cards.len()).map_err(|_| Return::Unknown)?;
        // SAFETY: as the caller vouches.
        unsafe { write(count, cards) }
    })
}

/// The card with this index.
///
/// # Safety
/// `device` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut Handle,
) -> Return {
    let handle = without_provenance_mut(index as usize + 1);
    let known = answer_of(handle, |_, _| Ok(()));
    if known != Return::Success {
        return known;
    }
    // SAFETY: as the caller vouches.
    answer(|_| unsafe { write(device, handle) })
}

/// The card with this UUID.
///
/// # Safety
/// `uuid` is null or ends with a zero byte; `device` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut Handle,
) -> Return {
    if uuid.is_null() {
        return Return::InvalidArgument;
    }
    // SAFETY: it is not null, and as the caller vouches.
    let wanted = unsafe { CStr::from_ptr(uuid) };
    answer(|machine| {
        if machine.cards.iter().any(|card| card.lost) {
            return Err(Return::GpuIsLost);
        }
        let mut indices = 0..machine.cards.len();
        let index = indices.find(|&index| self::uuid(index).as_bytes() == wanted.to_bytes());
        let handle = without_provenance_mut(index.ok_or(Return::NotFound)? + 1);
        // SAFETY: as the caller vouches.
        unsafe { write(device, handle) }
    })
}

/// The UUID of a card.
///
/// # Safety
/// `uuid` is null or valid for writing `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: Handle,
    uuid: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: as the caller vouches.
    answer_of(device, |index, _| unsafe { write_text(uuid, length, &self::uuid(index)) })
}

/// The product name of a card.
///
/// # Safety
/// `name` is null or valid for writing `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: Handle,
    name: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: as the caller vouches.
    answer_of(device, |_, card| unsafe { write_text(name, length, &card.model) })
}

/// The memory of a card, in bytes.
///
/// # Safety
/// `memory` is null or valid for reading and writing, with its version filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, memory: *mut Memory) -> Return {
    answer_of(device, |_, card| {
        if !card.tells_memory {
            return Err(Return::NotSupported);
        }
        // SAFETY: as the caller vouches.
        let version = unsafe { memory.as_ref() }.ok_or(Return::InvalidArgument)?.version;
        if version as usize != size_of::<Memory>() | (2 << 24) {
            return Err(Return::ArgumentVersionMismatch);
        }
        let Card { total, used, .. } = *card;
        let free = total.checked_sub(used).ok_or(Return::Unknown)?;
        // SAFETY: as the caller vouches.
        unsafe { write(memory, Memory { version, total, reserved: 0, free, used }) }
    })
}
