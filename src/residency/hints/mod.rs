//! Hints: what would have spared copies, each proved by a replay before it is given.
//!
//! One change is tried at a time: no eviction beyond need, more room as far as the device has it, less
//! working memory where less was used, another policy. A change is worth a hint if the replay with it
//! copies much less again than the replay of what was; and the latter has to be what really happened.

mod proof;
mod search;

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

use super::{Conditions, PolicyName, Recorded, Step, Trace, TraceError, steps_under};
use search::Search;

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
