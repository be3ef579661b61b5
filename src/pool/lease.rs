//! The guard of a leased device.

use std::sync::Arc;

use super::Shared;
use crate::device::Device;
use crate::sync::{AtomicBool, Ordering};
use crate::wait::{Birth, Forked, Owner};

/// One lease, as others may see it: which device, and whether it is still held.
pub struct Hold {
    pub(super) id: u64,
    pub(super) device: Device,
    pub(super) live: AtomicBool,
    birth: Birth,
}

impl Hold {
    pub(super) fn new(id: u64, device: Device, birth: Birth) -> Arc<Self> {
        Arc::new(Self { id, device, live: AtomicBool::new(true), birth })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the device is still held.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Whether it is held by this process: a forked child holds nothing of its parent's.
    #[must_use]
    pub fn is_held_here(&self) -> bool {
        self.is_live() && self.birth.is_here()
    }
}

/// The exclusive right to run on a device. Dropping it gives the device to the next in line.
pub struct Lease {
    shared: Arc<Shared>,
    hold: Arc<Hold>,
    handed_over: AtomicBool,
}

impl Lease {
    pub(super) fn new(shared: Arc<Shared>, hold: Arc<Hold>) -> Self {
        Self { shared, hold, handed_over: AtomicBool::new(false) }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.hold.device
    }

    /// What others may keep to see whether the device is still held.
    #[must_use]
    pub fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// Whether the device is still ours.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.hold.is_live()
    }

    /// Whether it was neither released nor handed over, in this process.
    #[must_use]
    pub fn is_with_owner(&self) -> bool {
        self.hold.is_held_here() && !self.handed_over.load(Ordering::Acquire)
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn check(&self) -> Result<(), Forked> {
        self.hold.birth.check("lease")
    }

    /// Gives the device to the next in line; from any thread, and again without effect.
    pub fn release(&self) {
        if self.hold.is_live() {
            self.shared.release(self.hold.id);
        }
    }

    /// Takes the lease out of the wait-for graph and off its thread: somebody else will release it.
    pub fn hand_over(&self) {
        self.set_owner(None);
    }

    /// Makes `owner` the one who holds it and is expected to release it.
    pub fn adopt(&self, owner: &Owner) {
        self.set_owner(Some(owner));
    }

    fn set_owner(&self, owner: Option<&Owner>) {
        self.handed_over.store(owner.is_none(), Ordering::Release);
        if self.shared.birth.is_here() {
            self.shared.state.lock().set_owner(self.hold.id, owner);
        }
    }

    /// Whether somebody waits for this device right now.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_live()
            && self.shared.birth.is_here()
            && self.shared.state.lock().is_wanted(self.hold.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
    }
}
