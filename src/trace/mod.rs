//! `Timeline`: what happened on the devices, and when.
//!
//! **What it is.** [`Event`]s in a ring of fixed size, recorded from any thread in less than a tenth of a
//! microsecond, and sums that lose nothing: of each device, component and cause the copies, their
//! bytes and their time. A [`Track`] is one component on one device, and records what happens to it.
//! [`Timeline::recording`] is all of that as it is now; it can be kept as JSON.
//!
//! **Order.** Events are in the order in which they were recorded, which is when they were over: a
//! copy comes after what was recorded while it was made. Each has its own time, by a monotonic clock.
//!
//! **Invariants.** Nobody waits to record, and recording allocates nothing, but for a piece of the
//! ring when that is first reached. The ring has the last events; how many others there were is
//! known. An event is read whole or not at all. A forked child records nothing.
//!
//! **Errors.** [`RecordingError`], and [`Forked`] in a child.
//!
//! ```
//! use coresident::trace::{Cause, Kind, Timeline};
//! use std::time::Instant;
//!
//! let timeline = Timeline::new(1000);
//! let unet = timeline.track("cuda:0", "sdxl/unet");
//! let began = Instant::now();
//! unet.requested(5 << 30, 2 << 30, 20 << 30, began);
//! unet.copied(Cause::FirstUse, 5 << 30, began, Instant::now(), 0);
//! let recording = timeline.recording()?;
//! let [request, copy] = &recording.events[..] else { panic!() };
//! assert_eq!((request.kind, copy.kind), (Kind::Request, Kind::Copy));
//! assert_eq!(recording.counters[0].sum.bytes, 5 << 30);
//! assert_eq!(recording.name(copy.component), "sdxl/unet");
//! # Ok::<(), coresident::wait::Forked>(())
//! ```

mod acting;
mod event;
mod file;
mod names;
mod recording;
mod ring;
mod setting;
mod track;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub use acting::Acting;
pub use event::{Cause, Event, Kind};
pub use file::RecordingError;
pub use names::Label;
pub use recording::{Counter, Recording};
pub use setting::Setting;
pub use track::{Sum, Track};

use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::wait::{Birth, Forked};
use names::Names;
use ring::Ring;
use setting::Settings;
use track::Counts;

/// How many events a timeline keeps where nobody says how many: 4.5 MiB of them.
pub const EVENTS: usize = 1 << 16;

/// So many bytes a list has at most.
const LONGEST: usize = 1 << 14;

/// Somebody who has things to record that have been over for a while.
pub trait Recorder: Send + Sync {
    /// Records what is over by now. Never waits.
    fn settle(&self);
}

/// What happened, from any number of threads. Clones share it.
#[derive(Clone)]
pub struct Timeline(Arc<Shared>);

struct Shared {
    birth: Birth,
    began: Instant,
    on: AtomicBool,
    ring: Ring,
    names: Names,
    tracks: Mutex<BTreeMap<(Label, Label), Arc<Counts>>>,
    settings: Mutex<Settings>,
    recorders: Mutex<Vec<Weak<dyn Recorder>>>,
}

impl Timeline {
    /// One that keeps the last so many events, at least one, and records from now on.
    #[must_use]
    pub fn new(events: usize) -> Self {
        Self(Arc::new(Shared {
            birth: Birth::default(),
            began: Instant::now(),
            on: AtomicBool::new(true),
            ring: Ring::new(events),
            names: Names::new(),
            tracks: Mutex::new(BTreeMap::new()),
            settings: Mutex::new(Settings::default()),
            recorders: Mutex::new(Vec::new()),
        }))
    }

