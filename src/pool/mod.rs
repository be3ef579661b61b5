//! `DevicePool`: the exclusive right to run on a device, and idle devices lent for a while.
//!
//! **What it is.** Each device of the pool is held by at most one [`Lease`]. [`DevicePool::lease`]
//! takes a device or waits in line for it; [`DevicePool::borrow`] takes an idle one or nothing.
//!
//! **Order.** First come, first served per device. A device that comes free goes at once, under the
//! pool's lock, to the first in line who would take it; so a device that is free is one that nobody
//! waits for, and nothing can overtake a waiter.
//!
//! **Invariants.** A device has one holder or none. A lease releases only what it holds, once, from
//! any thread. A device that is taken out of the pool stays with its holder until released
//! (it *drains*), and one that is put back meanwhile keeps that holder. A thread that ends releases
//! what its code still held, unless it was handed over, and gives up what it waited for.
//!
//! **Errors.** [`PoolError`].
//!
//! ```
//! use coresident::device::{VirtualSpec, virtual_devices};
//! use coresident::pool::{DevicePool, Wish};
//! use coresident::wait::{Owner, Patience};
//!
//! let pool = DevicePool::new(virtual_devices(2, VirtualSpec::default())?)?;
//! let me = Owner::thread(|| "main".into());
//! let lease = pool.lease(None, &me, &Patience::FOREVER)?;
//! let spare = pool.borrow(&Wish::default(), &me)?.expect("one of the two is idle");
//! assert_ne!(lease.device(), spare.device());
//! assert!(pool.borrow(&Wish::default(), &me)?.is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod lease;
mod state;
mod status;

use std::sync::Arc;

pub use lease::{Hold, Lease};
pub use status::{DeviceStatus, HolderStatus, WaiterStatus};

use crate::device::{Device, DeviceError, DeviceType, Name};
use crate::sync::Mutex;
use crate::wait::{
    Asked, Birth, Blockers, Description, Forked, Left, Owner, Parker, Patience, Pending, Queue,
    Resource, WaitError, Wake, register, wake_all,
};
use state::State;

/// Why a pool refuses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// The wait ended without a device.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A device that is not in this pool.
    #[error("{name} is not in this pool, which has {}", names(.present))]
    NotInPool {
        /// The device asked for.
        name: Name,
        /// The devices of the pool.
        present: Vec<Name>,
    },
    /// The device was taken out of the pool while somebody waited for it.
    #[error("{name} was taken out of the pool while {waiter} waited for it")]
    Removed {
        /// The device.
        name: Name,
        /// Who waited.
        waiter: String,
    },
    /// The pool has been closed.
    #[error("the device pool is closed")]
    Closed,
    /// A pool needs devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}

fn names(devices: &[Name]) -> String {
    devices.iter().map(Name::to_string).collect::<Vec<_>>().join(", ")
}

/// What a borrower would like. The default takes any idle device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Devices to try first, in this order.
    pub prefer: &'a [Name],
    /// Goes back to the device that served the same key last, before anything else.
    pub affinity: Option<&'a str>,
    /// Only devices of this type.
    pub only: Option<DeviceType>,
    /// Only devices whose driver reports at least this many free bytes.
    pub min_free: Option<u64>,
}

/// A set of devices, each with one holder or none. Clones share the set.
#[derive(Clone)]
pub struct DevicePool(Arc<Shared>);

/// What the pool, its leases and its waiters share.
pub struct Shared {
    birth: Birth,
    state: Mutex<State>,
}

impl DevicePool {
    /// A pool of these devices; one given twice counts once.
    ///
    /// # Errors
    /// [`DeviceError::Empty`].
    pub fn new(devices: Vec<Device>) -> Result<Self, PoolError> {
        let birth = Birth::default();
        let state = Mutex::new(State::new(devices, birth)?);
        let shared = Arc::new(Shared { birth, state });
        register(&shared);
        Ok(Self(shared))
    }

    /// Takes `device`, or any when it is `None`, if nobody holds it; never waits.
    ///
    /// # Errors
    /// [`PoolError::NotInPool`], [`PoolError::Closed`], [`PoolError::Forked`].
    pub fn try_lease(
        &self,
        device: Option<Name>,
        owner: &Owner,
    ) -> Result<Option<Lease>, PoolError> {
        self.0.birth.check("device pool")?;
        let mut state = self.0.state.lock();
        let hold = state.take(device, owner)?;
        drop(state);
        Ok(hold.map(|hold| self.0.guard(hold)))
    }

