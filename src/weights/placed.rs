//! Where a tensor lies in memory, and how to copy it from there.

use super::ElementType;
use super::header::Packing;

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
