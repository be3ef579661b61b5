//! Giving memory back: to the system at once, and without keeping the caller.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::entry::Entry;
use crate::sync::Mutex;
use crate::wait::PerProcess;

/// Less is unmapped faster than it is handed to another thread.
const LARGE: u64 = 16 << 20;

/// Lets go of weights; if they are large and nobody else has them, behind the caller's back.
pub(super) fn let_go(entry: Arc<Entry>) {
    if entry.nbytes < LARGE {
        return;
    }
    let Some(entry) = Arc::into_inner(entry) else { return };
    if let Err(entry) = send(Box::new(entry)) {
        drop(entry);
    }
}

/// Lets go of weights that nobody else has, and has the system forget their files' contents: their
/// bytes are wanted elsewhere, now.
pub(super) fn give_back(entry: Arc<Entry>) {
    #[cfg(target_os = "linux")]
    let files: Vec<_> = entry
        .memories()
        .iter()
        .filter_map(|memory| {
            let (_, file) = memory.map()?;
            file.try_clone().ok()
        })
        .collect();
    drop(entry);
    #[cfg(target_os = "linux")]
    for file in files {
        // Pages that other processes map stay; nothing depends on it.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// The thread that unmaps, started when it is first needed.
#[derive(Default)]
struct Reaper(Mutex<Option<Sender<Box<Entry>>>>);

fn send(entry: Box<Entry>) -> Result<(), Box<Entry>> {
    static REAPER: PerProcess<Reaper> = PerProcess::new();
    let mut sender = REAPER.get_or_init(Reaper::default).0.lock();
    let started = match sender.take() {
        Some(sender) => sender,
        None => {
            let (fresh, received) = channel::<Box<Entry>>();
            let builder = thread::Builder::new().name("coresident unmap".to_owned());
            if builder.spawn(move || received.into_iter().for_each(drop)).is_err() {
                return Err(entry);
            }
            fresh
        }
    };
    let outcome = started.send(entry).map_err(|unsent| unsent.0);
    *sender = Some(started);
    outcome
}
