//! Several GPUs, several models and many users in one process: the core of `coresident`.
//!
//! Every room below is plain Rust. Only `python` knows the interpreter.

pub mod arena;
pub mod budget;
pub mod device;
pub mod load_lock;
pub mod pool;
pub mod queue;
pub mod residency;
pub mod runtime;
pub mod streaming;
pub mod sync;
pub mod trace;
pub mod wait;
pub mod weights;
pub mod worker;

#[cfg(feature = "python")]
mod python;
