//! What should stay on a device: policies, which only differ in what leaves first.

use std::fmt;
use std::str::FromStr;

use super::ahead::LookAhead;
use super::gdsf::Gdsf;
use super::simple::{Known, Lru, SmallestFirst};
use super::{Component, Outlook};

/// What leaves first when room is missing.
pub trait Policy: Send {
    /// A job begins that will use these, in this order.
    fn begin(&mut self, _job: &[Component]) {}

    /// A job that began turns out to use these, and not what was said; nothing, if it was given up. Jobs
    /// of which nothing is known are said to use what they have used so far.
    fn corrected(&mut self, _said: &[Component], _job: &[Component]) {}

    /// A component is used, which has so many bytes; `outlook` is what is known to come after it.
    fn used(&mut self, component: Component, bytes: u64, outlook: &Outlook);

    /// Puts components in the order in which they leave. None of them is in use.
    fn order(&mut self, candidates: &mut [Component], outlook: &Outlook);

    /// Nothing of a component is left on the device.
    fn left(&mut self, _component: Component) {}
}

/// The policies by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PolicyName {
    /// What was not used for longest leaves first.
    Lru,
    /// Greedy-Dual-Size-Frequency: what was used least often since it came, and of what is left over
    /// from before, the oldest.
    Gdsf,
    /// What is needed last leaves first, as far as that is known or likely.
    #[default]
    LookAhead,
    /// What is needed last leaves first, as far as that is known; then as [`PolicyName::Lru`].
    Known,
    /// Everything else leaves, whatever would fit: the least that can be resident.
    AlwaysEvict,
    /// The smallest leave first.
    SmallestFirst,
}

/// All of them.
pub const POLICIES: [(&str, PolicyName); 6] = [
    ("look-ahead", PolicyName::LookAhead),
    ("known", PolicyName::Known),
    ("lru", PolicyName::Lru),
    ("gdsf", PolicyName::Gdsf),
    ("smallest-first", PolicyName::SmallestFirst),
    ("always-evict", PolicyName::AlwaysEvict),
];

impl PolicyName {
    /// A policy of this name, which knows nothing yet.
    #[must_use]
    pub fn make(self) -> Box<dyn Policy> {
        match self {
            Self::LookAhead => Box::new(LookAhead::default()),
            Self::Gdsf => Box::new(Gdsf::default()),
            Self::SmallestFirst => Box::new(SmallestFirst::default()),
            Self::Known => Box::new(Known::default()),
            Self::Lru | Self::AlwaysEvict => Box::new(Lru::default()),
        }
    }
}

impl PolicyName {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        POLICIES.iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {given:?}: those that there are are {}", listed())]
pub struct NoPolicy {
    given: String,
}

fn listed() -> String {
    POLICIES.map(|(name, _)| name).join(", ")
}

impl FromStr for PolicyName {
    type Err = NoPolicy;

    fn from_str(text: &str) -> Result<Self, NoPolicy> {
        let known = POLICIES.iter().find(|(name, _)| *name == text);
        known.map(|(_, policy)| *policy).ok_or_else(|| NoPolicy { given: text.to_owned() })
    }
}
