//! Why weights cannot be had.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::budget::BudgetError;
use crate::wait::{Forked, WaitError};

/// Why weights cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WeightsError {
    /// A file cannot be opened, mapped or read.
    #[error("cannot open {path:?}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: Arc<io::Error>,
    },
    /// A file is something else, or broken.
    #[error("{path:?} is not a {format} file: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        format: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A folder in which there is no model, or more than one.
    #[error("{path:?} {why}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no memory for a private copy.
    #[error("there is no memory for a copy of {key:?}: {why}")]
    NoMemory {
        /// The key.
        key: String,
        /// What the system says.
        why: Arc<io::Error>,
    },
    /// A file that has become shorter since it was mapped.
    #[error("{path:?} has been cut short since it was opened: replace files by renaming")]
    Cut {
        /// The file.
        path: PathBuf,
    },
    /// The key is in use for something else.
    #[error("the key {key:?} is in use, and {difference}: release that first, or use another key")]
    InUse {
        /// The key.
        key: String,
        /// The first thing in which both differ.
        difference: String,
        /// The file that it stands for, if it is one.
        open: Option<PathBuf>,
    },
    /// A key that cannot be meant.
    #[error("a key is a text such as 'flux/transformer', not {key:?}")]
    InvalidKey {
        /// The key.
        key: String,
    },
    /// Nothing is open under the key.
    #[error("nothing is open as {key:?}")]
    NotOpen {
        /// The key.
        key: String,
    },
    /// A tensor that is not among the weights.
    #[error("there is no tensor {name:?} in {key:?}, which has {}", listed(.near, *.count))]
    NoTensor {
        /// The tensor asked for.
        name: String,
        /// The key.
        key: String,
        /// Some that are there, the most alike first.
        near: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// Weights in somebody else's memory, of which there can be no private map.
    #[error("{key:?} lies in memory of others, which cannot be mapped: share it with copy=True")]
    NotPrivate {
        /// The key.
        key: String,
    },
    /// A tensor that cannot be shared.
    #[error("{name:?} cannot be shared: {why}")]
    Unshareable {
        /// The tensor.
        name: String,
        /// Why.
        why: String,
    },
    /// The budget has not enough bytes.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The wait ended without the weights.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}

impl WeightsError {
    pub(super) fn unreadable(path: &Path, why: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), why: Arc::new(why) }
    }

    pub(super) fn no_memory(key: &str, why: io::Error) -> Self {
        Self::NoMemory { key: key.to_owned(), why: Arc::new(why) }
    }

    pub(super) fn malformed(path: &Path, format: &'static str, why: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), format, why: why.into() }
    }

    /// Whether it is a matter of the caller's patience, so that somebody else may have more luck.
    pub(super) fn is_of_the_caller(&self) -> bool {
        matches!(
            self,
            Self::Wait(_)
                | Self::Budget(
                    BudgetError::Timeout { .. } | BudgetError::Wait(_) | BudgetError::Forked(_)
                )
                | Self::Forked(_)
        )
    }
}

fn listed(near: &[String], count: usize) -> String {
    let near: Vec<String> = near.iter().map(|name| format!("{name:?}")).collect();
    match count - near.len() {
        0 if near.is_empty() => "none".to_owned(),
        0 => near.join(", "),
        more => format!("{} and {more} more", near.join(", ")),
    }
}
