//! What concerns the process as a whole: threads that end, `fork`, and the exit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::Left;
use super::graph::{self, Resource};
use crate::sync::{Mutant, planted};

static GENERATION: AtomicU64 = AtomicU64::new(0);
static FORKS_BEGUN: AtomicU64 = AtomicU64::new(0);
static FORKS_OVER: AtomicU64 = AtomicU64::new(0);
/// The thread that ends the interpreter; 0 before that.
static EXITING: AtomicU64 = AtomicU64::new(0);

/// A value of which each process has its own. A forked child makes a new one, because the mutexes in
/// its parent's may have been held, at the fork, by threads that the child does not have.
pub struct PerProcess<T> {
    here: OnceLock<T>,
    child: OnceLock<Box<Self>>,
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PerProcess<T> {
    /// No value yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { here: OnceLock::new(), child: OnceLock::new() }
    }

    /// This process's value.
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        let here = (0..generation()).fold(self, |place, _| place.child.get_or_init(Box::default));
        here.here.get_or_init(make)
    }
}

/// The primitives that are told when a thread ends. The mutex is std's in models too: nothing happens
/// under it that they could order otherwise.
type Resources = Vec<Weak<dyn Resource>>;

#[cfg(not(feature = "model"))]
fn all_resources() -> &'static Mutex<Resources> {
    static RESOURCES: PerProcess<Mutex<Resources>> = PerProcess::new();
    RESOURCES.get_or_init(Mutex::default)
}

#[cfg(feature = "model")]
fn all_resources() -> &'static Mutex<Resources> {
    loom::lazy_static! {
        static ref RESOURCES: Mutex<Resources> = Mutex::default();
    }
    &RESOURCES
}

fn resources() -> MutexGuard<'static, Resources> {
    all_resources().lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many forks lie between the first process and this one.
pub(super) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// How often this process has forked, as far as it was told; `None` while it does.
#[must_use]
pub fn forks() -> Option<u64> {
    // In this order: a fork that is over by the first look has begun by the second.
    let over = FORKS_OVER.load(Ordering::SeqCst);
    let begun = FORKS_BEGUN.load(Ordering::SeqCst);
    (begun == over).then_some(begun)
}

/// To be called right before `fork`.
pub fn about_to_fork() {
    FORKS_BEGUN.fetch_add(1, Ordering::SeqCst);
}

/// To be called in the parent process right after `fork`, whether it succeeded or not.
pub fn has_forked() {
    FORKS_OVER.fetch_add(1, Ordering::SeqCst);
}

/// To be called in a child process right after `fork`: whatever was made before is refused there.
pub fn entered_child() {
    // The fork that made it is over here too.
    FORKS_OVER.store(FORKS_BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// The process in which something was made.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    generation: u64,
    pid: u32,
}

impl Default for Birth {
    fn default() -> Self {
        Self { generation: generation(), pid: std::process::id() }
    }
}

impl Birth {
    /// Whether this is still the process in which it was made.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.generation == generation()
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`Forked`], in any process but its own.
    pub fn check(&self, what: &'static str) -> Result<(), Forked> {
        if self.is_here() { Ok(()) } else { Err(Forked { what, parent: self.pid }) }
    }
}

/// Something made before a `fork` was used in the child.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "this {what} was made in process {parent}, before a fork; threads and locks do not survive a \
     fork, so make a new one in the child (or start it with the 'spawn' method)"
)]
pub struct Forked {
    what: &'static str,
    parent: u32,
}

/// Has `resource` told when a thread ends. It is forgotten once nobody else keeps it.
pub fn register(resource: &Arc<impl Resource + 'static>) {
    let weak: Weak<dyn Resource> = Arc::downgrade(resource) as Weak<dyn Resource>;
    let mut known = resources();
    if known.len() == known.capacity() {
        known.retain(|resource| resource.strong_count() > 0);
    }
    known.push(weak);
}

/// Releases what the code of one thread still holds; called when the thread ends.
pub fn thread_ended(thread: u64) {
    if planted(Mutant::ThreadEndForgotten) {
        return;
    }
    let alive: Vec<_> = resources().iter().filter_map(Weak::upgrade).collect();
    let left: Vec<Left> =
        graph::unwatched(|| alive.iter().map(|resource| resource.thread_ended(thread)).collect());
    left.into_iter().for_each(Left::settle);
}

/// The thread with this number ends the interpreter: no other may attach to it from now on.
pub fn begin_exit(thread: u64) {
    EXITING.store(thread, Ordering::SeqCst);
}

/// Whether the interpreter is being ended.
#[must_use]
pub fn exiting() -> bool {
    EXITING.load(Ordering::SeqCst) != 0
}

/// Whether it is being ended by another thread than the one with this number.
#[must_use]
pub fn shut_out(thread: u64) -> bool {
    let ending = EXITING.load(Ordering::SeqCst);
    ending != 0 && ending != thread
}
