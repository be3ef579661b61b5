//! Who is next: the order of jobs, without locks, clocks or files.
//!
//! **Fairness.** Weighted deficit round robin over users by GPU time, with a quantum as small as it can
//! be: the user who has had the least time for his weight is next. A claim is charged what the job is
//! expected to take, and its end corrects that. Who comes back after he had nothing to run starts where
//! the others are, so that nobody saves up turns by being away; who was ahead stays ahead.
//!
//! **A user's jobs** stand by rank: when they were queued, less so many seconds for each level of
//! priority. Ranks never change with time, and still an old job comes before any newer one at last.
//!
//! **Lanes.** Jobs that the same devices may run stand in one lane; a device looks at the lanes that it
//! serves. In each lane the users stand in order, so that the next job is found in O(log n).
//!
//! **Placement.** Of the users who are behind the next one by no more than the slack, the first with a
//! job goes whose needs this device holds; but nobody is passed over for longer than the slack.

mod account;
mod choose;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use slab::Slab;

use account::Account;
pub use account::Limits;

use super::clock::Micros;
use super::write::UserRow;

/// Keys of weights, in order of their use.
pub type Needs = Arc<[Arc<str>]>;

/// What a device holds: keys and their bytes.
pub type Holdings = HashMap<Arc<str>, u64>;

/// The most averages that are kept of what kinds of jobs took.
const MOST_AVERAGES: usize = 4096;
/// What a job is expected to take when nothing is known.
const UNKNOWN: Micros = 1_000_000;

/// Where a job stands among those of its user: level first, then time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank(pub i64, pub i64);

/// A rank, and a job's number.
type Place = (Rank, u64);
/// Where a user stands in a lane; the least is next.
type Key = (i64, i64);

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
}

impl Default for Rules {
    fn default() -> Self {
        Self { fifo: false, ageing: Some(600_000_000), slack: 30_000_000, lead: 0 }
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

/// A job as the order knows it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its number.
    pub job: u64,
    /// Whose it is: a number of [`Order::user`].
    pub user: usize,
    /// The devices that may run it, a bit for each.
    pub mask: u64,
    /// What it needs.
    pub needs: Needs,
    /// Its priority.
    pub priority: i32,
    /// Where it stands.
    pub rank: Rank,
    /// The GPU time that its submitter expects.
    pub estimate: Option<Micros>,
}

/// What was charged for a job that is being run.
#[derive(Debug, Clone, Copy)]
pub struct Charge {
    /// The time, as charged.
    pub time: Micros,
    /// When.
    pub at: Micros,
}

#[derive(Debug)]
struct Lane {
    mask: u64,
    jobs: usize,
    users: BTreeSet<(Key, usize)>,
}

#[derive(Debug)]
struct Kind {
    needs: Needs,
    jobs: usize,
}

/// Queued jobs in order, and the accounts of their users.
#[derive(Debug)]
pub struct Order {
    rules: Rules,
    /// By device: a second there is so many seconds of the fastest.
    speeds: Vec<f64>,
    users: Vec<Account>,
    names: HashMap<Arc<str>, usize>,
    lanes: Slab<Lane>,
    lane_of: HashMap<u64, usize>,
    kinds: Slab<Kind>,
    kind_of: HashMap<Needs, usize>,
    kinds_needing: HashMap<Arc<str>, Vec<usize>>,
    /// What kinds of jobs took.
    usual: HashMap<Needs, Micros>,
    usual_of_all: Option<Micros>,
    /// Where users are who come now.
    virtual_time: Micros,
    runnable: BTreeSet<(Micros, usize)>,
    blocked_until: BTreeSet<(Micros, usize)>,
    /// Jobs queued, and priorities by job, for keys.
    items: HashMap<u64, Item>,
    paused: bool,
}

impl Order {
    /// An order without jobs, for devices of these speeds.
    #[must_use]
    pub fn new(rules: Rules, speeds: Vec<f64>) -> Self {
        Self {
            rules,
            speeds,
            users: Vec::new(),
            names: HashMap::new(),
            lanes: Slab::new(),
            lane_of: HashMap::new(),
            kinds: Slab::new(),
            kind_of: HashMap::new(),
            kinds_needing: HashMap::new(),
            usual: HashMap::new(),
            usual_of_all: None,
            virtual_time: 0,
            runnable: BTreeSet::new(),
            blocked_until: BTreeSet::new(),
            items: HashMap::new(),
            paused: false,
        }
    }

    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How fast a device is, as a share of the fastest.
    #[must_use]
    pub fn speed(&self, device: usize) -> f64 {
        self.speeds.get(device).copied().unwrap_or(1.0)
    }

