//! Who holds and who waits: a thread, an asyncio task, or the callbacks of one event loop.

use std::cell::OnceCell;
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
    thread: u64,
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
        THIS.with(|this| {
            let owner = || Self::with_thread(Kind::Thread, this.id, name());
            this.plain.get_or_init(owner).clone()
        })
    }

    /// The callbacks of the event loop that runs on the calling thread.
    pub fn callbacks(name: impl FnOnce() -> String) -> Self {
        THIS.with(|this| {
            let owner = || Self::with_thread(Kind::Loop, this.id, name());
            this.callbacks.get_or_init(owner).clone()
        })
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
        Self(Arc::new(Identity { id, thread, kind, name }))
    }

    /// Its own number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.id
    }

    /// The number of the thread that it runs on.
    #[must_use]
    pub fn thread_number(&self) -> u64 {
        self.0.thread
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
        other.kind() == Kind::Thread && self.0.thread == other.0.thread
    }
}
