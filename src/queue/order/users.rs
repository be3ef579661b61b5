//! The users: what they may have, what is written of them, and how they stand.

use std::sync::Arc;

use super::account::{Account, Limits};
use super::{Charge, Item, Order};
use crate::queue::clock::Micros;
use crate::queue::write::UserRow;

impl Order {
    /// The number of a user.
    pub fn user(&mut self, name: &Arc<str>) -> usize {
        if let Some(known) = self.names.get(name) {
            return *known;
        }
        let user = self.users.insert(Account::new(name.clone()));
        self.names.insert(name.clone(), user);
        self.note_idle(user);
        user
    }

    /// A user has so many more jobs in the books, or something on its way there: he is not forgotten.
    pub fn keep(&mut self, user: usize, jobs: u64) {
        if let Some(account) = self.users.get_mut(user) {
            account.jobs += jobs;
            self.note_idle(user);
        }
    }

    /// Ends what [`Order::keep`] began, of so many.
    pub fn let_go(&mut self, user: usize, jobs: u64) {
        if let Some(account) = self.users.get_mut(user) {
            account.jobs -= jobs;
            self.note_idle(user);
        }
    }

    /// Puts a user among those who have nothing here, or takes him out.
    pub(super) fn note_idle(&mut self, user: usize) {
        let Some(account) = self.users.get_mut(user) else { return };
        let idle = account.is_idle().then_some(account.had);
        let before = std::mem::replace(&mut account.idle, idle);
        if let Some(had) = before {
            self.idle.remove(&(had, user));
        }
        if let Some(had) = idle {
            self.idle.insert((had, user));
        }
    }

    /// Forgets users who have nothing here, if there are more than are remembered. Returns their names.
    pub fn forget_users(&mut self) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        while self.idle.len() > self.rules.remembered
            && let Some((had, user)) = self.idle.pop_first()
        {
            let Account { name, .. } = self.users.remove(user);
            self.names.remove(&name);
            self.virtual_time = self.virtual_time.max(had);
            gone.push(name);
        }
        gone
    }

    /// Where users are who come now.
    #[must_use]
    pub fn virtual_time(&self) -> Micros {
        self.virtual_time
    }

    /// The name of a user.
    #[must_use]
    pub fn name(&self, user: usize) -> &str {
        self.users.get(user).map_or("", |account| &account.name)
    }

    /// How many jobs of a user are queued.
    #[must_use]
    pub fn queued(&self, user: usize) -> u64 {
        self.users.get(user).map_or(0, |account| account.queued)
    }

    /// What a user may have.
    #[must_use]
    pub fn limits(&self, user: usize) -> Limits {
        self.users.get(user).map(|account| account.limits.clone()).unwrap_or_default()
    }

    /// Sets what a user may have.
    pub fn set_limits(&mut self, user: usize, limits: Limits, now: Micros) {
        if let Some(account) = self.users.get_mut(user) {
            account.limits = limits;
            self.refresh(user, now);
        }
    }

    /// Pauses or resumes a user, or all.
    pub fn pause(&mut self, user: Option<usize>, paused: bool, now: Micros) {
        match user {
            None => self.paused = paused,
            Some(user) => {
                if let Some(account) = self.users.get_mut(user) {
                    account.paused = paused;
                    self.refresh(user, now);
                }
            }
        }
    }

    /// Whether all are paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Puts an account where an earlier process had left it.
    pub fn restore(&mut self, user: usize, row: &UserRow, now: Micros) {
        if let Some(account) = self.users.get_mut(user) {
            (account.had, account.time) = (row.had, row.time);
            account.limits = row.limits.clone();
            for (minute, time) in &row.last_hour {
                account.last_hour.charge_minute(*minute, *time, now);
            }
            self.refresh(user, now);
        }
    }

    /// What a user may have and has had, as it is written.
    #[must_use]
    pub fn row(&self, user: usize) -> Option<UserRow> {
        let account = self.users.get(user)?;
        Some(UserRow {
            name: account.name.clone(),
            limits: account.limits.clone(),
            had: account.had,
            time: account.time,
            // Without a limit nobody asks.
            last_hour: match account.limits.gpu_time_per_hour {
                Some(_) => account.last_hour.minutes(),
                None => Vec::new(),
            },
            virtual_time: self.virtual_time,
        })
    }

    /// The same, as it will be once a job has ended after so much time.
    #[must_use]
    pub fn row_after(
        &self,
        item: &Item,
        device: usize,
        charge: Charge,
        took: Micros,
        now: Micros,
    ) -> Option<UserRow> {
        let account = self.users.get(item.user)?;
        let more = self.on(device, took) - charge.time;
        let mut row = self.row(item.user)?;
        row.had = row.had.saturating_add(account.share(more));
        row.time += more;
        if account.limits.gpu_time_per_hour.is_some() {
            let mut last_hour = account.last_hour.clone();
            last_hour.charge(charge.at, more, now);
            row.last_hour = last_hour.minutes();
        }
        Some(row)
    }

    /// Puts those who come now where they would have been.
    pub fn restore_time(&mut self, virtual_time: Micros) {
        self.virtual_time = virtual_time;
    }

    /// Every user's number, name and what there is to say.
    pub fn accounts(&mut self, now: Micros) -> Vec<UserStatus> {
        let told = self.users.iter_mut().map(|(_, account)| {
            account.last_hour.forget_before(now);
            UserStatus {
                name: account.name.clone(),
                weight: account.limits.weight,
                queued: account.queued,
                running: account.running,
                gpu_time: account.time,
                last_hour: account.last_hour.sum(),
                paused: account.paused,
                blocked: account.blocked(),
            }
        });
        told.collect()
    }
}

/// A user at a glance.
#[derive(Debug, Clone)]
pub struct UserStatus {
    /// His name.
    pub name: Arc<str>,
    /// His share beside others.
    pub weight: f64,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// GPU time charged.
    pub gpu_time: Micros,
    /// GPU time charged in the last sixty minutes.
    pub last_hour: Micros,
    /// Whether he is paused.
    pub paused: bool,
    /// Why nothing of his can start.
    pub blocked: Option<String>,
}
