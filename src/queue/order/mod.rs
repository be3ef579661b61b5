//! Who is next: the order of jobs, without locks, clocks or files.
//!
//! **Fairness.** Weighted deficit round robin over users by GPU time, with a quantum as small as it can
//! be: the user who has had the least time for his weight is next. A claim is charged what the job is
//! expected to take, and its end corrects that. Who comes back after he had nothing to run starts where
//! the others are, so that nobody saves up turns by being away; who was ahead stays ahead.
//!
//! **Users** who have nothing here, neither jobs nor settings, are forgotten when there are too many of
//! them: first who has had the least. Who comes from then on starts where that one was, so that nobody
//! gains turns by being forgotten and coming again.
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
mod charge;
mod choose;
mod lanes;
mod rank;
mod stand;
mod users;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use slab::Slab;

use account::Account;
pub use account::Limits;
pub use charge::Charge;
use lanes::{Kind, Lane};
pub use rank::{Rank, Rules};
pub use users::UserStatus;

use super::clock::Micros;

/// Keys of weights, in order of their use.
pub type Needs = Arc<[Arc<str>]>;

/// What a device holds: keys and their bytes.
pub type Holdings = HashMap<Arc<str>, u64>;

/// A rank, and a job's number.
type Place = (Rank, u64);
/// Where a user stands in a lane; the least is next.
type Key = (i64, i64);

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

/// Queued jobs in order, and the accounts of their users.
#[derive(Debug)]
pub struct Order {
    rules: Rules,
    /// By device: a second there is so many seconds of the fastest.
    speeds: Vec<f64>,
    users: Slab<Account>,
    names: HashMap<Arc<str>, usize>,
    /// Those who have nothing here, by what they have had.
    idle: BTreeSet<(Micros, usize)>,
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
            users: Slab::new(),
            names: HashMap::new(),
            idle: BTreeSet::new(),
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
}
