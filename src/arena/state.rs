//! The pages of one device and their transitions; everything here happens under the arena's own mutex,
//! and calls nothing.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use slab::Slab;

use super::area::{Identity, Shared as AreaShared};
use super::land::Land;
use super::layout::{PageSet, runs};
use super::mark::Mark;
use super::order::Evictable;
use crate::budget::Stake;
use crate::device::Event;
use crate::sync::{Mutant, planted};

/// Who pins pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Whoever faults them, beside others.
    Fault,
    /// Who has the area alone, by this number.
    Alone(u64),
}

/// Why an area is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Somebody has it alone.
    Exclusive,
    /// Others use it.
    InUse,
}

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

/// How many pages are filled: those that never were before, that were and have left, and that are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) first: usize,
    pub(super) back: usize,
    pub(super) renewed: usize,
}

/// Pages that are one after the other.
pub(super) struct Run {
    pub(super) area: usize,
    pub(super) land: Arc<Land>,
    pub(super) pages: Range<usize>,
}

/// Which pages are to leave, if they can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Those of areas that nobody has any more.
    Nobodys,
    /// Those also that nobody uses.
    Unused,
    /// Those also of whoever has the turn and waits for bytes.
    Waiters,
}

/// A page that could leave, as it was when it was looked at.
pub(super) struct Candidate {
    area: usize,
    page: usize,
    stamp: u64,
    pub(super) fences: Vec<Event>,
}

/// What came of a run of pages that has left.
pub(super) struct Left {
    /// The number of the weights, if nothing is left of them.
    pub(super) weights: Option<u32>,
    /// The area, if it was the last of one that nobody has: dropped after the lock.
    pub(super) done: Option<AreaState>,
}

/// Pages that have memory, but perhaps not their content.
pub(super) struct Stale {
    pub(super) pages: Vec<usize>,
    /// They have to pass before something else is written there.
    pub(super) fences: Vec<Event>,
    /// The content that they should have.
    pub(super) generation: u64,
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

