//! Those who wait for devices: who is served next, who leaves or is turned away, and for whom he waits.

use std::sync::Arc;
use std::time::Instant;

use super::super::{Hold, PoolError};
use super::{Released, Slot, State};
use crate::device::Name;
use crate::sync::{Mutant, planted};
use crate::wait::{Blockers, Left, Owner, WaitError, Wake, WakeList};

pub(in crate::pool) struct Waiter {
    pub(in crate::pool) ticket: u64,
    /// `None` takes any device.
    pub(in crate::pool) device: Option<Name>,
    pub(in crate::pool) owner: Owner,
    pub(in crate::pool) since: Instant,
    waker: Arc<dyn Wake>,
}

impl Waiter {
    pub(in crate::pool) fn takes(&self, name: Name) -> bool {
        self.device.is_none_or(|wanted| wanted == name)
    }
}

impl State {
    /// Where a ticket stands in the line. Tickets only grow, so that the line is sorted.
    pub(in crate::pool) fn place(&self, ticket: u64) -> Option<usize> {
        self.line.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    /// Joins the line.
    pub(in crate::pool) fn join(
        &mut self,
        device: Option<Name>,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> u64 {
        let ticket = self.next_id();
        let owner = owner.clone();
        self.line.push_back(Waiter { ticket, device, owner, since: Instant::now(), waker });
        ticket
    }

    /// Who wakes those who wait.
    pub(super) fn wakers(&self) -> impl Iterator<Item = Arc<dyn Wake>> {
        self.line.iter().map(|waiter| waiter.waker.clone())
    }

    /// Gives an idle device to the first in line who takes it.
    pub(super) fn grant(&mut self, at: usize) -> Option<WakeList> {
        let name = self.slots[at].device.name();
        let first = if planted(Mutant::LastComeFirstServed) {
            self.line.iter().rposition(|waiter| waiter.takes(name))?
        } else {
            self.line.iter().position(|waiter| waiter.takes(name))?
        };
        let served = self.line.remove(first)?;
        let mut wakers = self.followers(first, &served);
        let Waiter { ticket, owner, waker, .. } = served;
        self.hold(at, ticket, owner, false, false);
        wakers.push(waker);
        Some(wakers)
    }

    /// The outcome of a ticket, for the one who waited.
    pub(in crate::pool) fn collect(&mut self, ticket: u64) -> Option<Result<Arc<Hold>, PoolError>> {
        if let Some(at) = self.slot_of(ticket)
            && let Some(held) = self.slots[at].held.as_mut().filter(|held| !held.collected)
        {
            held.collected = true;
            return Some(Ok(held.hold.clone()));
        }
        let at = self.refused.iter().position(|(refused, _)| *refused == ticket)?;
        Some(Err(self.refused.swap_remove(at).1))
    }

    /// Takes a ticket out of the line. What it was granted and never collected is released.
    pub(in crate::pool) fn abandon(&mut self, ticket: u64) -> Left {
        self.refused.retain(|(refused, _)| *refused != ticket);
        if let Some(at) = self.place(ticket) {
            let gone =
                if planted(Mutant::AbandonLeavesTicket) { None } else { self.line.remove(at) };
            let wakers = gone.as_ref().map(|gone| self.followers(at, gone));
            return Left::new(gone, wakers.unwrap_or_default());
        }
        let uncollected = self
            .slot_of(ticket)
            .is_some_and(|at| self.slots[at].held.as_ref().is_some_and(|held| !held.collected));
        let mut released = if uncollected { self.release(ticket) } else { None };
        let wakers = released.as_mut().map(|released| std::mem::take(&mut released.wakers));
        Left::new(released, wakers.unwrap_or_default())
    }

    /// Those who stood behind `gone`, which was at `at`, and stand behind somebody else now: they must
    /// look again whether that one can move.
    fn followers(&self, at: usize, gone: &Waiter) -> WakeList {
        let mut wakers = WakeList::new();
        if at == 0 {
            return wakers;
        }
        let overlaps = |other: &&Waiter| gone.device.is_none_or(|name| other.takes(name));
        for other in self.line.range(at..).filter(overlaps) {
            wakers.push(other.waker.clone());
            if other.device.is_none() || other.device == gone.device {
                break;
            }
        }
        wakers
    }

    /// Turns away those who wait and for whom `refusal` has an error.
    pub(super) fn refuse(
        &mut self,
        refusal: impl Fn(&Self, &Waiter) -> Option<PoolError>,
    ) -> WakeList {
        let mut wakers = WakeList::new();
        for waiter in std::mem::take(&mut self.line) {
            match refusal(self, &waiter) {
                None => self.line.push_back(waiter),
                Some(error) => {
                    self.refused.push((waiter.ticket, error));
                    wakers.push(waiter.waker);
                }
            }
        }
        wakers
    }

    /// Releases what the code of a thread that has ended still holds, and refuses what it waits for.
    pub(in crate::pool) fn thread_ended(&mut self, thread: u64) -> Left {
        let mut wakers = self.refuse(|state, waiter| {
            let refusal = || WaitError::thread_ended(state.wanted(waiter.device));
            (waiter.owner.thread_number() == thread).then(|| refusal().into())
        });
        if !wakers.is_empty() {
            wakers.extend(self.wakers());
        }
        let held = self.slots.iter().filter_map(|slot| slot.held.as_ref());
        let held: Vec<u64> = held
            .filter(|held| !held.handed_over && held.owner.thread_number() == thread)
            .map(|held| held.hold.id)
            .collect();
        let mut released: Vec<Released> =
            held.into_iter().filter_map(|lease| self.release(lease)).collect();
        wakers.extend(released.iter_mut().flat_map(|one| std::mem::take(&mut one.wakers)));
        Left::new(released, wakers)
    }

    pub(in crate::pool) fn is_wanted(&self, lease: u64) -> bool {
        self.slot_of(lease).is_some_and(|at| {
            let Slot { device, draining, .. } = &self.slots[at];
            !draining && self.line.iter().any(|waiter| waiter.takes(device.name()))
        })
    }

    /// For each device that would do: its holder, and whoever stands last before us in its line.
    pub(in crate::pool) fn blockers(&self, ticket: u64) -> Option<Blockers> {
        let place = self.place(ticket)?;
        let me = &self.line[place];
        let suitable =
            self.slots.iter().filter(|slot| !slot.draining && me.takes(slot.device.name()));
        let blockers = suitable.map(|slot| {
            let held = slot.held.as_ref().filter(|held| !held.handed_over);
            let before =
                self.line.range(..place).rev().find(|other| other.takes(slot.device.name()));
            let holder = held.map(|held| held.owner.clone());
            holder.into_iter().chain(before.map(|other| other.owner.clone())).collect()
        });
        Some(blockers.collect())
    }
}
