//! Pinning pages: by whoever faults them, or has their area alone; and letting others have them meanwhile.

use super::super::layout::PageSet;
use super::super::mark::Mark;
use super::{AreaState, Page, Place, State, note};
use crate::budget::Stake;
use crate::device::Event;
use crate::sync::{Mutant, planted};

/// Who pins pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arena) enum By {
    /// Whoever faults them, beside others.
    Fault,
    /// Who has the area alone, by this number.
    Alone(u64),
}

/// Why an area is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arena) enum Refused {
    /// Somebody has it alone.
    Exclusive,
    /// Others use it.
    InUse,
}

impl AreaState {
    /// Counts one more among those who use a page.
    fn pin(&mut self, at: usize, clock: u64) {
        let page = &mut self.pages[at];
        self.pinned += usize::from(!page.is_in_use());
        page.pins += 1;
        page.stamp = clock;
    }

    /// Pins a page, whatever there is of it. Returns it if it is to get memory now.
    fn claim(&mut self, at: usize, clock: u64) -> Option<usize> {
        self.pin(at, clock);
        let absent = self.pages[at].place == Place::Absent;
        if absent {
            self.pages[at].place = Place::Coming;
            self.resident += 1;
        }
        absent.then_some(at)
    }
}

impl State {
    /// Has an area be one's alone, unless others have pinned some of it. Returns by which number.
    pub(in crate::arena) fn begin_alone(&mut self, area: usize) -> Result<u64, Refused> {
        let clock = self.tick();
        let area = &mut self.areas[area];
        if area.alone != 0 {
            return Err(Refused::Exclusive);
        }
        if area.uses > 0 && !planted(Mutant::OthersAreLetIn) {
            return Err(Refused::InUse);
        }
        area.alone = clock;
        Ok(clock)
    }

    /// Has it be everybody's again.
    pub(in crate::arena) fn end_alone(&mut self, area: usize, number: u64) {
        let alone = &mut self.areas[area].alone;
        if *alone == number {
            *alone = 0;
        }
    }

    /// Whether somebody may pin pages.
    fn admit(&self, area: usize, by: By) -> Result<(), Refused> {
        let alone = self.areas[area].alone;
        let admitted = match by {
            By::Fault => alone == 0 || planted(Mutant::OthersAreLetIn),
            By::Alone(number) => alone == number,
        };
        if admitted { Ok(()) } else { Err(Refused::Exclusive) }
    }

    /// Pins pages if all of them are there, with the right content. Returns what has to pass before
    /// that can be read.
    pub(in crate::arena) fn pin(
        &mut self,
        area: usize,
        set: &PageSet,
        by: By,
    ) -> Result<Option<Vec<Event>>, Refused> {
        self.admit(area, by)?;
        let clock = self.tick();
        let area = &mut self.areas[area];
        let there = |page: &Page| {
            page.place == Place::Resident
                && (page.generation == area.generation || planted(Mutant::StalePageIsUsed))
        };
        if !set.iter().all(|at| there(&area.pages[at])) {
            return Ok(None);
        }
        area.uses += usize::from(by == By::Fault);
        area.used_at = clock;
        let mut filled = Vec::new();
        for at in set.iter() {
            area.pin(at, clock);
            note(&mut filled, area.pages[at].filled.iter());
        }
        area.land.count(area.resident, area.pinned);
        Ok(Some(filled))
    }

    /// Pins pages, whatever there is of them, for somebody who has the turn. Returns those that are to
    /// get memory now.
    pub(in crate::arena) fn claim(
        &mut self,
        area: usize,
        set: &PageSet,
        by: By,
    ) -> Result<Vec<usize>, Refused> {
        self.admit(area, by)?;
        let clock = self.tick();
        let area = &mut self.areas[area];
        area.uses += usize::from(by == By::Fault);
        area.used_at = clock;
        let missing = set.iter().filter_map(|at| area.claim(at, clock)).collect();
        area.land.count(area.resident, area.pinned);
        Ok(missing)
    }

    /// What came does not come: the pages that were to get memory have none.
    pub(in crate::arena) fn give_up(&mut self, area: usize, missing: &[usize]) {
        let AreaState { land, pages, resident, pinned, .. } = &mut self.areas[area];
        for at in missing {
            pages[*at] = Page::new();
        }
        *resident -= missing.len();
        *pinned -= missing.len();
        land.count(*resident, *pinned);
    }

    /// Lets pages go that were used until `marks`.
    pub(in crate::arena) fn unpin(&mut self, area: usize, set: &PageSet, marks: &[Mark]) {
        let clock = self.tick();
        let AreaState { land, pages, pinned, used_at, resident, .. } = &mut self.areas[area];
        *used_at = clock;
        for at in set.iter() {
            let page = &mut pages[at];
            if page.pins == 0 {
                // Given up.
                continue;
            }
            page.pins -= 1;
            page.stamp = clock;
            *pinned -= usize::from(!page.is_in_use());
            if planted(Mutant::UseIsForgotten) {
                continue;
            }
            for mark in marks {
                mark.add_to(&mut page.used);
            }
        }
        land.count(*resident, *pinned);
    }

    /// As [`State::unpin`], of pages that all have another pin; else they stay as they are.
    pub(in crate::arena) fn unpin_shared(
        &mut self,
        area: usize,
        set: &PageSet,
        marks: &[Mark],
    ) -> bool {
        let shared = set.iter().all(|at| self.areas[area].pages[at].pins > 1);
        if shared {
            self.unpin(area, set, marks);
        }
        shared
    }

    /// Has others take pages that were claimed and have memory, while whoever has the turn waits for
    /// bytes. Returns what he has of them.
    pub(in crate::arena) fn begin_yield(
        &mut self,
        area: usize,
        set: &PageSet,
        page_bytes: u64,
    ) -> Stake {
        let clock = self.tick();
        let AreaState { land, pages, .. } = &mut self.areas[area];
        let mut resident = 0;
        for at in set.iter() {
            let page = &mut pages[at];
            if page.place == Place::Resident && !planted(Mutant::WaiterKeepsPages) {
                page.pins -= 1;
                (page.yielded, page.stamp) = (true, clock);
            }
            resident += u64::from(page.place == Place::Resident);
        }
        let stake = land.reservation.stake(resident * page_bytes);
        self.stake = Some((stake.clone(), page_bytes));
        stake
    }

    /// Pins again what is left of pages that others were let have. Returns those that have left, and are
    /// to get memory now.
    pub(in crate::arena) fn end_yield(&mut self, area: usize, set: &PageSet) -> Vec<usize> {
        let clock = self.tick();
        self.stake = None;
        let area = &mut self.areas[area];
        let mut missing = Vec::new();
        for at in set.iter() {
            let page = &area.pages[at];
            if page.place != Place::Absent && !page.yielded {
                // It is still to get memory.
                continue;
            }
            missing.extend(area.claim(at, clock));
            area.pages[at].yielded = false;
        }
        area.land.count(area.resident, area.pinned);
        missing
    }

    /// What whoever has the turn has of what he waits for.
    pub(in crate::arena) fn stake(&self) -> Option<Stake> {
        self.stake.as_ref().map(|(stake, _)| stake.clone())
    }
}
