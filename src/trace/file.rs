//! Recordings as JSON: version 1.
//!
//! An object with `format` (`"coresident-timeline"`), `version`, `nanos` (how long it lasted), `lost` (events
//! that are not in it), `names`, `kinds` and `causes` (texts, by number), `settings`, `counters`
//! and `events`. The events are columns, lists of the same length: `kind`, `cause`, `device`, `component`,
//! `whom` (numbers of texts), `at`, `took` (nanoseconds), `bytes`, `beside`, `of` and `job`. Kinds and causes
//! that a reader does not know are left out.

use serde::{Deserialize, Serialize};

use super::{Cause, Counter, Event, Kind, Label, Recording, Setting, Sum};

const FORMAT: &str = "coresident-timeline";
const VERSION: u64 = 1;

/// Why a text is no recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// It is no such JSON.
    #[error("this is no recorded timeline: {why}")]
    Malformed {
        /// What is wrong with it.
        why: String,
    },
    /// It is of a later version.
    #[error("this timeline is of version {found} of its format, and only {VERSION} is known here")]
    Version {
        /// Which one.
        found: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct File {
    format: String,
    version: u64,
    nanos: u64,
    #[serde(default)]
    lost: u64,
    names: Vec<String>,
    kinds: Vec<String>,
    causes: Vec<String>,
    #[serde(default)]
    settings: Vec<Dated>,
    #[serde(default)]
    counters: Vec<Counted>,
    events: Columns,
}

#[derive(Serialize, Deserialize)]
struct Dated {
    at: u64,
    #[serde(flatten)]
    setting: Setting,
}

#[derive(Serialize, Deserialize)]
struct Counted {
    device: u32,
    component: u32,
    kind: u8,
    cause: u8,
    times: u64,
    bytes: u64,
    nanos: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Columns {
    kind: Vec<u8>,
    cause: Vec<u8>,
    device: Vec<u32>,
    component: Vec<u32>,
    whom: Vec<u32>,
    at: Vec<u64>,
    took: Vec<u64>,
    bytes: Vec<u64>,
    beside: Vec<u64>,
    of: Vec<u64>,
    job: Vec<u64>,
}

impl Columns {
    fn push(&mut self, event: &Event) {
        self.kind.push(event.kind as u8);
        self.cause.push(event.cause as u8);
        self.device.push(event.device.0);
        self.component.push(event.component.0);
        self.whom.push(event.whom.0);
        self.at.push(event.at);
        self.took.push(event.took);
        self.bytes.push(event.bytes);
        self.beside.push(event.beside);
        self.of.push(event.of);
        self.job.push(event.job);
    }

    fn is_even(&self) -> bool {
        let lengths = [
            self.cause.len(),
            self.device.len(),
            self.component.len(),
            self.whom.len(),
            self.at.len(),
            self.took.len(),
            self.bytes.len(),
            self.beside.len(),
            self.of.len(),
            self.job.len(),
        ];
        lengths.iter().all(|length| *length == self.kind.len())
    }
}

/// Texts as what they name here, where that is something.
fn known<T: Copy>(texts: &[String], named: fn(&str) -> Option<T>) -> Vec<Option<T>> {
    texts.iter().map(|text| named(text)).collect()
}

impl Recording {
    /// Whether a text looks as if it was to be a recording, rather than a trace.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        serde_json::from_str::<Head>(text).is_ok_and(|head| head.format == FORMAT)
    }

    /// As JSON.
    ///
    /// # Errors
    /// [`RecordingError::Malformed`] cannot happen, unless memory is at its end.
    pub fn to_json(&self) -> Result<String, RecordingError> {
        let texts =
            |names: &mut dyn Iterator<Item = &'static str>| names.map(str::to_owned).collect();
        let mut events = Columns::default();
        self.events.iter().for_each(|event| events.push(event));
        let file = File {
            format: FORMAT.to_owned(),
            version: VERSION,
            nanos: self.nanos,
            lost: self.lost,
            names: self.names.clone(),
            kinds: texts(&mut Kind::ALL.iter().map(|kind| kind.name())),
            causes: texts(&mut Cause::ALL.iter().map(|cause| cause.name())),
            settings: self
                .settings
                .iter()
                .map(|(at, setting)| Dated { at: *at, setting: setting.clone() })
                .collect(),
            counters: self
                .counters
                .iter()
                .map(|Counter { device, component, kind, cause, sum }| Counted {
                    device: device.0,
                    component: component.0,
                    kind: *kind as u8,
                    cause: *cause as u8,
                    times: sum.times,
                    bytes: sum.bytes,
                    nanos: sum.nanos,
                })
                .collect(),
            events,
        };
        serde_json::to_string(&file)
            .map_err(|error| RecordingError::Malformed { why: error.to_string() })
    }

    /// A recording from JSON.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        #[derive(Deserialize)]
        struct Head {
            format: Option<String>,
            version: Option<u64>,
        }
        let malformed = |why: String| RecordingError::Malformed { why };
        let parsed = |error: serde_json::Error| malformed(error.to_string());
        let head: Head = serde_json::from_str(text).map_err(parsed)?;
        if head.format.as_deref() != Some(FORMAT) {
            return Err(malformed(format!("its format is not {FORMAT:?}")));
        }
        match head.version {
            Some(VERSION) => {}
            Some(found) => return Err(RecordingError::Version { found }),
            None => return Err(malformed("it has no version".to_owned())),
        }
        let file: File = serde_json::from_str(text).map_err(parsed)?;
        file.read().map_err(malformed)
    }
}

impl File {
    fn read(self) -> Result<Recording, String> {
        let Self { nanos, lost, names, kinds, causes, settings, counters, events, .. } = self;
        if !events.is_even() {
            return Err("the columns of its events are not of one length".to_owned());
        }
        let (kinds, causes) = (known(&kinds, Kind::named), known(&causes, Cause::named));
        let label = |number: u32| {
            let there = usize::try_from(number).is_ok_and(|at| at < names.len());
            there.then_some(Label(number)).ok_or_else(|| format!("it has no name number {number}"))
        };
        let what = |kind: u8, cause: u8| match (
            kinds.get(usize::from(kind)),
            causes.get(usize::from(cause)),
        ) {
            (Some(kind), Some(cause)) => Ok(kind.zip(*cause)),
            (None, _) => Err(format!("it has no kind number {kind}")),
            (_, None) => Err(format!("it has no cause number {cause}")),
        };
        let mut recording = Recording { nanos, lost, ..Recording::default() };
        for counted in counters {
            let (device, component) = (label(counted.device)?, label(counted.component)?);
            let Some((kind, cause)) = what(counted.kind, counted.cause)? else { continue };
            let Counted { times, bytes, nanos, .. } = counted;
            let sum = Sum { times, bytes, nanos };
            recording.counters.push(Counter { device, component, kind, cause, sum });
        }
        for at in 0..events.kind.len() {
            let Some((kind, cause)) = what(events.kind[at], events.cause[at])? else { continue };
            recording.events.push(Event {
                kind,
                cause,
                device: label(events.device[at])?,
                component: label(events.component[at])?,
                whom: label(events.whom[at])?,
                at: events.at[at],
                took: events.took[at],
                bytes: events.bytes[at],
                beside: events.beside[at],
                of: events.of[at],
                job: events.job[at],
            });
        }
        recording.settings =
            settings.into_iter().map(|Dated { at, setting }| (at, setting)).collect();
        recording.names = names;
        Ok(recording)
    }
}
