//! What callers hand over: pointers that they vouch for, as `cuda.h` asks of them.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use crate::code::{Answer, Code};

/// A `CUdeviceptr`.
pub type DevicePtr = u64;

/// Where the caller wants a result: null, or valid for writing a `T`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result.
    pub fn set(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: it is not null, so the caller vouches for it; it need not be aligned.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Whether the caller does not want it.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The same place, for a result of another type.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<c_char> {
    /// Writes as much of a text as fits with the zero byte that ends it.
    pub fn set_text(self, text: &str, space: c_int) -> Answer {
        let space = usize::try_from(space).map_err(|_| Code::INVALID_VALUE)?;
        let length = text.len().min(space.checked_sub(1).ok_or(Code::INVALID_VALUE)?);
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the text and its end are at most `space` bytes, for which the caller vouches.
        unsafe {
            ptr::copy_nonoverlapping(text.as_ptr().cast(), self.0, length);
            self.0.add(length).write(0);
        }
        Ok(())
    }
}

/// What the caller has filled in: null, or valid for reading a `T` (or several).
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T> From<Out<T>> for In<T> {
    /// For what is read first and written then.
    fn from(place: Out<T>) -> Self {
        Self(place.0)
    }
}

impl<T: Copy> In<T> {
    /// Reads it.
    pub fn get(self) -> Answer<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: it is not null, so the caller vouches for it; it need not be aligned.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Reads `count` of them.
    pub fn get_all(self, count: usize) -> Answer<Vec<T>> {
        (0..count).map(|index| Self(self.0.wrapping_add(index)).get()).collect()
    }
}

impl In<c_char> {
    /// The text up to its zero byte.
    pub fn text(self) -> Answer<String> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: it is not null, so the caller vouches that it ends with a zero byte.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// `CUmemLocation`, up to CUDA 13.1.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Location {
    kind: u32,
    id: c_int,
}

impl Location {
    const DEVICE: u32 = 1;

    /// The device it names; places on the host are not supported here.
    pub fn device(self) -> Answer<c_int> {
        if self.kind == Self::DEVICE { Ok(self.id) } else { Err(Code::INVALID_VALUE) }
    }
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Properties {
    kind: u32,
    handle_types: u32,
    pub location: Location,
    metadata: usize,
    flags: [u8; 8],
}

impl Properties {
    const PINNED: u32 = 1;

    /// The device that they ask for.
    pub fn device(self) -> Answer<c_int> {
        if self.kind == Self::PINNED { self.location.device() } else { Err(Code::INVALID_VALUE) }
    }
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AccessOf {
    pub location: Location,
    pub flags: u32,
}
