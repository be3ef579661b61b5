//! One tensor of some weights.

use std::sync::Arc;

use super::ElementType;
use super::entry::Entry;
use super::header::Packing;
use super::memory::Memory;
use super::placed::{Placed, copy_elements};
use super::private::Maps;
use crate::device::PageLocks;

/// One tensor where it lies. Keeps the weights.
#[derive(Clone)]
pub struct Tensor {
    entry: Arc<Entry>,
    at: usize,
    /// The map in which it may be written, if it is of one.
    private: Option<Arc<Maps>>,
}

impl Tensor {
    pub(super) fn new(entry: Arc<Entry>, at: usize) -> Self {
        Self { entry, at, private: None }
    }

    pub(super) fn private(entry: Arc<Entry>, at: usize, maps: Arc<Maps>) -> Self {
        Self { entry, at, private: Some(maps) }
    }

    fn placed(&self) -> &Placed {
        self.entry.placed(self.at)
    }

    fn memory(&self) -> &Memory {
        self.entry.memory(self.placed().memory)
    }

    /// The type of its elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        self.placed().element
    }

    /// Its dimensions, the slowest first. Of a packed tensor the last one counts bytes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.placed().shape
    }

    /// The steps from one element to the next along each dimension, in elements; `None` if it is
    /// row-major.
    #[must_use]
    pub fn strides(&self) -> Option<&[i64]> {
        self.placed().strides.as_deref()
    }

    /// How its numbers are packed, if they are: its bytes are exported as they lie.
    #[must_use]
    pub fn packing(&self) -> Option<Packing> {
        self.placed().packing
    }

    /// Bytes of its elements.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.placed().nbytes
    }

    /// Where its first element lies.
    #[must_use]
    pub fn start(&self) -> *const u8 {
        let Placed { memory, offset, .. } = self.placed();
        let start = match &self.private {
            Some(maps) => maps.start(*memory),
            None => self.memory().start(),
        };
        start.wrapping_add(*offset)
    }

    /// Whether it may be written, without anybody else noticing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.private.is_some()
    }

    /// Its bytes, if it is row-major and nobody can write them.
    #[must_use]
    pub fn data(&self) -> Option<&[u8]> {
        if self.is_writable() {
            return None;
        }
        let Placed { offset, nbytes, strides: None, .. } = self.placed() else { return None };
        self.memory().sealed()?.get(*offset..offset + nbytes)
    }

    /// Copies its elements, row-major, to `bytes`, which must be as many as they are.
    ///
    /// # Panics
    /// If they are not.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.nbytes(), "the bytes of a tensor and of its copy");
        self.copy_part_to(0, bytes);
    }

    /// Copies as many bytes of its elements as there is room for, row-major, from the byte `from` of
    /// that order on, which begins an element.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn copy_part_to(&self, from: usize, bytes: &mut [u8]) {
        let fits = from.checked_add(bytes.len()).is_some_and(|end| end <= self.nbytes());
        assert!(fits, "a part of a tensor's bytes");
        let Placed { element, shape, strides, .. } = self.placed();
        // SAFETY: the elements lie where the tensor says, in memory that it keeps.
        #[expect(unsafe_code, reason = "a copy out of memory that may be somebody else's")]
        unsafe {
            copy_elements(self.start(), *element, shape, strides.as_deref(), from, bytes);
        }
    }

    /// What of the memory that its bytes lie in is locked for copies to devices, if it may be.
    #[must_use]
    pub fn locks(&self) -> Option<&PageLocks> {
        let Placed { strides: None, .. } = self.placed() else { return None };
        if self.is_writable() { None } else { self.memory().locks() }
    }

    /// Whether it lies where code that reads its elements expects it. Old files are not padded.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        self.start().addr().is_multiple_of(self.element_type().alignment())
    }

    /// Whether it lies in memory that is locked for a GPU's copies.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.memory().kind() == super::MemoryKind::Pinned
    }
}
