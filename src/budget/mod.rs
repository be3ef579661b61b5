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

mod ask;
mod error;
mod limit;
mod pressure;
mod reservation;
mod state;
mod status;
mod wish;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub use error::{BudgetError, Figures};
pub use limit::{Limit, LimitError, default_host_limit};
pub use pressure::{Evictor, Probe};
pub use reservation::Reservation;
pub use status::{Bounds, BudgetStatus, BudgetUser};
pub use wish::Stake;

use crate::sync::Mutex;
use crate::wait::{Birth, WakeList, register, wake_all};
use pressure::{Evictors, Outside};
use state::{Place, State, Waiter};

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

impl Shared {
    fn check(&self) -> Result<(), BudgetError> {
        Ok(self.birth.check("budget")?)
    }

    fn reservation(self: &Arc<Self>, place: Place) -> Reservation {
        Reservation::new(self.clone(), place)
    }
}
