//! What jobs are expected to take, what their users are charged for that, and what they really took.

use super::{Item, Order};
use crate::queue::clock::Micros;

/// The most averages that are kept of what kinds of jobs took.
const MOST_AVERAGES: usize = 4096;
/// What a job is expected to take when nothing is known.
const UNKNOWN: Micros = 1_000_000;

/// What was charged for a job that is being run.
#[derive(Debug, Clone, Copy)]
pub struct Charge {
    /// The time, as charged.
    pub time: Micros,
    /// When.
    pub at: Micros,
}

impl Order {
    /// Charges the user of a job that was taken out to be run on a device.
    pub fn begin(&mut self, item: &Item, device: usize, now: Micros) -> Charge {
        let time = self.on(device, self.expected(item));
        if let Some(account) = self.users.get_mut(item.user) {
            account.running += 1;
            account.charge(now, time, now);
            account.expected = account.expected.saturating_add(time);
            account.passed = None;
            self.refresh(item.user, now);
        }
        Charge { time, at: now }
    }

    /// Ends what [`Order::begin`] began: after so much time, or `None` if nothing was run.
    pub fn end(
        &mut self,
        item: &Item,
        device: usize,
        charge: Charge,
        took: Option<Micros>,
        now: Micros,
    ) {
        let time = self.on(device, took.unwrap_or(0));
        let Some(account) = self.users.get_mut(item.user) else { return };
        account.running -= 1;
        account.charge(charge.at, time - charge.time, now);
        account.expected = account.expected.saturating_sub(charge.time);
        self.refresh(item.user, now);
    }

    /// Remembers what a job took that was run to its end, for those that come.
    pub fn learn(&mut self, item: &Item, took: Micros) {
        let blend = |usual: Option<Micros>| usual.map_or(took, |usual| usual + (took - usual) / 8);
        if self.usual.len() >= MOST_AVERAGES && !self.usual.contains_key(&item.needs) {
            self.usual.clear();
        }
        let usual = blend(self.usual.get(&item.needs).copied());
        self.usual.insert(item.needs.clone(), usual);
        self.usual_of_all = Some(blend(self.usual_of_all));
        if let Some(account) = self.users.get_mut(item.user) {
            account.usual = Some(blend(account.usual));
        }
    }

    /// The time that a job is expected to take.
    #[must_use]
    pub fn expected(&self, item: &Item) -> Micros {
        let of_kind = || {
            let known = self.usual.get(&item.needs).copied();
            if item.needs.is_empty() { None } else { known }
        };
        let of_user = || self.users.get(item.user).and_then(|account| account.usual);
        item.estimate.or_else(of_kind).or_else(of_user).or(self.usual_of_all).unwrap_or(UNKNOWN)
    }

    /// A time on a device, in time of the fastest one.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a share of a time"
    )]
    pub(super) fn on(&self, device: usize, time: Micros) -> Micros {
        match self.speeds.get(device) {
            Some(&speed) if speed < 1.0 => (time as f64 * speed) as Micros,
            _ => time,
        }
    }
}
