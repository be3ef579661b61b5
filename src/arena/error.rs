//! What can go wrong in an arena.

use crate::budget::BudgetError;
use crate::device::{ByteSize, MemoryError, Name};
use crate::load_lock::LockError;
use crate::wait::{Forked, WaitError};

/// Why pages are refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ArenaError {
    /// The budget has not the bytes, or waiting for them ended.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// More than the device can ever have.
    #[error(
        "{key:?} needs {} of weights{} on {device}, which can never have more than {}",
        ByteSize(*.weights), with_more(*.beside), ByteSize(*.most)
    )]
    TooLarge {
        /// The device.
        device: Name,
        /// Whose pages were wanted.
        key: String,
        /// Bytes of the pages.
        weights: u64,
        /// Bytes of working memory.
        beside: u64,
        /// Bytes of the budget's limit, and of the memory without headroom.
        most: u64,
        /// Bytes that could be reserved then.
        free: u64,
    },
    /// The wait for a turn or for a copy ended.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The device itself.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// It was full though the budget had the bytes, also after everything that nobody uses was evicted.
    #[error(
        "{device} is out of memory: {key:?} needs {} more there, {} is free now that everything \
         unpinned was evicted; {} of weights are pinned",
        ByteSize(*.asked), ByteSize(*.free), ByteSize(*.pinned)
    )]
    Full {
        /// The device.
        device: Name,
        /// Whose pages were wanted.
        key: String,
        /// Bytes that were missing.
        asked: u64,
        /// Bytes that nobody had then.
        free: u64,
        /// Bytes of pages in use.
        pinned: u64,
    },
    /// There is no device memory to have pages in.
    #[error(
        "{device} has no memory of its own in which pages can be placed: weights are used in host \
         memory there, or moved by torch"
    )]
    NoPages {
        /// The device.
        device: Name,
    },
    /// Somebody has the area alone.
    #[error(
        "the weights of {key:?} are streamed on {device}: nobody else can have these pages until that \
         has ended"
    )]
    Exclusive {
        /// The device.
        device: Name,
        /// The key of the area.
        key: String,
    },
    /// Others use pages of what somebody wants alone.
    #[error(
        "the weights of {key:?} cannot be streamed on {device} while others use pages of them: let \
         these go, or make an area with groups, which is another one"
    )]
    InUse {
        /// The device.
        device: Name,
        /// The key of the area.
        key: String,
    },
    /// No tensor of this name.
    #[error("{key:?} has no tensor {name:?} on {device}")]
    NoTensor {
        /// The name asked for.
        name: String,
        /// The key of the area.
        key: String,
        /// The device.
        device: Name,
    },
    /// A tensor without memory on a device where memory moves.
    #[error(
        "{name:?} of {key:?} is nowhere on {device} now: memory comes somewhere else each time there, so \
         that tensors have addresses only while they are pinned"
    )]
    Nowhere {
        /// The name of the tensor.
        name: String,
        /// The key of the area.
        key: String,
        /// The device.
        device: Name,
    },
    /// A low watermark above the high one.
    #[error(
        "the low watermark of {device} is {}, above the high one of {}: eviction begins at the high \
         one and ends at the low one",
        ByteSize(*.low), ByteSize(*.high)
    )]
    Watermarks {
        /// The device.
        device: Name,
        /// As given.
        low: u64,
        /// As given.
        high: u64,
    },
    /// The arena is another process's.
    #[error(transparent)]
    Forked(#[from] Forked),
}

fn with_more(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" and {} beside them", ByteSize(bytes)) }
}

impl From<LockError> for ArenaError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Wait(error) => Self::Wait(error),
            LockError::Forked(error) => Self::Forked(error),
        }
    }
}
