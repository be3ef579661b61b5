//! When visits of blocks were: by the clock of whoever does the work himself, or by the device's, which
//! tells later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::Shared;
use crate::device::{Event, Stream};
use crate::trace::{self, Acting, Kind, Recorder};

/// So many visits are remembered that a device has not told of: it may be far behind.
const MOST: usize = 1024;
/// Marks by which others are placed in time are that long before them at most: clocks drift.
const STALE: Duration = Duration::from_secs(1);

/// A moment of a visit.
pub(super) enum Moment {
    Host(Instant),
    Device(Event),
}

/// A visit that has begun.
struct Begun {
    block: usize,
    stream: Stream,
    /// When it was wanted, and when it began; nothing of one within another, or that cannot be told.
    when: Option<(Moment, Moment)>,
    job: u64,
}

/// One that has ended on the device, or will.
struct Late {
    block: usize,
    job: u64,
    wanted: Event,
    began: Event,
    ended: Event,
}

/// A visit that is over.
pub(super) struct Visit {
    pub(super) block: usize,
    pub(super) wanted: Instant,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) job: u64,
}

/// A copy that was begun.
struct Copy {
    filled: Event,
    began: Instant,
    pages: usize,
}

/// What has begun, and what is still to be told of.
#[derive(Default)]
pub(super) struct Pending {
    inside: Vec<Begun>,
    untold: Untold,
}

#[derive(Default)]
struct Untold {
    visits: VecDeque<Late>,
    copies: VecDeque<Copy>,
    /// A mark that has passed, and when that was as far as anybody knows.
    anchor: Option<(Event, Instant)>,
    /// When the last copy was over that was told of.
    last_copy: Option<Instant>,
}

impl Untold {
    /// Adds what was begun since the other one was taken from it.
    fn follow(&mut self, mut since: Self) {
        self.visits.append(&mut since.visits);
        self.copies.append(&mut since.copies);
        self.anchor = self.anchor.take().or(since.anchor);
        self.last_copy = self.last_copy.max(since.last_copy);
    }
}

impl Shared {
    /// Has the timeline ask for what is over, if there is one.
    pub(super) fn tell(self: &Arc<Self>) {
        if let Some(track) = self.area.track() {
            track.timeline().ask(self);
        }
    }

    /// A moment on a stream at which a block is wanted that is not being visited already, if that can
    /// be told.
    pub(super) fn is_wanted(&self, block: usize, stream: Stream) -> Option<Moment> {
        let within = self.state.lock().is_inside(block);
        if within { None } else { self.moment(stream) }
    }

    fn moment(&self, stream: Stream) -> Option<Moment> {
        match stream {
            Stream::Host => Some(Moment::Host(Instant::now())),
            Stream::Device(_) => self.area.mark(stream).map(Moment::Device),
        }
    }

    /// A block is visited from now on, and was wanted then.
    pub(super) fn has_begun(&self, block: usize, stream: Stream, wanted: Option<Moment>) {
        let when = wanted.and_then(|wanted| Some((wanted, self.moment(stream)?)));
        let (job, _) = Acting::now();
        self.pending.lock().inside.push(Begun { block, stream, when, job });
    }

    /// The last visit of a block that has begun has ended.
    pub(super) fn has_ended(&self, block: usize) {
        let mut pending = self.pending.lock();
        let Some(at) = pending.inside.iter().rposition(|visit| visit.block == block) else {
            return;
        };
        let visit = pending.inside.remove(at);
        drop(pending);
        let Begun { block, stream, when: Some((wanted, began)), job } = visit else { return };
        match (wanted, began, self.moment(stream)) {
            (Moment::Host(wanted), Moment::Host(began), Some(Moment::Host(ended))) => {
                self.is_over_by(&Visit { block, wanted, began, ended, job });
            }
            (Moment::Device(wanted), Moment::Device(began), Some(Moment::Device(ended))) => {
                let mut pending = self.pending.lock();
                let visits = &mut pending.untold.visits;
                if visits.len() < MOST {
                    visits.push_back(Late { block, job, wanted, began, ended });
                }
                drop(pending);
                self.settle();
            }
            _ => {}
        }
    }

    /// Some pages are on their way.
    pub(super) fn is_copied(&self, filled: Event, began: Instant, pages: usize) {
        filled.watch();
        self.pending.lock().untold.copies.push_back(Copy { filled, began, pages });
    }

    /// What a device tells of a visit once that is over: nothing if it has failed.
    fn told(&self, late: &Late, anchor: &mut Option<(Event, Instant)>) -> Poll<Option<Visit>> {
        let Late { block, job, wanted, began, ended } = late;
        match ended.has_passed() {
            Ok(true) => {}
            Ok(false) => return Poll::Pending,
            Err(_) => return Poll::Ready(None),
        }
        let now = Instant::now();
        let between = |from: &Event, to: &Event| self.area.between(from, to);
        // As early as it can have been by all that was seen.
        let known = anchor.take().and_then(|(mark, at)| {
            let since = between(&mark, ended).filter(|since| *since < STALE)?;
            Some((at + since).min(now))
        });
        let end = known.unwrap_or(now);
        *anchor = Some((ended.clone(), end));
        let visit = || {
            let began_at = end.checked_sub(between(began, ended)?)?;
            let wanted_at = began_at.checked_sub(between(wanted, began)?)?;
            Some(Visit { block: *block, wanted: wanted_at, began: began_at, ended: end, job: *job })
        };
        Poll::Ready(visit())
    }

    /// A visit is over, and is known when it was.
    fn is_over_by(&self, visit: &Visit) {
        let stalled = self.figures.lock().visited(visit);
        let Some(track) = self.area.track().filter(|track| track.timeline().is_on()) else {
            return;
        };
        let timeline = track.timeline();
        let record = |kind: Kind, from: Instant, to: Instant, bytes: u64| {
            let (at, until) = (timeline.at(from), timeline.at(to));
            let (took, job) = (until.saturating_sub(at), visit.job);
            track.record(trace::Event { at, took, bytes, job, ..trace::Event::of(kind) });
        };
        let pages = self.state.lock().blocks.get(visit.block).map_or(0, |block| block.len());
        let bytes = (pages * self.area.page()) as u64;
        if stalled {
            record(Kind::Stall, visit.wanted, visit.began, bytes);
        }
        record(Kind::Visit, visit.began, visit.ended, bytes);
    }
}

impl Recorder for Shared {
    fn settle(&self) {
        // No driver is asked under a mutex.
        let mut untold = std::mem::take(&mut self.pending.lock().untold);
        let mut over = Vec::new();
        while let Some(late) = untold.visits.front()
            && let Poll::Ready(visit) = self.told(late, &mut untold.anchor)
        {
            untold.visits.pop_front();
            over.extend(visit);
        }
        while untold.copies.front().is_some_and(|copy| copy.filled.is_over()) {
            let Some(Copy { filled, began, pages }) = untold.copies.pop_front() else { break };
            let seen = filled.passed_at().unwrap_or_else(Instant::now);
            let began = untold.last_copy.map_or(began, |last| last.max(began));
            self.figures.lock().copied(pages, seen.saturating_duration_since(began));
            untold.last_copy = untold.last_copy.max(Some(seen));
        }
        let mut pending = self.pending.lock();
        let since = std::mem::replace(&mut pending.untold, untold);
        pending.untold.follow(since);
        drop(pending);
        for visit in &over {
            self.is_over_by(visit);
        }
    }
}
