//! The pool's state and its transitions; everything here happens under the pool's lock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{Hold, PoolError, Wish};
use crate::device::{Device, DeviceError, Name};
use crate::sync::{Mutant, Ordering, planted};
use crate::wait::{Birth, Blockers, Left, Owner, WaitError, Wake, WakeList};

/// Affinities remembered before the older half is forgotten.
const MOST_AFFINITIES: usize = 4096;

pub(super) struct State {
    pub(super) slots: Vec<Slot>,
    pub(super) line: VecDeque<Waiter>,
    refused: Vec<(u64, PoolError)>,
    last_served: HashMap<String, (Name, u64)>,
    next_id: u64,
    closed: bool,
    birth: Birth,
}

/// A device and its holder.
pub(super) struct Slot {
    pub(super) device: Device,
    pub(super) held: Option<Held>,
    /// Out of the pool, and gone once released.
    pub(super) draining: bool,
}

pub(super) struct Held {
    hold: Arc<Hold>,
    pub(super) owner: Owner,
    pub(super) handed_over: bool,
    pub(super) borrowed: bool,
    pub(super) since: Instant,
    /// Whether the one who waited has come for it.
    collected: bool,
}

pub(super) struct Waiter {
    pub(super) ticket: u64,
    /// `None` takes any device.
    pub(super) device: Option<Name>,
    pub(super) owner: Owner,
    pub(super) since: Instant,
    waker: Arc<dyn Wake>,
}

impl Waiter {
    pub(super) fn takes(&self, name: Name) -> bool {
        self.device.is_none_or(|wanted| wanted == name)
    }
}

/// What a release leaves to do once the lock is free.
pub(super) struct Released {
    /// Whom to wake.
    pub(super) wakers: WakeList,
    /// Dropped after the lock: a device may keep objects of other libraries alive.
    _gone: (Held, Option<Slot>),
}

/// What a new set of devices leaves to do once the lock is free.
pub(super) struct Change {
    /// Out of the pool, but held.
    pub(super) draining: Vec<Device>,
    /// Whom to wake.
    pub(super) wakers: WakeList,
    /// Dropped after the lock.
    _gone: Vec<Slot>,
}

