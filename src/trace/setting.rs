//! How devices were set up, and when that changed.

use serde::{Deserialize, Serialize};

/// What decides what can be on a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The device.
    pub device: String,
    /// Bytes of its memory; 0 if they are not known.
    #[serde(default)]
    pub total: u64,
    /// The limit of its budget, in bytes.
    pub limit: u64,
    /// Bytes that stay free.
    #[serde(default)]
    pub headroom: u64,
    /// Bytes that others outside have had of it at most.
    #[serde(default)]
    pub outside: u64,
    /// Bytes of a page; 1 where memory has none.
    #[serde(default = "one")]
    pub page: u64,
    /// What decides what leaves.
    pub policy: String,
    /// How many jobs it knows beside the running one.
    #[serde(default)]
    pub lookahead: u64,
    /// Pages leave without anybody asking until there are so many bytes.
    #[serde(default)]
    pub low: u64,
    /// If there are more than these; if they ever do.
    #[serde(default)]
    pub high: Option<u64>,
}

fn one() -> u64 {
    1
}

/// So many changes are kept; of those that come later only the last one.
const MOST: usize = 256;

/// All of them, in order, each with when it began to hold, in nanoseconds.
#[derive(Default)]
pub(super) struct Settings(Vec<(u64, Setting)>);

impl Settings {
    pub(super) fn note(&mut self, at: u64, setting: Setting) {
        let last = self.0.iter().rev().find(|(_, known)| known.device == setting.device);
        if last.is_some_and(|(_, known)| *known == setting) {
            return;
        }
        if self.0.len() == MOST {
            self.0.pop();
        }
        self.0.push((at, setting));
    }

    pub(super) fn all(&self) -> Vec<(u64, Setting)> {
        self.0.clone()
    }
}
