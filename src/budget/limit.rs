//! What a user says about a limit, and what it comes to.

use std::fmt;
use std::str::FromStr;

use crate::device::{ByteSize, SizeError};

const GIB: u64 = 1 << 30;

/// A limit as it is written: bytes, or a share of the memory that this process may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// So many bytes.
    Bytes(u64),
    /// More than 0 and at most 1, of all of the memory.
    Share(f64),
}

/// A limit that cannot be meant.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// A text that is neither.
    #[error("{given:?} is no limit: write bytes such as '12GiB', or a share such as '50%'")]
    Unreadable {
        /// The text.
        given: String,
    },
    /// A share of nothing, or of more than all.
    #[error("{given} is no share of a memory: it is more than 0% and at most 100%")]
    Share {
        /// The share.
        given: String,
    },
    /// A share of a memory whose size is not known.
    #[error("how much memory {name} has is not known here: give its limit in bytes")]
    UnknownTotal {
        /// The memory.
        name: String,
    },
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(given: &str) -> Result<Self, LimitError> {
        let unreadable = || LimitError::Unreadable { given: given.to_owned() };
        let Some(percent) = given.trim().strip_suffix('%') else {
            let bytes = given.parse::<ByteSize>().map_err(|SizeError { .. }| unreadable())?;
            return Ok(Self::Bytes(bytes.0));
        };
        let percent: f64 = percent.trim().parse().map_err(|_| unreadable())?;
        Self::share(percent / 100.0).map_err(|_| LimitError::Share { given: given.to_owned() })
    }
}

impl Limit {
    /// All of the memory.
    pub const ALL: Self = Self::Share(1.0);

    /// A share of all of the memory.
    ///
    /// # Errors
    /// [`LimitError::Share`].
    pub fn share(share: f64) -> Result<Self, LimitError> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self::Share(share))
        } else {
            Err(LimitError::Share { given: format!("{}%", share * 100.0) })
        }
    }

    /// The limit in bytes on the memory `name`, which has `total` bytes.
    ///
    /// # Errors
    /// [`LimitError::UnknownTotal`].
    pub fn bytes(self, name: &str, total: Option<u64>) -> Result<u64, LimitError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Share(share) => {
                let total =
                    total.ok_or_else(|| LimitError::UnknownTotal { name: name.to_owned() })?;
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a share is not exact, and at most all"
                )]
                Ok((total as f64 * share) as u64)
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => ByteSize(*bytes).fmt(f),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

/// The limit on host memory that nobody has set: half of it less 2 GiB, at least 4 GiB, and never
/// more than there is.
#[must_use]
pub fn default_host_limit(total: u64) -> u64 {
    (total / 2).saturating_sub(2 * GIB).max(4 * GIB).min(total)
}
