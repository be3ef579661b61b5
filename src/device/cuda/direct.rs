//! Copies to the device from where weights lie: it reads them on its own, once their memory is
//! page-locked.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_uint;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;

use super::library::Code;
use super::stream::{Marked, Opened, checked, once_ready};
use crate::device::{HostBytes, Lock, MemoryError, Piece, Unlockable};
use crate::wait::exiting;

/// Smaller pieces go through a buffer, many at once: a copy of its own costs more than they take.
const LEAST: usize = 256 << 10;

/// `CU_MEMHOSTREGISTER_PORTABLE`: for all devices.
const PORTABLE: c_uint = 1;
/// `CU_MEMHOSTREGISTER_READ_ONLY`: what cannot be written can be locked.
const READ_ONLY: c_uint = 8;
/// What will be the same the next time: an invalid value, one that is locked by somebody else, and what
/// is not supported.
const NEVER: [Code; 3] = [1, 712, 801];

type Sources = Vec<Arc<dyn HostBytes>>;

/// What one thread copies so.
pub(super) struct Direct {
    device: Arc<Opened>,
    flags: OnceCell<c_uint>,
    /// What the device still reads, until when.
    reading: RefCell<VecDeque<(Marked, Sources)>>,
}

impl Direct {
    pub(super) fn new(device: Arc<Opened>) -> Self {
        Self { device, flags: OnceCell::new(), reading: RefCell::default() }
    }

    /// Copies what can be copied so on a stream. Returns the rest.
    pub(super) fn upload(
        &self,
        stream: usize,
        pieces: Vec<Piece>,
    ) -> Result<Vec<Piece>, MemoryError> {
        let (mut rest, mut sources, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        for piece in pieces {
            if exiting() || outcome.is_err() {
                break;
            }
            match self.copy(stream, &piece) {
                Ok(0) => rest.push(piece),
                Ok(done) => {
                    let Piece { source, from, to, length } = piece;
                    sources.push(source.clone());
                    if done < length {
                        let (from, to, length) = (from + done, to + done, length - done);
                        rest.push(Piece { source, from, to, length });
                    }
                }
                Err(error) => {
                    sources.push(piece.source);
                    outcome = Err(error);
                }
            }
        }
        if !sources.is_empty() {
            let read = Marked::new(&self.device, stream);
            self.reading.borrow_mut().push_back((read, sources));
        }
        outcome.map(|()| rest)
    }

    /// Copies a piece from its beginning on, as far as its memory is locked. Returns how far.
    fn copy(&self, stream: usize, piece: &Piece) -> Result<usize, MemoryError> {
        let Some((locks, start)) = piece.source.lockable().filter(|_| piece.length >= LEAST) else {
            return Ok(0);
        };
        let mut done = 0;
        while done < piece.length {
            let from = start + piece.from + done;
            let length = locks.reach(from, |range| self.lock(range)).min(piece.length - done);
            if length == 0 {
                break;
            }
            self.device.copy(stream, from, piece.to + done, length)?;
            done += length;
        }
        Ok(done)
    }

    /// Locks memory in its place.
    fn lock(&self, range: Range<usize>) -> Result<Box<dyn Lock>, Unlockable> {
        let flags = *self.flags.get_or_init(|| {
            let known = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED;
            match self.device.primary.attribute(known as i32) {
                0 => PORTABLE,
                _ => PORTABLE | READ_ONLY,
            }
        });
        let registered = self.device.enter(|primary| {
            let start = std::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: whoever has the memory keeps it until it is registered no more, and writes it
            // never.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe {
                once_ready(|| primary.library.host_register(start, range.len(), flags))
            })
        });
        match registered {
            Ok(Ok(())) => {
                Ok(Box::new(Registered { device: self.device.clone(), start: range.start }))
            }
            Ok(Err(code)) if NEVER.contains(&code) => Err(Unlockable::Ever),
            Ok(Err(_)) | Err(_) => Err(Unlockable::Now),
        }
    }

    /// Lets go of what has been read. Returns whether something is still being read.
    pub(super) fn is_reading(&self) -> bool {
        let mut reading = self.reading.borrow_mut();
        // In the order of the stream. What has failed is read no more.
        while reading.front().is_some_and(|(read, _)| read.is_over()) {
            reading.pop_front();
        }
        !reading.is_empty()
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        for (read, sources) in self.reading.get_mut().drain(..) {
            let known = !exiting() && self.device.primary.library.is_here();
            let over = known && (read.wait().is_ok() || read.is_over());
            if exiting() || !over {
                // Nobody can tell when they have been read: they stay.
                std::mem::forget((read, sources));
            }
        }
    }
}

/// Memory that is locked until it is let go.
struct Registered {
    device: Arc<Opened>,
    start: usize,
}

impl Lock for Registered {
    fn unlock(&self) -> bool {
        if exiting() || !self.device.primary.library.is_here() {
            // It ends with the process; a forked child has no such thing.
            return true;
        }
        let unregistered = self.device.within("cuMemHostUnregister", |primary| {
            let start = std::ptr::with_exposed_provenance_mut(self.start);
            // SAFETY: it was registered so, and no device reads it any more.
            #[expect(unsafe_code, reason = "a function of a library")]
            checked(unsafe { once_ready(|| primary.library.host_unregister(start)) })
        });
        unregistered.is_ok()
    }
}
