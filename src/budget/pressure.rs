//! What others do to the memory, and who can give some back.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Budget, BudgetError, LOOK_EVERY, Shared};
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::wait::{Interrupt, wake_all};

/// Tells what is really free in a memory, whoever uses the rest.
pub trait Probe: Send + Sync {
    /// Bytes that could be had now, those included that an allocator of this process keeps without
    /// using them; `None` where it cannot be known. Called with no lock held.
    fn free(&self) -> Option<u64>;
}

/// Somebody who can give bytes back that he could do without.
pub trait Evictor: Send + Sync {
    /// Releases reservations, or memory that the probe sees, of `bytes` if it can, else less. Called
    /// with no lock held, from a thread that wants to reserve; must not wait for bytes itself.
    fn evict(&self, bytes: u64);
}

/// The probe of one budget, and when it was asked last: budgets never share a look.
pub(super) struct Outside {
    probe: Arc<dyn Probe>,
    every: Duration,
    last: Mutex<Option<Instant>>,
}

impl Outside {
    pub(super) fn new(probe: Arc<dyn Probe>, every: Duration) -> Self {
        Self { probe, every, last: Mutex::new(None) }
    }

    /// What is free, unless the last look is young enough and a new one need not be `now`.
    pub(super) fn look(&self, now: bool) -> Option<u64> {
        let time = Instant::now();
        {
            let mut last = self.last.lock();
            if !now && last.is_some_and(|last| time < last + self.every) {
                return None;
            }
            *last = Some(time);
        }
        self.probe.free()
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }
}

/// Those who are asked when bytes are missing.
#[derive(Default)]
pub(super) struct Evictors {
    all: Mutex<Registered>,
    /// Whether somebody asks them.
    asking: AtomicBool,
}

/// One thread's turn to ask the evictors. No lock: they may be anybody's code.
pub(super) struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[derive(Default)]
struct Registered {
    next: u64,
    /// When one of those who wait has asked them last.
    asked: Option<Instant>,
    /// By priority, then by number.
    entries: Vec<(i64, u64, Arc<dyn Evictor>)>,
}

impl Evictors {
    /// The turn, if nobody has it.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        (!self.asking.swap(true, Ordering::AcqRel)).then(|| Turn(&self.asking))
    }

    pub(super) fn add(&self, priority: i64, evictor: Arc<dyn Evictor>) -> u64 {
        let mut all = self.all.lock();
        all.next += 1;
        let number = all.next;
        let at = all.entries.partition_point(|(other, ..)| *other <= priority);
        all.entries.insert(at, (priority, number, evictor));
        number
    }

    pub(super) fn remove(&self, number: u64) -> bool {
        let mut all = self.all.lock();
        let at = all.entries.iter().position(|(_, other, _)| *other == number);
        let removed = at.map(|at| all.entries.remove(at));
        drop(all);
        removed.is_some()
    }

    pub(super) fn in_order(&self) -> Vec<Arc<dyn Evictor>> {
        self.all.lock().entries.iter().map(|(.., evictor)| evictor.clone()).collect()
    }

    /// Has one of those who wait ask them again as soon as he looks.
    pub(super) fn are_to_be_asked(&self) {
        self.all.lock().asked = None;
    }

    /// Whether it is time that one of those who wait asks them again.
    fn are_due(&self, every: Duration) -> bool {
        let mut all = self.all.lock();
        let now = Instant::now();
        if all.entries.is_empty() || all.asked.is_some_and(|asked| now < asked + every) {
            return false;
        }
        all.asked = Some(now);
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.lock().entries.is_empty()
    }
}

/// Looks at the memory and asks the evictors again while somebody waits: nobody outside says when he
/// gives something back.
pub(super) struct Looking<'a> {
    pub(super) budget: &'a Shared,
    pub(super) patient: &'a dyn Interrupt,
}

impl Interrupt for Looking<'_> {
    fn slice(&self) -> Option<Duration> {
        let looks = self.budget.looks_every();
        self.patient.slice().into_iter().chain(looks).min()
    }

    fn interrupted(&self) -> bool {
        if self.patient.interrupted() {
            return true;
        }
        self.budget.look(false);
        if self.budget.evictors.are_due(LOOK_EVERY) {
            self.budget.make_room();
        }
        // An evictor may have met what ends the wait.
        self.patient.interrupted()
    }
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
    /// Has `evictor` asked when bytes are missing, after those with a lower `priority`. Of equal ones
    /// the first that was added is asked first. Returns a number to remove it by.
    pub fn add_evictor(&self, priority: i64, evictor: Arc<dyn Evictor>) -> u64 {
        self.0.evictors.add(priority, evictor)
    }

    /// Has it asked no more. Returns whether it was there.
    pub fn remove_evictor(&self, number: u64) -> bool {
        self.0.birth.is_here() && self.0.evictors.remove(number)
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

    /// Looks at the memory now, however long ago the last look was.
    ///
    /// # Errors
    /// [`BudgetError::Forked`].
    pub fn look(&self) -> Result<(), BudgetError> {
        self.0.check()?;
        self.0.look(true);
        Ok(())
    }
}

impl Shared {
    /// How often who waits must look again; `None` if nothing but a release can help.
    fn looks_every(&self) -> Option<Duration> {
        let outside = self.outside.as_ref().map(Outside::every);
        let evictors = (!self.evictors.is_empty()).then_some(LOOK_EVERY);
        outside.into_iter().chain(evictors).min()
    }

    /// Looks at the memory, if the last look is too old or if told to.
    pub(super) fn look(&self, now: bool) {
        if let Some(free) = self.outside.as_ref().and_then(|outside| outside.look(now)) {
            let wakers = self.state.lock().look(free);
            wake_all(&wakers);
        }
    }

    /// Asks the evictors for what the first in line misses, or what a lowered limit is exceeded by,
    /// until there is nothing missing or nobody left to ask. With no lock held.
    pub(super) fn make_room(&self) {
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
