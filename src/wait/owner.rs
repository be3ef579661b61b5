//! Who holds and who waits: a thread, an asyncio task, or the callbacks of one event loop.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::process;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What kind of code an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain code of a thread. While an event loop runs on the thread, this code is below it.
    Thread,
    /// An asyncio task.
    Task,
    /// Callbacks of an event loop, outside any task.
    Loop,
}

/// An identity that is never used twice in a process, unlike thread idents and `id()`s.
#[derive(Clone)]
pub struct Owner(Arc<Identity>);

struct Identity {
    id: u64,
    thread: AtomicU64,
    kind: Kind,
    name: String,
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Owner {}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}#{}", self.0.id)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.0.kind {
            Kind::Thread => "thread",
            Kind::Task => "task",
            Kind::Loop => "event loop of thread",
        };
        write!(f, "{kind} '{}'", self.0.name)
    }
}

struct ThisThread {
    id: u64,
    fork: u64,
    plain: OnceCell<Owner>,
    callbacks: OnceCell<Owner>,
}

impl Drop for ThisThread {
    fn drop(&mut self) {
        // Once the process exits, what its main thread held is nobody's concern.
        if self.fork == process::generation() && !process::exiting() {
            process::thread_ended(self.id);
        }
    }
}

thread_local! {
    static THIS: ThisThread = ThisThread {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        fork: process::generation(),
        plain: const { OnceCell::new() },
        callbacks: const { OnceCell::new() },
    };
}

impl Owner {
    /// The calling thread; `name` is asked once per thread.
    pub fn thread(name: impl FnOnce() -> String) -> Self {
        Self::try_thread(|| Ok::<_, Infallible>(name())).unwrap_or_else(|never| match never {})
    }

    /// As [`Owner::thread`], with a name that may fail to be found.
    ///
    /// # Errors
    /// Those of `name`.
    pub fn try_thread<E>(name: impl FnOnce() -> Result<String, E>) -> Result<Self, E> {
        THIS.with(|this| Self::kept(&this.plain, Kind::Thread, this.id, name))
    }

    /// The callbacks of the event loop that runs on the calling thread.
    ///
    /// # Errors
    /// Those of `name`.
    pub fn try_callbacks<E>(name: impl FnOnce() -> Result<String, E>) -> Result<Self, E> {
        THIS.with(|this| Self::kept(&this.callbacks, Kind::Loop, this.id, name))
    }

    fn kept<E>(
        cell: &OnceCell<Self>,
        kind: Kind,
        thread: u64,
        name: impl FnOnce() -> Result<String, E>,
    ) -> Result<Self, E> {
        if let Some(known) = cell.get() {
            return Ok(known.clone());
        }
        // Asking may run code that comes here too: the cell is not being filled meanwhile.
        let name = name()?;
        Ok(cell.get_or_init(|| Self::with_thread(kind, thread, name)).clone())
    }

    /// A new owner for a task on the calling thread: one per task, kept with the task.
    #[must_use]
    pub fn task(name: String) -> Self {
        THIS.with(|this| Self::with_thread(Kind::Task, this.id, name))
    }

    /// An owner on a thread of its own choosing, for tests and models.
    #[must_use]
    pub fn with_thread(kind: Kind, thread: u64, name: String) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Identity { id, thread: AtomicU64::new(thread), kind, name }))
    }

    /// Notes that it runs on the calling thread now: a task whose event loop was continued elsewhere.
    pub fn moved_here(&self) {
        self.0.thread.store(Self::this_thread(), Ordering::Relaxed);
    }

    /// Its own number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.id
    }

    /// The number of the thread that it runs on.
    #[must_use]
    pub fn thread_number(&self) -> u64 {
        self.0.thread.load(Ordering::Relaxed)
    }

    /// The number of the calling thread.
    #[must_use]
    pub fn this_thread() -> u64 {
        THIS.with(|this| this.id)
    }

    /// What kind of code it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether it can only run when the frames of `other` are on the stack below it: a task, seen
    /// from the plain code of its thread.
    #[must_use]
    pub fn runs_above(&self, other: &Self) -> bool {
        other.kind() == Kind::Thread && self.thread_number() == other.thread_number()
    }
}
