//! CUDA's driver, as the core uses it, on a library with its face: `tests/pretend_cuda`, which can fail
//! like the real one. All that `tests/rust` asks of pages is asked here too.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]
#![allow(clippy::duplicate_mod, reason = "one suite, asked of two kinds of devices")]

#[path = "../rust/arena.rs"]
mod arena;
mod bench;
mod blocks;
mod driver;
#[path = "../rust/helpers.rs"]
mod helpers;
mod moving;
mod pinning;
mod pretend;
#[path = "../rust/streaming.rs"]
mod streaming;
mod visits;
