//! The ledger and its transitions; everything here happens under the budget's own mutex.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use slab::Slab;

use super::{Bounds, BudgetError, BudgetStatus, BudgetUser, Figures};
use crate::device::ByteSize;
use crate::sync::{Mutant, planted};
use crate::wait::{Blockers, Description, Owner, WaitError, Wake, WakeList};

/// A reservation's place; the ticket tells it from a later one with the same key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    key: usize,
    ticket: u64,
}

/// What somebody asks for.
#[derive(Clone)]
pub(super) struct Wish {
    pub(super) bytes: u64,
    /// How many of them are in memory already, where a probe sees them.
    pub(super) filled: u64,
    /// What the asker has beside, and keeps.
    pub(super) beside: u64,
    /// What of the bytes he has already, as long as nobody takes it while he waits.
    pub(super) stake: Option<Stake>,
    pub(super) purpose: Option<String>,
    pub(super) owner: Option<Owner>,
}

/// Bytes of a reservation that somebody has of what he waits for. Others may take them meanwhile, and
/// then he waits for so many more.
#[derive(Clone)]
pub struct Stake {
    pub(super) place: Place,
    bytes: Arc<AtomicU64>,
}

impl Stake {
    pub(super) fn new(place: Place, bytes: u64) -> Self {
        Self { place, bytes: Arc::new(AtomicU64::new(bytes)) }
    }

    /// How many are left.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// So many are taken. To be said before they are given back.
    pub fn loses(&self, bytes: u64) {
        let _ = self.bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |has| {
            Some(has.saturating_sub(bytes))
        });
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }
}

impl Wish {
    /// The bytes that are missing.
    pub(super) fn missing(&self) -> u64 {
        self.bytes.saturating_sub(self.stake.as_ref().map_or(0, Stake::bytes))
    }
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
        let outside = total.zip(self.reach).map_or(0, |(total, reach)| total.saturating_sub(reach));
        Bounds { total, limit, headroom, reach: self.within_reach(0), outside, used }
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

    /// What others would have to give for the first in line to be served; without one, what is used
    /// beyond the limit.
    pub(super) fn missing(&self) -> u64 {
        let first =
            self.line.front().map_or((0, 0), |first| (first.wish.missing(), first.wish.filled));
        self.used.saturating_add(first.0).saturating_sub(self.within_reach(first.1))
    }

    /// Who wakes the first in line.
    pub(super) fn first(&self) -> Option<Arc<dyn Wake>> {
        let first = self.line.front().filter(|_| !planted(Mutant::OfferIsNotHeard));
        first.map(|first| first.waker.clone())
    }

    pub(super) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether nobody waits before whoever has this at stake.
    pub(super) fn waits_first(&self, stake: &Stake) -> bool {
        self.line
            .front()
            .is_none_or(|first| first.wish.stake.as_ref().is_some_and(|first| first.is(stake)))
    }

    /// The figures of a wish that could not be fulfilled if everybody else released everything.
    pub(super) fn impossible(&self, wish: &Wish) -> Option<Figures> {
        (!self.is_possible(wish)).then(|| self.figures(wish.bytes))
    }

    fn is_possible(&self, wish: &Wish) -> bool {
        wish.bytes.checked_add(wish.beside).is_some_and(|bytes| bytes <= self.most())
    }

    pub(super) fn figures(&self, asked: u64) -> Figures {
        Figures {
            budget: self.name.clone(),
            asked,
            free: self.room(),
            limit: self.limit,
            held: self.held(),
        }
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

    pub(super) fn join(&mut self, wish: Wish, waker: Arc<dyn Wake>) -> u64 {
        let ticket = self.next_ticket();
        self.line.push_back(Waiter { ticket, wish, since: Instant::now(), waker });
        ticket
    }

    /// Lets in from the front of the line whom there is room for. Returns whom to wake, which
    /// includes who is first after that: it may have to look for room itself.
    fn advance(&mut self) -> WakeList {
        let mut wakers = WakeList::new();
        while self.line.front().is_some_and(|first| self.fits(&first.wish)) {
            let Some(Waiter { ticket, wish, waker, .. }) = self.line.pop_front() else { break };
            let place = self.enter(ticket, wish);
            self.uncollected.push(place);
            wakers.push(waker);
        }
        wakers.extend(self.line.front().map(|first| first.waker.clone()));
        wakers
    }

    fn entry(&self, place: Place) -> Option<&Entry> {
        self.reservations.get(place.key).filter(|entry| entry.ticket == place.ticket)
    }

    fn entry_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.reservations.get_mut(place.key).filter(|entry| entry.ticket == place.ticket)
    }

