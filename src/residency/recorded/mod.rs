//! A recorded timeline as a trace of one device, beside what really happened there.

mod reading;

use std::collections::{HashMap, HashSet};

use super::{
    Component, Conditions, NoPolicy, PolicyName, Request, Said, Step, Trace, TraceError,
    steps_under,
};
use crate::device::Name;
use crate::trace::{Event, Kind, Label, Recording, Setting};
use reading::{Read, Reading};

/// What a device was asked for, as a timeline has it, under what it was set up to do.
///
/// Bytes are those of whole pages. Where the room of the device has changed, or others had some of it,
/// the missing bytes are among a request's working memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The requests. The capacity is the most that weights and working memory could have.
    pub trace: Trace,
    /// What else held.
    pub conditions: Conditions,
    /// How the device was set up in the end.
    pub setting: Setting,
    /// What really came of each request.
    pub served: Vec<Served>,
    /// How long jobs ran there, in nanoseconds; 0 if that is not known.
    pub job_nanos: u64,
    /// Whether it begins in the middle: nobody knows what was there when it began.
    pub begins_late: bool,
}

/// What really came of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes that were copied for it.
    pub copied: u64,
    /// How long that took, in nanoseconds.
    pub nanos: u64,
    /// Bytes of working memory that were reserved for it.
    pub beside: u64,
    /// How many bytes of that were really used; `None` if that was not measured.
    pub peak: Option<u64>,
}

/// So many of the last requests are looked at, where nobody says how many.
pub const REQUESTS: usize = 4000;

impl Recorded {
    /// What a timeline has of one device; of the only one that has been used, if none is named.
    ///
    /// # Errors
    /// [`TraceError::Device`] and [`TraceError::Malformed`].
    pub fn of(recording: &Recording, device: Option<&str>) -> Result<Self, TraceError> {
        Self::last_of(recording, device, REQUESTS)
    }

    /// The same, of so many of the last requests at most, though at least one.
    ///
    /// # Errors
    /// As [`Recorded::of`].
    pub fn last_of(
        recording: &Recording,
        device: Option<&str>,
        most: usize,
    ) -> Result<Self, TraceError> {
        let device = chosen(recording, device)?;
        let name: Name = device.parse().map_err(|_| TraceError::Malformed {
            why: format!("{device:?} is the name of no device"),
        })?;
        let label = recording.label(device);
        let of_device = recording.events.iter().filter(|event| Some(event.device) == label);
        let requests = of_device.clone().filter(|event| event.kind == Kind::Request).count();
        let mut skipped = requests.saturating_sub(most.max(1));
        let begins_late = recording.lost > 0 || skipped > 0;
        let mut reading = Reading::default();
        for event in of_device {
            if skipped == 0 {
                reading.event(event);
            } else {
                reading.skip(event);
            }
            skipped -= usize::from(skipped > 0 && event.kind == Kind::Request);
        }
        let setting = match recording.setting(device) {
            Some(setting) => setting.clone(),
            None => Setting {
                device: device.to_owned(),
                limit: reading.requests.iter().map(|request| request.event.of).max().unwrap_or(0),
                page: 1,
                policy: PolicyName::Lru.to_string(),
                ..Setting::default()
            },
        };
        Ok(Self::made(recording, name, reading, setting, begins_late))
    }

