//! Putting a thread to sleep until somebody wakes it.

use std::sync::Arc;
use std::time::Instant;

use crate::sync::{Condvar, Mutant, Mutex, planted, wait_until};

/// Something that can be told to look again. Called with no lock held; must not block.
pub trait Wake: Send + Sync {
    /// Tells it to look again; too often does no harm.
    fn wake(&self);
}

/// Wakers collected under a primitive's lock, to be called after it.
pub type WakeList = Vec<Arc<dyn Wake>>;

/// Calls them all; with no lock held.
pub fn wake_all(wakers: &[Arc<dyn Wake>]) {
    for waker in wakers {
        waker.wake();
    }
}

/// One thread's place to sleep. A wake before the sleep is not lost.
#[derive(Debug)]
pub struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Default for Parker {
    fn default() -> Self {
        Self { woken: Mutex::new(false), changed: Condvar::new() }
    }
}

impl Parker {
    /// A parker that nobody has woken.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Sleeps until woken or until `deadline`, and forgets the wake. May return early. Returns
    /// whether somebody has woken it.
    pub fn park(&self, deadline: Option<Instant>) -> bool {
        let mut woken = self.woken.lock();
        if !*woken || planted(Mutant::EarlyWakeIsLost) {
            woken = wait_until(&self.changed, woken, deadline);
        }
        std::mem::take(&mut *woken)
    }
}

impl Wake for Parker {
    fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_one();
    }
}