    /// The number of a user.
    pub fn user(&mut self, name: &Arc<str>) -> usize {
        if let Some(known) = self.names.get(name) {
            return *known;
        }
        let user = self.users.len();
        self.users.push(Account::new(name.clone()));
        self.names.insert(name.clone(), user);
        user
    }

    /// The name of a user.
    #[must_use]
    pub fn name(&self, user: usize) -> &str {
        self.users.get(user).map_or("", |account| &account.name)
    }

    /// The number of a user who is known.
    #[must_use]
    pub fn known_user(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// How many jobs are queued.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
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

    /// Queues a job.
    pub fn insert(&mut self, item: Item, now: Micros) {
        let lane = self.lane(item.mask);
        let kind = self.kind(&item.needs);
        let Some(account) = self.users.get_mut(item.user) else { return };
        let (user, place) = (item.user, (item.rank, item.job));
        account.queued += 1;
        account.lanes.entry(lane).or_default().insert(place);
        account.kinds.entry((kind, lane)).or_default().insert(place);
        self.lanes[lane].jobs += 1;
        self.kinds[kind].jobs += 1;
        self.items.insert(item.job, item);
        self.refresh(user, now);
    }

    /// Takes a queued job out.
    pub fn remove(&mut self, job: u64, now: Micros) -> Option<Item> {
        let item = self.items.remove(&job)?;
        let lane = *self.lane_of.get(&item.mask)?;
        let kind = *self.kind_of.get(&item.needs)?;
        let place = (item.rank, job);
        let account = self.users.get_mut(item.user)?;
        account.queued -= 1;
        if let Some(jobs) = account.lanes.get_mut(&lane) {
            jobs.remove(&place);
            if jobs.is_empty() {
                account.lanes.remove(&lane);
            }
        }
        if let Some(jobs) = account.kinds.get_mut(&(kind, lane)) {
            jobs.remove(&place);
            if jobs.is_empty() {
                account.kinds.remove(&(kind, lane));
            }
        }
        self.refresh(item.user, now);
        self.lanes[lane].jobs -= 1;
        if self.lanes[lane].jobs == 0 {
            self.lanes.remove(lane);
            self.lane_of.remove(&item.mask);
        }
        self.kinds[kind].jobs -= 1;
        if self.kinds[kind].jobs == 0 {
            self.forget_kind(kind);
        }
        Some(item)
    }

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

    /// Gives a queued job another rank and priority.
    pub fn rerank(&mut self, job: u64, rank: Rank, priority: i32, now: Micros) {
        if let Some(mut item) = self.remove(job, now) {
            (item.rank, item.priority) = (rank, priority);
            self.insert(item, now);
        }
    }

    /// A rank before, or after, all that a user has queued.
    #[must_use]
    pub fn outermost(&self, user: usize, front: bool) -> Option<Rank> {
        let account = self.users.get(user)?;
        if front {
            let first = account.lanes.values().filter_map(|jobs| jobs.first()).min()?;
            return Some(Rank(first.0.0, first.0.1.saturating_sub(1)));
        }
        let last = account.lanes.values().filter_map(|jobs| jobs.last()).max()?;
        Some(Rank(last.0.0, last.0.1.saturating_add(1)))
    }

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

    /// Every user's number, name and what there is to say.
    pub fn accounts(&mut self, now: Micros) -> Vec<UserStatus> {
        let told = self.users.iter_mut().map(|account| {
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

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a share of a time"
    )]
    fn on(&self, device: usize, time: Micros) -> Micros {
        match self.speeds.get(device) {
            Some(&speed) if speed < 1.0 => (time as f64 * speed) as Micros,
            _ => time,
        }
    }

    fn lane(&mut self, mask: u64) -> usize {
        let new = || self.lanes.insert(Lane { mask, jobs: 0, users: BTreeSet::new() });
        *self.lane_of.entry(mask).or_insert_with(new)
    }

    fn kind(&mut self, needs: &Needs) -> usize {
        if let Some(known) = self.kind_of.get(needs) {
            return *known;
        }
        let kind = self.kinds.insert(Kind { needs: needs.clone(), jobs: 0 });
        self.kind_of.insert(needs.clone(), kind);
        for key in needs.iter() {
            let kinds = self.kinds_needing.entry(key.clone()).or_default();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kind
    }

    fn forget_kind(&mut self, kind: usize) {
        let Kind { needs, .. } = self.kinds.remove(kind);
        self.kind_of.remove(&needs);
        for key in needs.iter() {
            if let Some(kinds) = self.kinds_needing.get_mut(key) {
                kinds.retain(|other| *other != kind);
                if kinds.is_empty() {
                    self.kinds_needing.remove(key);
                }
            }
        }
    }

    /// Puts a user where he stands now, in every lane in which he has jobs.
    fn refresh(&mut self, user: usize, now: Micros) {
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
