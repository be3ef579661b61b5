//! What can go wrong with a queue.

use std::path::PathBuf;
use std::sync::Arc;

use crate::device::{ByteSize, Name};
use crate::wait::{Forked, WaitError};

/// Why a call to a queue was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The queue takes and gives no more jobs.
    #[error("the queue is closed")]
    Closed,
    /// A device that the queue does not have.
    #[error("{name} is not one of this queue's devices, which are {}", list(.present))]
    NoDevice {
        /// The device.
        name: Name,
        /// Those of the queue.
        present: Vec<Name>,
    },
    /// More devices than a queue can tell apart.
    #[error("a queue has at most {most} devices, not {given}")]
    TooManyDevices {
        /// How many were given.
        given: usize,
        /// How many there may be.
        most: usize,
    },
    /// No device may ever run the job.
    #[error("this job could never run: {reason}")]
    Unrunnable {
        /// Why.
        reason: String,
    },
    /// A user has as many jobs queued as he may.
    #[error(
        "{user} has {queued} jobs queued and may have {limit}, so that {asked} more are refused"
    )]
    Full {
        /// The user.
        user: String,
        /// His jobs that are queued.
        queued: u64,
        /// How many there may be.
        limit: u64,
        /// How many were to be added.
        asked: u64,
    },
    /// A payload that is too large.
    #[error("the payload has {} and may have {}; keep large data in a file, and submit its path", ByteSize(*.bytes), ByteSize(*.limit))]
    Payload {
        /// Its bytes.
        bytes: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A number that no job has.
    #[error("there is no job {id}: it never was, or has been deleted or forgotten")]
    NoJob {
        /// The number.
        id: u64,
    },
    /// A claim or an offer that has been ended.
    #[error("the {what} of job {id} has been ended already")]
    Ended {
        /// Claim or offer.
        what: &'static str,
        /// The job.
        id: u64,
    },
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The wait ended first.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}

/// Why a queue's file could not be used. What was to be written has not been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// Another queue owns it.
    #[error("{} is owned by {owner}: a file has one queue at a time", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who has it, as far as it is known.
        owner: String,
    },
    /// It is of a version that is not known.
    #[error("{} is of version {found}, and this library writes version {known}: use a newer one", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version of this library.
        known: i64,
    },
    /// It is something else.
    #[error("{} is no queue: {why}", .path.display())]
    NoQueue {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// `SQLite` or the file system refused.
    #[error("{doing} {} failed: {why}", .path.display())]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What they said.
        why: Arc<str>,
        /// Whether the disk is full.
        full: bool,
        /// Whether somebody else has locked the file.
        locked: bool,
    },
}

fn list(names: &[Name]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
