//! What is tried, one change at a time.

use std::collections::HashMap;

use super::{Advice, Case, Hint, HintKind, Outcome};
use crate::device::ByteSize;
use crate::residency::{PolicyName, Recorded, TraceError};

/// Room is added in steps of about so small a part of what can be added, if pages are not larger.
const STEPS: u64 = 1 << 18;

/// What comes so close to the best that can be is as good, in per cent.
const CLOSE: u64 = 5;

/// A search for hints, from what really was.
pub(super) struct Search<'a> {
    pub(super) recorded: &'a Recorded,
    pub(super) case: Case,
    pub(super) before: Outcome,
}

impl Search<'_> {
    /// Whether weights that leave by themselves are the cause.
    pub(super) fn eviction(&self) -> Result<Option<Hint>, TraceError> {
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
    pub(super) fn room(&self) -> Result<Option<Hint>, TraceError> {
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
    pub(super) fn working_memory(&self) -> Result<Option<Hint>, TraceError> {
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
    pub(super) fn policy(&self) -> Result<Option<Hint>, TraceError> {
        let policy = PolicyName::default();
        if self.case.policy == policy || self.case.policy == PolicyName::AlwaysEvict {
            return Ok(None);
        }
        let case = Case { policy, ..self.case.clone() };
        let told = format!("use the policy {policy}");
        let advice = Advice { policy: Some(policy.to_string()), ..Advice::default() };
        self.hint(HintKind::Policy, &case, advice, &told)
    }
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
