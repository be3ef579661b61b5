//! What is measured of a streaming, and what it has at a glance.

use std::time::{Duration, Instant};

use super::times::Visit;
use super::{Cost, Shared, Streaming, StreamingError};
use crate::trace::Recorder;

/// How much a new measurement counts.
const WEIGHT: f64 = 0.3;

/// How long visits of a block take, in seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    /// Between the beginning and the end.
    inside: Option<f64>,
    /// From the end to the beginning of the next one.
    after: Option<f64>,
}

/// What is measured.
#[derive(Debug, Default)]
pub(super) struct Figures {
    times: Vec<Times>,
    left: Option<(usize, Instant)>,
    /// Pages that have been given memory and are filled.
    pub(super) moved: usize,
    /// Those of them that are there, and how long the copies have taken.
    copied: usize,
    copying: Duration,
    pub(super) visits: u64,
    late: u64,
    stalled: Duration,
}

impl Figures {
    pub(super) fn new(blocks: usize) -> Self {
        Self { times: vec![Times::default(); blocks], ..Self::default() }
    }

    /// A visit is over. Returns whether it has waited for its block.
    pub(super) fn visited(&mut self, visit: &Visit) -> bool {
        let &Visit { block, wanted, began, ended, .. } = visit;
        if let Some((before, left)) = self.left
            && let Some(pause) = wanted.checked_duration_since(left).filter(|it| *it < PAUSE)
        {
            note(&mut self.times[before].after, pause);
        }
        if self.left.is_none_or(|(_, left)| left < ended) {
            self.left = Some((block, ended));
        }
        note(&mut self.times[block].inside, ended.saturating_duration_since(began));
        let stall = began.saturating_duration_since(wanted);
        let stalled = stall > LATE;
        if stalled {
            self.late += 1;
            self.stalled += stall;
        }
        stalled
    }

    /// So many pages have come, in that time.
    pub(super) fn copied(&mut self, pages: usize, took: Duration) {
        self.copied += pages;
        self.copying += took;
    }

    /// The rate of copies, if some were measured.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub(super) fn pages_per_second(&self) -> Option<f64> {
        let seconds = self.copying.as_secs_f64();
        (self.copied > 0 && seconds > 0.0).then(|| self.copied as f64 / seconds)
    }
}

/// Less than this is no wait.
const LATE: Duration = Duration::from_micros(100);
/// After more than this the next visit is one of another call.
const PAUSE: Duration = Duration::from_secs(1);

fn note(known: &mut Option<f64>, new: Duration) {
    let new = new.as_secs_f64();
    *known = Some(known.map_or(new, |known| known + WEIGHT * (new - known)));
}

/// A streaming at a glance.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamingStatus {
    /// Bytes of what is in no block.
    pub resident: u64,
    /// Bytes of all blocks.
    pub blocks: u64,
    /// Bytes of them that stay.
    pub kept: u64,
    /// Bytes that blocks may have on the device in all.
    pub allotted: u64,
    /// Bytes of pages that have been copied since it began.
    pub moved: u64,
    /// How often a block was visited, and how often that had to wait for a copy.
    pub visits: u64,
    /// See there.
    pub late: u64,
    /// Seconds in which visits have waited, by the clock of the device where that computes.
    pub stalled: f64,
    /// Seconds in which something was copied.
    pub copying: f64,
}

impl Shared {
    /// What is known of the blocks.
    pub(super) fn costs(&self) -> Vec<Cost> {
        let pages: Vec<usize> = self.state.lock().blocks.iter().map(|block| block.len()).collect();
        let figures = self.figures.lock();
        let seconds = |times: &Times| Some(times.inside? + times.after.unwrap_or(0.0));
        let costs = pages.into_iter().zip(&figures.times);
        costs.map(|(pages, times)| Cost { pages, seconds: seconds(times).unwrap_or(0.0) }).collect()
    }
}

impl Streaming {
    /// What it has and has done. Does not wait.
    ///
    /// # Errors
    /// [`StreamingError::Forked`].
    pub fn status(&self) -> Result<StreamingStatus, StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        shared.settle();
        let bytes = |pages: usize| (pages * shared.area.page()) as u64;
        let state = shared.state.lock();
        let blocks: usize = state.blocks.iter().map(|block| block.len()).sum();
        let kept: usize = state.kept.iter().map(|kept| kept.pages).sum();
        let allotted = state.allotted;
        drop(state);
        let figures = shared.figures.lock();
        Ok(StreamingStatus {
            resident: bytes(shared.area.pages() - blocks),
            blocks: bytes(blocks),
            kept: bytes(kept),
            allotted: bytes(allotted),
            moved: bytes(figures.moved),
            visits: figures.visits,
            late: figures.late,
            stalled: figures.stalled.as_secs_f64(),
            copying: figures.copying.as_secs_f64(),
        })
    }
}