    /// Takes `device`, or any, or else a place in its line, whose turn will call `waker`.
    ///
    /// # Errors
    /// As [`DevicePool::try_lease`].
    pub fn ask(
        &self,
        device: Option<Name>,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Shared>, PoolError> {
        self.0.birth.check("device pool")?;
        let mut state = self.0.state.lock();
        if let Some(hold) = state.take(device, owner)? {
            drop(state);
            return Ok(Asked::Granted(self.0.guard(hold)));
        }
        let ticket = state.join(device, owner, waker);
        drop(state);
        Ok(Asked::Waiting(Pending::new(self.0.clone(), ticket, owner.clone())))
    }

    /// Takes `device`, or the first that comes free when it is `None`; waits in line.
    ///
    /// # Errors
    /// As [`DevicePool::try_lease`], [`PoolError::Removed`], and [`PoolError::Wait`].
    pub fn lease(
        &self,
        device: Option<Name>,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Lease, PoolError> {
        let parker = Parker::new();
        self.ask(device, owner, parker.clone())?.wait(&parker, patience)
    }

    /// Takes an idle device that fits the wish, if there is one; never waits. Asks drivers only
    /// when free memory is wished for, and then with no lock held.
    ///
    /// # Errors
    /// As [`DevicePool::try_lease`].
    pub fn borrow(&self, wish: &Wish<'_>, owner: &Owner) -> Result<Option<Lease>, PoolError> {
        self.0.birth.check("device pool")?;
        let mut state = self.0.state.lock();
        if wish.min_free.is_none() {
            let hold = state.idle(wish)?.next().map(Device::name);
            let hold = hold.and_then(|name| state.lend(name, wish, owner));
            drop(state);
            return Ok(hold.map(|hold| self.0.guard(hold)));
        }
        let idle: Vec<Device> = state.idle(wish)?.cloned().collect();
        drop(state);
        for device in idle {
            if device.free_memory() >= wish.min_free
                && let Some(hold) = self.0.state.lock().lend(device.name(), wish, owner)
            {
                return Ok(Some(self.0.guard(hold)));
            }
        }
        Ok(None)
    }

    /// Makes these the devices of the pool. Those that are gone drain: their holders keep them.
    /// Returns the ones that drain. Whoever waits for a device that is gone is refused.
    ///
    /// # Errors
    /// [`DeviceError::Empty`], [`PoolError::Closed`], [`PoolError::Forked`]; nothing has changed then.
    pub fn reconfigure(&self, devices: Vec<Device>) -> Result<Vec<Device>, PoolError> {
        self.0.birth.check("device pool")?;
        let mut state = self.0.state.lock();
        let change = state.reconfigure(devices)?;
        drop(state);
        wake_all(&change.wakers);
        Ok(change.draining)
    }

    /// Refuses everybody from now on, and whoever waits; leases that are held stay valid.
    pub fn close(&self) {
        if !self.0.birth.is_here() {
            return;
        }
        let wakers = self.0.state.lock().close();
        wake_all(&wakers);
    }

    /// The devices of the pool in order, without those that drain.
    ///
    /// # Errors
    /// [`PoolError::Forked`].
    pub fn devices(&self) -> Result<Vec<Device>, PoolError> {
        self.0.birth.check("device pool")?;
        Ok(self.0.state.lock().devices().cloned().collect())
    }

    /// A number of the lease under which a device is held, which no other lease has; `None` if it is
    /// idle. Does not wait.
    #[must_use]
    pub fn lease_of(&self, device: Name) -> Option<u64> {
        self.0.birth.is_here().then(|| self.0.state.lock().lease_of(device)).flatten()
    }

    /// Who holds what since when, and who waits.
    ///
    /// # Errors
    /// [`PoolError::Forked`].
    pub fn status(&self) -> Result<Vec<DeviceStatus>, PoolError> {
        self.0.birth.check("device pool")?;
        Ok(status::of(&self.0.state.lock()))
    }
}

impl Shared {
    fn guard(self: &Arc<Self>, hold: Arc<Hold>) -> Lease {
        Lease::new(self.clone(), hold)
    }

    /// Releases the device that `lease` holds, if it still holds one.
    fn release(&self, lease: u64) {
        if !self.birth.is_here() {
            return;
        }
        let released = self.state.lock().release(lease);
        if let Some(released) = released {
            wake_all(&released.wakers);
        }
    }
}

impl Resource for Shared {
    fn blockers(&self, ticket: u64) -> Option<Blockers> {
        self.state.lock().blockers(ticket)
    }

    fn describe(&self, ticket: u64) -> Description {
        status::describe(&self.state.lock(), ticket)
    }

    fn thread_ended(&self, thread: u64) -> Left {
        self.state.lock().thread_ended(thread)
    }
}

impl Queue for Shared {
    type Guard = Lease;
    type Error = PoolError;

    fn collect(self: &Arc<Self>, ticket: u64) -> Option<Result<Lease, PoolError>> {
        let mut state = self.state.lock();
        let outcome = state.collect(ticket)?;
        drop(state);
        Some(outcome.map(|hold| self.guard(hold)))
    }

    fn abandon(&self, ticket: u64) -> Left {
        if !self.birth.is_here() {
            return Left::default();
        }
        self.state.lock().abandon(ticket)
    }
}
