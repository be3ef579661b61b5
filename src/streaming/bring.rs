//! Pages that come for a block, and those that leave for them; for whoever has the turn.

use std::sync::Arc;
use std::time::Instant;

use super::{Shared, StreamingError};
use crate::arena::{ArenaError, Brought, PageSet};
use crate::device::{MemoryError, Stream};
use crate::load_lock::Mode;
use crate::wait::{Owner, Patience};

impl Shared {
    /// Brings what a block misses, whatever was to come before it.
    pub(super) fn bring_now(
        &self,
        block: usize,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Brought, StreamingError> {
        let began = Instant::now();
        let _turn = self.turn.acquire(Mode::Write, owner, patience)?;
        loop {
            // Somebody may have closed it while this has waited.
            self.open_block(block)?;
            let full = match self.bring(set, stream, owner) {
                Ok(Some(brought)) => return Ok(brought),
                Ok(None) => None,
                // Others have the memory, whatever the budget says.
                Err(StreamingError::Arena(ArenaError::Memory(
                    error @ MemoryError::OutOfMemory { .. },
                ))) => Some(error),
                Err(error) => return Err(error),
            };
            let wrong = match self.retire_one(&patience.since(began)) {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error @ StreamingError::Wait(_)) => return Err(error),
                Err(error) => Some(error),
            };
            if !self.state.lock().give_up_ahead(Some(block)) {
                let full = full.map(|error| ArenaError::from(error).into());
                return Err(full.or(wrong).unwrap_or_else(|| self.no_room(set)));
            }
        }
    }

    /// Pins pages, and brings what is missing of them; for whoever has the turn.
    pub(super) fn bring(
        &self,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
    ) -> Result<Option<Brought>, StreamingError> {
        let (began, (_, found)) = (Instant::now(), self.area.absent_and_unused(set));
        let brought = self.allowance.bring(set, stream, owner)?;
        if let Some(brought) = &brought {
            // What was there from before has bytes of its own, and takes none of the allowance's.
            self.allowance.give_back(found);
            self.figures.lock().moved += brought.fresh;
            if let Some(filled) = brought.filled.last().filter(|_| brought.fresh > 0) {
                self.is_copied(filled.clone(), began, brought.fresh);
            }
        }
        Ok(brought)
    }

    /// What to tell somebody whose block has no room beside what is in use.
    fn no_room(&self, set: &PageSet) -> StreamingError {
        let page = self.area.page() as u64;
        let (absent, _) = self.area.absent_and_unused(set);
        StreamingError::NoRoom {
            device: self.area.arena().device(),
            key: self.area.key().to_owned(),
            asked: absent as u64 * page,
            free: self.allowance.pages() as u64 * page,
        }
    }

    /// Has the first of what is over leave that can; for whoever has the turn. Returns whether one has.
    ///
    /// # Errors
    /// [`StreamingError::Wait`], and what a device says that cannot tell yet what its streams have done.
    pub(super) fn retire_one(&self, patience: &Patience<'_>) -> Result<bool, StreamingError> {
        let count = self.state.lock().over.len();
        let mut wrong = None;
        for _ in 0..count {
            let Some(pins) = self.state.lock().over.pop_front() else { break };
            let Err(kept) = self.allowance.retire(pins, patience) else { return Ok(true) };
            let (pins, error) = *kept;
            if let ArenaError::Wait(error) = error {
                self.state.lock().over.push_front(pins);
                return Err(error.into());
            }
            self.state.lock().over.push_back(pins);
            wrong = Some(error);
        }
        wrong.map_or(Ok(false), |error| Err(error.into()))
    }
}
