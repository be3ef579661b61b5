//! What concerns the process as a whole: threads that end, `fork`, and the exit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::graph::Resource;

static GENERATION: AtomicU64 = AtomicU64::new(0);
static EXITING: AtomicBool = AtomicBool::new(false);

/// The process-wide registry of one process. A forked child walks on to a fresh one, because the
/// mutexes of its parent may have been held, at the fork, by threads that the child does not have.
#[derive(Default)]
struct Registry {
    resources: Mutex<Vec<Weak<dyn Resource>>>,
    child: OnceLock<Box<Registry>>,
}

fn registry() -> &'static Registry {
    static FIRST: OnceLock<Registry> = OnceLock::new();
    let first = FIRST.get_or_init(Registry::default);
    (0..generation()).fold(first, |registry, _| registry.child.get_or_init(Box::default))
}

/// How many forks lie between the first process and this one.
pub(super) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// To be called in a child process right after `fork`: whatever was made before is refused there.
pub fn entered_child() {
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
    let mut resources = registry().resources.lock();
    if resources.len() == resources.capacity() {
        resources.retain(|known| known.strong_count() > 0);
    }
    resources.push(weak);
}

/// Releases what the code of one thread still holds; called when the thread ends.
pub fn thread_ended(thread: u64) {
    let resources: Vec<_> =
        registry().resources.lock().iter().filter_map(Weak::upgrade).collect();
    for resource in resources {
        resource.thread_ended(thread);
    }
}

/// To be called once the interpreter has begun to exit: nobody may attach to it from now on.
pub fn begin_exit() {
    EXITING.store(true, Ordering::SeqCst);
}

/// Whether the interpreter has begun to exit.
#[must_use]
pub fn exiting() -> bool {
    EXITING.load(Ordering::SeqCst)
}
