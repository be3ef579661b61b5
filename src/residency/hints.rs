//! Hints: what would have spared copies, each proved by a replay before it is given.
//!
//! One change is tried at a time: no eviction beyond need, more room as far as the device has it, less
//! working memory where less was used, another policy. A change is worth a hint if the replay with it
//! copies much less again than the replay of what was; and the latter has to be what really happened.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;

use super::{Conditions, PolicyName, Recorded, Step, Trace, TraceError, steps_under};
use crate::device::ByteSize;

/// A hint spares at least so much of what was copied again, in per cent.
const WORTH: u64 = 20;
/// And at least so much of the time of jobs, where that is known.
const WORTH_TIME: f64 = 0.01;
/// Room is added in steps of about so small a part of what can be added, if pages are not larger.
const STEPS: u64 = 1 << 18;
/// What comes so close to the best that can be is as good, in per cent.
const CLOSE: u64 = 5;

/// What stood in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintKind {
    /// Weights left as soon as nobody used them, though there was room.
    AlwaysEvict,
    /// Weights left at a watermark, though there was room.
    Watermarks,
    /// The limit of the device's budget, or its headroom.
    Budget,
    /// More working memory was reserved than was used.
    WorkingMemory,
    /// The policy.
    Policy,
}

impl HintKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::AlwaysEvict, Self::Watermarks, Self::Budget, Self::WorkingMemory, Self::Policy];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AlwaysEvict => "always-evict",
            Self::Watermarks => "watermarks",
            Self::Budget => "budget",
            Self::WorkingMemory => "working-memory",
            Self::Policy => "policy",
        }
    }
}

/// What to change; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The limit of the device's budget, in bytes.
    pub limit: Option<u64>,
    /// Its headroom, in bytes.
    pub headroom: Option<u64>,
    /// Whether weights are to stay until their room is wanted.
    pub no_watermarks: bool,
    /// The policy.
    pub policy: Option<String>,
    /// The working memory of components, in bytes.
    pub working_memory: Vec<(String, u64)>,
}

/// That copies could have been spared, and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hint {
    /// What stood in the way.
    pub kind: HintKind,
    /// Where.
    pub device: String,
    /// What was copied again, that which had most bytes first.
    pub components: Vec<String>,
    /// How often it was.
    pub copies: u64,
    /// How many bytes of it.
    pub bytes: u64,
    /// How many seconds that took; 0 if that is not known.
    pub seconds: f64,
    /// What share of the time of all jobs there that is; `None` if that is not known.
    pub share: Option<f64>,
    /// How many of these bytes would not have been copied.
    pub spared: u64,
    /// What to change.
    pub advice: Advice,
    /// As a sentence.
    pub text: String,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is replayed.
#[derive(Clone)]
struct Case {
    trace: Trace,
    conditions: Conditions,
    policy: PolicyName,
    lookahead: usize,
}

impl Case {
    fn run(&self) -> Result<Outcome, TraceError> {
        let steps = steps_under(&self.trace, self.policy, self.lookahead, &self.conditions)?;
        Ok(Outcome::of(&self.trace, &steps))
    }

    /// With so many bytes more.
    fn roomier(&self, by: u64) -> Self {
        let mut case = self.clone();
        case.trace.capacity_bytes += by;
        case
    }
}

/// What was copied again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Outcome {
    again: u64,
    /// By request.
    of: Vec<u64>,
}

impl Outcome {
    fn of(trace: &Trace, steps: &[Step]) -> Self {
        let mut known: HashSet<&str> = HashSet::new();
        let again = trace.requests.iter().zip(steps).map(|(request, step)| {
            let first = known.insert(&request.component);
            if first { 0 } else { step.moved }
        });
        let of: Vec<u64> = again.collect();
        Self { again: of.iter().sum(), of }
    }
}

/// What would have spared copies on a device. None, if the recorded policy would not do again what really
/// happened there: what is not understood is no ground for advice.
///
/// # Errors
/// [`TraceError`].
pub fn hints(recorded: &Recorded) -> Result<Vec<Hint>, TraceError> {
    let steps = recorded.replay()?;
    if !recorded.is_as(&steps) {
        return Ok(Vec::new());
    }
    let Ok(policy) = recorded.policy() else { return Ok(Vec::new()) };
    let case = Case {
        trace: recorded.trace.clone(),
        conditions: recorded.conditions.clone(),
        policy,
        lookahead: usize::try_from(recorded.setting.lookahead).unwrap_or(usize::MAX),
    };
    let before = Outcome::of(&recorded.trace, &steps);
    let search = Search { recorded, case, before };
    let mut found = Vec::new();
    for look in [Search::eviction, Search::room, Search::working_memory, Search::policy] {
        if let Some(hint) = look(&search)? {
            let all = hint.spared == hint.bytes;
            found.push(hint);
            if all {
                // There is nothing left to be spared.
                break;
            }
        }
    }
    Ok(found)
}

