//! Making pages resident: memory for those that have none, and their content.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::area::{Area, Pins, Shared as AreaShared};
use super::layout::PageSet;
use super::state::{By, Refused};
use super::{ArenaError, Shared};
use crate::budget::Reservation;
use crate::device::{Event, MemoryError, Stream};
use crate::load_lock::Mode;
use crate::sync::{Mutant, planted};
use crate::wait::{Owner, Patience, WaitError};

/// How long a wait for a copy sleeps before it looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(20);

/// What somebody needs beside pages: working memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside {
    /// How many bytes.
    pub bytes: u64,
}

impl Area {
    /// Pins pages that are resident, if all of them are, for work on `stream`; never waits.
    ///
    /// # Errors
    /// [`ArenaError::Memory`], [`ArenaError::Exclusive`] and [`ArenaError::Forked`].
    pub fn pin(
        &self,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
    ) -> Result<Option<Pins>, ArenaError> {
        self.0.arena.birth.check("arena")?;
        let pinned = self.0.arena.state.lock().pin(self.0.number, set, By::Fault);
        let Some(filled) = pinned.map_err(|why| self.0.refused(why))? else { return Ok(None) };
        self.0.note_use(owner);
        let _acting = self.0.acting(owner);
        let (pins, began) = (Pins::new(&self.0, set, stream, owner, By::Fault), Instant::now());
        let patience = Patience::at_most(Duration::ZERO);
        match self.0.content_is_there(&pins, filled, stream, &patience) {
            Ok(()) => {
                self.0.requested(set, 0, began);
                Ok(Some(pins))
            }
            Err(ArenaError::Wait(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes pages resident, and pins them for work on `stream`: that comes after their content. Waits
    /// for bytes, in line, and on [`Stream::Host`] for the copies. Reserves working memory with them.
    ///
    /// # Errors
    /// [`ArenaError`]; nothing stays pinned then.
    pub fn fault(
        &self,
        set: &Arc<PageSet>,
        beside: Beside,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(Pins, Option<Reservation>), ArenaError> {
        let arena = &self.0.arena;
        arena.birth.check("arena")?;
        let began = Instant::now();
        // Who leaves meanwhile leaves for this one.
        let _acting = self.0.acting(owner);
        let pinned = arena.state.lock().pin(self.0.number, set, By::Fault);
        let pinned = pinned.map_err(|why| self.0.refused(why))?;
        let pinned =
            pinned.map(|filled| (filled, Pins::new(&self.0, set, stream, owner, By::Fault)));
        self.check_size(set, beside)?;
        self.0.note_use(owner);
        // In line for bytes nobody has pages that others may be waiting for.
        if let Some((filled, pins)) = pinned
            && let Some(working) = arena.working_memory_at_once(&self.0, beside, owner)?
        {
            self.0.requested(set, beside.bytes, began);
            self.0.content_is_there(&pins, filled, stream, &patience.since(began))?;
            return Ok((pins, working));
        }
        let turn = arena.turn.acquire(Mode::Write, owner, &patience.since(began))?;
        let (pins, coming) = self.0.claim(set, stream, owner, By::Fault)?;
        let (filled, working) =
            self.0.bring(&pins, coming, beside, owner, &patience.since(began))?;
        // With the turn, so that requests are in the order in which they were served.
        self.0.requested(set, beside.bytes, began);
        drop(turn);
        self.0.content_is_there(&pins, filled, stream, &patience.since(began))?;
        Ok((pins, working))
    }
}

impl Area {
    /// Refuses what could not be had if nobody else had anything.
    fn check_size(&self, set: &PageSet, beside: Beside) -> Result<(), ArenaError> {
        let Shared { memory, budget, device, .. } = &**self.0.arena;
        let (weights, beside) = (set.len() as u64 * memory.page() as u64, beside.bytes);
        let most = budget.most();
        if weights.saturating_add(beside) <= most {
            return Ok(());
        }
        let (key, device, free) = (self.0.key.clone(), *device, budget.free());
        Err(ArenaError::TooLarge { device, key, weights, beside, most, free })
    }
}

impl AreaShared {
    /// What to tell whoever is refused.
    pub(super) fn refused(&self, why: Refused) -> ArenaError {
        let (device, key) = (self.arena.device, self.key.clone());
        match why {
            Refused::Exclusive => ArenaError::Exclusive { device, key },
            Refused::InUse => ArenaError::InUse { device, key },
        }
    }

    /// Says that the weights are used, before anything leaves for that.
    fn note_use(&self, owner: &Owner) {
        if let Some(order) = &self.arena.order {
            let bytes = self.layout.pages() * self.arena.memory.page();
            order.used(self.weights, bytes as u64, owner);
        }
    }

    /// Has `stream` go on only when the content of pages is there.
    pub(super) fn content_is_there(
        &self,
        pins: &Pins,
        filled: Vec<Event>,
        stream: Stream,
        patience: &Patience<'_>,
    ) -> Result<(), ArenaError> {
        if filled.is_empty() || planted(Mutant::ContentIsNotAwaited) {
            return Ok(());
        }
        let (arena, began) = (&self.arena, Instant::now());
        let mut passed = Vec::new();
        for event in filled {
            let outcome = match stream {
                Stream::Host => {
                    arena.wait_for(&event, &self.key, began, patience, false).map(|()| true)
                }
                Stream::Device(_) => arena
                    .wait_for(&event, &self.key, began, patience, true)
                    .and_then(|()| arena.come_after(&event, stream)),
            };
            match outcome {
                Ok(true) => passed.push(event),
                Ok(false) => {}
                Err(error) => {
                    // Not if it is the stream that cannot wait. What has failed is made again at once,
                    // also if its stream is late.
                    if matches!(error, ArenaError::Memory(_)) && event.has_failed() {
                        let over = event.is_over();
                        arena.state.lock().spoil(self.number, pins.set(), &event, over);
                    }
                    return Err(error);
                }
            }
        }
        if !passed.is_empty() {
            arena.state.lock().seen(self.number, pins.set(), &passed);
            arena.records.settle();
        }
        Ok(())
    }
}

/// Whether somebody who waits since he began still does.
fn still_wanted(
    wants: &dyn Fn() -> String,
    began: Instant,
    patience: &Patience<'_>,
) -> Result<(), WaitError> {
    if let Some(token) = patience.cancel.filter(|token| token.is_cancelled()) {
        return Err(WaitError::Cancelled { wants: wants(), reason: token.reason() });
    }
    if let Some(after) = patience.timeout.filter(|timeout| began.elapsed() >= *timeout) {
        return Err(WaitError::Timeout { wants: wants(), held: String::new(), after });
    }
    Ok(())
}

impl Shared {
    /// Working memory, if there is some without waiting: `None` if there is not.
    #[expect(clippy::option_option, reason = "what is there may be nothing, if nothing is wanted")]
    fn working_memory_at_once(
        &self,
        area: &AreaShared,
        beside: Beside,
        owner: &Owner,
    ) -> Result<Option<Option<Reservation>>, ArenaError> {
        if beside.bytes == 0 {
            return Ok(Some(None));
        }
        let purpose = format!("working memory of {}", area.key);
        let taken = self.budget.reserve_at_once(beside.bytes, Some(&purpose), owner)?;
        Ok(taken.map(Some))
    }

    /// Has a stream wait for a copy. Returns whether there is nothing to wait for.
    fn come_after(&self, event: &Event, stream: Stream) -> Result<bool, ArenaError> {
        let passed = event.has_passed()?;
        if !passed {
            self.memory.after(stream, event)?;
        }
        Ok(passed)
    }

    /// Waits for a copy, or only until its stream has it.
    fn wait_for(
        &self,
        event: &Event,
        key: &str,
        began: Instant,
        patience: &Patience<'_>,
        to_begin: bool,
    ) -> Result<(), ArenaError> {
        loop {
            if (to_begin && event.has_begun()) || event.has_passed()? {
                return Ok(());
            }
            let wants = || format!("the weights of {key:?} to be copied to {}", self.device);
            still_wanted(&wants, began, patience)?;
            event.wait(Some(Instant::now() + SLICE))?;
            if patience.interrupt.interrupted() {
                return Err(WaitError::Interrupted.into());
            }
            self.birth.check("wait").map_err(WaitError::from)?;
        }
    }

    /// Waits for a fence, whether what is before it was done or has failed.
    pub(super) fn until_over(
        &self,
        event: &Event,
        key: &str,
        began: Instant,
        patience: &Patience<'_>,
    ) -> Result<(), ArenaError> {
        while !event.is_over() {
            let wants = || format!("{} to be done with weights of {key:?}", self.device);
            still_wanted(&wants, began, patience)?;
            let waited = event.wait(Some(Instant::now() + SLICE));
            if let Err(error @ MemoryError::Lost { .. }) = waited {
                return Err(error.into());
            }
            if patience.interrupt.interrupted() {
                return Err(WaitError::Interrupted.into());
            }
        }
        Ok(())
    }
}
