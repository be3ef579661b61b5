//! Asking for bytes: at once, or in line.

use std::sync::Arc;

use super::pressure::Looking;
use super::wish::{Stake, Wish, wish};
use super::{Budget, BudgetError, Reservation, Shared};
use crate::wait::{
    Asked, Blockers, Description, Left, Owner, Parker, Patience, Pending, Queue, Resource,
    WaitError, Wake,
};

impl Budget {
    /// Reserves if that needs no waiting, even before those who wait; asks no evictor.
    ///
    /// # Errors
    /// [`BudgetError::Impossible`] and [`BudgetError::Forked`].
    pub fn try_reserve(
        &self,
        bytes: u64,
        purpose: Option<&str>,
        owner: &Owner,
    ) -> Result<Option<Reservation>, BudgetError> {
        self.take(&wish(bytes, purpose, owner), true)
    }

    /// Reserves if that needs no waiting and nobody waits; asks no evictor.
    ///
    /// # Errors
    /// [`BudgetError::Impossible`] and [`BudgetError::Forked`].
    pub fn reserve_at_once(
        &self,
        bytes: u64,
        purpose: Option<&str>,
        owner: &Owner,
    ) -> Result<Option<Reservation>, BudgetError> {
        self.take(&wish(bytes, purpose, owner), false)
    }

    fn take(&self, wish: &Wish, overtakes: bool) -> Result<Option<Reservation>, BudgetError> {
        self.0.check()?;
        self.0.look(false);
        let mut state = self.0.state.lock();
        if let Some(figures) = state.impossible(wish) {
            return Err(BudgetError::Impossible(figures));
        }
        let place = state.take(wish, overtakes);
        drop(state);
        Ok(place.map(|place| self.0.reservation(place)))
    }

    /// Reserves, or takes a place in the line, whose turn will call `waker`. Who comes first in line
    /// asks the evictors.
    ///
    /// # Errors
    /// [`BudgetError::Impossible`] and [`BudgetError::Forked`].
    pub fn ask(
        &self,
        bytes: u64,
        purpose: Option<&str>,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Shared>, BudgetError> {
        self.ask_for(wish(bytes, purpose, owner), owner, waker)
    }

    pub(super) fn ask_for(
        &self,
        wish: Wish,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Shared>, BudgetError> {
        self.0.check()?;
        self.0.look(false);
        let mut state = self.0.state.lock();
        if let Some(figures) = state.impossible(&wish) {
            return Err(BudgetError::Impossible(figures));
        }
        if let Some(place) = state.take(&wish, false) {
            drop(state);
            return Ok(Asked::Granted(self.0.reservation(place)));
        }
        let ticket = state.join(wish, waker);
        drop(state);
        // In line before anybody is asked to give: what comes free is not for those who come later.
        let mut pending = Pending::new(self.0.clone(), ticket, owner.clone());
        self.0.make_room();
        match pending.poll() {
            Some(outcome) => outcome.map(Asked::Granted),
            None => Ok(Asked::Waiting(pending)),
        }
    }

    /// Reserves; waits in line.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn reserve(
        &self,
        bytes: u64,
        purpose: Option<&str>,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Reservation, BudgetError> {
        self.reserve_filled(bytes, 0, purpose, owner, patience)
    }

    /// As [`Budget::reserve`], of which so many bytes are in memory already, where the probe sees them.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn reserve_filled(
        &self,
        bytes: u64,
        filled: u64,
        purpose: Option<&str>,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Reservation, BudgetError> {
        let wish = Wish { filled: filled.min(bytes), ..wish(bytes, purpose, owner) };
        self.reserve_wish(wish, owner, patience)
    }

    /// As [`Budget::reserve`], for somebody who has some of the bytes already: what is missing.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn reserve_rest(
        &self,
        bytes: u64,
        stake: &Stake,
        purpose: Option<&str>,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Reservation, BudgetError> {
        let stake = Some(stake.clone());
        self.reserve_wish(Wish { stake, ..wish(bytes, purpose, owner) }, owner, patience)
    }

    fn reserve_wish(
        &self,
        wish: Wish,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Reservation, BudgetError> {
        let (parker, bytes) = (Parker::new(), wish.missing());
        let asked = self.ask_for(wish, owner, parker.clone())?;
        self.settle(bytes, asked, &parker, patience)
    }

    /// Blocks the thread until `asked`, which asked for so many bytes, is settled.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn settle(
        &self,
        bytes: u64,
        asked: Asked<Shared>,
        parker: &Arc<Parker>,
        patience: &Patience<'_>,
    ) -> Result<Reservation, BudgetError> {
        let looking = Looking { budget: &self.0, patient: patience.interrupt };
        let outcome = asked.wait(parker, &Patience { interrupt: &looking, ..*patience });
        outcome.map_err(|error| match error {
            BudgetError::Wait(WaitError::Timeout { after, .. }) => {
                BudgetError::Timeout { after, figures: self.0.state.lock().figures(bytes) }
            }
            error => error,
        })
    }

    /// Whether nobody waits before whoever has this at stake, who may not stand in line yet, or any
    /// more: then it does not help him if it is taken.
    #[must_use]
    pub fn waits_first(&self, stake: &Stake) -> bool {
        self.0.birth.is_here() && self.0.state.lock().waits_first(stake)
    }
}

impl Resource for Shared {
    fn blockers(&self, ticket: u64) -> Option<Blockers> {
        self.state.lock().blockers(ticket)
    }

    fn describe(&self, ticket: u64) -> Description {
        self.state.lock().describe(ticket)
    }

    fn thread_ended(&self, thread: u64) -> Left {
        let (gone, wakers) = self.state.lock().thread_ended(thread);
        Left::new(gone, wakers)
    }
}

impl Queue for Shared {
    type Guard = Reservation;
    type Error = BudgetError;

    fn collect(self: &Arc<Self>, ticket: u64) -> Option<Result<Reservation, BudgetError>> {
        let outcome = self.state.lock().collect(ticket)?;
        Some(outcome.map(|place| self.reservation(place)))
    }

    fn abandon(&self, ticket: u64) -> Left {
        if !self.birth.is_here() {
            return Left::default();
        }
        let (gone, wakers) = self.state.lock().abandon(ticket);
        Left::new(gone, wakers)
    }
}
