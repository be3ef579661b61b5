//! `Track`: one component on one device. What happens to it is recorded here.

use std::sync::Arc;
use std::time::Instant;

use super::{Acting, Cause, Event, Kind, Label, Timeline};
use crate::sync::{AtomicU64, Ordering};

/// What is summed up beside copies.
const COUNTED: [Kind; 7] =
    [Kind::Evict, Kind::Wait, Kind::Request, Kind::Part, Kind::Retry, Kind::Visit, Kind::Stall];

/// Sums that lose nothing, whatever becomes of the events.
pub(super) struct Counts {
    copies: [Count; Cause::ALL.len()],
    others: [Count; COUNTED.len()],
}

/// How often, how many bytes, and how many nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// How often.
    pub times: u64,
    /// How many bytes.
    pub bytes: u64,
    /// How long, in nanoseconds.
    pub nanos: u64,
}

struct Count {
    times: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

impl Count {
    fn new() -> Self {
        Self { times: AtomicU64::new(0), bytes: AtomicU64::new(0), nanos: AtomicU64::new(0) }
    }

    fn add(&self, bytes: u64, nanos: u64) {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if nanos > 0 {
            self.nanos.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    fn sum(&self) -> Sum {
        let [times, bytes, nanos] =
            [&self.times, &self.bytes, &self.nanos].map(|count| count.load(Ordering::Relaxed));
        Sum { times, bytes, nanos }
    }

    fn clear(&self) {
        for count in [&self.times, &self.bytes, &self.nanos] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

impl Counts {
    pub(super) fn new() -> Self {
        let (copies, others) =
            (std::array::from_fn(|_| Count::new()), std::array::from_fn(|_| Count::new()));
        Self { copies, others }
    }

    fn of(&self, event: &Event) -> Option<&Count> {
        if event.kind == Kind::Copy {
            return self.copies.get(event.cause as usize);
        }
        let at = COUNTED.iter().position(|kind| *kind == event.kind)?;
        self.others.get(at)
    }

    /// What has been counted, by kind and cause.
    pub(super) fn sums(&self) -> impl Iterator<Item = (Kind, Cause, Sum)> {
        let copies = Cause::ALL.iter().zip(&self.copies);
        let copies = copies.map(|(cause, count)| (Kind::Copy, *cause, count.sum()));
        let others = COUNTED.iter().zip(&self.others);
        let others = others.map(|(kind, count)| (*kind, Cause::None, count.sum()));
        copies.chain(others).filter(|(.., sum)| sum.times > 0)
    }

    pub(super) fn clear(&self) {
        self.copies.iter().chain(&self.others).for_each(Count::clear);
    }
}

/// One component on one device, or a device as such. Clones are the same.
#[derive(Clone)]
pub struct Track {
    pub(super) timeline: Timeline,
    pub(super) device: Label,
    pub(super) component: Label,
    pub(super) counts: Arc<Counts>,
}

impl Track {
    /// The timeline.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The component.
    #[must_use]
    pub fn component(&self) -> Label {
        self.component
    }

    /// Records what happened to it. It is of this device and component, and of the job for which the
    /// thread [acts](Acting), if it is of none.
    pub fn record(&self, event: Event) {
        if !self.timeline.is_on() {
            return;
        }
        let job = if event.job == 0 { Acting::now().0 } else { event.job };
        let event = Event { device: self.device, component: self.component, job, ..event };
        if let Some(count) = self.counts.of(&event) {
            count.add(event.bytes, event.took);
        }
        self.timeline.0.ring.push(&event);
    }

    /// It was wanted at `began`, with so many bytes beside, where it could have `of` bytes with them.
    pub fn requested(&self, bytes: u64, beside: u64, of: u64, began: Instant) {
        if !self.timeline.is_on() {
            // Without a look at the clock, which is half of the cost.
            return;
        }
        let (at, took) = self.timeline.since(began);
        self.record(Event { at, took, bytes, beside, of, ..Event::of(Kind::Request) });
    }

    /// Whoever wanted it does not use it any more.
    pub fn request_ended(&self, job: u64) {
        if !self.timeline.is_on() {
            return;
        }
        self.record(Event { at: self.timeline.now(), job, ..Event::of(Kind::RequestEnds) });
    }

    /// Bytes of it were copied to the device from `began` to `ended`.
    pub fn copied(&self, cause: Cause, bytes: u64, began: Instant, ended: Instant, job: u64) {
        let (from, to) = (self.timeline.at(began), self.timeline.at(ended));
        let took = to.saturating_sub(from);
        self.record(Event { at: from, took, cause, bytes, job, ..Event::of(Kind::Copy) });
    }

    /// Bytes of it have left, for the component that the thread acts for.
    pub fn evicted(&self, bytes: u64) {
        if !self.timeline.is_on() {
            return;
        }
        let (_, whom) = Acting::now();
        let at = self.timeline.now();
        self.record(Event { whom, at, bytes, ..Event::of(Kind::Evict) });
    }

    /// Somebody has waited for bytes for it since `began`.
    pub fn waited(&self, bytes: u64, began: Instant) {
        let (at, took) = self.timeline.since(began);
        self.record(Event { at, took, bytes, ..Event::of(Kind::Wait) });
    }

    /// The device was full, and it was tried again.
    pub fn retried(&self, bytes: u64) {
        self.record(Event { at: self.timeline.now(), bytes, ..Event::of(Kind::Retry) });
    }

    /// It has no addresses any more.
    pub fn gone(&self) {
        self.record(Event { at: self.timeline.now(), ..Event::of(Kind::Gone) });
    }
}