struct Search<'a> {
    recorded: &'a Recorded,
    case: Case,
    before: Outcome,
}

impl Search<'_> {
    /// Whether weights that leave by themselves are the cause.
    fn eviction(&self) -> Result<Option<Hint>, TraceError> {
        let always = self.case.policy == PolicyName::AlwaysEvict
            || self.case.conditions.watermarks == Some((0, 0));
        if !always && self.case.conditions.watermarks.is_none() {
            return Ok(None);
        }
        let mut case = self.case.clone();
        case.conditions.watermarks = None;
        if case.policy == PolicyName::AlwaysEvict {
            case.policy = PolicyName::default();
        }
        let kind = if always { HintKind::AlwaysEvict } else { HintKind::Watermarks };
        let told = match kind {
            HintKind::AlwaysEvict => "let weights stay until their room is wanted".to_owned(),
            _ => "set no watermarks, or higher ones".to_owned(),
        };
        self.hint(kind, &case, Advice { no_watermarks: true, ..Advice::default() }, &told)
    }

    /// Whether more room would help, and there is some.
    fn room(&self) -> Result<Option<Hint>, TraceError> {
        let setting = &self.recorded.setting;
        // Beyond what others outside have of the device.
        let there = setting.total.saturating_sub(setting.outside);
        let above_limit = there.saturating_sub(setting.headroom).saturating_sub(setting.limit);
        // Where the headroom decides, the limit has bytes left.
        let below_limit = setting.limit.saturating_sub(there.saturating_sub(setting.headroom));
        let headroom = setting.headroom.min(there);
        let most = above_limit + headroom;
        if setting.total == 0 || most == 0 {
            return Ok(None);
        }
        let best = self.case.roomier(most).run()?.again;
        if !self.is_worth(best) {
            return Ok(None);
        }
        // What all but fits does not fit.
        let enough = if best == 0 { 0 } else { best + (self.before.again - best) / 100 * CLOSE };
        let page = setting.page.max(1);
        // A power of two, so that round figures are met.
        let step = page << (most / page / STEPS).checked_ilog2().unwrap_or(0);
        // The least that is enough, if more is never worse; what is found is enough in any case.
        let (mut little, mut much) = (0, most.div_ceil(step));
        while much - little > 1 {
            let middle = little + (much - little) / 2;
            let outcome = self.case.roomier((middle * step).min(most)).run()?;
            if outcome.again <= enough { much = middle } else { little = middle }
        }
        let by = (much * step).min(most);
        let mut advice = Advice::default();
        let (by, told) = if by <= above_limit {
            let limit = rounded_up(setting.limit + by).min(setting.limit + above_limit);
            advice.limit = Some(limit);
            (limit - setting.limit, format!("raise the budget's limit to {}", ByteSize(limit)))
        } else {
            let lower = rounded_up(by - above_limit).min(headroom);
            advice.headroom = Some(setting.headroom - lower);
            let mut told = format!("lower the headroom by {}", ByteSize(lower));
            let by = above_limit + lower;
            if below_limit < lower {
                let limit = setting.limit + by;
                advice.limit = Some(limit);
                told = format!("{told} and raise the budget's limit to {}", ByteSize(limit));
            }
            (by, told)
        };
        self.hint(HintKind::Budget, &self.case.roomier(by), advice, &told)
    }

    /// Whether less working memory would have been enough.
    fn working_memory(&self) -> Result<Option<Hint>, TraceError> {
        let mut used: HashMap<&str, Option<u64>> = HashMap::new();
        let mut reserved: HashMap<&str, u64> = HashMap::new();
        for (request, served) in self.recorded.trace.requests.iter().zip(&self.recorded.served) {
            if served.beside == 0 {
                continue;
            }
            let most = used.entry(&request.component).or_insert(Some(0));
            *most = most.zip(served.peak).map(|(most, peak)| most.max(peak));
            let most = reserved.entry(&request.component).or_default();
            *most = served.beside.max(*most);
        }
        let mut too_much: Vec<(&str, u64)> = used
            .into_iter()
            .filter_map(|(component, peak)| Some((component, rounded_up(peak?))))
            .filter(|(component, peak)| *peak < reserved[component])
            .collect();
        too_much
            .sort_by_key(|(component, peak)| (peak.wrapping_sub(reserved[component]), *component));
        let with = |those: &[(&str, u64)]| {
            let mut case = self.case.clone();
            let all = case.trace.requests.iter_mut().zip(&self.recorded.served);
            for (request, served) in all {
                if let Some((_, peak)) = those.iter().find(|(of, _)| *of == request.component) {
                    request.working_bytes -= served.beside.saturating_sub(*peak);
                }
            }
            case
        };
        if too_much.is_empty() {
            return Ok(None);
        }
        let best = with(&too_much).run()?.again;
        if !self.is_worth(best) {
            return Ok(None);
        }
        // One alone, if that is about as good.
        let mut those = &too_much[..];
        for one in too_much.chunks(1) {
            let again = with(one).run()?.again;
            if again <= best + (self.before.again - best) / 100 * CLOSE {
                those = one;
                break;
            }
        }
        let told: Vec<String> = those
            .iter()
            .map(|(component, peak)| {
                let (peak, reserved) = (ByteSize(*peak), ByteSize(reserved[component]));
                format!("{peak} instead of {reserved} for {component}")
            })
            .collect();
        let told = format!("reserve no more working memory than was used, {}", told.join(", "));
        let working_memory = those.iter().map(|(of, peak)| ((*of).to_owned(), *peak)).collect();
        let advice = Advice { working_memory, ..Advice::default() };
        self.hint(HintKind::WorkingMemory, &with(those), advice, &told)
    }

    /// Whether the default policy would have done better.
    fn policy(&self) -> Result<Option<Hint>, TraceError> {
        let policy = PolicyName::default();
        if self.case.policy == policy || self.case.policy == PolicyName::AlwaysEvict {
            return Ok(None);
        }
        let case = Case { policy, ..self.case.clone() };
        let told = format!("use the policy {policy}");
        let advice = Advice { policy: Some(policy.to_string()), ..Advice::default() };
        self.hint(HintKind::Policy, &case, advice, &told)
    }

    fn is_worth(&self, again: u64) -> bool {
        let spared = self.before.again.saturating_sub(again);
        spared > 0 && spared / WORTH >= self.before.again / 100
    }

    /// The hint, if what it says holds and is worth it.
    fn hint(
        &self,
        kind: HintKind,
        case: &Case,
        advice: Advice,
        told: &str,
    ) -> Result<Option<Hint>, TraceError> {
        let after = case.run()?;
        if !self.is_worth(after.again) {
            return Ok(None);
        }
        let Recorded { trace, served, job_nanos, setting, .. } = self.recorded;
        let spared = self.before.again - after.again;
        let mut bytes: HashMap<&str, (u64, u64)> = HashMap::new();
        let (mut copies, mut nanos) = (0_u64, 0_u64);
        for (at, again) in self.before.of.iter().enumerate().filter(|(_, again)| **again > 0) {
            let component = trace.requests[at].component.as_str();
            let sums = bytes.entry(component).or_default();
            *sums = (sums.0 + again, sums.1 + after.of.get(at).copied().unwrap_or(0));
            copies += 1;
            nanos += served.get(at).map_or(0, |served| served.nanos);
        }
        #[expect(clippy::cast_precision_loss, reason = "seconds and shares")]
        let (seconds, share) = (
            nanos as f64 / 1e9,
            (*job_nanos > 0).then(|| (nanos as f64 / *job_nanos as f64).min(1.0)),
        );
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let part = spared as f64 / self.before.again.max(1) as f64;
        if share.is_some_and(|share| share * part < WORTH_TIME) {
            return Ok(None);
        }
        let mut components: Vec<(&str, u64)> =
            bytes.into_iter().map(|(component, (before, _))| (component, before)).collect();
        components.sort_by_key(|(component, bytes)| (std::cmp::Reverse(*bytes), *component));
        let components: Vec<String> =
            components.into_iter().map(|(component, _)| component.to_owned()).collect();
        let (device, bytes) = (setting.device.clone(), self.before.again);
        let text = sentence(&components, copies, bytes, share, &device, spared, told);
        Ok(Some(Hint {
            kind,
            device,
            components,
            copies,
            bytes,
            seconds,
            share,
            spared,
            advice,
            text,
        }))
    }
}

