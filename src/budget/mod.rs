//! `Budget`: a ledger of the bytes of one memory, with a limit.
//!
//! **What it is.** A [`Reservation`] is a debit: so many bytes that its holder has or will have in
//! that memory. Reservations together never exceed the limit, nor what the memory really has to
//! give, by the last look of the budget's [`Probe`]. What is reserved and already in memory is
//! *filled* ([`Reservation::fill`]): the probe sees it, so that it is not charged twice.
//!
//! **Order.** First come, first served: [`Budget::reserve`] never overtakes who waits, however
//! little it asks for; [`Budget::try_reserve`] does, because it never waits. Who comes first in line
//! asks the budget's [`Evictor`]s for what is missing, those of the lowest priority number first, and
//! looks at the memory again and again while others outside have it.
//!
//! **Invariants.** What is used is the sum of the reservations. A byte is charged from the grant to
//! the release, whoever releases it, and exactly once: growing, shrinking, splitting and moving
//! happen as one step or not at all. Who gives up waiting leaves the line as if it had never come.
//! A limit that is lowered below what is used takes nothing away; nothing more is granted until it
//! fits again.
//!
//! **Errors.** [`BudgetError`], with the figures and who holds the rest.
//!
//! ```
//! use coresident::budget::{Budget, Spec};
//! use coresident::wait::{Owner, Patience};
//!
//! let budget = Budget::new(Spec { limit: 8 << 30, ..Spec::named("cuda:0") });
//! let me = Owner::thread(|| "main".into());
//! let weights = budget.reserve(6 << 30, Some("unet"), &me, &Patience::FOREVER)?;
//! assert_eq!(budget.free(), 2 << 30);
//! let half = weights.split(3 << 30)?;
//! drop(weights);
//! assert_eq!(budget.used(), half.bytes());
//! # Ok::<(), coresident::budget::BudgetError>(())
//! ```

mod error;
mod limit;
mod pressure;
mod reservation;
mod state;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub use error::{BudgetError, Figures};
pub use limit::{Limit, LimitError, default_host_limit};
pub use pressure::{Evictor, Probe};
pub use reservation::Reservation;
pub use state::Stake;

use crate::sync::Mutex;
use crate::wait::{
    Asked, Birth, Blockers, Description, Left, Owner, Parker, Patience, Pending, Queue, Resource,
    WaitError, Wake, WakeList, register, wake_all,
};
use pressure::{Evictors, Looking, Outside};
use state::{Place, State, Waiter, Wish};

/// How long a look at the memory is believed, and how often evictors are asked again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a budget is made of.
pub struct Spec {
    /// What the memory is called: `ram`, `cuda:0`.
    pub name: String,
    /// Bytes of the memory, if they are known.
    pub total: Option<u64>,
    /// Most bytes that can be reserved.
    pub limit: u64,
    /// Bytes of the memory that stay free.
    pub headroom: u64,
    /// Tells what is really free.
    pub probe: Option<Arc<dyn Probe>>,
    /// How long a look at the memory is believed.
    pub look_every: Duration,
}

impl Spec {
    /// A ledger alone, without a limit.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            total: None,
            limit: u64::MAX,
            headroom: 0,
            probe: None,
            look_every: LOOK_EVERY,
        }
    }
}

/// A ledger of bytes. Clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

/// What a budget, its reservations and its waiters share.
pub struct Shared {
    birth: Birth,
    name: String,
    state: Mutex<State>,
    outside: Option<Outside>,
    evictors: Evictors,
}

/// Who has bytes, or waits for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetUser {
    /// What they are for, else who.
    pub holder: String,
    /// How many.
    pub bytes: u64,
    /// How long already.
    pub lasted: Duration,
}

