//! One load at a time for a key: who comes meanwhile waits for its outcome.

use std::sync::Arc;

use super::WeightsError;
use super::entry::Entry;
use crate::sync::{AtomicBool, Mutant, Mutex, Ordering, planted};
use crate::wait::{
    Blockers, Description, Left, Owner, Parker, Patience, Pending, Queue, Resource, WaitError,
    Wake, WakeList, wake_all,
};

/// How a load ended.
#[derive(Clone)]
pub(super) enum Outcome {
    Loaded(Arc<Entry>),
    Failed(WeightsError),
    /// Whoever loaded has lost his patience: somebody else may have more.
    Abandoned,
}

/// A load that is under way.
pub(super) struct Flight {
    key: String,
    owner: Owner,
    /// Set when the key is invalidated: nobody who comes later may have the outcome.
    pub(super) stale: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    waiting: Vec<(u64, Arc<dyn Wake>)>,
    next: u64,
}

impl Flight {
    pub(super) fn new(key: &str, owner: &Owner) -> Arc<Self> {
        Arc::new(Self {
            key: key.to_owned(),
            owner: owner.clone(),
            stale: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        })
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst)
    }

    /// Tells everybody. The first outcome stays.
    pub(super) fn land(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            return;
        }
        state.outcome = Some(outcome);
        let wakers: WakeList = state.waiting.drain(..).map(|(_, waker)| waker).collect();
        drop(state);
        if !planted(Mutant::LandingForgetsWaiters) {
            wake_all(&wakers);
        }
    }

    /// Waits for the outcome.
    pub(super) fn wait(
        self: &Arc<Self>,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Outcome, WaitError> {
        let parker = Parker::new();
        let ticket = {
            let mut state = self.state.lock();
            state.next += 1;
            let ticket = state.next;
            if state.outcome.is_none() {
                state.waiting.push((ticket, parker.clone()));
            }
            ticket
        };
        Pending::new(self.clone(), ticket, owner.clone()).wait(&parker, patience)
    }
}

impl Resource for Flight {
    fn blockers(&self, _: u64) -> Option<Blockers> {
        let waiting = self.state.lock().outcome.is_none();
        waiting.then(|| vec![vec![self.owner.clone()]])
    }

    fn describe(&self, _: u64) -> Description {
        let held = format!(", which {} is loading", self.owner);
        Description { wants: format!("the weights {:?}", self.key), held }
    }
}

impl Queue for Flight {
    type Guard = Outcome;
    type Error = WaitError;

    fn collect(self: &Arc<Self>, _: u64) -> Option<Result<Outcome, WaitError>> {
        self.state.lock().outcome.clone().map(Ok)
    }

    fn abandon(&self, ticket: u64) -> Left {
        let mut state = self.state.lock();
        let at = state.waiting.iter().position(|(other, _)| *other == ticket);
        let gone = at.map(|at| state.waiting.swap_remove(at));
        drop(state);
        Left::new(gone, WakeList::new())
    }
}
