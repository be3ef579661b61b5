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

    /// Copies its elements, row-major, to `bytes`, which must be as many as they are.
    ///
    /// # Panics
    /// If they are not.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.nbytes(), "the bytes of a tensor and of its copy");
        let Placed { element, shape, strides, .. } = self.placed();
        // SAFETY: the elements lie where the tensor says, in memory that it keeps.
        #[expect(unsafe_code, reason = "a copy out of memory that may be somebody else's")]
        unsafe {
            copy_elements(self.start(), *element, shape, strides.as_deref(), bytes);
        }
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

/// Copies elements, row-major, to `to`.
///
/// # Safety
/// The elements lie from `start` on as `shape` and `strides` say, and `to` has as many bytes as they.
#[expect(unsafe_code, reason = "a copy out of memory that may be somebody else's")]
pub(super) unsafe fn copy_elements(
    start: *const u8,
    element: ElementType,
    shape: &[usize],
    strides: Option<&[i64]>,
    to: &mut [u8],
) {
    let Some(strides) = strides else {
        // SAFETY: the caller's.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(start, to.len()) };
        return;
    };
    let (mut shape, mut size) = (shape.to_vec(), element.bits() / 8);
    if let (0, Some(last)) = (size, shape.last_mut()) {
        // Strides count the bytes, each with two numbers.
        (*last, size) = (*last / 2, 1);
    }
    let size = size.max(1);
    let mut places = to.chunks_exact_mut(size);
    each_element(&shape, strides, 0, &mut |offset| {
        if let Some(place) = places.next() {
            let from = start.wrapping_offset(offset * size.cast_signed());
            // SAFETY: the caller's.
            unsafe { place.as_mut_ptr().copy_from_nonoverlapping(from, size) };
        }
    });
}

/// Tells of each element, in row-major order, how many elements it lies behind the first one.
fn each_element(shape: &[usize], strides: &[i64], offset: isize, tell: &mut dyn FnMut(isize)) {
    let ([size, inner @ ..], [stride, steps @ ..]) = (shape, strides) else {
        tell(offset);
        return;
    };
    let mut at = offset;
    for _ in 0..*size {
        each_element(inner, steps, at, tell);
        at = at.wrapping_add(isize::try_from(*stride).unwrap_or_default());
    }
}
