//! What takes time: the way to a device, and the work on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The way between the host and a device, which all its streams share, piece by piece.
pub struct Bus {
    bytes_per_second: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl Bus {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: AtomicU64::new(bytes_per_second), free_at: Mutex::new(None) }
    }

    pub fn set_speed(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Takes as long as the bytes take, after those already on their way.
    pub fn pass(&self, bytes: usize) {
        let speed = self.bytes_per_second.load(Ordering::Relaxed);
        if speed == 0 {
            return;
        }
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(speed);
        let now = Instant::now();
        let arrived = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = free_at.map_or(now, |free_at| free_at.max(now));
            *free_at.insert(begun + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
        };
        thread::sleep(arrived.saturating_duration_since(now));
    }
}

/// Chance that is the same in every run: xorshift.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64, which: u64) -> Self {
        Self((seed ^ which.wrapping_mul(0x9E37_79B9_7F4A_7C15)).max(1))
    }

    /// Any time up to the longest.
    pub fn delay(&mut self, longest: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.0 % nanos.saturating_add(1).max(1))
    }
}
