//! Where tensors lie in an area's pages, and which pages some of them need.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{Address, HostBytes, PageLocks, Piece, Places};
use crate::weights::{ElementType, Tensor};

/// Where tensors begin: as torch's own allocator has it on the CPU, or better.
const ALIGNMENT: usize = 256;

/// One tensor of an area.
pub struct Content {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub element: ElementType,
    /// Its dimensions, the slowest first; it is row-major.
    pub shape: Vec<usize>,
    /// Bytes of its elements.
    pub nbytes: usize,
    /// Where they are copied from.
    pub bytes: Arc<dyn HostBytes>,
}

impl Content {
    /// A tensor of some weights.
    #[must_use]
    pub fn of(name: &str, tensor: Tensor) -> Self {
        Self {
            name: name.to_owned(),
            element: tensor.element_type(),
            shape: tensor.shape().to_vec(),
            nbytes: tensor.nbytes(),
            bytes: Arc::new(tensor),
        }
    }
}

impl HostBytes for Tensor {
    fn copy_to(&self, from: usize, to: &mut [u8]) {
        self.copy_part_to(from, to);
    }

    fn lockable(&self) -> Option<(&PageLocks, Address)> {
        Some((self.locks()?, self.start().addr()))
    }
}

/// Tensors one after the other, so that only the last page has room to spare; or that of each block.
pub(super) struct Layout {
    pub(super) contents: Vec<Content>,
    /// Where each of them begins.
    pub(super) places: Vec<usize>,
    /// The pages of each block, where memory comes in blocks.
    pub(super) blocks: Option<Vec<Range<usize>>>,
    by_name: HashMap<String, usize>,
    page: usize,
    end: usize,
}

/// Some pages of an area, each once.
#[derive(Debug, PartialEq, Eq)]
pub struct PageSet {
    ranges: Vec<Range<usize>>,
    count: usize,
}

impl PageSet {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Their numbers, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().cloned().flatten()
    }

    /// Pages of these numbers, which ascend.
    fn of(numbers: impl IntoIterator<Item = usize>) -> Self {
        let ranges = runs(numbers);
        let count = ranges.iter().map(ExactSizeIterator::len).sum();
        Self { ranges, count }
    }

    /// Those that are not in the other one.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let in_other = |page: &usize| other.ranges.iter().any(|range| range.contains(page));
        Self::of(self.iter().filter(|page| !in_other(page)))
    }

    /// So many of them, from the first on or after so many.
    #[must_use]
    pub fn part(&self, from: usize, count: usize) -> Self {
        Self::of(self.iter().skip(from).take(count))
    }
}

impl Layout {
    /// Each of `groups`, which are the places of their first tensors, begins with a page of its own.
    pub(super) fn new(
        contents: Vec<Content>,
        groups: &[usize],
        page: usize,
        memory: Places,
    ) -> Self {
        let (mut end, mut begun) = (0_usize, vec![0]);
        let mut places = Vec::with_capacity(contents.len());
        for (at, content) in contents.iter().enumerate() {
            let alignment = if groups.contains(&at) { page } else { ALIGNMENT };
            let mut start = end.next_multiple_of(alignment);
            if let (Places::Moving { block }, Some(last)) = (memory, begun.last()) {
                // What the last page has to spare is filled whatever lies before.
                let most = (last + block).max(end.next_multiple_of(page));
                if start + content.nbytes > most && end > *last {
                    start = end.next_multiple_of(page);
                    begun.push(start);
                }
            }
            places.push(start);
            end = start + content.nbytes;
        }
        let named = contents.iter().enumerate();
        let by_name = named.map(|(at, content)| (content.name.clone(), at)).collect();
        let blocks = matches!(memory, Places::Moving { .. }).then(|| {
            let ends = begun.iter().skip(1).copied().chain([end.next_multiple_of(page)]);
            let blocks = begun.iter().zip(ends).map(|(start, end)| start / page..end / page);
            blocks.filter(|pages| !pages.is_empty()).collect()
        });
        Self { contents, places, blocks, by_name, page, end }
    }

    /// Bytes of the tensors, with what lies between them.
    pub(super) fn nbytes(&self) -> usize {
        self.end
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> usize {
        self.end.div_ceil(self.page)
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The block that a page is in.
    fn block(&self, page: usize) -> Option<&Range<usize>> {
        let blocks = self.blocks.as_ref()?;
        blocks.get(blocks.partition_point(|block| block.end <= page))
    }

    /// The pages that these tensors lie in, or their blocks.
    pub(super) fn set(&self, tensors: impl IntoIterator<Item = usize>) -> PageSet {
        let range = |at: usize| {
            let (start, nbytes) = (self.places[at], self.contents[at].nbytes);
            let pages = start / self.page..(start + nbytes).div_ceil(self.page);
            self.block(pages.start).cloned().unwrap_or(pages)
        };
        let bytes = |at: &usize| self.contents[*at].nbytes > 0;
        let mut all: Vec<Range<usize>> = tensors.into_iter().filter(bytes).map(range).collect();
        all.sort_by_key(|range| range.start);
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for range in all {
            match ranges.last_mut().filter(|last| range.start <= last.end) {
                Some(last) => last.end = last.end.max(range.end),
                None => ranges.push(range),
            }
        }
        let count = ranges.iter().map(ExactSizeIterator::len).sum();
        PageSet { ranges, count }
    }

    /// What is copied to fill these pages, each of whose bytes is where `place` says.
    pub(super) fn pieces(
        &self,
        place: impl Fn(usize) -> Option<Address>,
        pages: &Range<usize>,
    ) -> Vec<Piece> {
        let bytes = pages.start * self.page..(pages.end * self.page).min(self.end);
        let end_of = |at: usize| self.places[at] + self.contents[at].nbytes;
        // The last one that begins there or before; those without bytes do no harm.
        let first = self.places.partition_point(|place| *place <= bytes.start).saturating_sub(1);
        let mut pieces = Vec::new();
        for at in first..self.places.len() {
            let (begin, end) = (self.places[at].max(bytes.start), end_of(at).min(bytes.end));
            if self.places[at] >= bytes.end {
                break;
            }
            if begin < end
                && let Some(to) = place(begin)
            {
                pieces.push(Piece {
                    source: self.contents[at].bytes.clone(),
                    from: begin - self.places[at],
                    to,
                    length: end - begin,
                });
            }
        }
        pieces
    }
}

/// Numbers in ascending order as ranges.
pub(super) fn runs(numbers: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for number in numbers {
        match runs.last_mut().filter(|last| last.end == number) {
            Some(last) => last.end += 1,
            None => runs.push(number..number + 1),
        }
    }
    runs
}