    /// The bytes of a reservation, and how many of them are filled; `None` once it is released.
    pub(super) fn bytes(&self, place: Place) -> Option<(u64, u64)> {
        self.entry(place).map(|entry| (entry.wish.bytes, entry.filled))
    }

    pub(super) fn wish(&self, place: Place) -> Option<Wish> {
        self.entry(place).map(|entry| entry.wish.clone())
    }

    /// Releases a reservation if it has so many bytes; `Err` if it has others.
    pub(super) fn release_if(
        &mut self,
        place: Place,
        bytes: u64,
    ) -> Option<Result<(Wish, WakeList), ()>> {
        if self.entry(place)?.wish.bytes != bytes {
            return Some(Err(()));
        }
        self.release(place).map(Ok)
    }

    pub(super) fn release(&mut self, place: Place) -> Option<(Wish, WakeList)> {
        self.entry(place)?;
        let Entry { wish, filled, .. } = self.reservations.remove(place.key);
        if !planted(Mutant::ReleaseForgetsBytes) {
            self.used -= wish.bytes;
        }
        self.filled -= filled;
        let wakers = if planted(Mutant::BudgetReleaseWakesNobody) {
            WakeList::new()
        } else {
            self.advance()
        };
        Some((wish, wakers))
    }

    /// Gives some of a reservation's bytes back. Those that are not filled go first.
    ///
    /// Returns its bytes if it has fewer than that.
    pub(super) fn shrink(&mut self, place: Place, by: u64) -> Option<Result<WakeList, u64>> {
        let entry = self.entry_mut(place)?;
        let Some(left) = entry.wish.bytes.checked_sub(by) else {
            return Some(Err(entry.wish.bytes));
        };
        entry.wish.bytes = left;
        let emptied = entry.filled.saturating_sub(left);
        entry.filled -= emptied;
        self.filled -= emptied;
        self.used -= by;
        Some(Ok(self.advance()))
    }

    /// Makes two reservations of one. Those bytes that are not filled go first.
    ///
    /// Returns its bytes if it has fewer than that.
    pub(super) fn split(&mut self, place: Place, off: u64) -> Option<Result<Place, u64>> {
        let entry = self.entry_mut(place)?;
        let Some(left) = entry.wish.bytes.checked_sub(off) else {
            return Some(Err(entry.wish.bytes));
        };
        if !planted(Mutant::SplitKeepsBytes) {
            entry.wish.bytes = left;
        }
        let filled = entry.filled.saturating_sub(left);
        entry.filled -= filled;
        let wish = Wish { bytes: off, filled: 0, ..entry.wish.clone() };
        let ticket = self.next_ticket();
        Some(Ok(Place { key: self.reservations.insert(Entry::new(ticket, wish, filled)), ticket }))
    }

    /// Adds the bytes of `extra` to `place`, and ends `extra`. `None` if one of them is not there.
    pub(super) fn absorb(&mut self, place: Place, extra: Place) -> Option<Wish> {
        self.entry(place)?;
        self.entry(extra)?;
        let Entry { wish, filled, .. } = self.reservations.remove(extra.key);
        let entry = self.entry_mut(place)?;
        entry.wish.bytes += wish.bytes;
        entry.filled += filled;
        Some(wish)
    }

    pub(super) fn disown(&mut self, place: Place) -> Option<Owner> {
        self.entry_mut(place)?.wish.owner.take()
    }

    /// Counts somebody among those who keep a reservation from being released.
    pub(super) fn add_user(&mut self, place: Place, user: Owner) {
        if let Some(entry) = self.entry_mut(place) {
            entry.users.push(user);
        }
    }

    /// Has `spare` tell whether an evictor could release some of a reservation.
    pub(super) fn spare(&mut self, place: Place, spare: Arc<AtomicBool>) {
        if let Some(entry) = self.entry_mut(place) {
            entry.spare = Some(spare);
        }
    }

    /// Counts him no more.
    pub(super) fn remove_user(&mut self, place: Place, user: &Owner) -> Option<Owner> {
        let entry = self.entry_mut(place)?;
        let at = entry.users.iter().position(|other| other == user)?;
        Some(entry.users.swap_remove(at))
    }

