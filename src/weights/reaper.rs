//! Giving memory back: to the system at once, or without keeping whoever was the last to have it.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::memory::{Memory, MemoryKind};
use super::region::Sealed;
use crate::budget::Reservation;
use crate::sync::Mutex;
use crate::wait::PerProcess;

/// Less is unmapped faster than it is handed to another thread.
const LARGE: u64 = 16 << 20;

/// What is left of weights that nobody has: dropped in this order, so that the bytes are given back
/// once they are free.
pub(super) struct Remains {
    pub(super) memories: Vec<Memory>,
    pub(super) reserved: Option<Reservation>,
}

impl Remains {
    /// How long the slab is that is all there is, if it is one.
    pub(super) fn slab_length(&self) -> Option<usize> {
        match self.memories.as_slice() {
            [only] if only.kind() == MemoryKind::Slab => Some(only.len()),
            _ => None,
        }
    }

    /// Bytes that are page-locked for copies to devices.
    pub(super) fn locked(&self) -> u64 {
        self.memories.iter().map(Memory::locked).sum()
    }

    /// The slab and its bytes.
    pub(super) fn into_slab(mut self) -> Option<(Sealed, Reservation)> {
        Some((self.memories.pop()?.into_slab()?, self.reserved?))
    }

    /// Lets go of them: of much behind the caller's back, unless no thread can be started.
    pub(super) fn let_go(self) {
        let bytes: usize = self.memories.iter().map(Memory::len).sum();
        if (bytes as u64) < LARGE {
            return;
        }
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
