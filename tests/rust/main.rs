//! The core without Python, room by room, as the bindings call it.
//!
//! What each room promises is told by the names of the tests. The tests of `tests/models` go
//! through every interleaving of a few steps; these go through real threads, texts and bad input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]
#![allow(clippy::duplicate_mod, reason = "one suite, asked of two kinds of devices")]

mod arena;
mod bench;
mod budget;
mod device;
mod helpers;
mod hints;
mod load_lock;
mod moving;
mod near;
mod plan;
mod planner;
mod pool;
mod queue;
mod residency;
mod shares;
mod streaming;
mod trace;
mod wait;
mod weights;
mod worker;

use helpers::*;
