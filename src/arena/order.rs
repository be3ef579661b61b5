//! Which weights leave first: asked of whoever knows what is needed next.

use super::Shared;
use crate::trace::Timeline;
use crate::wait::Owner;

/// Who knows in which order weights should leave. Called with no lock held; must not wait, nor call
/// the arena.
pub trait EvictionOrder: Send + Sync {
    /// The number of the weights with this key: the same one each time, from 0 on.
    fn number(&self, key: &str) -> u32;

    /// Weights of this number, which have so many bytes in pages, are used by somebody. Called before
    /// anything leaves for that; and again and again while they are in use, so that it must cost next
    /// to nothing then.
    fn used(&self, weights: u32, bytes: u64, owner: &Owner);

    /// Puts areas in the order in which they leave.
    fn sort(&self, areas: &mut [Evictable]);

    /// Nothing is left of the weights of this number.
    fn left(&self, weights: u32);

    /// In which job somebody uses weights now, for whoever records that; 0 is none in particular.
    fn job(&self, _owner: &Owner) -> u64 {
        0
    }

    /// What it is told of jobs is to be recorded there too.
    fn record_in(&self, _timeline: &Timeline) {}

    /// What decides, for whoever records that.
    fn about(&self) -> About {
        About { policy: "lru", lookahead: 0 }
    }
}

/// What decides what leaves first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The name of the policy.
    pub policy: &'static str,
    /// How many jobs it can know that come next.
    pub lookahead: u64,
}

/// An area some pages of which could leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evictable {
    /// By which number the arena knows it.
    pub area: usize,
    /// The number of its weights.
    pub weights: u32,
    /// When it was used last: the larger, the later.
    pub used_at: u64,
    /// Whether others of its pages are in use.
    pub in_use: bool,
}

impl Shared {
    /// The numbers of areas in the order in which somebody says that they leave. Whoever comes to have
    /// something to give meanwhile is not among them.
    pub(super) fn order(&self) -> Vec<usize> {
        let Some(order) = &self.order else { return Vec::new() };
        let mut areas = self.state.lock().evictable();
        if areas.len() > 1 {
            order.sort(&mut areas);
        }
        areas.iter().map(|area| area.area).collect()
    }

    /// The number of the weights with this key.
    pub(super) fn number_of(&self, key: &str) -> u32 {
        self.order.as_ref().map_or(0, |order| order.number(key))
    }
}
