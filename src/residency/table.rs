//! Tables by component.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::Component;

/// A table by component. Components are our own numbers, which nobody chooses to collide, and the
/// standard hash takes longer than all else that a decision does with them.
pub(super) type Table<T> = HashMap<Component, T, BuildHasherDefault<Fibonacci>>;

/// Multiplies by 2**64 over the golden ratio (Knuth, "The Art of Computer Programming", volume 3, 6.4).
#[derive(Default)]
pub(super) struct Fibonacci(u64);

impl Hasher for Fibonacci {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
