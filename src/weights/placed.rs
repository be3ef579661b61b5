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

/// Copies as many bytes of elements as `to` has, in row-major order, from the byte `from` of that order
/// on, which begins an element.
///
/// # Safety
/// The elements lie from `start` on as `shape` and `strides` say, and there are so many.
#[expect(unsafe_code, reason = "a copy out of memory that may be somebody else's")]
pub(super) unsafe fn copy_elements(
    start: *const u8,
    element: ElementType,
    shape: &[usize],
    strides: Option<&[i64]>,
    from: usize,
    to: &mut [u8],
) {
    let Some(strides) = strides else {
        // SAFETY: the caller's.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(start.wrapping_add(from), to.len()) };
        return;
    };
    let (mut shape, mut size) = (shape.to_vec(), element.bits() / 8);
    if let (0, Some(last)) = (size, shape.last_mut()) {
        // Strides count the bytes, each with two numbers.
        (*last, size) = (*last / 2, 1);
    }
    let walk = Walk { shape: &shape, strides };
    // SAFETY: the caller's.
    unsafe {
        match size {
            2 => walk.copy::<2>(start, from, to),
            4 => walk.copy::<4>(start, from, to),
            8 => walk.copy::<8>(start, from, to),
            16 => walk.copy::<16>(start, from, to),
            _ => walk.copy::<1>(start, from, to),
        }
    }
}

/// The way through elements in row-major order.
struct Walk<'a> {
    shape: &'a [usize],
    strides: &'a [i64],
}

impl Walk<'_> {
    /// Copies elements of `SIZE` bytes.
    ///
    /// # Safety
    /// As for [`copy_elements`].
    #[expect(unsafe_code, reason = "a copy out of memory that may be somebody else's")]
    unsafe fn copy<const SIZE: usize>(&self, start: *const u8, from: usize, to: &mut [u8]) {
        let mut index = self.index(from / SIZE);
        let mut places = to.as_chunks_mut::<SIZE>().0.iter_mut();
        let (inner, step) = match (self.shape.last(), self.strides.last()) {
            (Some(&size), Some(&stride)) => (size, bytes::<SIZE>(stride)),
            _ => (1, 0),
        };
        while !places.as_slice().is_empty() {
            let first = index.iter().zip(self.strides);
            let first =
                first.map(|(&at, &stride)| bytes::<SIZE>(stride).wrapping_mul(at.cast_signed()));
            let mut at = start.wrapping_offset(first.fold(0, isize::wrapping_add));
            let row = inner - index.last().copied().unwrap_or(0);
            for place in places.by_ref().take(row) {
                // SAFETY: the caller's; any bytes are elements.
                *place = unsafe { at.cast::<[u8; SIZE]>().read_unaligned() };
                at = at.wrapping_offset(step);
            }
            self.next_row(&mut index);
        }
    }

    /// The index of the element that comes after so many.
    fn index(&self, mut after: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        for (at, &size) in index.iter_mut().zip(self.shape).rev() {
            (*at, after) = (after % size.max(1), after / size.max(1));
        }
        index
    }

    /// Goes to the beginning of the next row.
    fn next_row(&self, index: &mut [usize]) {
        let Some((last, outer)) = index.split_last_mut() else { return };
        *last = 0;
        for (at, &size) in outer.iter_mut().zip(self.shape).rev() {
            *at += 1;
            if *at < size {
                return;
            }
            *at = 0;
        }
    }
}

/// Bytes that so many elements take.
fn bytes<const SIZE: usize>(elements: i64) -> isize {
    isize::try_from(elements).unwrap_or_default().wrapping_mul(SIZE.cast_signed())
}