/// What a budget has to give, and has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the memory, if they are known.
    pub total: Option<u64>,
    /// Most bytes that can be reserved.
    pub limit: u64,
    /// Bytes of the memory that stay free.
    pub headroom: u64,
    /// Bytes that reservations can have in all, beside what others outside have now.
    pub reach: u64,
    /// Bytes that others outside have, by the last look at the memory.
    pub outside: u64,
    /// Bytes reserved.
    pub used: u64,
}

/// A budget at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetStatus {
    /// What the memory is called.
    pub name: String,
    /// Most bytes that can be reserved.
    pub limit: u64,
    /// Bytes of the memory that stay free.
    pub headroom: u64,
    /// Bytes reserved.
    pub used: u64,
    /// The most that were ever reserved.
    pub peak: u64,
    /// Bytes that can be reserved now.
    pub free: u64,
    /// Bytes of the memory that others outside have, by the last look at it.
    pub outside: u64,
    /// Who has bytes; those with most first.
    pub holders: Vec<BudgetUser>,
    /// Who waits, in order of arrival.
    pub waiting: Vec<BudgetUser>,
}

/// A thread that asks a budget's evictors: should one of them reserve something there, it does not ask
/// them again.
struct Evicting(usize);

thread_local! {
    static EVICTING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

impl Evicting {
    fn enter(budget: &Shared) -> Option<Self> {
        let budget = std::ptr::from_ref(budget).addr();
        EVICTING.with_borrow_mut(|all| {
            let fresh = !all.contains(&budget);
            fresh.then(|| {
                all.push(budget);
                Self(budget)
            })
        })
    }
}

impl Drop for Evicting {
    fn drop(&mut self) {
        EVICTING.with_borrow_mut(|all| all.retain(|budget| *budget != self.0));
    }
}

impl Budget {
    /// A budget of which nobody has anything.
    #[must_use]
    pub fn new(spec: Spec) -> Self {
        let Spec { name, total, limit, headroom, probe, look_every } = spec;
        let shared = Arc::new(Shared {
            birth: Birth::default(),
            name: name.clone(),
            state: Mutex::new(State::new(name, total, limit, headroom)),
            outside: probe.map(|probe| Outside::new(probe, look_every)),
            evictors: Evictors::default(),
        });
        register(&shared);
        Self(shared)
    }

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

    fn ask_for(
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

    /// Whether nobody waits before whoever has this at stake, who may not stand in line yet, or any
    /// more: then it does not help him if it is taken.
    #[must_use]
    pub fn waits_first(&self, stake: &Stake) -> bool {
        self.0.birth.is_here() && self.0.state.lock().waits_first(stake)
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

    /// Says that an evictor has something to give that it had not when it was asked: who is first in
    /// line asks again.
    pub fn offer(&self) {
        let first = self.0.birth.is_here().then(|| self.0.state.lock().first()).flatten();
        if let Some(first) = first {
            self.0.evictors.are_to_be_asked();
            first.wake();
        }
    }

    /// Asks the evictors for so many bytes, one after the other until there is `enough`: for somebody
    /// who has met a memory that is fuller than the ledger.
    pub fn relieve(&self, bytes: u64, enough: &dyn Fn() -> bool) {
        if !self.0.birth.is_here() {
            return;
        }
        for evictor in self.0.evictors.in_order() {
            if enough() {
                break;
            }
            evictor.evict(bytes);
        }
    }

    /// Bytes that could be reserved if nobody had any.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.0.state.lock().most()
    }

    /// What it has to give and has given, all of one moment.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.0.state.lock().bounds()
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

    /// What the memory is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Refuses to go on in a forked child, where the figures of the ledger cannot be had.
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn check(&self) -> Result<(), BudgetError> {
        self.0.check()
    }

    /// Bytes of the memory, if they are known.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.0.state.lock().total()
    }

    /// Most bytes that can be reserved.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.state.lock().limit()
    }

    /// Bytes of the memory that stay free.
    #[must_use]
    pub fn headroom(&self) -> u64 {
        self.0.state.lock().headroom()
    }

    /// Bytes reserved.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.state.lock().used()
    }

    /// The most that were ever reserved.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.0.state.lock().peak()
    }

    /// Bytes that can be reserved now, by the last look at the memory.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.0.state.lock().room()
    }

    /// Whether somebody waits for bytes: a hint to those who keep some that they could do without.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.birth.is_here() && self.0.state.lock().has_line()
    }

    /// Sets the limit. If it is lower than what is used, the evictors are asked for the difference,
    /// and nobody loses anything. Who waits for more than can ever be is turned away.
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn set_limit(&self, limit: u64) -> Result<(), BudgetError> {
        self.change(|state| state.set_limit(limit))
    }

    /// Sets how many bytes of the memory stay free, as [`Budget::set_limit`].
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn set_headroom(&self, headroom: u64) -> Result<(), BudgetError> {
        self.change(|state| state.set_headroom(headroom))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut State) -> (VecDeque<Waiter>, WakeList),
    ) -> Result<(), BudgetError> {
        self.0.check()?;
        let (gone, wakers) = change(&mut self.0.state.lock());
        drop(gone);
        wake_all(&wakers);
        self.0.make_room();
        Ok(())
    }

    /// Looks at the memory now, however long ago the last look was.
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn look(&self) -> Result<(), BudgetError> {
        self.0.check()?;
        self.0.look(true);
        Ok(())
    }

    /// Has `evictor` asked when bytes are missing, after those with a lower `priority`. Of equal ones
    /// the first that was added is asked first. Returns a number to remove it by.
    pub fn add_evictor(&self, priority: i64, evictor: Arc<dyn Evictor>) -> u64 {
        self.0.evictors.add(priority, evictor)
    }

    /// Has it asked no more. Returns whether it was there.
    pub fn remove_evictor(&self, number: u64) -> bool {
        self.0.birth.is_here() && self.0.evictors.remove(number)
    }

    /// Everyone at the budget.
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn status(&self) -> Result<BudgetStatus, BudgetError> {
        self.0.check()?;
        Ok(self.0.state.lock().status())
    }

    /// Whether both are the same ledger.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn wish(bytes: u64, purpose: Option<&str>, owner: &Owner) -> Wish {
    let purpose = purpose.map(str::to_owned);
    Wish { bytes, filled: 0, beside: 0, stake: None, purpose, owner: Some(owner.clone()) }
}

