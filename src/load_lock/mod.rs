//! `LoadLock`: a readers-writer lock between constructing models (write) and moving weights (read).
//!
//! **Order.** Phase-fair, after Brandenburg and Anderson, *Spin-Based Reader-Writer Synchronization
//! for Multiprocessor Real-Time Systems* (2010), with sleeping instead of spinning: a waiting writer
//! stops new readers, and the readers already waiting go next after each writer. So a reader waits
//! for one writer at most, and a writer for one phase of readers per writer before it.
//!
//! **Nesting.** An owner that reads may read again, even while a writer waits, and an owner that
//! writes may read; a task counts as inside what the code below its event loop holds. Asking to
//! write while one reads or writes can never succeed, and is refused as a deadlock.
//!
//! **Invariants.** Either one writer and only its own reads, or any number of readers. Whoever gives
//! up waiting leaves the line as if it had never come. A thread that ends releases what its code
//! still held, unless it was handed over, and gives up what it waited for.
//!
//! **Errors.** [`LockError`].
//!
//! ```
//! use coresident::load_lock::{LoadLock, Mode};
//! use coresident::wait::{Owner, Patience};
//!
//! let lock = LoadLock::new();
//! let me = Owner::thread(|| "main".into());
//! let write = lock.acquire(Mode::Write, &me, &Patience::FOREVER)?;
//! let nested = lock.acquire(Mode::Read, &me, &Patience::FOREVER)?;
//! drop((write, nested));
//! # Ok::<(), coresident::load_lock::LockError>(())
//! ```

mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::wait::{
    Asked, Birth, Blockers, Description, Forked, Left, Owner, Parker, Patience, Pending, Queue,
    Resource, WaitError, Wake, register, wake_all,
};
use state::{Place, State};

/// What the lock is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Moving weights: shared with other readers.
    Read,
    /// Constructing a model: alone.
    Write,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// Why the lock is not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LockError {
    /// The wait ended without the lock.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}

/// A phase-fair readers-writer lock. Clones share the lock.
#[derive(Clone)]
pub struct LoadLock(Arc<Shared>);

/// What the lock, its guards and its waiters share.
pub struct Shared {
    birth: Birth,
    state: Mutex<State>,
}

/// Who holds the lock or waits for it, and for how long already.
#[derive(Debug, Clone)]
pub struct LockUser {
    /// `thread 'MainThread'`, `task 'Task-1'`.
    pub owner: String,
    /// What for.
    pub mode: Mode,
    /// How long already.
    pub lasted: Duration,
    /// Given to somebody else by `hand_over`.
    pub handed_over: bool,
}

/// Everyone at a lock.
#[derive(Debug, Clone, Default)]
pub struct LockStatus {
    /// Those inside.
    pub holders: Vec<LockUser>,
    /// Those who wait, in order of arrival.
    pub waiting: Vec<LockUser>,
}

impl Default for LoadLock {
    fn default() -> Self {
        Self::new()
    }
}

impl LoadLock {
    /// A lock that nobody holds.
    #[must_use]
    pub fn new() -> Self {
        Self::of(State::default())
    }

    /// One that serves another purpose, and is called so in what is told of it: `a turn to paint`. It is
    /// only to be taken to write.
    #[must_use]
    pub fn called(name: impl Into<String>) -> Self {
        Self::of(State::called(name.into()))
    }

    fn of(state: State) -> Self {
        let shared = Arc::new(Shared { birth: Birth::default(), state: Mutex::new(state) });
        register(&shared);
        Self(shared)
    }

    /// Takes the lock if that needs no waiting.
    ///
    /// # Errors
    /// [`LockError::Forked`].
    pub fn try_acquire(&self, mode: Mode, owner: &Owner) -> Result<Option<LockGuard>, LockError> {
        self.0.birth.check("load lock")?;
        let place = self.0.state.lock().take(mode, owner);
        Ok(place.map(|place| self.0.guard(place, mode)))
    }

