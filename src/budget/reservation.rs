//! `Reservation`: so many bytes of a budget.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::state::Place;
use super::wish::{Stake, Wish, wish};
use super::{Budget, BudgetError, Shared};
use crate::wait::{Asked, Owner, Parker, Patience, Wake, wake_all};

/// So many bytes of a memory, until it is dropped.
pub struct Reservation {
    shared: Arc<Shared>,
    place: Place,
}

impl Reservation {
    pub(super) fn new(shared: Arc<Shared>, place: Place) -> Self {
        Self { shared, place }
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn check(&self) -> Result<(), BudgetError> {
        self.shared.check()
    }

    /// Its bytes; 0 once it is released.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.figures().map_or(0, |(bytes, _)| bytes)
    }

    /// How many of its bytes are in memory already.
    #[must_use]
    pub fn filled(&self) -> u64 {
        self.figures().map_or(0, |(_, filled)| filled)
    }

    fn figures(&self) -> Option<(u64, u64)> {
        if !self.shared.birth.is_here() {
            return None;
        }
        self.shared.state.lock().bytes(self.place)
    }

    /// Whether it has been released.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.figures().is_none()
    }

    /// So many of its bytes, which somebody has of what he waits for.
    #[must_use]
    pub fn stake(&self, bytes: u64) -> Stake {
        Stake::new(self.place, bytes)
    }

    /// The budget.
    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget(self.shared.clone())
    }

    /// Gives the bytes back; from any thread, and again without effect. Returns whether this call
    /// did it.
    pub fn release(&self) -> bool {
        if !self.shared.birth.is_here() {
            return false;
        }
        let Some((gone, wakers)) = self.shared.state.lock().release(self.place) else {
            return false;
        };
        drop(gone);
        wake_all(&wakers);
        true
    }

    /// Reserves more, and adds it; waits in line. Keeps what it has if that fails.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn grow(&self, by: u64, owner: &Owner, patience: &Patience<'_>) -> Result<(), BudgetError> {
        let parker = Parker::new();
        let asked = self.ask_to_grow(by, owner, parker.clone())?;
        let extra = self.budget().settle(by, asked, &parker, patience)?;
        self.absorb(&extra)
    }

    /// Reserves more, to be [absorbed](Reservation::absorb), as [`Budget::ask`].
    ///
    /// # Errors
    /// [`BudgetError::Impossible`], also if it is the bytes that this one has that are in the way,
    /// [`BudgetError::Released`] and [`BudgetError::Forked`].
    pub fn ask_to_grow(
        &self,
        by: u64,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Shared>, BudgetError> {
        self.shared.check()?;
        let (has, _) = self.figures().ok_or_else(|| self.released())?;
        let wish = Wish { beside: has, ..wish(by, None, owner) };
        self.budget().ask_for(wish, owner, waker)
    }

    /// Takes over the bytes of another reservation of the same budget.
    ///
    /// # Errors
    /// [`BudgetError::Released`]; `extra` is released then.
    pub fn absorb(&self, extra: &Self) -> Result<(), BudgetError> {
        self.shared.check()?;
        debug_assert!(Arc::ptr_eq(&self.shared, &extra.shared));
        let absorbed = self.shared.state.lock().absorb(self.place, extra.place);
        absorbed.map(drop).ok_or_else(|| self.released())
    }

    /// Gives some of the bytes back. Those that are not filled go first.
    ///
    /// # Errors
    /// [`BudgetError::TooMuch`], [`BudgetError::Released`] and [`BudgetError::Forked`].
    pub fn shrink(&self, by: u64) -> Result<(), BudgetError> {
        self.shared.check()?;
        let shrunk = self.shared.state.lock().shrink(self.place, by);
        let wakers = self.checked("shrinking by", by, shrunk)?;
        wake_all(&wakers);
        Ok(())
    }

    /// Makes a reservation of its own of some of the bytes. Those that are not filled go first.
    ///
    /// # Errors
    /// [`BudgetError::TooMuch`], [`BudgetError::Released`] and [`BudgetError::Forked`].
    pub fn split(&self, off: u64) -> Result<Self, BudgetError> {
        self.shared.check()?;
        let split = self.shared.state.lock().split(self.place, off);
        Ok(self.shared.reservation(self.checked("splitting off", off, split)?))
    }

    /// Moves the bytes to another budget; waits in its line. They are charged there before they are
    /// given back here, as they are when memory is copied. Nothing of them is filled there.
    ///
    /// # Errors
    /// [`BudgetError`]; everything stays as it was then.
    pub fn move_to(
        &self,
        budget: &Budget,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Self, BudgetError> {
        self.shared.check()?;
        let started = Instant::now();
        loop {
            let wish = self.shared.state.lock().wish(self.place);
            let Wish { bytes, purpose, .. } = wish.ok_or_else(|| self.released())?;
            let patience = patience.since(started);
            let there = budget.reserve(bytes, purpose.as_deref(), owner, &patience)?;
            // As many as when the wait began, or else the bytes of now are waited for.
            let released = self.shared.state.lock().release_if(self.place, bytes);
            match released {
                Some(Ok((gone, wakers))) => {
                    drop(gone);
                    wake_all(&wakers);
                    return Ok(there);
                }
                Some(Err(())) => {}
                None => return Err(self.released()),
            }
        }
    }

    /// Says how many of its bytes are in memory now, where a probe sees them.
    ///
    /// # Errors
    /// [`BudgetError::TooMuch`], [`BudgetError::Released`] and [`BudgetError::Forked`].
    pub fn fill(&self, filled: u64) -> Result<(), BudgetError> {
        self.shared.check()?;
        let noted = self.shared.state.lock().fill(self.place, filled);
        self.checked("filling", filled, noted)
    }

    /// Says that so many more of its bytes are in memory now; at most all of them count.
    pub fn fill_more(&self, by: u64) {
        if self.shared.birth.is_here() {
            self.shared.state.lock().fill_by(self.place, by, 0);
        }
    }

    /// Says that so many of its bytes are no longer in memory.
    pub fn fill_less(&self, by: u64) {
        if self.shared.birth.is_here() {
            self.shared.state.lock().fill_by(self.place, 0, by);
        }
    }

    /// Has the wait-for graph know that it is not released before `user` has gone on; once for each
    /// time that he is added.
    pub fn add_user(&self, user: &Owner) {
        if self.shared.birth.is_here() {
            self.shared.state.lock().add_user(self.place, user.clone());
        }
    }

    /// Has `spare` tell the graph whether an evictor could release some of it, whatever its users do.
    pub fn spare_when(&self, spare: Arc<AtomicBool>) {
        if self.shared.birth.is_here() {
            self.shared.state.lock().spare(self.place, spare);
        }
    }

    /// Has the graph forget one time that `user` was added.
    pub fn remove_user(&self, user: &Owner) {
        if self.shared.birth.is_here() {
            let gone = self.shared.state.lock().remove_user(self.place, user);
            drop(gone);
        }
    }

    /// Says what it is for from now on.
    pub fn rename(&self, purpose: &str) {
        if self.shared.birth.is_here() {
            let before = self.shared.state.lock().rename(self.place, purpose.to_owned());
            drop(before);
        }
    }

    /// Takes it out of the wait-for graph: nobody in particular will release it.
    pub fn disown(&self) {
        if self.shared.birth.is_here() {
            let owner = self.shared.state.lock().disown(self.place);
            drop(owner);
        }
    }

    fn checked<T>(
        &self,
        what: &'static str,
        asked: u64,
        outcome: Option<Result<T, u64>>,
    ) -> Result<T, BudgetError> {
        match outcome {
            Some(Ok(done)) => Ok(done),
            Some(Err(has)) => Err(BudgetError::TooMuch { what, asked, has }),
            None => Err(self.released()),
        }
    }

    fn released(&self) -> BudgetError {
        BudgetError::Released { budget: self.shared.name.clone() }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}
