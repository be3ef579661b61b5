//! In which order blocks are visited: as they were the last time.

use std::collections::HashMap;

/// What was seen.
#[derive(Debug)]
pub(super) struct Visits {
    blocks: usize,
    last: Option<usize>,
    before: Option<usize>,
    /// What came after two of them, and after one.
    after_two: HashMap<(usize, usize), usize>,
    after: Vec<Option<usize>>,
}

impl Visits {
    pub(super) fn new(blocks: usize) -> Self {
        let (after_two, after) = (HashMap::new(), vec![None; blocks]);
        Self { blocks, last: None, before: None, after_two, after }
    }

    /// Says that a block is visited now.
    pub(super) fn note(&mut self, block: usize) {
        if let Some(last) = self.last {
            self.after[last] = Some(block);
            if let Some(before) = self.before {
                self.after_two.insert((before, last), block);
            }
        }
        (self.before, self.last) = (self.last, Some(block));
    }

    /// What is visited next, each once, until it is the one of now again. Before something was seen it
    /// is the order of the blocks.
    pub(super) fn to_come(&self) -> impl Iterator<Item = usize> {
        let now = self.last;
        let (mut before, mut last) = (self.before, self.last);
        let mut told = vec![false; self.blocks];
        let mut left = 2 * self.blocks;
        std::iter::from_fn(move || {
            loop {
                left = left.checked_sub(1)?;
                let next = self.next(before, last);
                (before, last) = (last, Some(next));
                if Some(next) == now {
                    return None;
                }
                if !std::mem::replace(&mut told[next], true) {
                    return Some(next);
                }
            }
        })
    }

    /// Whether the one of now is visited again at once.
    pub(super) fn repeats(&self) -> bool {
        self.last.is_some_and(|last| self.next(self.before, Some(last)) == last)
    }

    fn next(&self, before: Option<usize>, last: Option<usize>) -> usize {
        let Some(last) = last else { return 0 };
        let seen = before.and_then(|before| self.after_two.get(&(before, last)).copied());
        seen.or(self.after[last]).unwrap_or((last + 1) % self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::Visits;

    fn after(visited: &[usize]) -> Vec<usize> {
        let mut visits = Visits::new(4);
        for block in visited {
            visits.note(*block);
        }
        visits.to_come().collect()
    }

    #[test]
    fn before_something_was_seen_it_is_the_order_of_the_blocks() {
        assert_eq!(after(&[]), [0, 1, 2, 3]);
        assert_eq!(after(&[2]), [3, 0, 1]);
    }

    #[test]
    fn what_was_seen_comes_again_also_if_a_block_is_visited_twice() {
        assert_eq!(after(&[3, 1, 2, 1, 0, 3]), [1, 2, 0]);
        assert_eq!(after(&[3, 1, 2, 1, 0, 3, 1, 2, 1]), [0, 3]);
        assert_eq!(after(&[0, 2, 0, 2]), [0]);
    }
}