    /// Says what a reservation is for; returns what was said before.
    pub(super) fn rename(&mut self, place: Place, purpose: String) -> Option<String> {
        self.entry_mut(place)?.wish.purpose.replace(purpose)
    }

    /// Notes that so many more, or less, of a reservation's bytes are in memory: at most all of them.
    pub(super) fn fill_by(&mut self, place: Place, more: u64, less: u64) {
        let Some(entry) = self.entry_mut(place) else { return };
        let filled = entry.filled.saturating_add(more).saturating_sub(less).min(entry.wish.bytes);
        let before = std::mem::replace(&mut entry.filled, filled);
        self.filled = self.filled - before + filled;
    }

    /// Notes how many of a reservation's bytes are in memory now.
    ///
    /// Returns its bytes if it has fewer than that.
    pub(super) fn fill(&mut self, place: Place, filled: u64) -> Option<Result<(), u64>> {
        let entry = self.entry_mut(place)?;
        if filled > entry.wish.bytes {
            return Some(Err(entry.wish.bytes));
        }
        let before = std::mem::replace(&mut entry.filled, filled);
        self.filled = self.filled - before + filled;
        Some(Ok(()))
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

    fn turn_away(&mut self) -> (VecDeque<Waiter>, WakeList) {
        let (line, gone): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.line).into_iter().partition(|waiter| {
                self.is_possible(&waiter.wish) || planted(Mutant::LowerLimitForgetsWaiters)
            });
        self.line = line;
        for Waiter { ticket, wish, .. } in &gone {
            self.refused.push((*ticket, BudgetError::Impossible(self.figures(wish.bytes))));
        }
        let mut wakers: WakeList = gone.iter().map(|waiter| waiter.waker.clone()).collect();
        wakers.extend(self.advance());
        (gone, wakers)
    }

    fn take_uncollected(&mut self, ticket: u64) -> Option<Place> {
        let at = self.uncollected.iter().position(|place| place.ticket == ticket)?;
        Some(self.uncollected.swap_remove(at))
    }

    pub(super) fn collect(&mut self, ticket: u64) -> Option<Result<Place, BudgetError>> {
        if let Some(at) = self.refused.iter().position(|(refused, _)| *refused == ticket) {
            return Some(Err(self.refused.swap_remove(at).1));
        }
        self.take_uncollected(ticket).map(Ok)
    }

    /// Takes a ticket out of the line, as if it had never come.
    pub(super) fn abandon(&mut self, ticket: u64) -> (Option<Wish>, WakeList) {
        self.refused.retain(|(refused, _)| *refused != ticket);
        if let Some(place) = self.take_uncollected(ticket) {
            let (wish, wakers) = self.release(place).unzip();
            return (wish, wakers.unwrap_or_default());
        }
        let at = self.place(ticket).filter(|_| !planted(Mutant::AbandonLeavesTicket));
        let Some(waiter) = at.and_then(|at| self.line.remove(at)) else {
            return (None, WakeList::new());
        };
        (Some(waiter.wish), self.somebody_left())
    }

    /// Who waits behind somebody who has left the line stands behind somebody else now, and must
    /// look again.
    fn somebody_left(&mut self) -> WakeList {
        let mut wakers = self.advance();
        wakers.extend(self.line.iter().map(|waiter| waiter.waker.clone()));
        wakers
    }

