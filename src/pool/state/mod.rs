//! The pool's state and its transitions; everything here happens under the pool's lock.

mod line;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

pub(super) use line::Waiter;

use super::{Hold, PoolError, Wish};
use crate::device::{Device, DeviceError, Name};
use crate::sync::{Mutant, Ordering, planted};
use crate::wait::{Birth, Owner, WakeList};

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

    pub(super) fn set_owner(&mut self, lease: u64, owner: Option<&Owner>) {
        let held = self.slot_of(lease).and_then(|at| self.slots[at].held.as_mut());
        let Some(held) = held else { return };
        held.handed_over = owner.is_none() && !planted(Mutant::HandOverForgotten);
        if let Some(owner) = owner {
            held.owner = owner.clone();
        }
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
        wakers.extend(self.wakers());
        Ok(Change { draining, wakers, _gone: gone })
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
