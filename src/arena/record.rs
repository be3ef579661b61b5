//! What an arena records in a timeline: requests, and copies once they are over.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::area::Shared as AreaShared;
use super::layout::PageSet;
use super::state::Filled;
use super::{About, Shared};
use crate::budget::Bounds;
use crate::device::Event;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::trace::{self, Acting, Cause, Kind, Recorder, Setting, Timeline, Track};
use crate::wait::Owner;

/// How many copies are remembered that are not over; a device that is lost never ends one.
const MOST: usize = 4096;

/// Where an arena records, if it does.
#[derive(Default)]
pub(super) struct Records(OnceLock<(Timeline, Arc<Copies>)>);

/// Copies that were begun.
#[derive(Default)]
struct Copies {
    begun: Mutex<Vec<Begun>>,
    /// When the last one was over, of those that are recorded.
    ended: Mutex<Option<Instant>>,
    /// What was last said of how the device is set up, as one number.
    said: AtomicU64,
    /// The most bytes that others outside have had.
    outside: AtomicU64,
}

/// One of them.
struct Begun {
    track: Track,
    filled: Event,
    began: Instant,
    job: u64,
    parts: [(Cause, u64); 3],
}

impl Recorder for Copies {
    fn settle(&self) {
        // No driver is asked under a mutex.
        let begun = std::mem::take(&mut *self.begun.lock());
        if begun.is_empty() {
            return;
        }
        let mut rest = Vec::new();
        for copy in begun {
            match copy.filled.has_passed() {
                Ok(true) => self.record(&copy),
                // What failed has copied nothing.
                Err(_) if copy.filled.is_over() => {}
                _ => rest.push(copy),
            }
        }
        let mut begun = self.begun.lock();
        rest.append(&mut begun);
        let gone = rest.len().saturating_sub(MOST);
        *begun = rest.split_off(gone);
    }
}

impl Copies {
    fn record(&self, copy: &Begun) {
        let seen = copy.filled.passed_at().unwrap_or_else(Instant::now);
        let mut ended = self.ended.lock();
        // They are made one after the other.
        let began = ended.filter(|ended| *ended < seen).map_or(copy.began, |it| it.max(copy.began));
        *ended = Some(seen);
        drop(ended);
        let all: u64 = copy.parts.iter().map(|(_, bytes)| bytes).sum();
        let mut from = began;
        for (cause, bytes) in copy.parts.iter().filter(|(_, bytes)| *bytes > 0) {
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let share = *bytes as f64 / all as f64;
            let to = from + seen.saturating_duration_since(began).mul_f64(share);
            copy.track.copied(*cause, *bytes, from, to, copy.job);
            from = to;
        }
    }
}

impl Records {
    /// Records there from now on, unless it records somewhere already.
    pub(super) fn begin(&self, timeline: &Timeline) {
        let copies = &self.0.get_or_init(|| (timeline.clone(), Arc::default())).1;
        timeline.ask(copies);
    }

    /// Where what happens to a component is recorded.
    pub(super) fn track(&self, device: &str, component: &str) -> Option<Track> {
        self.0.get().map(|(timeline, _)| timeline.track(device, component))
    }

    /// Records the copies that are over.
    pub(super) fn settle(&self) {
        if let Some((_, copies)) = self.0.get() {
            copies.settle();
        }
    }

    /// A copy was begun, of so many bytes of each kind of page.
    pub(super) fn copying(
        &self,
        track: Option<&Track>,
        filled: &Event,
        began: Instant,
        (pages, back): (Filled, Cause),
        page: usize,
    ) {
        let Some(((timeline, copies), track)) = self.0.get().zip(track) else { return };
        if !timeline.is_on() {
            return;
        }
        let bytes = |pages: usize| (pages * page) as u64;
        let parts = [
            (Cause::FirstUse, bytes(pages.first)),
            (back, bytes(pages.back)),
            (Cause::Renewed, bytes(pages.renewed)),
        ];
        filled.watch();
        let (track, filled, (job, _)) = (track.clone(), filled.clone(), Acting::now());
        copies.settle();
        copies.begun.lock().push(Begun { track, filled, began, job, parts });
    }
}