    /// Takes the lock, or else a place in its line, whose turn will call `waker`.
    ///
    /// # Errors
    /// [`LockError::Forked`].
    pub fn ask(
        &self,
        mode: Mode,
        owner: &Owner,
        waker: Arc<dyn Wake>,
    ) -> Result<Asked<Shared>, LockError> {
        self.0.birth.check("load lock")?;
        let mut state = self.0.state.lock();
        if let Some(place) = state.take(mode, owner) {
            drop(state);
            return Ok(Asked::Granted(self.0.guard(place, mode)));
        }
        let ticket = state.join(mode, owner, waker);
        drop(state);
        Ok(Asked::Waiting(Pending::new(self.0.clone(), ticket, owner.clone())))
    }

    /// Takes the lock; waits in line.
    ///
    /// # Errors
    /// [`LockError::Wait`] and [`LockError::Forked`].
    pub fn acquire(
        &self,
        mode: Mode,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<LockGuard, LockError> {
        let parker = Parker::new();
        self.ask(mode, owner, parker.clone())?.wait(&parker, patience)
    }

    /// Who holds the lock, and who waits for it.
    ///
    /// # Errors
    /// [`LockError::Forked`].
    pub fn status(&self) -> Result<LockStatus, LockError> {
        self.0.birth.check("load lock")?;
        Ok(self.0.state.lock().status())
    }
}

impl Shared {
    fn guard(self: &Arc<Self>, place: Place, mode: Mode) -> LockGuard {
        let (live, handed_over) = (AtomicBool::new(true), AtomicBool::new(false));
        LockGuard { shared: self.clone(), place, mode, live, handed_over }
    }

    fn release(&self, place: Place) -> bool {
        let released = self.state.lock().release(place);
        if let Some(wakers) = &released {
            wake_all(wakers);
        }
        released.is_some()
    }
}

/// The right to read or to write. Dropping it lets the next in line go.
pub struct LockGuard {
    shared: Arc<Shared>,
    place: Place,
    mode: Mode,
    live: AtomicBool,
    handed_over: AtomicBool,
}

impl LockGuard {
    /// What it is for.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the lock is still held through this guard.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
            && self.shared.birth.is_here()
            && self.shared.state.lock().is_held(self.place)
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn check(&self) -> Result<(), Forked> {
        self.shared.birth.check("guard of a load lock")
    }

    /// Whether it was neither released nor handed over, as far as the guard itself knows.
    #[must_use]
    pub fn is_with_owner(&self) -> bool {
        self.shared.birth.is_here()
            && self.live.load(Ordering::Acquire)
            && !self.handed_over.load(Ordering::Acquire)
    }

    /// Lets the next in line go; from any thread, and again without effect. Returns whether this
    /// call did it.
    pub fn release(&self) -> bool {
        self.live.load(Ordering::Acquire)
            && self.live.swap(false, Ordering::AcqRel)
            && self.shared.birth.is_here()
            && self.shared.release(self.place)
    }

    /// Takes the guard out of the wait-for graph and off its thread: somebody else will release it.
    pub fn hand_over(&self) {
        self.set_owner(None);
    }

    /// Makes `owner` the one who holds it and is expected to release it.
    pub fn adopt(&self, owner: &Owner) {
        self.set_owner(Some(owner));
    }

    fn set_owner(&self, owner: Option<&Owner>) {
        self.handed_over.store(owner.is_none(), Ordering::Release);
        if self.shared.birth.is_here() {
            self.shared.state.lock().set_owner(self.place, owner);
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.release();
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
        Left::new((), self.state.lock().thread_ended(thread))
    }
}

impl Queue for Shared {
    type Guard = LockGuard;
    type Error = LockError;

    fn collect(self: &Arc<Self>, ticket: u64) -> Option<Result<LockGuard, LockError>> {
        let outcome = self.state.lock().collect(ticket)?;
        Some(outcome.map(|(place, mode)| self.guard(place, mode)).map_err(LockError::from))
    }

    fn abandon(&self, ticket: u64) -> Left {
        if !self.birth.is_here() {
            return Left::default();
        }
        let (left, wakers) = self.state.lock().abandon(ticket);
        Left::new(left, wakers)
    }
}
