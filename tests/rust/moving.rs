//! All that `arena.rs` asks, of a device where memory comes to other addresses each time.

#[path = "arena.rs"]
mod arena;
mod bench {
    use std::sync::Arc;

    pub(crate) use super::super::bench::{Bench, NAME, PAGE};

    pub(crate) const MOVES: bool = true;

    pub(crate) fn bench(pages: u64, jitter: Option<u64>) -> Arc<Bench> {
        super::super::bench::bench_with(pages, jitter, true)
    }
}

use super::helpers;
