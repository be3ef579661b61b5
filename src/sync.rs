//! One facade over mutexes, condition variables and atomics.
//!
//! Ordinary builds use `std`. With the feature `model` the same names are loom's,
//! so that the tests in `tests/models` drive the shipped types through every interleaving, and
//! [`planted`] lets a test switch one rule of a primitive off to see that its model notices.

#[cfg(not(feature = "model"))]
mod imp {
    pub use std::sync::MutexGuard;
    pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

    pub(super) use std::sync::Condvar as RawCondvar;

    use std::sync::PoisonError;
    use std::time::Instant;

    /// std's mutex with the calls of `parking_lot`'s. On Linux std's is a bare futex, whereas
    /// `parking_lot` parks threads in a process-wide table, which a forked child inherits with
    /// entries of threads that it does not have.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// An unlocked mutex.
        pub const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        #[inline]
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// The value, from a mutex that nobody else has.
        pub fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }

        /// The lock, if nobody has it.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    pub(super) fn raw_wait_until<'a, T>(
        condvar: &RawCondvar,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        let Some(deadline) = deadline else {
            return condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        condvar.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Never true here: mutants exist in models only.
    #[inline]
    #[must_use]
    pub const fn planted(_: super::Mutant) -> bool {
        false
    }
}

#[cfg(feature = "model")]
mod imp {
    pub use loom::sync::MutexGuard;
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

    pub(super) use loom::sync::Condvar as RawCondvar;

    use std::sync::atomic::{AtomicU8, Ordering as StdOrdering};
    use std::time::Instant;

    /// loom's mutex with the calls of `parking_lot`'s.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// An unlocked mutex.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        /// The lock, if nobody has it.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    /// Models have no clock, so a deadline never passes.
    pub(super) fn raw_wait_until<'a, T>(
        condvar: &RawCondvar,
        guard: MutexGuard<'a, T>,
        _deadline: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // One mutant per test process run at a time; std's atomic, so that loom does not explore it.
    static PLANTED: AtomicU8 = AtomicU8::new(0);

    /// Switches `mutant` on (or all off) for the models that follow in this process.
    pub fn plant(mutant: Option<super::Mutant>) {
        PLANTED.store(mutant.map_or(0, |mutant| mutant as u8), StdOrdering::SeqCst);
    }

    /// Whether a test has switched this mutant on.
    #[must_use]
    pub fn planted(mutant: super::Mutant) -> bool {
        PLANTED.load(StdOrdering::SeqCst) == mutant as u8
    }
}

use std::time::Instant;

#[cfg(feature = "model")]
pub use imp::plant;
pub use imp::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, fence, planted};

/// A condition variable that asks the system only when somebody sleeps: std's makes a call for
/// every notification, heard or not. Notify after the mutex has been held.
#[derive(Debug)]
pub struct Condvar {
    raw: imp::RawCondvar,
    /// Changed under the mutex that belongs to the condition.
    sleepers: AtomicU64,
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl Condvar {
    /// One that nobody waits for.
    #[must_use]
    pub fn new() -> Self {
        Self { raw: imp::RawCondvar::new(), sleepers: AtomicU64::new(0) }
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.raw.notify_one();
        }
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.raw.notify_all();
        }
    }
}

/// Waits for a notification, or until `deadline` has passed; may wake for no reason.
pub fn wait_until<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, T> {
    condvar.sleepers.fetch_add(1, Ordering::Relaxed);
    let guard = imp::raw_wait_until(&condvar.raw, guard, deadline);
    condvar.sleepers.fetch_sub(1, Ordering::Relaxed);
    guard
}

