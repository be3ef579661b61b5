//! What is in pages: which of them have to be filled, and when that is done.

use std::sync::Arc;

use super::super::layout::PageSet;
use super::{AreaState, Place, State, note};
use crate::device::Event;

/// How many pages are filled: those that never were before, that were and have left, and that are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::arena) struct Filled {
    pub(in crate::arena) first: usize,
    pub(in crate::arena) back: usize,
    pub(in crate::arena) renewed: usize,
}

/// Pages that have memory, but perhaps not their content.
pub(in crate::arena) struct Stale {
    pub(in crate::arena) pages: Vec<usize>,
    /// They have to pass before something else is written there.
    pub(in crate::arena) fences: Vec<Event>,
    /// The content that they should have.
    pub(in crate::arena) generation: u64,
}

impl State {
    /// Those of some pages that have memory, but not the right content.
    pub(in crate::arena) fn stale(&self, area: usize, set: &PageSet) -> Stale {
        let AreaState { pages, generation, .. } = &self.areas[area];
        let mut stale = Stale { pages: Vec::new(), fences: Vec::new(), generation: *generation };
        for at in set.iter() {
            let page = &pages[at];
            if page.place == Place::Resident && page.generation != *generation {
                stale.pages.push(at);
                note(&mut stale.fences, page.fences());
            }
        }
        stale
    }

    /// Pages have memory now, and will have content of this generation when `filled` has passed.
    /// Returns what they were before.
    pub(in crate::arena) fn settle(
        &mut self,
        area: usize,
        pages: &[usize],
        generation: u64,
        filled: &Event,
    ) -> Filled {
        self.filled += pages.len() as u64;
        let (mut before, area) = (Filled::default(), &mut self.areas[area]);
        for at in pages {
            let page = &mut area.pages[*at];
            let known = std::mem::replace(&mut area.ever[*at], true);
            before.renewed += usize::from(page.place == Place::Resident);
            before.back += usize::from(page.place == Place::Coming && known);
            before.first += usize::from(page.place == Place::Coming && !known);
            page.place = Place::Resident;
            page.generation = generation;
            page.filled = Some(filled.clone());
        }
        before
    }

    /// What has to pass before the content of pages is there.
    pub(in crate::arena) fn filling(&self, area: usize, set: &PageSet) -> Vec<Event> {
        let mut events = Vec::new();
        set.iter().for_each(|at| note(&mut events, self.areas[area].pages[at].filled.iter()));
        events
    }

    /// Pages whose content was seen to be there.
    pub(in crate::arena) fn seen(&mut self, area: usize, set: &PageSet, passed: &[Event]) {
        let pages = &mut self.areas[area].pages;
        for at in set.iter() {
            pages[at]
                .filled
                .take_if(|filled| passed.iter().any(|event| Arc::ptr_eq(event, filled)));
        }
    }

    /// Pages whose content did not come, because a copy has failed. Whether that is `over` tells if they
    /// still have to wait for it.
    pub(in crate::arena) fn spoil(
        &mut self,
        area: usize,
        set: &PageSet,
        failed: &Event,
        over: bool,
    ) {
        let pages = &mut self.areas[area].pages;
        for at in set.iter() {
            let page = &mut pages[at];
            if page.filled.as_ref().is_some_and(|filled| Arc::ptr_eq(failed, filled)) {
                page.generation = 0;
                page.filled.take_if(|_| over);
            }
        }
    }
}