fn sentence(
    components: &[String],
    copies: u64,
    bytes: u64,
    share: Option<f64>,
    device: &str,
    spared: u64,
    told: &str,
) -> String {
    let (who, were) = match components {
        [] => (String::new(), "was"),
        [one] => (one.clone(), "was"),
        [one, other] => (format!("{one} and {other}"), "were"),
        [one, rest @ ..] => (format!("{one} and {} others", rest.len()), "were"),
    };
    let times = if copies == 1 { "once".to_owned() } else { format!("{copies} times") };
    let share =
        share.map_or(String::new(), |share| format!(", {:.0} % of job time", share * 100.0));
    let all = ByteSize(bytes);
    let so = if spared == bytes {
        let all_of_it = if components.len() > 1 { "they" } else { "it" };
        format!("although {all_of_it} would have fitted")
    } else {
        format!("of which {} can be spared", ByteSize(spared))
    };
    format!("{who} {were} copied again {times} ({all}{share}) on {device}, {so}: {told}")
}

/// As people write it, with one decimal: no less.
fn rounded_up(bytes: u64) -> u64 {
    let mut unit: u128 = 1;
    while u128::from(bytes) >= unit * 1024 {
        unit *= 1024;
    }
    if unit == 1 {
        return bytes;
    }
    let tenths = (u128::from(bytes) * 10).div_ceil(unit);
    u64::try_from((tenths * unit).div_ceil(10)).unwrap_or(bytes)
}
