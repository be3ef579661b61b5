//! Those who wait: who is first, who is let in, turned away or leaves, and for whom he waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::super::BudgetError;
use super::super::wish::{Stake, Wish};
use super::{Place, State, Waiter};
use crate::sync::{Mutant, planted};
use crate::wait::{Blockers, Owner, WaitError, Wake, WakeList};

impl State {
    /// Who wakes the first in line.
    pub(in crate::budget) fn first(&self) -> Option<Arc<dyn Wake>> {
        let first = self.line.front().filter(|_| !planted(Mutant::OfferIsNotHeard));
        first.map(|first| first.waker.clone())
    }

    pub(in crate::budget) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether nobody waits before whoever has this at stake.
    pub(in crate::budget) fn waits_first(&self, stake: &Stake) -> bool {
        self.line
            .front()
            .is_none_or(|first| first.wish.stake.as_ref().is_some_and(|first| first.is(stake)))
    }

    /// What others would have to give for the first in line to be served; without one, what is used
    /// beyond the limit.
    pub(in crate::budget) fn missing(&self) -> u64 {
        let first =
            self.line.front().map_or((0, 0), |first| (first.wish.missing(), first.wish.filled));
        self.used.saturating_add(first.0).saturating_sub(self.within_reach(first.1))
    }

    pub(in crate::budget) fn join(&mut self, wish: Wish, waker: Arc<dyn Wake>) -> u64 {
        let ticket = self.next_ticket();
        self.line.push_back(Waiter { ticket, wish, since: Instant::now(), waker });
        ticket
    }

    /// Lets in from the front of the line whom there is room for. Returns whom to wake, which
    /// includes who is first after that: it may have to look for room itself.
    pub(super) fn advance(&mut self) -> WakeList {
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

    pub(super) fn turn_away(&mut self) -> (VecDeque<Waiter>, WakeList) {
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

    pub(in crate::budget) fn collect(&mut self, ticket: u64) -> Option<Result<Place, BudgetError>> {
        if let Some(at) = self.refused.iter().position(|(refused, _)| *refused == ticket) {
            return Some(Err(self.refused.swap_remove(at).1));
        }
        self.take_uncollected(ticket).map(Ok)
    }

    /// Takes a ticket out of the line, as if it had never come.
    pub(in crate::budget) fn abandon(&mut self, ticket: u64) -> (Option<Wish>, WakeList) {
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
    pub(super) fn place(&self, ticket: u64) -> Option<usize> {
        self.line.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    /// Refuses what a thread that has ended waits for. What it has reserved stays reserved, for whoever
    /// has the reservation now.
    pub(in crate::budget) fn thread_ended(&mut self, thread: u64) -> (Vec<Owner>, WakeList) {
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
    pub(in crate::budget) fn blockers(&self, ticket: u64) -> Option<Blockers> {
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
}
