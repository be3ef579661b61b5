//! The pages of one device and their transitions; everything here happens under the arena's own mutex,
//! and calls nothing.

mod content;
mod leave;
mod pin;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use slab::Slab;

pub(super) use content::Filled;
pub(super) use leave::{Candidate, Left, Run, Whose};
pub(super) use pin::{By, Refused};

use super::area::{Identity, Shared as AreaShared};
use super::land::Land;
use super::mark::Mark;
use crate::budget::Stake;
use crate::device::Event;
use crate::sync::{Mutant, planted};

/// Where a page is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It has no memory.
    Absent,
    /// Whoever has the turn is giving it memory.
    Coming,
    /// It has memory.
    Resident,
    /// Its memory is being taken away.
    Leaving,
}

pub(super) struct Page {
    pub(super) place: Place,
    /// By how many it is in use.
    pub(super) pins: u32,
    /// Whether whoever has it in use waits for bytes, so that others may have its.
    yielded: bool,
    /// The content that it has, or will have once it is filled; 0 is none.
    pub(super) generation: u64,
    /// Changes whenever it is used, so that who has looked knows whether that is still true.
    stamp: u64,
    /// When its content is there, if that has not been seen yet.
    pub(super) filled: Option<Event>,
    /// When the streams that have used it are done with that.
    used: Vec<Mark>,
}

impl Page {
    fn new() -> Self {
        Self {
            place: Place::Absent,
            pins: 0,
            yielded: false,
            generation: 0,
            stamp: 0,
            filled: None,
            used: Vec::new(),
        }
    }

    /// Whether it is in use, also by somebody who waits for bytes.
    fn is_in_use(&self) -> bool {
        self.pins > 0 || self.yielded
    }

    /// What has to pass before its memory can be taken away, or written again.
    fn fences(&self) -> impl Iterator<Item = &Event> {
        let fences = self.filled.iter().chain(self.used.iter().map(|mark| &mark.event));
        fences.filter(|_| !planted(Mutant::PageLeavesEarly))
    }
}

/// What the arena knows of one area.
pub(super) struct AreaState {
    pub(super) land: Arc<Land>,
    /// By which number whoever says what leaves first knows the weights.
    pub(super) weights: u32,
    pub(super) pages: Vec<Page>,
    /// What its content is now; pages of another one have to be filled again.
    pub(super) generation: u64,
    pub(super) priority: i64,
    /// When it was used last.
    pub(super) used_at: u64,
    /// How many pages have memory, or get it.
    pub(super) resident: usize,
    /// How many are in use, also by somebody who waits for bytes.
    pub(super) pinned: usize,
    /// Whether nobody has the area any more.
    pub(super) orphan: bool,
    /// Live pinned tensors, by their place in the layout.
    pub(super) tensors: HashMap<usize, usize>,
    /// How many pins there are of those who fault.
    pub(super) uses: usize,
    /// Who has it alone; 0 is nobody.
    pub(super) alone: u64,
    /// Whether pages have ever had content.
    ever: Vec<bool>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) areas: Slab<AreaState>,
    /// By what they are made of.
    pub(super) known: HashMap<Identity, Weak<AreaShared>>,
    clock: u64,
    /// What whoever has the turn has of what he waits for, and bytes of a page.
    stake: Option<(Stake, u64)>,
    /// Unpinned pages leave when there are more bytes than this, until there are as few as the other.
    pub(super) high: Option<u64>,
    pub(super) low: u64,
    /// How many pages have been filled, and how many have left, since the beginning.
    pub(super) filled: u64,
    pub(super) evicted: u64,
}

impl State {
    pub(super) fn add(&mut self, land: Arc<Land>, weights: u32, pages: usize) -> usize {
        self.areas.insert(AreaState {
            land,
            weights,
            pages: (0..pages).map(|_| Page::new()).collect(),
            generation: 1,
            priority: 0,
            used_at: 0,
            resident: 0,
            pinned: 0,
            orphan: false,
            tensors: HashMap::new(),
            uses: 0,
            alone: 0,
            ever: vec![false; pages],
        })
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// How many pages have memory, or get it.
    pub(super) fn resident(&self) -> usize {
        self.areas.iter().map(|(_, area)| area.resident).sum()
    }

    /// How many are in use.
    pub(super) fn pinned(&self) -> usize {
        self.areas.iter().map(|(_, area)| area.pinned).sum()
    }
}

/// Adds events that are not there yet.
fn note<'a>(all: &mut Vec<Event>, more: impl Iterator<Item = &'a Event>) {
    for event in more {
        if !all.iter().any(|known| Arc::ptr_eq(known, event)) {
            all.push(event.clone());
        }
    }
}
