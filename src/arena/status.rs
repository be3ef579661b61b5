//! What an arena has, at a glance.

use super::area::Area;
use super::state::{AreaState, Place};
use super::{Arena, ArenaError};

/// One area at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AreaStatus {
    /// The key of the weights.
    pub key: String,
    /// Bytes of all its pages.
    pub bytes: u64,
    /// Bytes of those that have memory, or get it.
    pub resident: u64,
    /// Bytes of those that are in use.
    pub pinned: u64,
    /// Those of a lower one leave first.
    pub priority: i64,
    /// The names of live pinned tensors.
    pub pinned_tensors: Vec<String>,
}

/// An arena at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArenaStatus {
    /// The device.
    pub device: String,
    /// Bytes of a page.
    pub page: u64,
    /// Bytes of pages that have memory, or get it.
    pub resident: u64,
    /// Bytes of those that are in use.
    pub pinned: u64,
    /// Bytes of all pages that have been filled since the beginning.
    pub filled: u64,
    /// Bytes of all pages that have left since then.
    pub evicted: u64,
    /// Where eviction ends.
    pub low: u64,
    /// Where eviction begins, if it does without being asked.
    pub high: Option<u64>,
    /// Its areas; those that are wanted least first.
    pub areas: Vec<AreaStatus>,
}

impl AreaState {
    /// Of each page what [`Area::residency`] tells.
    pub(super) fn residency(&self) -> Vec<u8> {
        let code = |page: &super::state::Page| match page.place {
            Place::Absent => 0,
            Place::Resident if page.pins == 0 => 1,
            Place::Resident => 2,
            Place::Coming | Place::Leaving => 3,
        };
        self.pages.iter().map(code).collect()
    }
}

impl Arena {
    /// What it has now.
    ///
    /// # Errors
    /// [`ArenaError::Forked`].
    pub fn status(&self) -> Result<ArenaStatus, ArenaError> {
        self.0.birth.check("arena")?;
        self.0.evict_orphans();
        let page = self.0.memory.page() as u64;
        let (areas, order) = (self.areas(), self.0.order());
        let state = self.0.state.lock();
        let bytes = |pages: usize| pages as u64 * page;
        let mut all = Vec::new();
        for (number, area) in state.sorted(&order) {
            // One that nobody has any more is only waiting for streams.
            let Some(known) = areas.iter().find(|known| known.0.number == number) else { continue };
            let mut tensors: Vec<usize> = area.tensors.keys().copied().collect();
            tensors.sort_unstable();
            let name = |at: usize| known.contents()[at].name.clone();
            all.push(AreaStatus {
                key: known.key().to_owned(),
                bytes: bytes(area.pages.len()),
                resident: bytes(area.resident),
                pinned: bytes(area.pinned),
                priority: area.priority,
                pinned_tensors: tensors.into_iter().map(name).collect(),
            });
        }
        let status = ArenaStatus {
            device: self.0.device.to_string(),
            page,
            resident: bytes(state.resident()),
            pinned: bytes(state.pinned()),
            filled: state.filled * page,
            evicted: state.evicted * page,
            low: state.low,
            high: state.high,
            areas: all,
        };
        drop(state);
        // The last to have an area locks the state.
        drop(areas);
        Ok(status)
    }

    /// Its areas, in no order.
    #[must_use]
    pub fn areas(&self) -> Vec<Area> {
        let known = self.0.state.lock().known.values().cloned().collect::<Vec<_>>();
        known.iter().filter_map(|area| area.upgrade().map(Area)).collect()
    }
}