    fn made(
        recording: &Recording,
        device: Name,
        reading: Reading,
        setting: Setting,
        begins_late: bool,
    ) -> Self {
        let page = setting.page.max(1);
        // What weights could have at each request: whole pages.
        let room = |request: &Read| {
            let Event { bytes, beside, of, .. } = request.event;
            let needed = bytes.saturating_add(beside);
            (of.max(needed) - beside) / page * page
        };
        let most = |request: &Read| room(request).saturating_add(request.event.beside);
        let capacity = reading.requests.iter().map(most).max().unwrap_or(0);
        let mut numbers: HashMap<Label, Component> = HashMap::new();
        let (mut requests, mut conditions) = (Vec::new(), Conditions::default());
        for request in &reading.requests {
            let next = Component::try_from(numbers.len()).unwrap_or(Component::MAX);
            numbers.entry(request.component).or_insert(next);
            requests.push(Request {
                job: request.job,
                component: recording.name(request.component).to_owned(),
                bytes: request.event.bytes,
                working_bytes: capacity - room(request),
            });
            let held = request.held.iter().filter_map(|held| numbers.get(held).copied());
            conditions.held.push(held.collect());
            conditions.bounds.push(request.bounds);
            let said = request.said.iter().map(|event| match event.kind {
                Kind::JobReleased => Said::Ends { job: event.job },
                Kind::Forecast => {
                    let lists = event.lists().into_iter();
                    let needs = lists.map(|list| recording.list(list).unwrap_or_default());
                    Said::Coming(needs.map(Into::into).collect())
                }
                _ => Said::Begins {
                    job: event.job,
                    within: event.of,
                    stages: recording.list(event.component),
                },
            });
            conditions.said.push(said.collect());
        }
        conditions.observed = Some(device);
        conditions.foretold = reading
            .requests
            .iter()
            .any(|request| request.said.iter().any(|event| event.kind == Kind::Forecast));
        conditions.whole = setting.page <= 1;
        conditions.watermarks = setting.high.map(|high| (setting.low, high));
        let served = reading.served();
        let (trace, job_nanos) = (
            Trace { name: device.to_string(), capacity_bytes: capacity, requests },
            reading.nanos(),
        );
        Self { trace, conditions, setting, served, job_nanos, begins_late }
    }

    /// A trace as a timeline of a device that is set up so would have it, with the times unknown.
    ///
    /// # Errors
    /// [`TraceError`] and what is wrong with the policy.
    pub fn imagined(trace: Trace, setting: Setting) -> Result<Self, TraceError> {
        let made = Self {
            conditions: Conditions {
                watermarks: setting.high.map(|high| (setting.low, high)),
                ..Conditions::default()
            },
            served: Vec::new(),
            job_nanos: 0,
            begins_late: false,
            trace,
            setting,
        };
        let served = made.replay()?.into_iter().zip(&made.trace.requests).map(|(step, request)| {
            Served { copied: step.moved, beside: request.working_bytes, ..Served::default() }
        });
        Ok(Self { served: served.collect(), ..made })
    }

    /// The policy that ran.
    ///
    /// # Errors
    /// [`NoPolicy`], if it is one that is not known here.
    pub fn policy(&self) -> Result<PolicyName, NoPolicy> {
        self.setting.policy.parse()
    }

    /// Has so many of the jobs be known beside the running one that came in the end, whatever was known
    /// then.
    #[must_use]
    pub fn knowing(mut self, lookahead: u64) -> Self {
        self.setting.lookahead = lookahead;
        self.conditions.foretold = false;
        self
    }

    /// What that policy would do once more.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn replay(&self) -> Result<Vec<Step>, TraceError> {
        let policy =
            self.policy().map_err(|error| TraceError::Malformed { why: error.to_string() })?;
        let lookahead = usize::try_from(self.setting.lookahead).unwrap_or(usize::MAX);
        steps_under(&self.trace, policy, lookahead, &self.conditions)
    }

    /// Bytes that were really copied.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.served.iter().map(|served| served.copied).sum()
    }

    /// Whether these steps are what really happened, but for as much as pages are rounded. What the first
    /// request of a component took is not known if the recording begins late.
    #[must_use]
    pub fn is_as(&self, steps: &[Step]) -> bool {
        let mut known: HashSet<&str> = HashSet::new();
        let (mut difference, mut all) = (0_u64, 0_u64);
        for ((request, served), step) in self.trace.requests.iter().zip(&self.served).zip(steps) {
            let first = known.insert(&request.component);
            if !(first && self.begins_late) {
                difference = difference.saturating_add(served.copied.abs_diff(step.moved));
                all = all.saturating_add(served.copied);
            }
        }
        difference <= (all / 100).max(self.setting.page)
    }
}

/// The device that is meant.
fn chosen<'a>(recording: &'a Recording, device: Option<&str>) -> Result<&'a str, TraceError> {
    let used = recording.requested();
    let known = || used.iter().map(|name| (*name).to_owned()).collect();
    match device {
        None if used.len() == 1 => Ok(used[0]),
        None => Err(TraceError::Device { given: None, known: known() }),
        Some(given) => used
            .iter()
            .copied()
            .find(|name| *name == given)
            .ok_or_else(|| TraceError::Device { given: Some(given.to_owned()), known: known() }),
    }
}
