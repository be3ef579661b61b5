//! Waking a queue at a time: a user whose hour is over may go on, and nobody else would say so.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clock::{Clock, Micros};
use super::{Aftermath, Inner};
use crate::sync::{Condvar, Mutex, wait_until};
use crate::wait::Birth;

/// One thread, from when it is first needed to the queue's end.
#[derive(Default)]
pub(super) struct Alarm {
    birth: Birth,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct Bell {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    at: Option<Micros>,
    running: bool,
    over: bool,
}

impl Alarm {
    /// Has the queue look at its books then, or before.
    pub(super) fn set<V: Send + Sync + 'static>(&self, queue: &Arc<Inner<V>>, at: Micros) {
        let mut state = self.bell.state.lock();
        if state.at.is_some_and(|known| known <= at) {
            return;
        }
        state.at = Some(at);
        let start = !std::mem::replace(&mut state.running, true);
        drop(state);
        self.bell.changed.notify_all();
        if start {
            let (bell, clock) = (self.bell.clone(), queue.clock.clone());
            let queue = Arc::downgrade(queue);
            let thread = std::thread::Builder::new().name("coresident queue".to_owned());
            if thread.spawn(move || ring(&bell, &*clock, &queue)).is_err() {
                // Without threads it is looked at whenever somebody else comes.
                self.bell.state.lock().running = false;
            }
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.birth.is_here() {
            self.bell.state.lock().over = true;
            self.bell.changed.notify_all();
        }
    }
}

fn ring<V: Send + Sync + 'static>(bell: &Bell, clock: &dyn Clock, queue: &Weak<Inner<V>>) {
    let mut state = bell.state.lock();
    while !state.over {
        let left = state.at.map(|at| u64::try_from(at.saturating_sub(clock.now())).unwrap_or(0));
        if left == Some(0) {
            state.at = None;
            drop(state);
            // With no lock held: this may be the last to hold the queue.
            if let Some(queue) = queue.upgrade() {
                queue.look();
            }
            state = bell.state.lock();
            continue;
        }
        let until = left.and_then(|left| Instant::now().checked_add(Duration::from_micros(left)));
        state = wait_until(&bell.changed, state, until);
    }
}

impl<V: Send + Sync + 'static> Inner<V> {
    /// Lets those go on whose time has come, and gives jobs to who waits.
    fn look(self: &Arc<Self>) {
        let mut aftermath = Aftermath::default();
        let now = self.now();
        self.look_at_waiting();
        let next = {
            let mut state = self.state.lock();
            state.dispatch(now, &mut aftermath);
            state.order.next_change()
        };
        aftermath.settle();
        self.set_alarm(next);
    }
}
