//! Cancel tokens: one flag that many waits can watch.

use std::sync::Arc;

use slab::Slab;

use super::park::{Wake, WakeList, wake_all};
use super::process::{Birth, Forked};
use crate::sync::{AtomicBool, Mutant, Mutex, Ordering, planted};

/// A flag that is raised once and wakes everyone who waits with it. Clones share the flag.
///
/// Raising it is a plain store and a wake per waiter: no wait is polled.
#[derive(Clone)]
pub struct CancelToken(Arc<Inner>);

struct Inner {
    birth: Birth,
    cancelled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reason: Option<String>,
    listeners: Slab<Arc<dyn Wake>>,
}

impl Default for CancelToken {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelToken").field("cancelled", &self.is_cancelled()).finish()
    }
}

impl CancelToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        let state = Mutex::new(State::default());
        let cancelled = AtomicBool::new(false);
        Self(Arc::new(Inner { birth: Birth::default(), cancelled, state }))
    }

    /// Refuses to wait in a forked child for what was raised in its parent. The flag itself is the
    /// child's own from the fork on.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn check(&self) -> Result<(), Forked> {
        self.0.birth.check("cancel token")
    }

    /// Cancels, and wakes everyone who waits with this token. Returns whether this call did it;
    /// the first reason stays.
    pub fn cancel(&self, reason: Option<String>) -> bool {
        if !self.0.birth.is_here() {
            // The mutex may have been held at the fork, and nobody here waits.
            return !self.0.cancelled.swap(true, Ordering::AcqRel);
        }
        let woken: WakeList = {
            let mut state = self.0.state.lock();
            if self.0.cancelled.load(Ordering::Acquire) {
                return false;
            }
            state.reason = reason;
            self.0.cancelled.store(true, Ordering::Release);
            state.listeners.iter().map(|(_, listener)| listener.clone()).collect()
        };
        if !planted(Mutant::CancelForgetsWaiters) {
            wake_all(&woken);
        }
        true
    }

    /// Whether it has been cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// The reason given to [`CancelToken::cancel`].
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        if self.0.birth.is_here() { self.0.state.lock().reason.clone() } else { None }
    }

    /// Whether both are the same flag.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Wakes `waker` when the token is cancelled, for as long as the result lives. A token that is
    /// cancelled already wakes nobody: look at the flag after listening.
    #[must_use]
    pub fn listen(&self, waker: Arc<dyn Wake>) -> Listening {
        let key = self.0.state.lock().listeners.insert(waker);
        Listening { token: self.clone(), key }
    }
}

/// Keeps a waker registered with a token.
pub struct Listening {
    token: CancelToken,
    key: usize,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.token.0.birth.is_here() {
            let waker = self.token.0.state.lock().listeners.try_remove(self.key);
            drop(waker);
        }
    }
}