    /// Whether it records, here.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed) && self.0.birth.is_here()
    }

    /// Has it record from now on, or not.
    pub fn turn(&self, on: bool) {
        self.0.on.store(on, Ordering::Relaxed);
    }

    /// How many events it keeps.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.0.ring.places()
    }

    /// Nanoseconds since it began.
    #[must_use]
    pub fn now(&self) -> u64 {
        nanos(self.0.began.elapsed())
    }

    /// When something was, in nanoseconds since it began; 0 for what was before.
    #[must_use]
    pub fn at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.0.began))
    }

    /// When something began, and how long it has lasted.
    pub(crate) fn since(&self, began: Instant) -> (u64, u64) {
        let at = self.at(began);
        (at, self.now().saturating_sub(at))
    }

    /// The number of a name.
    #[must_use]
    pub fn label(&self, text: &str) -> Label {
        if self.0.birth.is_here() { self.0.names.label(text) } else { Label::NOTHING }
    }

    /// The number of a list of names, which is kept as JSON; [`Label::OTHERS`] of one that is longer than
    /// 16 KiB, or that comes after a thousand others.
    #[must_use]
    pub fn list(&self, names: &[String]) -> Label {
        if !self.0.birth.is_here() {
            return Label::NOTHING;
        }
        match serde_json::to_string(names) {
            Ok(text) if text.len() <= LONGEST => self.0.names.list(&text),
            _ => Label::OTHERS,
        }
    }

    /// Where what happens to a component on a device is recorded. To be kept by who records.
    #[must_use]
    pub fn track(&self, device: &str, component: &str) -> Track {
        let (device, component) = (self.label(device), self.label(component));
        let counts = if self.0.birth.is_here() {
            let mut tracks = self.0.tracks.lock();
            tracks.entry((device, component)).or_insert_with(|| Arc::new(Counts::new())).clone()
        } else {
            Arc::new(Counts::new())
        };
        Track { timeline: self.clone(), device, component, counts }
    }

    /// Records something that is of no track: a job, a stage.
    pub fn record(&self, event: &Event) {
        if self.is_on() {
            self.0.ring.push(event);
        }
    }

    /// Says how a device is set up from now on. Costs little if that is as before.
    pub fn set(&self, setting: Setting) {
        if self.is_on() {
            let at = self.now();
            self.0.settings.lock().note(at, setting);
        }
    }

    /// Has somebody asked for what is over whenever a recording is made.
    pub fn ask(&self, recorder: &Arc<impl Recorder + 'static>) {
        let weak: Weak<dyn Recorder> = Arc::downgrade(recorder) as Weak<dyn Recorder>;
        if self.0.birth.is_here() {
            let mut recorders = self.0.recorders.lock();
            recorders.retain(|known| known.strong_count() > 0);
            recorders.push(weak);
        }
    }

    /// All of it as it is now.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn recording(&self) -> Result<Recording, Forked> {
        self.0.birth.check("timeline")?;
        self.settle();
        let tracks = self.0.tracks.lock().clone();
        let counters = tracks.iter().flat_map(|((device, component), counts)| {
            let (device, component) = (*device, *component);
            counts.sums().map(move |(kind, cause, sum)| Counter {
                device,
                component,
                kind,
                cause,
                sum,
            })
        });
        let (counters, settings) = (counters.collect(), self.0.settings.lock().all());
        let (events, lost) = self.0.ring.read();
        // After the events, so that each name of one is there.
        let names = self.0.names.texts().iter().map(|text| text.as_ref().to_owned()).collect();
        Ok(Recording { nanos: self.now(), names, settings, counters, events, lost })
    }

    /// Forgets all events and sums.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn clear(&self) -> Result<(), Forked> {
        self.0.birth.check("timeline")?;
        self.settle();
        self.0.ring.clear();
        let tracks = self.0.tracks.lock().clone();
        for counts in tracks.values() {
            counts.clear();
        }
        Ok(())
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn check(&self) -> Result<(), Forked> {
        self.0.birth.check("timeline")
    }

    fn settle(&self) {
        let recorders: Vec<_> = self.0.recorders.lock().iter().filter_map(Weak::upgrade).collect();
        for recorder in recorders {
            recorder.settle();
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
