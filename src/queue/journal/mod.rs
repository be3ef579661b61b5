//! The file of a durable queue.
//!
//! Writes are entered with the books locked, so that the journal has their order, and committed with no
//! lock held. Whoever comes to commit takes everybody's writes with him: many callers share a
//! transaction, and a call by itself waits for nobody.

mod owner;
mod rows;
mod table;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::clock::Micros;
use super::error::JournalError;
use super::write::{Row, UserRow, Write};
use crate::sync::{Mutex, MutexGuard};
use crate::wait::Birth;
use owner::Ownership;

/// What a written job survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The end of the process.
    #[default]
    Process,
    /// The end of the machine, too.
    Power,
}

/// What an earlier process has left.
pub(super) struct Left {
    pub(super) jobs: Vec<Row>,
    pub(super) users: Vec<UserRow>,
    pub(super) virtual_time: Micros,
    /// The number after the last one that a job ever had.
    pub(super) next_id: u64,
}

/// A file, owned by one queue.
pub struct Journal {
    birth: Birth,
    path: PathBuf,
    /// Taken before the inbox, by whoever commits; `None` once it is closed.
    open: Option<Mutex<Option<Open>>>,
    inbox: Mutex<Inbox>,
}

/// In this order: the file is let go of before anybody else may have it.
struct Open {
    connection: Connection,
    _ownership: Ownership,
}

#[derive(Default)]
struct Inbox {
    entered: u64,
    /// Everything up to here is written or has failed.
    settled: u64,
    waiting: Vec<Entry>,
    failed: HashMap<u64, JournalError>,
}

struct Entry {
    number: u64,
    writes: Vec<Write>,
    /// Nobody waits for it, and it is not given up.
    owed: bool,
}

impl Journal {
    /// Owns and opens a file, and makes it what it has to be.
    pub(super) fn open(path: &Path, durability: Durability) -> Result<Self, JournalError> {
        let ownership = Ownership::of(path)?;
        let connection = table::open(path, durability)?;
        let open = Open { connection, _ownership: ownership };
        Ok(Self {
            birth: Birth::default(),
            path: path.to_owned(),
            open: Some(Mutex::new(Some(open))),
            inbox: Mutex::new(Inbox::default()),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> Option<MutexGuard<'_, Option<Open>>> {
        self.open.as_ref().map(Mutex::lock)
    }

    /// What is there.
    pub(super) fn read(&self) -> Result<Left, JournalError> {
        let Some(open) = self.lock() else { return Err(self.closed()) };
        let Some(open) = open.as_ref() else { return Err(self.closed()) };
        rows::read(&open.connection).map_err(|why| table::failed("reading", &self.path, &why))
    }

    fn closed(&self) -> JournalError {
        JournalError::Failed {
            doing: "writing",
            path: self.path.clone(),
            why: "the queue is closed".into(),
            full: false,
            locked: false,
        }
    }

    /// Enters writes, to be committed under the number that is returned.
    pub(super) fn enter(&self, writes: Vec<Write>) -> u64 {
        self.inbox.lock().enter(writes, false)
    }

    /// Enters writes that nobody waits for: they are committed with those of somebody else.
    pub(super) fn owe(&self, writes: Vec<Write>) {
        if !writes.is_empty() {
            self.inbox.lock().enter(writes, true);
        }
    }

    /// Returns once what was entered is written, with everything that was entered before.
    pub(super) fn commit(&self, number: u64) -> Result<(), JournalError> {
        let Some(mut open) = self.lock() else { return Err(self.closed()) };
        let mut inbox = self.inbox.lock();
        if inbox.settled >= number {
            return inbox.failed.remove(&number).map_or(Ok(()), Err);
        }
        let batch = std::mem::take(&mut inbox.waiting);
        let last = inbox.entered;
        drop(inbox);
        let (failed, owed) = match open.as_mut() {
            Some(open) => self.write(&mut open.connection, batch),
            None => {
                let refused = batch.into_iter().filter(|entry| !entry.owed);
                (refused.map(|entry| (entry.number, self.closed())).collect(), Vec::new())
            }
        };
        let mut inbox = self.inbox.lock();
        inbox.settled = last;
        inbox.failed.extend(failed);
        let later = std::mem::replace(&mut inbox.waiting, owed);
        inbox.waiting.extend(later);
        inbox.failed.remove(&number).map_or(Ok(()), Err)
    }

    /// Writes a batch: all of it in one transaction or, if that fails, each entry in its own. Returns
    /// what failed, and what is still owed.
    fn write(&self, connection: &mut Connection, batch: Vec<Entry>) -> Failures {
        let all = batch.iter().flat_map(|entry| &entry.writes);
        if rows::write(connection, all).is_ok() {
            return Failures::default();
        }
        let mut failures = Failures::default();
        let mut blocked: Option<JournalError> = None;
        for entry in batch {
            let outcome = match &blocked {
                // What is owed comes before whatever was entered after it.
                Some(error) => Err(error.clone()),
                None => rows::write(connection, entry.writes.iter())
                    .map_err(|why| table::failed("writing", &self.path, &why)),
            };
            let Err(error) = outcome else { continue };
            if entry.owed {
                blocked.get_or_insert(error);
                failures.1.push(entry);
            } else {
                failures.0.insert(entry.number, error);
            }
        }
        failures
    }

    /// Writes what is owed, and lets go of the file. What comes later is refused.
    pub(super) fn close(&self) {
        let number = self.inbox.lock().entered;
        // What cannot be written now is as the next process would have it.
        drop(self.commit(number));
        let open = self.lock().and_then(|mut open| open.take());
        drop(open);
    }
}

/// What failed, by number, and what is owed.
type Failures = (HashMap<u64, JournalError>, Vec<Entry>);

impl Inbox {
    fn enter(&mut self, writes: Vec<Write>, owed: bool) -> u64 {
        self.entered += 1;
        self.waiting.push(Entry { number: self.entered, writes, owed });
        self.entered
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.birth.is_here() {
            self.close();
        } else {
            // The file is the parent's, and SQLite must not touch it here.
            std::mem::forget(self.open.take());
        }
    }
}