    /// Where a ticket stands in the line. Tickets only grow, so that the line is sorted.
    fn place(&self, ticket: u64) -> Option<usize> {
        self.line.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    /// Refuses what a thread that has ended waits for. What it has reserved stays reserved, for whoever
    /// has the reservation now.
    pub(super) fn thread_ended(&mut self, thread: u64) -> (Vec<Owner>, WakeList) {
        let ended = |owner: &mut Owner| owner.thread_number() == thread;
        let mut gone = Vec::new();
        for (_, entry) in &mut self.reservations {
            gone.extend(entry.wish.owner.take_if(ended));
            gone.extend(entry.users.extract_if(.., ended));
        }
        let mut wakers = WakeList::new();
        let mut line = VecDeque::with_capacity(self.line.len());
        for mut waiter in std::mem::take(&mut self.line) {
            let Some(owner) = waiter.wish.owner.take_if(ended) else {
                line.push_back(waiter);
                continue;
            };
            let wants = self.wanted(waiter.wish.bytes);
            self.refused.push((waiter.ticket, WaitError::thread_ended(wants).into()));
            wakers.push(waiter.waker);
            gone.push(owner);
        }
        self.line = line;
        if !wakers.is_empty() {
            wakers.extend(self.somebody_left());
        }
        (gone, wakers)
    }

    /// Anybody who releases something may make room; and who stands before goes first.
    pub(super) fn blockers(&self, ticket: u64) -> Option<Blockers> {
        let at = self.place(ticket)?;
        let before = at.checked_sub(1).and_then(|at| self.line[at].wish.owner.clone());
        let fits_the_ledger = self.line[at].wish.missing() <= self.limit.saturating_sub(self.used);
        // What others have at stake is to be had, whatever they do.
        let others = self.line.iter().enumerate().filter(|(other, _)| *other != at);
        let at_stake: Vec<u64> = others
            .filter_map(|(_, waiter)| waiter.wish.stake.as_ref())
            .filter(|stake| stake.bytes() > 0)
            .map(|stake| stake.place.ticket)
            .collect();
        let outside = fits_the_ledger.then(Vec::new);
        let holders = self.reservations.iter().map(|(_, entry)| entry);
        let holders = holders.filter(|entry| entry.wish.bytes > 0).map(|entry| {
            let kept = !at_stake.contains(&entry.ticket);
            entry.keepers().filter(|_| kept).cloned().collect()
        });
        let ways = holders.chain(outside);
        Some(ways.map(|way: Vec<Owner>| way.into_iter().chain(before.clone()).collect()).collect())
    }

    pub(super) fn describe(&self, ticket: u64) -> Description {
        let bytes = self.place(ticket).map_or(0, |at| self.line[at].wish.missing());
        Description { wants: self.wanted(bytes), held: self.held() }
    }

    fn wanted(&self, bytes: u64) -> String {
        format!("{} of {}", ByteSize(bytes), self.name)
    }

    /// Who has the most, as the end of a sentence; empty when nobody has anything.
    fn held(&self) -> String {
        const NAMED: usize = 4;
        let mut entries: Vec<&Entry> = self.reservations.iter().map(|(_, entry)| entry).collect();
        entries.retain(|entry| entry.wish.bytes > 0);
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.wish.bytes));
        let named = entries
            .iter()
            .take(NAMED)
            .map(|entry| format!("{} has {}", entry.wish.holder(), ByteSize(entry.wish.bytes)));
        let mut named: Vec<String> = named.collect();
        let rest: u64 = entries.iter().skip(NAMED).map(|entry| entry.wish.bytes).sum();
        if rest > 0 {
            named.push(format!("{} others have {}", entries.len() - NAMED, ByteSize(rest)));
        }
        let outside = self.outside();
        if outside > 0 {
            named.push(format!("others outside this budget have {}", ByteSize(outside)));
        }
        if named.is_empty() { String::new() } else { format!("; {}", named.join(", ")) }
    }

    /// Bytes of the memory that others have, by the last look at it.
    fn outside(&self) -> u64 {
        let reach = self.reach.or(self.total).unwrap_or(0);
        self.total.unwrap_or(0).saturating_sub(reach)
    }

    pub(super) fn status(&self) -> BudgetStatus {
        let now = Instant::now();
        let user = |wish: &Wish, since: Instant| BudgetUser {
            holder: wish.holder(),
            bytes: wish.missing(),
            lasted: now - since,
        };
        let holders = self.reservations.iter();
        let mut holders: Vec<_> =
            holders.map(|(_, entry)| user(&entry.wish, entry.since)).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        let waiting = self.line.iter().map(|waiter| user(&waiter.wish, waiter.since)).collect();
        BudgetStatus {
            name: self.name.clone(),
            limit: self.limit,
            headroom: self.headroom,
            used: self.used,
            peak: self.peak,
            free: self.room(),
            outside: self.outside(),
            holders,
            waiting,
        }
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

impl Wish {
    /// Who has it, or what it is for.
    fn holder(&self) -> String {
        match (&self.purpose, &self.owner) {
            (Some(purpose), _) => format!("{purpose:?}"),
            (None, Some(owner)) => owner.to_string(),
            (None, None) => "somebody".to_owned(),
        }
    }
}
