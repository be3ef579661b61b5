//! The next job of a device.

use super::{Holdings, Item, Key, Lane, Order, Place, Rank};
use crate::queue::clock::Micros;

/// The most users that placement looks at, from the next one on.
const MOST_USERS: usize = 32;
/// The most kinds of jobs that placement looks for.
const MOST_KINDS: usize = 32;
/// The most lanes that it looks in.
const MOST_LANES: usize = 16;

/// The lanes that a device serves and in which somebody stands.
fn served(order: &Order, device: usize) -> impl Iterator<Item = (usize, &Lane)> {
    let bit = 1u64.checked_shl(u32::try_from(device).unwrap_or(u32::MAX)).unwrap_or(0);
    let serves = move |lane: &Lane| lane.mask & bit != 0 && !lane.users.is_empty();
    order.lanes.iter().filter(move |(_, lane)| serves(lane))
}

impl Order {
    /// The job that this device is to run next, which holds these weights. It stays queued.
    pub fn next(&mut self, device: usize, holdings: &Holdings, now: Micros) -> Option<u64> {
        if self.paused {
            return None;
        }
        let (key, user) = served(self, device).filter_map(|(_, lane)| lane.users.first()).min()?;
        let (key, user) = (*key, *user);
        let fair = self.first_of(user, device)?;
        if let Some((had, _)) = self.runnable.first() {
            self.virtual_time = self.virtual_time.max(*had);
        }
        let placed = self.placed(device, key, user, fair, holdings, now);
        match placed {
            Some((other, job)) => {
                if other != user
                    && let Some(account) = self.users.get_mut(user)
                {
                    account.passed.get_or_insert(now);
                }
                Some(job)
            }
            None => Some(fair.1),
        }
    }

    /// The first job of a user for a device.
    fn first_of(&self, user: usize, device: usize) -> Option<Place> {
        let lanes = &self.users.get(user)?.lanes;
        let firsts = served(self, device).filter_map(|(at, _)| lanes.get(&at)?.first());
        firsts.min().copied()
    }

    /// The job that goes before the fair one because this device holds what it needs, and whose.
    fn placed(
        &self,
        device: usize,
        key: Key,
        user: usize,
        fair: Place,
        holdings: &Holdings,
        now: Micros,
    ) -> Option<(usize, u64)> {
        let slack = self.rules.slack;
        if slack == 0 || holdings.is_empty() {
            return None;
        }
        let since = self.users.get(user).and_then(|account| account.passed);
        if since.is_some_and(|since| now - since >= slack) {
            return None;
        }
        let fair_needs = &self.items.get(&fair.1)?.needs;
        let bytes = |needs: &[std::sync::Arc<str>]| -> u64 {
            needs.iter().filter_map(|key| holdings.get(key)).sum()
        };
        let fair_bytes = bytes(fair_needs);
        let mut kinds: Vec<(u64, usize)> = holdings
            .keys()
            .filter_map(|key| self.kinds_needing.get(key))
            .flatten()
            .map(|&kind| (bytes(&self.kinds[kind].needs), kind))
            .filter(|(held, _)| *held > fair_bytes)
            .collect();
        if kinds.is_empty() {
            return None;
        }
        kinds.sort_unstable_by(|one, other| other.cmp(one));
        kinds.dedup();
        kinds.truncate(MOST_KINDS);
        let lanes: Vec<usize> =
            served(self, device).map(|(lane, _)| lane).take(MOST_LANES).collect();
        let near = self.near(device, key).into_iter();
        let users: Vec<(usize, Rank)> =
            near.filter_map(|(_, user)| Some((user, self.first_of(user, device)?.0))).collect();
        for (_, kind) in kinds {
            for &(user, head) in &users {
                let Some(account) = self.users.get(user) else { continue };
                let firsts =
                    lanes.iter().filter_map(|&lane| account.kinds.get(&(kind, lane))?.first());
                // Of one user's jobs a later one goes first by no more than the slack, too.
                let near = |(rank, _): &&Place| rank.0 == head.0 && rank.1 - head.1 <= slack;
                if let Some((_, job)) = firsts.min().filter(near) {
                    return Some((user, *job));
                }
            }
        }
        None
    }

    /// The users who are behind the next one by no more than the slack, in order.
    fn near(&self, device: usize, key: Key) -> Vec<(Key, usize)> {
        let slack = self.rules.slack;
        let close = |other: &Key| {
            if self.rules.fifo {
                other.0 == key.0 && other.1.saturating_sub(key.1) <= slack
            } else {
                other.0.saturating_sub(key.0) <= slack
            }
        };
        let mut users: Vec<(Key, usize)> = served(self, device)
            .flat_map(|(_, lane)| {
                lane.users.iter().take_while(|(key, _)| close(key)).take(MOST_USERS)
            })
            .copied()
            .collect();
        users.sort_unstable();
        users.truncate(MOST_USERS);
        users
    }

    /// The jobs that this device would be given one after the other, as things stand: at most so many.
    /// Nothing is changed by looking.
    pub fn forecast(
        &mut self,
        device: usize,
        holdings: &Holdings,
        most: usize,
        now: Micros,
    ) -> Vec<Item> {
        let virtual_time = self.virtual_time;
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(job) = self.next(device, holdings, now)
        {
            let user = self.items.get(&job).map_or(0, |item| item.user);
            let before = self.users.get(user).map(|account| (account.had, account.passed));
            let Some(item) = self.remove(job, now) else { break };
            let charge = self.begin(&item, device, now);
            taken.push((item, charge, before));
        }
        for (item, charge, before) in taken.iter().rev() {
            self.end(item, device, *charge, None, now);
            if let (Some((had, passed)), Some(account)) = (before, self.users.get_mut(item.user)) {
                (account.had, account.passed) = (*had, *passed);
            }
            self.insert(item.clone(), now);
        }
        self.virtual_time = virtual_time;
        taken.into_iter().map(|(item, ..)| item).collect()
    }
}
