//! Giving memory back: to the system at once, or without keeping whoever was the last to have it.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::memory::{Memory, MemoryKind};
use super::spare::Spares;
use crate::budget::Reservation;
use crate::sync::Mutex;
use crate::wait::PerProcess;

/// Less is unmapped faster than it is handed to another thread.
pub(super) const LARGE: u64 = 16 << 20;

/// What is left of weights that nobody has: dropped in this order, so that the bytes are given back
/// once they are free.
pub(super) struct Remains {
    pub(super) memories: Vec<Memory>,
    pub(super) reserved: Option<Reservation>,
}

impl Remains {
    /// Leaves a slab and its bytes to the next load. What else there is comes back.
    pub(super) fn leave_to(mut self, spares: &Spares, forks: u64) -> Option<Self> {
        if let (Some(reserved), [only]) = (self.reserved.take(), self.memories.as_slice()) {
            if only.kind() == MemoryKind::Slab {
                let slab = self.memories.pop().and_then(Memory::into_slab)?;
                spares.keep(slab, reserved, forks);
                return None;
            }
            self.reserved = Some(reserved);
        }
        Some(self)
    }

    /// Lets go of them behind the caller's back; where no thread can be started, at once.
    pub(super) fn let_go(self) {
        if let Err(unsent) = send(self) {
            drop(unsent);
        }
    }

    /// Lets go of them now, and has the system forget their files' contents: their bytes are wanted
    /// elsewhere.
    pub(super) fn give_back(self) {
        let Self { memories, reserved } = self;
        #[cfg(target_os = "linux")]
        let files: Vec<_> = memories
            .iter()
            .filter_map(|memory| {
                let (_, file) = memory.map()?;
                file.try_clone().ok()
            })
            .collect();
        drop(memories);
        #[cfg(target_os = "linux")]
        for file in files {
            // Pages that other processes map stay; nothing depends on it.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
        drop(reserved);
    }
}

/// The thread that unmaps, started when it is first needed.
#[derive(Default)]
struct Reaper(Mutex<Option<Sender<Remains>>>);

fn send(remains: Remains) -> Result<(), Remains> {
    static REAPER: PerProcess<Reaper> = PerProcess::new();
    let mut sender = REAPER.get_or_init(Reaper::default).0.lock();
    let started = match sender.take() {
        Some(sender) => sender,
        None => {
            let (fresh, received) = channel::<Remains>();
            let builder = thread::Builder::new().name("coresident unmap".to_owned());
            if builder.spawn(move || received.into_iter().for_each(drop)).is_err() {
                return Err(remains);
            }
            fresh
        }
    };
    let outcome = started.send(remains).map_err(|unsent| unsent.0);
    *sender = Some(started);
    outcome
}
