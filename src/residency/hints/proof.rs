//! Whether what a hint says holds and is worth it, and how it is said.

use std::collections::HashMap;

use super::search::Search;
use super::{Advice, Case, Hint, HintKind};
use crate::device::ByteSize;
use crate::residency::{Recorded, TraceError};

/// A hint spares at least so much of what was copied again, in per cent.
const WORTH: u64 = 20;

/// And at least so much of the time of jobs, where that is known.
const WORTH_TIME: f64 = 0.01;

impl Search<'_> {
    pub(super) fn is_worth(&self, again: u64) -> bool {
        let spared = self.before.again.saturating_sub(again);
        spared > 0 && spared / WORTH >= self.before.again / 100
    }

    /// The hint, if what it says holds and is worth it.
    pub(super) fn hint(
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