/// Rules that a model can switch off, each to prove that the model guards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// A borrow takes a device that a lease already waits for.
    BorrowOvertakes = 1,
    /// Releasing a device forgets to hand it to the next in line.
    ReleaseForgetsWaiters,
    /// A guard releases its device even when another lease holds it by now.
    ReleaseOfAnothers,
    /// A request that gives up keeps its place in the line.
    AbandonLeavesTicket,
    /// A free device goes to the last in line.
    LastComeFirstServed,
    /// Closing a pool does not wake those whom it turns away.
    CloseForgetsWaiters,
    /// A device put back into a pool has lost the holder that it drained for.
    PutBackForgetsHolder,
    /// A thread that ends keeps what it held.
    ThreadEndForgotten,
    /// A guard that was handed over still counts as its first owner's.
    HandOverForgotten,
    /// More is reserved than a budget has.
    BudgetOverdrawn,
    /// A reservation passes those who wait for bytes.
    ReserveOvertakes,
    /// Bytes that are released stay charged.
    ReleaseForgetsBytes,
    /// Bytes that are released wake nobody who waits for some.
    BudgetReleaseWakesNobody,
    /// A lower limit says nothing to those who wait for more than it.
    LowerLimitForgetsWaiters,
    /// Who waits for bytes does not hear that an evictor has some now.
    OfferIsNotHeard,
    /// A reservation that is split or shrunk keeps the bytes.
    SplitKeepsBytes,
    /// Who wants weights that are being loaded loads them too.
    EveryOneLoads,
    /// A load that has ended wakes nobody who waits for it.
    LandingForgetsWaiters,
    /// Weights that were invalidated while they were being loaded are there for everybody.
    StaleLoadIsAdopted,
    /// Weights that somebody has are let go of when bytes are wanted.
    EvictsWhatIsUsed,
    /// A page that somebody has pinned leaves.
    PinnedPageLeaves,
    /// A page leaves before the streams that use it are done.
    PageLeavesEarly,
    /// Unpinning forgets that a stream still uses the page.
    UseIsForgotten,
    /// Of two who have used a page on one stream, the one who comes to say so last is taken for the last.
    LastMarkWins,
    /// A page is used before its copy is done.
    ContentIsNotAwaited,
    /// A page with another content is taken for what is wanted.
    StalePageIsUsed,
    /// The bytes of a page that has left stay charged.
    LeavingKeepsBytes,
    /// Who gives up a fault leaves the pages as if they still came.
    GivenUpStaysClaimed,
    /// A page's memory is taken away while a stream still uses it.
    RetiredWhileUsed,
    /// The bytes of pages that leave for others of their model are lost to both.
    RetiredBytesAreLost,
    /// What a visit of a block leaves behind stays pinned.
    OverStaysPinned,
    /// What was brought for a visit that has not come stays pinned.
    BroughtInVainStays,
    /// Others pin pages of an area that somebody has alone, and somebody gets one that others use.
    OthersAreLetIn,
    /// The end of a streaming leaves its pages pinned.
    ClosedStaysPinned,
    /// What one job uses is taken for what another one uses.
    OthersUseIsOwn,
    /// A writer is let in while readers are inside.
    WriterIgnoresReaders,
    /// New readers pass a waiting writer.
    ReadersPassWriters,
    /// After a writer the next writer goes, whoever waits to read.
    WritersPassReaders,
    /// Who gives up changes the order of a line while somebody looks at the graph.
    AbandonedUnderWatch,
    /// A writer that gives up does not let the readers behind it go on.
    AbandonedWriterBlocks,
    /// A cancel token does not wake the one who waits.
    CancelForgetsWaiters,
    /// A cancelled ticket still runs.
    CancelledTaskRuns,
    /// Finishing a ticket does not wake the one who waits for it.
    FinishForgetsWaiters,
    /// Closing a lane drops what is still queued.
    CloseDropsQueued,
    /// A closed lane still takes tasks.
    ClosedLaneAccepts,
    /// A task that comes does not wake the worker.
    PushForgetsWorker,
    /// Every task is given a worker of its own.
    EveryPushNeedsWorker,
    /// A worker that leaves says nothing of the tasks that it leaves behind.
    LeaveForgetsQueued,
    /// A worker that leaves does not wake those who wait for that.
    LeaveForgetsWaiters,
    /// A job that is kept for one device is kept for another too.
    OfferedTwice,
    /// Who waits for bytes keeps the pages that he has.
    WaiterKeepsPages,
    /// What somebody has of what he waits for counts though others have taken it.
    TakenStakeIsStillCounted,
    /// A user may be forgotten while a job of his comes.
    ComingJobHasNoUser,
    /// A job that is submitted wakes nobody who waits for one.
    SubmitForgetsWaiters,
    /// A claim that is finished ends as done though a cancel was ordered before.
    FinishOvertakesCancel,
    /// A job that is cancelled while it runs is not told.
    CancelForgetsToken,
    /// A wake that comes before the sleep is lost.
    EarlyWakeIsLost,
    /// A wait that was refused still stops its owner.
    RefusedWaitStillStops,
    /// Events are taken for whole whoever writes them meanwhile.
    TornEventIsRead,
    /// Two record in one place at once.
    PlaceIsNotClaimed,
    /// Waiting does not look for cycles.
    NoDeadlockCheck,
    /// A wait whose turn has come still stops its owner.
    GrantedWaitCountsAsStuck,
    /// A wait counts as stuck when any of its alternatives is.
    OneStuckAlternativeIsDeadlock,
}