impl AreaShared {
    /// Has the calling thread act for this component, in the job in which it is wanted, if what happens
    /// is recorded.
    pub(super) fn acting(&self, owner: &Owner) -> Option<Acting> {
        let track = self.land.track.as_ref().filter(|track| track.timeline().is_on())?;
        let job = match Acting::now() {
            (0, _) => self.arena.order.as_ref().map_or(0, |order| order.job(owner)),
            (job, _) => job,
        };
        Some(Acting::of(job, track.component()))
    }

    /// Whether these are all of its pages.
    pub(super) fn is_all(&self, set: &PageSet) -> bool {
        set.len() == self.layout.pages()
    }

    /// Pages were wanted at `began`, with so many bytes beside, and are pinned.
    pub(super) fn requested(&self, set: &PageSet, beside: u64, began: Instant) {
        if !self.is_all(set) {
            return self.wanted_in_parts(set.len(), beside, began);
        }
        if let Some((track, bytes, of)) = self.wanted(set.len(), beside) {
            track.requested(bytes, beside, of, began);
        }
    }

    /// So many pages were wanted at `began`, with so many bytes beside, and not all of them at once.
    pub(super) fn wanted_in_parts(&self, pages: usize, beside: u64, began: Instant) {
        if let Some((track, bytes, of)) = self.wanted(pages, beside) {
            let (at, took) = track.timeline().since(began);
            let part = trace::Event::of(Kind::Part);
            track.record(trace::Event { at, took, bytes, beside, of, ..part });
        }
    }

    /// Where it is recorded that so many pages are wanted, their bytes, and what they and those beside
    /// could have; says how the device is set up.
    fn wanted(&self, pages: usize, beside: u64) -> Option<(&Track, u64, u64)> {
        let track = self.land.track.as_ref().filter(|track| track.timeline().is_on())?;
        let arena = &self.arena;
        let (resident, low, high) = {
            let state = arena.state.lock();
            (state.resident(), state.low, state.high)
        };
        let (page, bounds) = (arena.memory.page() as u64, arena.budget.bounds());
        let resident = resident as u64 * page;
        // What is neither weights nor for this one: others' working memory, and what else is reserved.
        let others = bounds.used.saturating_sub(resident).saturating_sub(beside);
        let high = high.map_or(0, |high| high.saturating_add(1));
        arena.say(&bounds, low, high);
        Some((track, pages as u64 * page, bounds.reach.saturating_sub(others)))
    }
}

impl Shared {
    /// Says how the device is set up, if that was not said before.
    fn say(&self, bounds: &Bounds, low: u64, high: u64) {
        let Some((timeline, copies)) = self.records.0.get() else { return };
        // What others have goes up and down all the time: only a new peak is told, in coarse steps.
        let step = (bounds.total.unwrap_or(0) / 64).max(1);
        let coarse = bounds.outside.div_ceil(step).saturating_mul(step);
        let outside = copies.outside.fetch_max(coarse, Ordering::Relaxed).max(coarse);
        let Bounds { total, limit, headroom, .. } = *bounds;
        let total = total.unwrap_or(0);
        let lru = About { policy: "lru", lookahead: 0 };
        let About { policy, lookahead } = self.order.as_ref().map_or(lru, |order| order.about());
        let figures = [total, limit, headroom, outside, low, high, lookahead];
        // FNV: two in a row that are not the same differ.
        let mix = |hash: u64, figure: &u64| (hash ^ figure).wrapping_mul(0x0100_0000_01b3);
        let now = figures.iter().fold(0xcbf2_9ce4_8422_2325, mix);
        if copies.said.swap(now, Ordering::Relaxed) == now {
            return;
        }
        timeline.set(Setting {
            device: self.device.to_string(),
            total,
            limit,
            headroom,
            outside,
            page: self.memory.page() as u64,
            policy: policy.to_owned(),
            lookahead,
            low,
            high: high.checked_sub(1),
        });
    }
}
