//! The thread of a streaming: it takes away what is over, and brings what is visited next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Shared, Streaming};
use crate::device::{Event, Stream};
use crate::load_lock::Mode;
use crate::sync::wait_until;
use crate::trace::Recorder;
use crate::wait::{Interrupt, Owner, Patience, exiting};

/// How many pages are brought at once: copies begin while the rest still gets memory.
const CHUNK: usize = 16;
/// How many copies are on their way at most: what is wanted in another order is not far behind.
const ON_THEIR_WAY: usize = 2;
/// How long it looks at a copy before it looks at everything else again.
const SLICE: Duration = Duration::from_millis(1);

/// What there was to do.
enum Done {
    Something,
    Nothing,
    Closed,
}

impl Streaming {
    /// Does what its thread does, until it is closed.
    pub fn serve(&self, owner: &Owner) {
        self.0.clone().serve(owner);
    }
}

impl Interrupt for Shared {
    fn slice(&self) -> Option<Duration> {
        Some(SLICE)
    }

    fn interrupted(&self) -> bool {
        self.state.lock().closed || exiting()
    }
}

impl Shared {
    pub(super) fn serve(self: Arc<Self>, owner: &Owner) {
        // Those that are on their way.
        let mut copies: VecDeque<Event> = VecDeque::new();
        loop {
            let news = self.state.lock().news;
            copies.retain(|copy| !copy.is_over());
            self.settle();
            match self.work(&mut copies, owner) {
                Done::Something => continue,
                Done::Closed => return,
                Done::Nothing => {}
            }
            if let Some(copy) = copies.front() {
                let _ = copy.wait(Some(Instant::now() + SLICE));
                continue;
            }
            let mut state = self.state.lock();
            while state.news == news && !state.closed {
                state = wait_until(&self.told, state, None);
            }
        }
    }

    fn work(&self, copies: &mut VecDeque<Event>, owner: &Owner) -> Done {
        let state = self.state.lock();
        if state.closed || exiting() {
            return Done::Closed;
        }
        let wants =
            !state.over.is_empty() || (copies.len() < ON_THEIR_WAY && state.next().is_some());
        drop(state);
        if !wants {
            return Done::Nothing;
        }
        let Ok(_turn) = self.turn.acquire(Mode::Write, owner, &Patience::FOREVER) else {
            return Done::Closed;
        };
        let state = self.state.lock();
        if state.closed {
            return Done::Closed;
        }
        drop(state);
        // What cannot leave yet is tried again when there is news. Who ends it waits for no stream.
        let patience = Patience { interrupt: self, ..Patience::FOREVER };
        if matches!(self.retire_one(&patience), Ok(true)) {
            return Done::Something;
        }
        let state = self.state.lock();
        let next = state.next().filter(|_| copies.len() < ON_THEIR_WAY);
        drop(state);
        let Some((block, there, set)) = next else { return Done::Nothing };
        let part = Arc::new(set.part(there, CHUNK.min(self.allowance.pages())));
        if part.is_empty() {
            return Done::Nothing;
        }
        // What fails here fails again, and is told, when the block is visited.
        let Ok(Some(mut brought)) = self.bring(&part, Stream::Host, owner) else {
            return Done::Nothing;
        };
        brought.pins.disown();
        copies.extend(brought.filled.pop().filter(|_| brought.fresh > 0));
        let mut state = self.state.lock();
        let twice = if state.closed || state.is_inside(block) {
            // Who visits it has pinned it.
            Some(brought.pins)
        } else if state.next().is_some_and(|(next, from, _)| (next, from) == (block, there)) {
            state.brought(block, part.len(), brought.pins);
            None
        } else {
            state.over.push_back(brought.pins);
            None
        };
        drop(state);
        drop(twice);
        Done::Something
    }
}
