//! `Event`: one thing that happened, in eight words.

use super::Label;

/// Names of an enum's values: what files and arrays call them.
macro_rules! named {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $number:literal $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $value = $number,)+ }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// What it is called in files and arrays.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }

            /// The one that is called so.
            #[must_use]
            pub fn named(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$value),)+ _ => None }
            }

            fn numbered(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }
    };
}

named! {
    /// What happened. What each field of an event means for it is told here; the others are 0.
    Kind {
        /// A job begins: `component` is what it is called, `whom` its user. What is recorded for it, by
        /// whomever, has the same `job`.
        JobBegins = 0 "job begins",
        /// It ends.
        JobEnds = 1 "job ends",
        /// A component was wanted on a device: `bytes` of weights, `beside` of working memory, where
        /// weights and that could have `of` bytes. It took until all was reserved and given to copy.
        Request = 2 "request",
        /// Whoever wanted a component does not use it any more.
        RequestEnds = 3 "request ends",
        /// `bytes` of a component were copied to a device, for `cause`.
        Copy = 4 "copy",
        /// `bytes` of a component have left a device, for `whom`, if it was for somebody.
        Evict = 5 "evict",
        /// Somebody waited for `bytes` of a device.
        Wait = 6 "wait",
        /// A device was full, and what needed `bytes` there was tried once more.
        Retry = 7 "retry",
        /// More working memory was reserved for a component in use: `beside` in all.
        Working = 8 "working memory",
        /// A call of a component took `beside` bytes of working memory at its peak.
        Peak = 9 "peak",
        /// A component's addresses were given up: nothing of it is on the device any more.
        Gone = 10 "gone",
        /// A stage of a job: `component` is what it is called, `whom` the job's user.
        Stage = 11 "stage",
        /// A step of a stage.
        Step = 12 "step",
        /// A device was lent for a job, to `whom`: what was used there is recorded of the job `of`.
        Borrow = 13 "borrow",
        /// Some `bytes` of a component were wanted, and not all of them; else as a request.
        Part = 14 "part",
        /// Somebody has said that he begins a job: `component` is the [list](super::Timeline::list) of
        /// its stages, or nothing if they are not known; `of` the job that it is a part of.
        JobDeclared = 15 "job declared",
        /// He has said that it is over.
        JobReleased = 16 "job released",
        /// From now on other jobs are known to come: [`Event::lists`] are the stages of each, in order.
        Forecast = 17 "forecast",
        /// A block of a component that is streamed was used, of `bytes`.
        Visit = 18 "visit",
        /// Work on such a block, of `bytes`, could have begun, and waited for a copy.
        Stall = 19 "stall",
    }
}

named! {
    /// Why something was copied.
    Cause {
        /// It is no copy.
        None = 0 "",
        /// It had never been there.
        FirstUse = 1 "first use",
        /// It had been there, and had left.
        CameBack = 2 "came back",
        /// It was there, but had been written to, or was no longer what it should be.
        Renewed = 3 "renewed",
        /// It is larger than the device, and comes each time that it is used.
        Streamed = 4 "streamed",
        /// Nobody wanted it yet.
        Prefetched = 5 "prefetched",
    }
}

/// One thing that happened, or that was done for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// Why, of a copy.
    pub cause: Cause,
    /// On which device.
    pub device: Label,
    /// To what.
    pub component: Label,
    /// For whom.
    pub whom: Label,
    /// When it began: nanoseconds since the timeline did.
    pub at: u64,
    /// How many nanoseconds it lasted; 0 for what takes no time.
    pub took: u64,
    /// How many bytes.
    pub bytes: u64,
    /// How many bytes beside.
    pub beside: u64,
    /// Of how many.
    pub of: u64,
    /// In which job; 0 is none in particular.
    pub job: u64,
}

impl Event {
    /// So many lists an event has room for.
    pub const LISTS: usize = 8;

    /// Something of this kind, that is nothing more.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        Self {
            kind,
            cause: Cause::None,
            device: Label::NOTHING,
            component: Label::NOTHING,
            whom: Label::NOTHING,
            at: 0,
            took: 0,
            bytes: 0,
            beside: 0,
            of: 0,
            job: 0,
        }
    }

    /// When it was over.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.at.saturating_add(self.took)
    }

    /// So many labels, the first of which there are, in place of names and bytes.
    #[must_use]
    pub fn with_lists(self, labels: &[Label]) -> Self {
        let at = |place: usize| labels.get(place).copied().unwrap_or_default();
        let two = |place: usize| u64::from(at(place).0) | u64::from(at(place + 1).0) << 32;
        let (component, whom) = (at(0), at(1));
        Self { component, whom, bytes: two(2), beside: two(4), of: two(6), ..self }
    }

    /// The labels of lists that it has in place of names and bytes: at most [`LISTS`](Self::LISTS).
    #[must_use]
    pub fn lists(&self) -> Vec<Label> {
        let half = |bits: u64| Label(u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0));
        let mut labels = vec![self.component, self.whom];
        for two in [self.bytes, self.beside, self.of] {
            labels.extend([half(two), half(two >> 32)]);
        }
        labels.into_iter().take_while(|label| *label != Label::NOTHING).collect()
    }

    pub(super) fn pack(&self) -> [u64; WORDS] {
        let what = u64::from(self.kind as u8) | u64::from(self.cause as u8) << 8;
        let what = what | u64::from(self.device.0) << 32;
        let names = u64::from(self.component.0) | u64::from(self.whom.0) << 32;
        [what, names, self.at, self.took, self.bytes, self.beside, self.of, self.job]
    }

    pub(super) fn unpack(
        [what, names, at, took, bytes, beside, of, job]: [u64; WORDS],
    ) -> Option<Self> {
        let [kind, cause, ..] = what.to_le_bytes();
        let label = |word: u64, upper: bool| {
            let half = if upper { word >> 32 } else { word & u64::from(u32::MAX) };
            u32::try_from(half).ok().map(Label)
        };
        Some(Self {
            kind: Kind::numbered(kind)?,
            cause: Cause::numbered(cause)?,
            device: label(what, true)?,
            component: label(names, false)?,
            whom: label(names, true)?,
            at,
            took,
            bytes,
            beside,
            of,
            job,
        })
    }
}

/// How many words an event is packed into.
pub(super) const WORDS: usize = 8;
