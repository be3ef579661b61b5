//! Taking pages away: the least wanted ones, when all streams are done with them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use super::state::{Candidate, Left, Run, Whose};
use crate::budget::Evictor;
use crate::device::Event;
use crate::sync::{Mutant, planted};

/// How long an eviction waits for streams. Who still misses bytes then asks again.
const SLICE: Duration = Duration::from_millis(20);

/// The arena as its budget asks it for bytes.
pub(super) struct Pages(pub(super) Weak<Shared>);

impl Evictor for Pages {
    fn evict(&self, bytes: u64) {
        let Some(arena) = self.0.upgrade().filter(|arena| arena.birth.is_here()) else { return };
        let pages = bytes.div_ceil(arena.memory.page() as u64);
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        // It is of no use to whoever waits first that his own pages leave.
        let stake = arena.state.lock().stake();
        let own = stake.is_some_and(|stake| arena.budget.waits_first(&stake));
        let whose = if own { Whose::Unused } else { Whose::Waiters };
        arena.evict_some(pages, whose, Some(Instant::now() + SLICE));
    }
}

impl Shared {
    /// Evicts so many pages, or all that nobody uses; waits for streams that use them until then.
    /// Returns how many have left.
    pub(super) fn evict_pages(&self, most: usize, until: Option<Instant>) -> usize {
        self.evict_some(most, Whose::Unused, until)
    }

    /// Evicts the pages of areas that nobody has any more, but for those that a stream still uses.
    pub(super) fn evict_orphans(&self) {
        if self.state.lock().has_orphans() {
            self.evict_some(usize::MAX, Whose::Nobodys, Some(Instant::now()));
        }
    }

    /// The same of whoever's pages.
    pub(super) fn evict_some(&self, most: usize, whose: Whose, until: Option<Instant>) -> usize {
        let mut gone = 0;
        loop {
            let order = if whose == Whose::Nobodys { Vec::new() } else { self.order() };
            let candidates = self.state.lock().candidates(most - gone, whose, &order);
            if candidates.is_empty() {
                return gone;
            }
            let (mut waiting, mut asked) = (None, Vec::new());
            let ready: Vec<Candidate> = candidates
                .into_iter()
                .filter(|candidate| match first_not_over(&candidate.fences, &mut asked) {
                    None => true,
                    Some(event) => {
                        waiting.get_or_insert_with(|| event.clone());
                        false
                    }
                })
                .collect();
            let runs = self.state.lock().leave(&ready);
            gone += runs.iter().map(|run| run.pages.len()).sum::<usize>();
            for run in &runs {
                self.take_memory(run);
            }
            if gone >= most {
                return gone;
            }
            // Less wanted ones that are still being used go before more wanted ones that are not.
            if let Some(event) = waiting {
                let _ = event.wait(until);
                if !event.is_over() {
                    return gone;
                }
            }
        }
    }

    fn take_memory(&self, run: &Run) {
        let length = run.pages.len() * self.memory.page();
        // In this order, so that a look at the memory meanwhile finds less than there is, not more, and
        // whoever finds that the pages have left finds their bytes given back.
        run.land.reservation.fill_less(length as u64);
        if self.sets_aside.load(Ordering::SeqCst) {
            run.land.set_aside(&run.pages);
            // Whom it was for may have got it elsewhere, or given up.
            if !self.sets_aside.load(Ordering::SeqCst) {
                self.memory.clear_aside();
            }
        } else {
            run.land.decommit(&run.pages);
        }
        let bytes = if planted(Mutant::LeavingKeepsBytes) { 0 } else { length };
        // It has at least the bytes of these pages.
        let _ = run.land.reservation.shrink(bytes as u64);
        let Left { weights, done } = self.state.lock().left(run);
        if let Some(track) = &run.land.track {
            track.evicted(length as u64);
        }
        self.left.notify_all();
        drop(done);
        if let (Some(order), Some(weights)) = (&self.order, weights) {
            order.left(weights);
        }
    }
}

/// What a page has to wait for. Many pages have the same events, each of which is asked once.
fn first_not_over<'a>(fences: &'a [Event], asked: &mut Vec<(Event, bool)>) -> Option<&'a Event> {
    fences.iter().find(|event| {
        if let Some((_, over)) = asked.iter().find(|(known, _)| Arc::ptr_eq(known, event)) {
            return !over;
        }
        let over = event.is_over();
        asked.push(((*event).clone(), over));
        !over
    })
}