    /// Has an area be one's alone, unless others have pinned some of it. Returns by which number.
    pub(super) fn begin_alone(&mut self, area: usize) -> Result<u64, Refused> {
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
    pub(super) fn end_alone(&mut self, area: usize, number: u64) {
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
    pub(super) fn pin(
        &mut self,
        area: usize,
        set: &PageSet,
        by: By,
    ) -> Result<Option<Vec<Event>>, Refused> {
        self.admit(area, by)?;
        let clock = self.tick();
        let AreaState { land, pages, generation, pinned, used_at, resident, uses, .. } =
            &mut self.areas[area];
        let there = |page: &Page| {
            page.place == Place::Resident
                && (page.generation == *generation || planted(Mutant::StalePageIsUsed))
        };
        if !set.iter().all(|at| there(&pages[at])) {
            return Ok(None);
        }
        *uses += usize::from(by == By::Fault);
        *used_at = clock;
        let mut filled = Vec::new();
        for at in set.iter() {
            let page = &mut pages[at];
            *pinned += usize::from(!page.is_in_use());
            page.pins += 1;
            page.stamp = clock;
            note(&mut filled, page.filled.iter());
        }
        land.count(*resident, *pinned);
        Ok(Some(filled))
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether memory of one of the pages is being taken away.
    pub(super) fn is_leaving(&self, area: usize, set: &PageSet) -> bool {
        set.iter().any(|at| self.areas[area].pages[at].place == Place::Leaving)
    }

    /// Pins pages, whatever there is of them, for somebody who has the turn. Returns those that are to
    /// get memory now.
    pub(super) fn claim(
        &mut self,
        area: usize,
        set: &PageSet,
        by: By,
    ) -> Result<Vec<usize>, Refused> {
        self.admit(area, by)?;
        let clock = self.tick();
        let AreaState { land, pages, pinned, resident, used_at, uses, .. } = &mut self.areas[area];
        *uses += usize::from(by == By::Fault);
        *used_at = clock;
        let mut missing = Vec::new();
        for at in set.iter() {
            let page = &mut pages[at];
            if page.place == Place::Absent {
                page.place = Place::Coming;
                *resident += 1;
                missing.push(at);
            }
            *pinned += usize::from(page.pins == 0);
            page.pins += 1;
            page.stamp = clock;
        }
        land.count(*resident, *pinned);
        Ok(missing)
    }

    /// Has others take pages that were claimed and have memory, while whoever has the turn waits for
    /// bytes. Returns what he has of them.
    pub(super) fn begin_yield(&mut self, area: usize, set: &PageSet, page_bytes: u64) -> Stake {
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
    pub(super) fn end_yield(&mut self, area: usize, set: &PageSet) -> Vec<usize> {
        let clock = self.tick();
        self.stake = None;
        let AreaState { land, pages, pinned, resident, .. } = &mut self.areas[area];
        let mut missing = Vec::new();
        for at in set.iter() {
            let page = &mut pages[at];
            if page.place == Place::Absent {
                page.place = Place::Coming;
                *resident += 1;
                *pinned += 1;
                missing.push(at);
            } else if !std::mem::take(&mut page.yielded) {
                // It is still to get memory.
                continue;
            }
            page.pins += 1;
            page.stamp = clock;
        }
        land.count(*resident, *pinned);
        missing
    }

    /// What whoever has the turn has of what he waits for.
    pub(super) fn stake(&self) -> Option<Stake> {
        self.stake.as_ref().map(|(stake, _)| stake.clone())
    }

    /// Those of some pages that have memory, but not the right content.
    pub(super) fn stale(&self, area: usize, set: &PageSet) -> Stale {
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
    pub(super) fn settle(
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
    pub(super) fn filling(&self, area: usize, set: &PageSet) -> Vec<Event> {
        let mut events = Vec::new();
        set.iter().for_each(|at| note(&mut events, self.areas[area].pages[at].filled.iter()));
        events
    }

    /// What came does not come: the pages that were to get memory have none.
    pub(super) fn give_up(&mut self, area: usize, missing: &[usize]) {
        let AreaState { land, pages, resident, pinned, .. } = &mut self.areas[area];
        for at in missing {
            pages[*at] = Page::new();
        }
        *resident -= missing.len();
        *pinned -= missing.len();
        land.count(*resident, *pinned);
    }

    /// Pages whose content was seen to be there.
    pub(super) fn seen(&mut self, area: usize, set: &PageSet, passed: &[Event]) {
        let pages = &mut self.areas[area].pages;
        for at in set.iter() {
            pages[at]
                .filled
                .take_if(|filled| passed.iter().any(|event| Arc::ptr_eq(event, filled)));
        }
    }

    /// Pages whose content did not come, because a copy has failed. Whether that is `over` tells if they
    /// still have to wait for it.
    pub(super) fn spoil(&mut self, area: usize, set: &PageSet, failed: &Event, over: bool) {
        let pages = &mut self.areas[area].pages;
        for at in set.iter() {
            let page = &mut pages[at];
            if page.filled.as_ref().is_some_and(|filled| Arc::ptr_eq(failed, filled)) {
                page.generation = 0;
                page.filled.take_if(|_| over);
            }
        }
    }

    /// Lets pages go that were used until `marks`.
    pub(super) fn unpin(&mut self, area: usize, set: &PageSet, marks: &[Mark]) {
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
    pub(super) fn unpin_shared(&mut self, area: usize, set: &PageSet, marks: &[Mark]) -> bool {
        let shared = set.iter().all(|at| self.areas[area].pages[at].pins > 1);
        if shared {
            self.unpin(area, set, marks);
        }
        shared
    }

    /// What has to pass before pages can leave that nobody else uses.
    pub(super) fn fences_of(&self, area: usize, set: &PageSet) -> Vec<Event> {
        let mut fences = Vec::new();
        set.iter().for_each(|at| note(&mut fences, self.areas[area].pages[at].fences()));
        fences
    }

    /// How many of some pages have no memory, and how many nobody uses.
    pub(super) fn absent_and_unused(&self, area: usize, set: &PageSet) -> (usize, usize) {
        let pages = &self.areas[area].pages;
        let absent = set.iter().filter(|at| pages[*at].place == Place::Absent).count();
        (absent, set.iter().filter(|at| can_leave(&pages[*at])).count())
    }

    /// Lets pages go, and has those leave at once that nobody else uses, if nothing has to pass but
    /// what has `passed`. Else returns nothing, and they stay as they are.
    pub(super) fn retire(
        &mut self,
        area: usize,
        set: &PageSet,
        passed: &[Event],
    ) -> Option<Vec<Run>> {
        let has_passed = |event: &Event| passed.iter().any(|other| Arc::ptr_eq(other, event));
        if !self.fences_of(area, set).iter().all(has_passed) {
            return None;
        }
        self.unpin(area, set, &[]);
        let AreaState { land, pages, .. } = &mut self.areas[area];
        let mut leaving = Vec::new();
        for at in set.iter() {
            if can_leave(&pages[at]) {
                pages[at].place = Place::Leaving;
                leaving.push(at);
            }
        }
        let runs = runs(leaving).into_iter();
        Some(runs.map(|pages| Run { area, land: land.clone(), pages }).collect())
    }

    /// How many pages have memory, or get it.
    pub(super) fn resident(&self) -> usize {
        self.areas.iter().map(|(_, area)| area.resident).sum()
    }

    /// How many are in use.
    pub(super) fn pinned(&self) -> usize {
        self.areas.iter().map(|(_, area)| area.pinned).sum()
    }

    /// How many should leave: none while there are no more bytes than the high watermark.
    pub(super) fn above_watermark(&self, page: usize) -> usize {
        // Asked at every unpinning, where there is mostly none.
        let Some(high) = self.high else { return 0 };
        let (bytes, page) = ((self.resident() * page) as u64, page as u64);
        if bytes <= high {
            return 0;
        }
        usize::try_from((bytes - self.low).div_ceil(page)).unwrap_or(usize::MAX)
    }

    /// Whether there are pages of areas that nobody has any more.
    pub(super) fn has_orphans(&self) -> bool {
        self.areas.iter().any(|(_, area)| area.orphan)
    }

    /// The areas some pages of which could leave.
    pub(super) fn evictable(&self) -> Vec<Evictable> {
        let can_give = |area: &AreaState| {
            area.resident > area.pinned || (area.resident > 0 && planted(Mutant::PinnedPageLeaves))
        };
        let areas = self.areas.iter().filter(|(_, area)| can_give(area));
        let evictable = areas.map(|(area, &AreaState { weights, used_at, pinned, .. })| {
            Evictable { area, weights, used_at, in_use: pinned > 0 }
        });
        evictable.collect()
    }

    /// All areas, those that leave first in front: what nobody has, then the lowest priority, then in
    /// this order, then what was not used for longest.
    pub(super) fn sorted(&self, order: &[usize]) -> Vec<(usize, &AreaState)> {
        let mut rank = vec![usize::MAX; self.areas.capacity()];
        for (at, area) in order.iter().enumerate() {
            if let Some(rank) = rank.get_mut(*area) {
                *rank = at;
            }
        }
        let mut areas: Vec<(usize, &AreaState)> = self.areas.iter().collect();
        areas.sort_by_key(|(at, area)| (!area.orphan, area.priority, rank[*at], area.used_at));
        areas
    }

    /// Pages that could leave, so many or all that there are, and of a block all; the least wanted first.
    /// Of an area the last ones go first.
    pub(super) fn candidates(&self, most: usize, whose: Whose, order: &[usize]) -> Vec<Candidate> {
        let (all, yielded) = (whose != Whose::Nobodys, whose == Whose::Waiters);
        let areas = self.sorted(order).into_iter().filter(|(_, area)| all || area.orphan);
        let mut candidates = Vec::new();
        for (key, area) in areas {
            if area.resident == area.pinned && !yielded && !planted(Mutant::PinnedPageLeaves) {
                continue;
            }
            for (at, page) in area.pages.iter().enumerate().rev() {
                if candidates.len() >= most && area.land.parts_at(at + 1) {
                    return candidates;
                }
                if can_leave(page) && (yielded || !page.yielded) {
                    let mut fences = Vec::new();
                    note(&mut fences, page.fences());
                    candidates.push(Candidate { area: key, page: at, stamp: page.stamp, fences });
                }
            }
        }
        candidates
    }

    /// Has those leave that have not been used since they were looked at.
    pub(super) fn leave(&mut self, candidates: &[Candidate]) -> Vec<Run> {
        let mut leaving: HashMap<usize, Vec<usize>> = HashMap::new();
        for candidate in candidates {
            let Some(area) = self.areas.get_mut(candidate.area) else { continue };
            let Some(page) = area.pages.get_mut(candidate.page) else { continue };
            if can_leave(page) && page.stamp == candidate.stamp {
                page.place = Place::Leaving;
                if let Some((stake, bytes)) = self.stake.as_ref().filter(|_| page.yielded)
                    && !planted(Mutant::TakenStakeIsStillCounted)
                {
                    stake.loses(*bytes);
                }
                leaving.entry(candidate.area).or_default().push(candidate.page);
            }
        }
        let mut all = Vec::new();
        for (area, mut pages) in leaving {
            pages.sort_unstable();
            let land = &self.areas[area].land;
            all.extend(runs(pages).into_iter().map(|pages| Run {
                area,
                land: land.clone(),
                pages,
            }));
        }
        all
    }

    /// The pages of a run have left.
    pub(super) fn left(&mut self, run: &Run) -> Left {
        self.evicted += run.pages.len() as u64;
        let area = &mut self.areas[run.area];
        for page in &mut area.pages[run.pages.clone()] {
            area.pinned -= usize::from(page.yielded);
            *page = Page::new();
        }
        area.resident -= run.pages.len();
        area.land.count(area.resident, area.pinned);
        let weights = area.weights;
        // Others may have the same weights in another order, or as they were before.
        let mut same = self.areas.iter().filter(|(_, other)| other.weights == weights);
        let gone = same.all(|(_, other)| other.resident == 0);
        Left { weights: gone.then_some(weights), done: self.take_if_done(run.area) }
    }

    /// An area that nobody has and that has no page left.
    pub(super) fn take_if_done(&mut self, key: usize) -> Option<AreaState> {
        let area = self.areas.get(key)?;
        (area.orphan && area.resident == 0).then(|| self.areas.remove(key))
    }
}

fn can_leave(page: &Page) -> bool {
    page.place == Place::Resident && (page.pins == 0 || planted(Mutant::PinnedPageLeaves))
}

/// Adds events that are not there yet.
fn note<'a>(all: &mut Vec<Event>, more: impl Iterator<Item = &'a Event>) {
    for event in more {
        if !all.iter().any(|known| Arc::ptr_eq(known, event)) {
            all.push(event.clone());
        }
    }
}
