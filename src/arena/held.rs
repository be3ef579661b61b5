//! An arena as long as somebody has it. The last one to go waits for no stream: it may hold what a stream
//! needs to get on, such as the interpreter when the copy is done of what only Python code can let go of.

use std::ops::Deref;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use super::state::Whose;
use crate::wait::exiting;

/// How long streams are waited for until it is asked whether the process ends.
const SLICE: Duration = Duration::from_millis(100);

/// What whoever has an arena shares with the others.
pub(crate) struct Held(Arc<Shared>);

impl Held {
    pub(super) fn new(arena: Arc<Shared>) -> Self {
        Self(arena)
    }
}

impl Deref for Held {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.birth.is_here() || exiting() {
            return;
        }
        self.evict_pages(usize::MAX, Some(Instant::now()));
        if !self.has_pages() {
            return;
        }
        // Models have no threads but their own.
        if cfg!(feature = "model") {
            return self.evict_the_last();
        }
        // Nobody else will come to do it.
        let (arena, name) = (self.0.clone(), format!("last pages of {}", self.device));
        let builder = thread::Builder::new().name(name);
        if builder.spawn(move || arena.evict_the_last()).is_err() {
            self.evict_the_last();
        }
    }
}

impl Shared {
    /// Evicts all pages of an arena that nobody has, when the streams that use them are done.
    fn evict_the_last(&self) {
        while self.has_pages() && !exiting() {
            self.evict_pages(usize::MAX, Some(Instant::now() + SLICE));
        }
    }

    /// Whether there are any that could leave.
    fn has_pages(&self) -> bool {
        !self.state.lock().candidates(1, Whose::Unused, &[]).is_empty()
    }
}