impl State {
    pub(super) fn new(devices: Vec<Device>, birth: Birth) -> Result<Self, PoolError> {
        let mut state = Self {
            slots: Vec::new(),
            line: VecDeque::new(),
            refused: Vec::new(),
            last_served: HashMap::new(),
            next_id: 0,
            closed: false,
            birth,
        };
        state.reconfigure(devices)?;
        Ok(state)
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn slot(&self, name: Name) -> Option<usize> {
        self.slots.iter().position(|slot| slot.device.name() == name)
    }

    fn slot_of(&self, lease: u64) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.held.as_ref().is_some_and(|held| held.hold.id == lease))
    }

    /// The lease of a device.
    pub(super) fn lease_of(&self, device: Name) -> Option<u64> {
        let slot = self.slots.get(self.slot(device)?)?;
        slot.held.as_ref().map(|held| held.hold.id)
    }

    /// Where a ticket stands in the line. Tickets only grow, so that the line is sorted.
    pub(super) fn place(&self, ticket: u64) -> Option<usize> {
        self.line.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.slots.iter().filter(|slot| !slot.draining).map(|slot| &slot.device)
    }

    /// A device, or any of them, in words.
    pub(super) fn wanted(&self, device: Option<Name>) -> String {
        let any = || self.devices().map(Device::to_string).collect::<Vec<_>>().join(", ");
        device.map_or_else(|| format!("any of {}", any()), |name| name.to_string())
    }

    /// Refuses names that are not in the pool, and everything once it is closed.
    fn admit(&self, name: Option<Name>) -> Result<(), PoolError> {
        if self.closed {
            return Err(PoolError::Closed);
        }
        match name {
            Some(name) if !self.devices().any(|device| device.name() == name) => {
                let present = self.devices().map(Device::name).collect();
                Err(PoolError::NotInPool { name, present })
            }
            _ => Ok(()),
        }
    }

    /// Takes a free device. A free one has nobody waiting for it.
    pub(super) fn take(
        &mut self,
        name: Option<Name>,
        owner: &Owner,
    ) -> Result<Option<Arc<Hold>>, PoolError> {
        self.admit(name)?;
        let wanted =
            |slot: &Slot| slot.is_idle() && name.is_none_or(|name| slot.device.name() == name);
        let Some(at) = self.slots.iter().position(wanted) else { return Ok(None) };
        Ok(Some(self.occupy(at, owner.clone(), false)))
    }

    fn occupy(&mut self, at: usize, owner: Owner, borrowed: bool) -> Arc<Hold> {
        let id = self.next_id();
        self.hold(at, id, owner, borrowed, true)
    }

    fn hold(
        &mut self,
        at: usize,
        id: u64,
        owner: Owner,
        borrowed: bool,
        collected: bool,
    ) -> Arc<Hold> {
        let slot = &mut self.slots[at];
        let hold = Hold::new(id, slot.device.clone(), self.birth);
        let (since, handed_over) = (Instant::now(), false);
        slot.held =
            Some(Held { hold: hold.clone(), owner, handed_over, borrowed, since, collected });
        hold
    }

    /// Joins the line.
    pub(super) fn join(
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

    /// The idle devices that a borrower may have, best first; some of them twice.
    pub(super) fn idle(&self, wish: &Wish<'_>) -> Result<impl Iterator<Item = &Device>, PoolError> {
        self.admit(None)?;
        for name in wish.prefer {
            self.admit(Some(*name))?;
        }
        let familiar = wish.affinity.and_then(|key| Some(self.last_served.get(key)?.0));
        let wished = familiar.into_iter().chain(wish.prefer.iter().copied());
        let wished = wished.filter_map(|name| self.slots.get(self.slot(name)?));
        let only = wish.only;
        let suitable = move |slot: &&Slot| {
            slot.is_idle() && only.is_none_or(|kind| slot.device.name().kind() == kind)
        };
        Ok(wished.chain(&self.slots).filter(suitable).map(|slot| &slot.device))
    }

    /// Lends the device if it is still idle.
    pub(super) fn lend(&mut self, name: Name, wish: &Wish<'_>, owner: &Owner) -> Option<Arc<Hold>> {
        let at = self.slot(name).filter(|&at| !self.closed && self.slots[at].is_idle())?;
        let hold = self.occupy(at, owner.clone(), true);
        if let Some(key) = wish.affinity {
            self.remember(key, name, hold.id);
        }
        Some(hold)
    }

    fn remember(&mut self, key: &str, name: Name, now: u64) {
        if let Some(known) = self.last_served.get_mut(key) {
            *known = (name, now);
            return;
        }
        if self.last_served.len() >= MOST_AFFINITIES {
            let mut ages: Vec<u64> = self.last_served.values().map(|&(_, at)| at).collect();
            let (_, &mut middle, _) = ages.select_nth_unstable(MOST_AFFINITIES / 2);
            self.last_served.retain(|_, &mut (_, at)| at >= middle);
        }
        self.last_served.insert(key.to_owned(), (name, now));
    }

    /// Takes the device from `lease` and gives it to the next in line.
    pub(super) fn release(&mut self, lease: u64) -> Option<Released> {
        let at = if planted(Mutant::ReleaseOfAnothers) {
            self.slots.iter().position(|slot| slot.held.is_some())?
        } else {
            self.slot_of(lease)?
        };
        let held = self.slots[at].held.take()?;
        held.hold.live.store(false, Ordering::Release);
        let drained = self.slots[at].draining.then(|| self.slots.remove(at));
        let idle = drained.is_none() && !planted(Mutant::ReleaseForgetsWaiters);
        let wakers = if idle { self.grant(at) } else { None };
        Some(Released { wakers: wakers.unwrap_or_default(), _gone: (held, drained) })
    }

    /// Gives an idle device to the first in line who takes it.
    fn grant(&mut self, at: usize) -> Option<WakeList> {
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
    pub(super) fn collect(&mut self, ticket: u64) -> Option<Result<Arc<Hold>, PoolError>> {
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
    pub(super) fn abandon(&mut self, ticket: u64) -> Left {
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

    /// Releases what the code of a thread that has ended still holds, and refuses what it waits for.
    pub(super) fn thread_ended(&mut self, thread: u64) -> Left {
        let mut wakers = self.refuse(|state, waiter| {
            let refusal = || WaitError::thread_ended(state.wanted(waiter.device));
            (waiter.owner.thread_number() == thread).then(|| refusal().into())
        });
        if !wakers.is_empty() {
            wakers.extend(self.line.iter().map(|waiter| waiter.waker.clone()));
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

    pub(super) fn set_owner(&mut self, lease: u64, owner: Option<&Owner>) {
        let held = self.slot_of(lease).and_then(|at| self.slots[at].held.as_mut());
        let Some(held) = held else { return };
        held.handed_over = owner.is_none() && !planted(Mutant::HandOverForgotten);
        if let Some(owner) = owner {
            held.owner = owner.clone();
        }
    }

    pub(super) fn is_wanted(&self, lease: u64) -> bool {
        self.slot_of(lease).is_some_and(|at| {
            let Slot { device, draining, .. } = &self.slots[at];
            !draining && self.line.iter().any(|waiter| waiter.takes(device.name()))
        })
    }

    /// For each device that would do: its holder, and whoever stands last before us in its line.
    pub(super) fn blockers(&self, ticket: u64) -> Option<Blockers> {
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

    pub(super) fn reconfigure(&mut self, devices: Vec<Device>) -> Result<Change, PoolError> {
        self.admit(None)?;
        if devices.is_empty() {
            return Err(DeviceError::Empty.into());
        }
        let mut before = std::mem::take(&mut self.slots);
        for device in devices {
            if self.slot(device.name()).is_some() {
                continue;
            }
            let known = before.iter_mut().find(|slot| slot.device == device);
            let held = known
                .filter(|slot| !slot.draining || !planted(Mutant::PutBackForgetsHolder))
                .and_then(|slot| slot.held.take());
            self.slots.push(Slot { device, held, draining: false });
        }
        // What is left of the old slots either drains, or is gone or replaced.
        let (held, gone): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|slot| slot.held.is_some());
        let draining = held.iter().map(|slot| slot.device.clone()).collect();
        self.slots.extend(held.into_iter().map(|slot| Slot { draining: true, ..slot }));
        let mut wakers = self.refuse(|state, waiter| {
            let name = waiter.device.filter(|name| state.admit(Some(*name)).is_err())?;
            Some(PoolError::Removed { name, waiter: waiter.owner.to_string() })
        });
        for at in 0..self.slots.len() {
            if self.slots[at].is_idle() {
                wakers.extend(self.grant(at).into_iter().flatten());
            }
        }
        // Whoever still waits has other devices to wait for, and looks again whether one can come.
        wakers.extend(self.line.iter().map(|waiter| waiter.waker.clone()));
        Ok(Change { draining, wakers, _gone: gone })
    }

    /// Turns away those who wait and for whom `refusal` has an error.
    fn refuse(&mut self, refusal: impl Fn(&Self, &Waiter) -> Option<PoolError>) -> WakeList {
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

    pub(super) fn close(&mut self) -> WakeList {
        self.closed = true;
        let wakers = self.refuse(|_, _| Some(PoolError::Closed));
        if planted(Mutant::CloseForgetsWaiters) { WakeList::new() } else { wakers }
    }
}

impl Slot {
    fn is_idle(&self) -> bool {
        let free = |held: &Held| planted(Mutant::BorrowOvertakes) && !held.collected;
        !self.draining && self.held.as_ref().is_none_or(free)
    }
}
