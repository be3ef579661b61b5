//! Pages that leave: which could, in which order, and what is left of their areas then.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::super::land::Land;
use super::super::layout::{PageSet, runs};
use super::super::order::Evictable;
use super::{AreaState, Page, Place, State, note};
use crate::device::Event;
use crate::sync::{Mutant, planted};

/// Pages that are one after the other.
pub(in crate::arena) struct Run {
    pub(in crate::arena) area: usize,
    pub(in crate::arena) land: Arc<Land>,
    pub(in crate::arena) pages: Range<usize>,
}

/// Which pages are to leave, if they can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arena) enum Whose {
    /// Those of areas that nobody has any more.
    Nobodys,
    /// Those also that nobody uses.
    Unused,
    /// Those also of whoever has the turn and waits for bytes.
    Waiters,
}

/// A page that could leave, as it was when it was looked at.
pub(in crate::arena) struct Candidate {
    area: usize,
    page: usize,
    stamp: u64,
    pub(in crate::arena) fences: Vec<Event>,
}

/// What came of a run of pages that has left.
pub(in crate::arena) struct Left {
    /// The number of the weights, if nothing is left of them.
    pub(in crate::arena) weights: Option<u32>,
    /// The area, if it was the last of one that nobody has: dropped after the lock.
    pub(in crate::arena) done: Option<AreaState>,
}

impl State {
    /// Whether memory of one of the pages is being taken away.
    pub(in crate::arena) fn is_leaving(&self, area: usize, set: &PageSet) -> bool {
        set.iter().any(|at| self.areas[area].pages[at].place == Place::Leaving)
    }

    /// What has to pass before pages can leave that nobody else uses.
    pub(in crate::arena) fn fences_of(&self, area: usize, set: &PageSet) -> Vec<Event> {
        let mut fences = Vec::new();
        set.iter().for_each(|at| note(&mut fences, self.areas[area].pages[at].fences()));
        fences
    }

    /// How many of some pages have no memory, and how many nobody uses.
    pub(in crate::arena) fn absent_and_unused(&self, area: usize, set: &PageSet) -> (usize, usize) {
        let pages = &self.areas[area].pages;
        let absent = set.iter().filter(|at| pages[*at].place == Place::Absent).count();
        (absent, set.iter().filter(|at| can_leave(&pages[*at])).count())
    }

    /// Lets pages go, and has those leave at once that nobody else uses, if nothing has to pass but
    /// what has `passed`. Else returns nothing, and they stay as they are.
    pub(in crate::arena) fn retire(
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

    /// How many should leave: none while there are no more bytes than the high watermark.
    pub(in crate::arena) fn above_watermark(&self, page: usize) -> usize {
        // Asked at every unpinning, where there is mostly none.
        let Some(high) = self.high else { return 0 };
        let (bytes, page) = ((self.resident() * page) as u64, page as u64);
        if bytes <= high {
            return 0;
        }
        usize::try_from((bytes - self.low).div_ceil(page)).unwrap_or(usize::MAX)
    }

    /// Whether there are pages of areas that nobody has any more.
    pub(in crate::arena) fn has_orphans(&self) -> bool {
        self.areas.iter().any(|(_, area)| area.orphan)
    }

    /// The areas some pages of which could leave.
    pub(in crate::arena) fn evictable(&self) -> Vec<Evictable> {
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
    pub(in crate::arena) fn sorted(&self, order: &[usize]) -> Vec<(usize, &AreaState)> {
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
    pub(in crate::arena) fn candidates(
        &self,
        most: usize,
        whose: Whose,
        order: &[usize],
    ) -> Vec<Candidate> {
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
    pub(in crate::arena) fn leave(&mut self, candidates: &[Candidate]) -> Vec<Run> {
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
    pub(in crate::arena) fn left(&mut self, run: &Run) -> Left {
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
    pub(in crate::arena) fn take_if_done(&mut self, key: usize) -> Option<AreaState> {
        let area = self.areas.get(key)?;
        (area.orphan && area.resident == 0).then(|| self.areas.remove(key))
    }
}

fn can_leave(page: &Page) -> bool {
    page.place == Place::Resident && (page.pins == 0 || planted(Mutant::PinnedPageLeaves))
}
