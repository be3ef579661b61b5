//! The time that a queue goes by.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Microseconds: of GPU time, or since the epoch.
pub type Micros = i64;

/// Microseconds of a duration; what is longer than 292,000 years is as long as that.
#[must_use]
pub fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// Where a queue looks for the time. Tests and simulations have clocks of their own.
pub trait Clock: Send + Sync {
    /// Microseconds since the epoch. Never less than before.
    fn now(&self) -> Micros;

    /// Whether it goes on by itself, so that it can be waited for.
    fn runs(&self) -> bool {
        false
    }
}

/// The time of the system as it was once, and as it went on since: nobody can turn it back.
#[derive(Debug)]
pub struct SystemClock {
    then: Micros,
    since: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { then: micros(epoch.unwrap_or_default()), since: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Micros {
        self.then.saturating_add(micros(self.since.elapsed()))
    }

    fn runs(&self) -> bool {
        true
    }
}

/// A time that somebody sets.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Makes it this late, unless it is later already.
    pub fn set(&self, now: Micros) {
        self.0.fetch_max(now, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        self.0.load(Ordering::SeqCst)
    }
}
