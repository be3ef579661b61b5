//! What a streaming has where; everything here happens under its mutex, and calls nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::visits::Visits;
use crate::arena::{PageSet, Pins};
use crate::sync::{Mutant, planted};

/// Pages of a block that stay between its visits: the first ones.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) pages: usize,
    pub(super) pins: Option<Pins>,
}

/// A block that is about to be visited.
pub(super) struct Ahead {
    pub(super) block: usize,
    /// How many of its pages stay or have been brought.
    pub(super) pages: usize,
    pub(super) pins: Vec<Pins>,
}

pub(super) struct State {
    /// The pages of each block.
    pub(super) blocks: Vec<Arc<PageSet>>,
    /// How many pages blocks may have in all.
    pub(super) allotted: usize,
    pub(super) kept: Vec<Kept>,
    /// Blocks that are being visited; one that is visited within another, or by two at once, is there
    /// more than once.
    pub(super) inside: Vec<(usize, Pins)>,
    /// Those that are about to be, in that order.
    pub(super) ahead: VecDeque<Ahead>,
    /// What nobody uses any more, and has still to leave.
    pub(super) over: VecDeque<Pins>,
    pub(super) visits: Visits,
    /// Changes whenever there may be something to do.
    pub(super) news: u64,
    pub(super) closed: bool,
}

impl State {
    pub(super) fn new(blocks: Vec<Arc<PageSet>>, allotted: usize) -> Self {
        let count = blocks.len();
        Self {
            blocks,
            allotted,
            kept: (0..count).map(|_| Kept::default()).collect(),
            inside: Vec::new(),
            ahead: VecDeque::new(),
            over: VecDeque::new(),
            visits: Visits::new(count),
            news: 0,
            closed: false,
        }
    }

    /// A block is visited, whose pages are pinned. Returns what had been brought ahead and is not
    /// wanted soon any more: that it is pinned once more is over.
    pub(super) fn entered(&mut self, block: usize, pins: Pins) -> Vec<Pins> {
        if self.closed {
            return vec![pins];
        }
        let within = self.is_inside(block);
        self.inside.push((block, pins));
        self.news += 1;
        if within {
            // It was there already.
            return Vec::new();
        }
        self.visits.note(block);
        let mut twice = Vec::new();
        let at = self.ahead.iter().position(|ahead| ahead.block == block);
        if let Some(ahead) = at.and_then(|at| self.ahead.remove(at)) {
            twice = ahead.pins;
        }
        // What comes in another order than it was thought is brought in that order.
        let comes = |block: &usize| self.kept[*block].pages < self.blocks[*block].len();
        let next: Vec<usize> = self.visits.to_come().filter(comes).take(self.ahead.len()).collect();
        let (wanted, not): (VecDeque<Ahead>, VecDeque<Ahead>) =
            std::mem::take(&mut self.ahead).into_iter().partition(|it| next.contains(&it.block));
        self.ahead = wanted;
        let in_vain = not.into_iter().flat_map(|ahead| ahead.pins);
        if planted(Mutant::BroughtInVainStays) {
            in_vain.for_each(std::mem::forget);
        } else {
            self.over.extend(in_vain);
        }
        twice
    }

    /// A visit of a block ends, the last one if it has several: what has pinned its pages.
    pub(super) fn take_inside(&mut self, block: usize) -> Option<Pins> {
        let at = self.inside.iter().rposition(|(inside, _)| *inside == block)?;
        Some(self.inside.remove(at).1)
    }

    /// A visit of a block has ended; so many of its pages stay. Returns what is pinned once more than it
    /// need be.
    pub(super) fn left(&mut self, block: usize, pins: Option<Pins>, keep: usize) -> Vec<Pins> {
        let Some(mut pins) = pins.filter(|_| !self.closed) else { return Vec::new() };
        self.news += 1;
        if self.is_inside(block) {
            return vec![pins];
        }
        let rest = pins.split_off(keep);
        let kept = Kept { pages: keep.min(self.blocks[block].len()), pins: Some(pins) };
        let before = std::mem::replace(&mut self.kept[block], kept);
        if self.visits.repeats() {
            let pages = self.blocks[block].len();
            self.ahead.push_front(Ahead { block, pages, pins: vec![rest] });
        } else if planted(Mutant::OverStaysPinned) {
            std::mem::forget(rest);
        } else {
            self.over.push_back(rest);
        }
        if before.pages > keep {
            // What of it stays is pinned twice until it is over, and nothing is unpinned too early.
            self.over.extend(before.pins);
            return Vec::new();
        }
        before.pins.into_iter().collect()
    }

    /// Whether a block is being visited.
    pub(super) fn is_inside(&self, block: usize) -> bool {
        self.inside.iter().any(|(inside, _)| *inside == block)
    }

    /// The next block of which something is missing, how many of its pages are there, and its pages.
    pub(super) fn next(&self) -> Option<(usize, usize, Arc<PageSet>)> {
        for block in self.visits.to_come() {
            if self.is_inside(block) {
                return None;
            }
            let ahead = self.ahead.iter().find(|ahead| ahead.block == block);
            let there = ahead.map_or(self.kept[block].pages, |ahead| ahead.pages);
            if there < self.blocks[block].len() {
                return Some((block, there, self.blocks[block].clone()));
            }
        }
        None
    }

    /// So many more pages of a block have been brought ahead.
    pub(super) fn brought(&mut self, block: usize, more: usize, pins: Pins) {
        let kept = self.kept[block].pages;
        if let Some(ahead) = self.ahead.iter_mut().find(|ahead| ahead.block == block) {
            ahead.pages += more;
            ahead.pins.push(pins);
            return;
        }
        self.ahead.push_back(Ahead { block, pages: kept + more, pins: vec![pins] });
    }

    /// Lets a block keep no more than so many pages, if nobody visits it and nothing of it was brought
    /// ahead.
    pub(super) fn keep_at_most(&mut self, block: usize, keep: usize) -> bool {
        let used = self.is_inside(block) || self.ahead.iter().any(|ahead| ahead.block == block);
        let kept = &mut self.kept[block];
        if used || kept.pages <= keep {
            return false;
        }
        if let Some(pins) = &mut kept.pins {
            kept.pages = keep;
            self.over.push_back(pins.split_off(keep));
        }
        true
    }

    /// The pages that nobody uses and has asked for are over: those that were to be used last.
    pub(super) fn give_up_ahead(&mut self, but: Option<usize>) -> bool {
        let at = self.ahead.iter().rposition(|ahead| Some(ahead.block) != but);
        let Some(ahead) = at.and_then(|at| self.ahead.remove(at)) else { return false };
        self.over.extend(ahead.pins);
        true
    }

    /// Everything that it has.
    pub(super) fn take_all(&mut self) -> Vec<Pins> {
        let mut all: Vec<Pins> = self.over.drain(..).collect();
        all.extend(self.ahead.drain(..).flat_map(|ahead| ahead.pins));
        all.extend(self.inside.drain(..).map(|(_, pins)| pins));
        all.extend(self.kept.iter_mut().filter_map(|kept| std::mem::take(kept).pins));
        all
    }
}
