//! The primary context of a device: the one that torch uses too.

use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;

use cudarc::driver::sys::{CUcontext, CUdevice};

use super::library::{Library, library};

/// A device and its context, retained for the process: others use it too, and give it up as they like.
pub(super) struct Primary {
    pub(super) library: &'static Library,
    pub(super) device: CUdevice,
    context: usize,
}

/// `CU_STREAM_CAPTURE_MODE_RELAXED`: what this thread calls spoils no graph that another one captures.
const RELAXED: c_uint = 2;

/// While it lives, the context is the thread's current one; then the one of before is again.
pub(super) struct Entered<'a> {
    library: &'a Library,
    capture_mode: c_uint,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped: CUcontext = null_mut();
        // SAFETY: it was pushed by this thread, and everything that was pushed since has been popped.
        #[expect(unsafe_code, reason = "a function of a library")]
        let code = unsafe {
            self.library.exchange_capture_mode(&raw mut self.capture_mode);
            self.library.pop(&raw mut popped)
        };
        debug_assert_eq!(code, 0);
    }
}

impl Primary {
    /// The context of the device with this ordinal, which CUDA counts as torch does.
    pub(super) fn retain(ordinal: u32) -> Result<Self, String> {
        let library = library()?;
        let (mut device, mut context): (CUdevice, CUcontext) = (0, null_mut());
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: both write to where they are told.
        #[expect(unsafe_code, reason = "functions of a library")]
        let (name, code) = unsafe {
            match library.device(&raw mut device, number) {
                0 => ("cuDevicePrimaryCtxRetain", library.retain(&raw mut context, device)),
                code => ("cuDeviceGet", code),
            }
        };
        if code != 0 {
            return Err(format!("{name} says {}", library.told(code)));
        }
        Ok(Self { library, device, context: context.expose_provenance() })
    }

    /// Makes the context this thread's current one.
    pub(super) fn enter(&self) -> Result<Entered<'_>, String> {
        let context: CUcontext = std::ptr::with_exposed_provenance_mut(self.context);
        // SAFETY: the context was retained, and is never released.
        #[expect(unsafe_code, reason = "a function of a library")]
        let code = unsafe { self.library.push(context) };
        if code == 0 {
            let mut capture_mode = RELAXED;
            // SAFETY: it reads and writes where it is told.
            #[expect(unsafe_code, reason = "a function of a library")]
            unsafe {
                self.library.exchange_capture_mode(&raw mut capture_mode);
            }
            Ok(Entered { library: self.library, capture_mode })
        } else {
            Err(format!("cuCtxPushCurrent says {}", self.library.told(code)))
        }
    }

    /// All of the device's memory in bytes; 0 if the driver does not tell.
    pub(super) fn memory(&self) -> usize {
        let mut bytes = 0;
        // SAFETY: it writes to where it is told.
        #[expect(unsafe_code, reason = "a function of a library")]
        let code = unsafe { self.library.total_memory(&raw mut bytes, self.device) };
        if code == 0 { bytes } else { 0 }
    }

    /// One of the device's attributes; 0 for one that the driver does not know.
    pub(super) fn attribute(&self, attribute: c_int) -> c_int {
        let mut value = 0;
        // SAFETY: it writes to where it is told.
        #[expect(unsafe_code, reason = "a function of a library")]
        let code = unsafe { self.library.attribute(&raw mut value, attribute, self.device) };
        if code == 0 { value } else { 0 }
    }
}
