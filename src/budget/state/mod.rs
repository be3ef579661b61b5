//! The ledger and its transitions; everything here happens under the budget's own mutex.

mod line;
mod reserved;
mod told;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use slab::Slab;

use super::wish::Wish;
use super::{Bounds, BudgetError, Figures};
use crate::sync::{Mutant, planted};
use crate::wait::{Owner, Wake, WakeList};

/// A reservation's place; the ticket tells it from a later one with the same key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    key: usize,
    ticket: u64,
}

pub(super) struct State {
    name: String,
    total: Option<u64>,
    limit: u64,
    headroom: u64,
    used: u64,
    peak: u64,
    /// Of the bytes used, those that are in memory already, where a probe sees them.
    filled: u64,
    /// What was free at the last look at the memory, with what was filled then: all that reservations
    /// can ever have of it. It stays the same while they are filled and released.
    reach: Option<u64>,
    reservations: Slab<Entry>,
    line: VecDeque<Waiter>,
    /// Those let in from the line who have not come for their reservation yet.
    uncollected: Vec<Place>,
    /// Those who have been turned away, and have not come for the reason yet.
    refused: Vec<(u64, BudgetError)>,
    next_ticket: u64,
}

struct Entry {
    ticket: u64,
    wish: Wish,
    /// Who else keeps it from being released: once for each time that he was added.
    users: Vec<Owner>,
    /// Whether an evictor could release some of it, whatever they do.
    spare: Option<Arc<AtomicBool>>,
    filled: u64,
    since: Instant,
}

impl Entry {
    /// Those without whom none of it is released.
    fn keepers(&self) -> impl Iterator<Item = &Owner> {
        let spare = self.spare.as_ref().is_some_and(|spare| spare.load(Ordering::SeqCst));
        self.wish.owner.iter().chain(&self.users).filter(move |_| !spare)
    }

    fn new(ticket: u64, wish: Wish, filled: u64) -> Self {
        Self { ticket, wish, users: Vec::new(), spare: None, filled, since: Instant::now() }
    }
}

pub(super) struct Waiter {
    ticket: u64,
    wish: Wish,
    since: Instant,
    waker: Arc<dyn Wake>,
}

impl State {
    pub(super) fn new(name: String, total: Option<u64>, limit: u64, headroom: u64) -> Self {
        Self {
            name,
            total,
            limit,
            headroom,
            used: 0,
            peak: 0,
            filled: 0,
            reach: total,
            reservations: Slab::new(),
            line: VecDeque::new(),
            uncollected: Vec::new(),
            refused: Vec::new(),
            next_ticket: 0,
        }
    }

    /// Bytes that can be reserved now.
    pub(super) fn room(&self) -> u64 {
        self.within_reach(0).saturating_sub(self.used)
    }

    /// Bytes that could be reserved if nobody had any.
    pub(super) fn most(&self) -> u64 {
        self.limit.min(self.total.unwrap_or(u64::MAX).saturating_sub(self.headroom))
    }

    pub(super) fn bounds(&self) -> Bounds {
        let Self { total, limit, headroom, used, .. } = *self;
        let (reach, outside) = (self.within_reach(0), self.outside());
        Bounds { total, limit, headroom, reach, outside, used }
    }

    fn fits(&self, wish: &Wish) -> bool {
        let room = self.within_reach(wish.filled).saturating_sub(self.used);
        let missing = wish.missing();
        missing <= room || (planted(Mutant::BudgetOverdrawn) && missing <= self.limit)
    }

    /// What of the memory reservations may have, together with one of which so many bytes are filled.
    fn within_reach(&self, filled: u64) -> u64 {
        let reach = self.reach.map_or(u64::MAX, |reach| reach.saturating_add(filled));
        self.limit.min(reach.saturating_sub(self.headroom))
    }

    /// The figures of a wish that could not be fulfilled if everybody else released everything.
    pub(super) fn impossible(&self, wish: &Wish) -> Option<Figures> {
        (!self.is_possible(wish)).then(|| self.figures(wish.bytes))
    }

    fn is_possible(&self, wish: &Wish) -> bool {
        wish.bytes.checked_add(wish.beside).is_some_and(|bytes| bytes <= self.most())
    }

    /// Reserves if that needs no waiting. `overtakes` those who wait, if told to.
    pub(super) fn take(&mut self, wish: &Wish, overtakes: bool) -> Option<Place> {
        let overtakes = overtakes || planted(Mutant::ReserveOvertakes);
        if (self.line.is_empty() || overtakes) && self.fits(wish) {
            let ticket = self.next_ticket();
            return Some(self.enter(ticket, wish.clone()));
        }
        None
    }

    fn next_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn enter(&mut self, ticket: u64, wish: Wish) -> Place {
        let wish = Wish { bytes: wish.missing(), stake: None, ..wish };
        self.used += wish.bytes;
        self.peak = self.peak.max(self.used);
        let filled = wish.filled;
        self.filled += filled;
        // The last look took them for somebody else's.
        self.reach = self.reach.map(|reach| reach.saturating_add(filled));
        Place { key: self.reservations.insert(Entry::new(ticket, wish, filled)), ticket }
    }

    /// Notes what is free in the memory now, whoever uses the rest.
    pub(super) fn look(&mut self, free: u64) -> WakeList {
        // A virtual device's memory is all free, whatever is said to be filled.
        let all = self.total.unwrap_or(u64::MAX);
        self.reach = Some(free.saturating_add(self.filled).min(all));
        self.advance()
    }

    /// Sets the limit. Who can never be served below it is turned away.
    pub(super) fn set_limit(&mut self, limit: u64) -> (VecDeque<Waiter>, WakeList) {
        self.limit = limit;
        self.turn_away()
    }

    /// Sets the headroom. Who can never be served beside it is turned away.
    pub(super) fn set_headroom(&mut self, headroom: u64) -> (VecDeque<Waiter>, WakeList) {
        self.headroom = headroom;
        self.turn_away()
    }

    /// Bytes of the memory that others have, by the last look at it.
    fn outside(&self) -> u64 {
        let reach = self.reach.or(self.total).unwrap_or(0);
        self.total.unwrap_or(0).saturating_sub(reach)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn headroom(&self) -> u64 {
        self.headroom
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }
}
