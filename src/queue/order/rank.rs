//! Where a job stands among those of its user, and the rules by which it does.

use crate::queue::clock::Micros;

/// Where a job stands among those of its user: level first, then time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank(pub i64, pub i64);

/// The rules of an order.
#[derive(Debug, Clone)]
pub struct Rules {
    /// One line for all users.
    pub fifo: bool,
    /// What one level of priority is worth; `None` lets the priority decide alone.
    pub ageing: Option<Micros>,
    /// By how much placement may bend the order.
    pub slack: Micros,
    /// By how much GPU time one level of priority puts a user ahead of others.
    pub lead: Micros,
    /// The most users who are remembered without jobs and settings.
    pub remembered: usize,
}

impl Default for Rules {
    fn default() -> Self {
        let (ageing, slack) = (Some(600_000_000), 30_000_000);
        Self { fifo: false, ageing, slack, lead: 0, remembered: 10_000 }
    }
}

impl Rules {
    /// The rank of a job of this priority that is queued now.
    #[must_use]
    pub fn rank(&self, priority: i32, now: Micros) -> Rank {
        match self.ageing {
            Some(ageing) => Rank(0, now.saturating_sub(i64::from(priority).saturating_mul(ageing))),
            None => Rank(-i64::from(priority), now),
        }
    }
}
