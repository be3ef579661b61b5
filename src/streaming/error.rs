//! What can go wrong while weights are streamed.

use crate::arena::ArenaError;
use crate::budget::BudgetError;
use crate::device::{ByteSize, Name};
use crate::load_lock::LockError;
use crate::wait::{Forked, WaitError};

/// Why streaming is refused, or a block does not come.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamingError {
    /// The arena's, or the device's.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The wait for a turn ended.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// It cannot be streamed through what there can be.
    #[error(
        "{key:?} cannot be streamed on {device}: {} of it stays and its largest block has {}, which \
         is more than the {} that there can be beside {} of working memory; name smaller blocks",
        ByteSize(*.resident), ByteSize(*.largest), ByteSize(*.most), ByteSize(*.beside)
    )]
    TooLarge {
        /// The device.
        device: Name,
        /// Whose blocks they are.
        key: String,
        /// Bytes of what is in no block.
        resident: u64,
        /// Bytes of the largest block.
        largest: u64,
        /// Bytes of working memory that were asked for.
        beside: u64,
        /// Bytes that the device can ever have.
        most: u64,
        /// Bytes that could be reserved then.
        free: u64,
    },
    /// Its memory comes in blocks of which nobody says where.
    #[error(
        "{key:?} cannot be streamed on {device}, which has no virtual memory management: addresses \
         change there whenever weights come back"
    )]
    Moves {
        /// The device.
        device: Name,
        /// What was to be streamed.
        key: String,
    },
    /// A block has no room beside what is in use.
    #[error(
        "a block of {key:?} has no room on {device}: {} of it is missing, {} is left of what it \
         streams through, and the rest is in use",
        ByteSize(*.asked), ByteSize(*.free)
    )]
    NoRoom {
        /// The device.
        device: Name,
        /// Whose block it is.
        key: String,
        /// Bytes that are missing.
        asked: u64,
        /// Bytes that are left.
        free: u64,
    },
    /// A graph would be captured of what comes and goes.
    #[error(
        "a graph is captured on this stream of {device}, which would use the weights of {key:?} when they \
         have left: visit the block before the capture begins, and again whenever it is replayed"
    )]
    Captured {
        /// The device.
        device: Name,
        /// Whose block it is.
        key: String,
    },
    /// It has ended.
    #[error("the streaming of {key:?} on {device} has ended")]
    Closed {
        /// The device.
        device: Name,
        /// Whose weights they were.
        key: String,
    },
    /// It is another process's.
    #[error(transparent)]
    Forked(#[from] Forked),
}

impl From<BudgetError> for StreamingError {
    fn from(error: BudgetError) -> Self {
        Self::Arena(error.into())
    }
}

impl From<LockError> for StreamingError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Wait(error) => Self::Wait(error),
            LockError::Forked(error) => Self::Forked(error),
        }
    }
}