impl Shared {
    fn check(&self) -> Result<(), BudgetError> {
        Ok(self.birth.check("budget")?)
    }

    fn reservation(self: &Arc<Self>, place: Place) -> Reservation {
        Reservation::new(self.clone(), place)
    }

    /// How often who waits must look again; `None` if nothing but a release can help.
    fn looks_every(&self) -> Option<Duration> {
        let outside = self.outside.as_ref().map(Outside::every);
        let evictors = (!self.evictors.is_empty()).then_some(LOOK_EVERY);
        outside.into_iter().chain(evictors).min()
    }

    /// Looks at the memory, if the last look is too old or if told to.
    fn look(&self, now: bool) {
        if let Some(free) = self.outside.as_ref().and_then(|outside| outside.look(now)) {
            let wakers = self.state.lock().look(free);
            wake_all(&wakers);
        }
    }

    /// Asks the evictors for what the first in line misses, or what a lowered limit is exceeded by,
    /// until there is nothing missing or nobody left to ask. With no lock held.
    fn make_room(&self) {
        let Some(_evicting) = Evicting::enter(self) else { return };
        // One thread asks at a time, for what the first in line misses: two would get it twice.
        let Some(_turn) = self.evictors.turn() else { return };
        for evictor in self.evictors.in_order() {
            let missing = self.state.lock().missing();
            if missing == 0 {
                break;
            }
            evictor.evict(missing);
            // What an evictor frees may be known to the memory alone.
            self.look(true);
        }
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
