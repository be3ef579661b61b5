//! One tensor of some weights.

use std::sync::Arc;

use super::ElementType;
use super::entry::Entry;
use super::memory::Memory;
use super::source::Packing;

/// A tensor as its weights have it.
pub(super) struct Placed {
    pub(super) element: ElementType,
    pub(super) shape: Vec<usize>,
    /// In elements, of a tensor that is not row-major.
    pub(super) strides: Option<Vec<i64>>,
    pub(super) packing: Option<Packing>,
    /// Which of the weights' stretches of memory.
    pub(super) memory: usize,
    /// Where in it the first element lies.
    pub(super) offset: usize,
    /// Bytes of its elements.
    pub(super) nbytes: usize,
}

/// One tensor where it lies. Keeps the weights.
#[derive(Clone)]
pub struct Tensor {
    entry: Arc<Entry>,
    at: usize,
}

impl Tensor {
    pub(super) fn new(entry: Arc<Entry>, at: usize) -> Self {
        Self { entry, at }
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
        self.memory().start().wrapping_add(self.placed().offset)
    }

    /// Its bytes, if it is row-major and nobody can write them.
    #[must_use]
    pub fn data(&self) -> Option<&[u8]> {
        let Placed { offset, nbytes, strides: None, .. } = self.placed() else { return None };
        self.memory().sealed()?.get(*offset..offset + nbytes)
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
