//! A visit of a block: entered once its pages are there, and left when the work was given to its stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::times::Moment;
use super::{Shared, Streaming, StreamingError};
use crate::arena::{ArenaError, Brought, PageSet, Pins};
use crate::device::Stream;
use crate::wait::{Owner, Patience};

impl Streaming {
    /// Has a block's pages there, for work on `stream`, until [`Streaming::leave`]; waits for what is
    /// still missing.
    ///
    /// # Errors
    /// [`StreamingError`]; the block is not visited then.
    pub fn enter(
        &self,
        block: usize,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(), StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        let began = Instant::now();
        let set = shared.open_block(block)?;
        shared.check_stream(stream)?;
        let wanted = shared.is_wanted(block, stream);
        let brought = match shared.allowance.exclusive().pin_resident(&set, stream, owner) {
            Some(brought) => brought,
            None => shared.bring_now(block, &set, stream, owner, &patience.since(began))?,
        };
        let Brought { pins, filled, .. } = brought;
        let patience = patience.since(began);
        if let Err(error) = shared.area.await_content(&pins, filled, stream, &patience) {
            shared.is_over(pins);
            return Err(error.into());
        }
        shared.is_entered(block, pins, stream, wanted);
        Ok(())
    }

    /// As [`Streaming::enter`], if everything is there; never waits. Returns whether it is.
    ///
    /// # Errors
    /// As [`Streaming::enter`].
    pub fn enter_at_once(
        &self,
        block: usize,
        stream: Stream,
        owner: &Owner,
    ) -> Result<bool, StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        let set = shared.open_block(block)?;
        shared.check_stream(stream)?;
        let wanted = shared.is_wanted(block, stream);
        let resident = shared.allowance.exclusive().pin_resident(&set, stream, owner);
        let Some(brought) = resident else { return Ok(false) };
        let Brought { pins, filled, .. } = brought;
        let at_once = Patience::at_most(Duration::ZERO);
        match shared.area.await_content(&pins, filled, stream, &at_once) {
            Ok(()) => {
                shared.is_entered(block, pins, stream, wanted);
                Ok(true)
            }
            Err(error) => {
                // Mostly what has brought them still pins them.
                if let Some(pins) = shared.area.unpin_shared(pins) {
                    shared.is_over(pins);
                }
                match error {
                    ArenaError::Wait(_) => Ok(false),
                    error => Err(error.into()),
                }
            }
        }
    }

    /// Ends a visit: so many of the block's pages stay, the first ones. Never waits.
    pub fn leave(&self, block: usize, keep: usize) {
        let shared = &self.0;
        if !shared.birth.is_here() {
            return;
        }
        shared.has_ended(block);
        let mut pins = shared.state.lock().take_inside(block);
        if let Some(pins) = &mut pins {
            // Where the stream is now, and not where it will be when they leave.
            pins.end();
        }
        let before = shared.state.lock().left(block, pins, keep);
        shared.told.notify_all();
        drop(before);
    }

    /// Ends a visit of which nobody has heard. Never waits.
    pub fn leave_as_it_was(&self, block: usize) {
        let kept = self.0.state.lock().kept.get(block).map_or(0, |kept| kept.pages);
        self.leave(block, kept);
    }
}

impl Shared {
    /// The pages of a block, of one that is not closed.
    pub(super) fn open_block(&self, block: usize) -> Result<Arc<PageSet>, StreamingError> {
        let state = self.state.lock();
        let set = state.blocks.get(block).filter(|_| !state.closed).cloned();
        drop(state);
        set.ok_or_else(|| StreamingError::Closed {
            device: self.area.arena().device(),
            key: self.area.key().to_owned(),
        })
    }

    /// Refuses work that would be done again when the pages have left.
    fn check_stream(&self, stream: Stream) -> Result<(), StreamingError> {
        if self.area.arena().captures(stream) {
            let (device, key) = (self.area.arena().device(), self.area.key().to_owned());
            return Err(StreamingError::Captured { device, key });
        }
        Ok(())
    }

    /// A block is visited from now on, and was wanted then.
    fn is_entered(&self, block: usize, pins: Pins, stream: Stream, wanted: Option<Moment>) {
        let within = self.state.lock().is_inside(block);
        self.figures.lock().visits += u64::from(!within);
        self.has_begun(block, stream, wanted);
        let twice = self.state.lock().entered(block, pins);
        self.told.notify_all();
        drop(twice);
    }

    fn is_over(&self, pins: Pins) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return drop(pins);
        }
        state.over.push_back(pins);
        state.news += 1;
        drop(state);
        self.told.notify_all();
    }
}
