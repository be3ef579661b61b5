//! All that `tests/rust/arena.rs` asks, of devices without virtual memory management.

#[path = "../rust/arena.rs"]
mod arena;
mod bench {
    use std::sync::Arc;

    pub(crate) use super::super::bench::{Bench, NAME, PAGE};

    pub(crate) const MOVES: bool = true;

    pub(crate) fn bench(pages: u64, _jitter: Option<u64>) -> Arc<Bench> {
        super::super::bench::bench_with(pages, true)
    }
}

use super::helpers;
