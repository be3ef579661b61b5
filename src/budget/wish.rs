//! What somebody asks for, and what he has of it already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::Place;
use crate::wait::Owner;

/// What somebody asks for.
#[derive(Clone)]
pub(super) struct Wish {
    pub(super) bytes: u64,
    /// How many of them are in memory already, where a probe sees them.
    pub(super) filled: u64,
    /// What the asker has beside, and keeps.
    pub(super) beside: u64,
    /// What of the bytes he has already, as long as nobody takes it while he waits.
    pub(super) stake: Option<Stake>,
    pub(super) purpose: Option<String>,
    pub(super) owner: Option<Owner>,
}

pub(super) fn wish(bytes: u64, purpose: Option<&str>, owner: &Owner) -> Wish {
    let purpose = purpose.map(str::to_owned);
    Wish { bytes, filled: 0, beside: 0, stake: None, purpose, owner: Some(owner.clone()) }
}

impl Wish {
    /// The bytes that are missing.
    pub(super) fn missing(&self) -> u64 {
        self.bytes.saturating_sub(self.stake.as_ref().map_or(0, Stake::bytes))
    }

    /// Who has it, or what it is for.
    pub(super) fn holder(&self) -> String {
        match (&self.purpose, &self.owner) {
            (Some(purpose), _) => format!("{purpose:?}"),
            (None, Some(owner)) => owner.to_string(),
            (None, None) => "somebody".to_owned(),
        }
    }
}

/// Bytes of a reservation that somebody has of what he waits for. Others may take them meanwhile, and
/// then he waits for so many more.
#[derive(Clone)]
pub struct Stake {
    pub(super) place: Place,
    bytes: Arc<AtomicU64>,
}

impl Stake {
    pub(super) fn new(place: Place, bytes: u64) -> Self {
        Self { place, bytes: Arc::new(AtomicU64::new(bytes)) }
    }

    /// How many are left.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// So many are taken. To be said before they are given back.
    pub fn loses(&self, bytes: u64) {
        let _ = self.bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |has| {
            Some(has.saturating_sub(bytes))
        });
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }
}
