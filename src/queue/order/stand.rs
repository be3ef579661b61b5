//! Where users stand in the lanes, and who stands in none because his hour is used.

use super::Order;
use crate::queue::clock::Micros;

impl Order {
    /// When somebody whom his hour's limit blocks can go on.
    #[must_use]
    pub fn next_change(&self) -> Option<Micros> {
        self.blocked_until.first().map(|(at, _)| *at)
    }

    /// Lets those go on whose time has come. Returns whether there were any.
    pub fn advance(&mut self, now: Micros) -> bool {
        let mut any = false;
        while let Some((_, user)) = self.blocked_until.first().copied().filter(|(at, _)| *at <= now)
        {
            self.refresh(user, now);
            any = true;
        }
        any
    }

    /// Puts a user where he stands now, in every lane in which he has jobs.
    pub(super) fn refresh(&mut self, user: usize, now: Micros) {
        self.note_idle(user);
        let Some(account) = self.users.get_mut(user) else { return };
        if let Some(until) = account.until.take() {
            self.blocked_until.remove(&(until, user));
        }
        if let Some(limit) = account.limits.gpu_time_per_hour {
            account.last_hour.forget_before(now);
            if account.last_hour.sum() >= limit {
                let until = account.last_hour.below(limit).unwrap_or(Micros::MAX);
                account.until = Some(until);
                self.blocked_until.insert((until, user));
            }
        }
        let before = account.runnable.take();
        for (lane, key) in account.stands.drain(..) {
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.users.remove(&(key, user));
            }
        }
        if let Some(had) = before {
            self.runnable.remove(&(had, user));
        }
        if account.queued == 0 || account.is_blocked() {
            return;
        }
        if before.is_none() {
            account.had = account.had.max(self.virtual_time);
        }
        // Who comes later is not behind for what others are only expected to take.
        let certain = account.had_for_certain();
        account.runnable = Some(certain);
        self.runnable.insert((certain, user));
        for (&lane, jobs) in &account.lanes {
            let Some((rank, job)) = jobs.first() else { continue };
            let key = if self.rules.fifo {
                (rank.0, rank.1)
            } else {
                let priority = self.items.get(job).map_or(0, |item| i64::from(item.priority));
                (account.had.saturating_sub(priority.saturating_mul(self.rules.lead)), 0)
            };
            account.stands.push((lane, key));
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.users.insert((key, user));
            }
        }
    }
}
