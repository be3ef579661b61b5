//! What a user has had of the devices, and what he may have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Key, Place};
use crate::queue::clock::Micros;
use crate::sync::{Mutant, planted};

const MINUTE: Micros = 60_000_000;
const MINUTES: i64 = 60;

/// What a user may have.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// His share beside others; 1 is everybody's.
    pub weight: f64,
    /// The most jobs that run at once.
    pub running: Option<u64>,
    /// The most jobs that are queued.
    pub queued: Option<u64>,
    /// The most GPU time of any sixty minutes.
    pub gpu_time_per_hour: Option<Micros>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { weight: 1.0, running: None, queued: None, gpu_time_per_hour: None }
    }
}

/// GPU time by the minute in which it was charged, for the last sixty.
#[derive(Debug, Clone, Default)]
pub(super) struct LastHour {
    /// Minute and time, the oldest first.
    minutes: BTreeMap<i64, Micros>,
    sum: Micros,
}

impl LastHour {
    pub(super) fn forget_before(&mut self, now: Micros) {
        let oldest = now / MINUTE - MINUTES + 1;
        while let Some(first) = self.minutes.first_entry()
            && *first.key() < oldest
        {
            self.sum -= first.remove();
        }
    }

    /// Charges what began `at` then; a correction may be negative.
    pub(super) fn charge(&mut self, at: Micros, time: Micros, now: Micros) {
        self.forget_before(now);
        self.charge_minute(at / MINUTE, time, now);
    }

    pub(super) fn charge_minute(&mut self, minute: i64, time: Micros, now: Micros) {
        if minute > now / MINUTE - MINUTES {
            *self.minutes.entry(minute).or_default() += time;
            self.sum += time;
        }
    }

    pub(super) fn minutes(&self) -> Vec<(i64, Micros)> {
        self.minutes.iter().map(|(minute, time)| (*minute, *time)).collect()
    }

    pub(super) fn sum(&self) -> Micros {
        self.sum
    }

    /// When less than `limit` will be left, if nothing more is charged.
    pub(super) fn below(&self, limit: Micros) -> Option<Micros> {
        let mut left = self.sum;
        for (minute, time) in &self.minutes {
            if left < limit {
                break;
            }
            left -= time;
            if left < limit {
                return Some((minute + MINUTES) * MINUTE);
            }
        }
        None
    }
}

/// A user.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: Arc<str>,
    pub(super) limits: Limits,
    /// GPU time had, divided by the weight: who has had least is next.
    pub(super) had: Micros,
    /// How much of that is only expected, of jobs that run.
    pub(super) expected: Micros,
    /// GPU time had, as it was.
    pub(super) time: Micros,
    pub(super) last_hour: LastHour,
    /// His jobs in the books, whatever has become of them, and what else is on its way for him.
    pub(super) jobs: u64,
    pub(super) queued: u64,
    pub(super) running: u64,
    pub(super) paused: bool,
    /// Blocked by the hour's limit until then.
    pub(super) until: Option<Micros>,
    /// When placement first passed him over, since he was last served.
    pub(super) passed: Option<Micros>,
    /// What jobs of his took.
    pub(super) usual: Option<Micros>,
    /// His queued jobs by lane, best first.
    pub(super) lanes: BTreeMap<usize, BTreeSet<Place>>,
    /// The same jobs by what they need, and lane.
    pub(super) kinds: HashMap<(usize, usize), BTreeSet<Place>>,
    /// Where he stands in the lanes.
    pub(super) stands: Vec<(usize, Key)>,
    /// What he had had for certain when he was last put into the lanes; `None` if he stands in none.
    pub(super) runnable: Option<Micros>,
    /// What he had had when he was put among those who have nothing here; `None` if he is not there.
    pub(super) idle: Option<Micros>,
}

impl Account {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            limits: Limits::default(),
            had: 0,
            expected: 0,
            time: 0,
            last_hour: LastHour::default(),
            jobs: 0,
            queued: 0,
            running: 0,
            paused: false,
            until: None,
            passed: None,
            usual: None,
            lanes: BTreeMap::new(),
            kinds: HashMap::new(),
            stands: Vec::new(),
            runnable: None,
            idle: None,
        }
    }

    /// Whether he has nothing here but what he has had.
    pub(super) fn is_idle(&self) -> bool {
        let known = self.jobs > 0 && !planted(Mutant::ComingJobHasNoUser);
        let has_jobs = known || self.queued > 0 || self.running > 0;
        !has_jobs && !self.paused && self.limits == Limits::default()
    }

    /// Why none of his jobs can start now.
    pub(super) fn blocked(&self) -> Option<String> {
        if self.paused {
            return Some("paused".to_owned());
        }
        if let Some(most) = self.limits.running.filter(|most| self.running >= *most) {
            return Some(format!("{} of {most} jobs run", self.running));
        }
        self.until?;
        let limit = self.limits.gpu_time_per_hour.unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let (had, limit) = (self.last_hour.sum() as f64 / 1e6, limit as f64 / 1e6);
        Some(format!("{had:.0} of {limit:.0} GPU seconds of the last hour are used"))
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.paused
            || self.until.is_some()
            || self.limits.running.is_some_and(|most| self.running >= most)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a share of a time; what is beyond the range is at its end"
    )]
    /// A time, divided by the weight.
    pub(super) fn share(&self, time: Micros) -> Micros {
        (time as f64 / self.limits.weight) as Micros
    }

    pub(super) fn charge(&mut self, began: Micros, time: Micros, now: Micros) {
        self.time += time;
        self.had = self.had.saturating_add(self.share(time));
        self.last_hour.charge(began, time, now);
    }

    /// What he has had for certain, divided by the weight: without what running jobs are expected to
    /// take.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a share of a time; what is beyond the range is at its end"
    )]
    pub(super) fn had_for_certain(&self) -> Micros {
        self.had.saturating_sub((self.expected as f64 / self.limits.weight) as Micros)
    }
}
