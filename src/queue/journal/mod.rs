//! The file of a durable queue.

use std::path::Path;

use super::error::JournalError;
use super::write::Write;

/// What a written job survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The end of the process.
    #[default]
    Process,
    /// The end of the machine, too.
    Power,
}

/// The file.
#[derive(Debug)]
pub enum Journal {}

impl Journal {
    pub(super) fn open(_: &Path, _: Durability) -> Result<Self, JournalError> {
        unimplemented!()
    }
    pub(super) fn path(&self) -> &Path {
        match *self {}
    }
    pub(super) fn enter(&self, _: Vec<Write>) -> u64 {
        match *self {}
    }
    pub(super) fn commit(&self, _: u64) -> Result<(), JournalError> {
        match *self {}
    }
    pub(super) fn close(&self) {
        match *self {}
    }
}
