//! The only room that knows Python: `coresident._core`.
//!
//! Every call that may wait goes through one door, [`wait::patiently`]. Nothing of Python runs while
//! a lock of the core is held.

mod aio;
mod arena;
mod argument;
mod budget;
mod callback;
mod context;
mod device;
mod dlpack;
mod error;
mod exit;
mod guard;
mod load_lock;
mod owner;
mod planner;
mod pool;
mod queue;
mod residency;
mod runtime;
mod shares;
mod streaming;
mod torch;
mod trace;
mod wait;
mod weights;
mod worker;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

/// Threads, signals and the exit are one interpreter's: the main one's, whose number is 0.
fn refuse_subinterpreters() -> PyResult<()> {
    // SAFETY: the module is being imported, so that this thread is attached to an interpreter, whose
    // state outlives the two calls.
    #[expect(unsafe_code, reason = "pyo3 has no safe call for it")]
    let interpreter =
        unsafe { pyo3::ffi::PyInterpreterState_GetID(pyo3::ffi::PyInterpreterState_Get()) };
    if interpreter == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(format!(
        "coresident works in the main interpreter only, not in subinterpreter {interpreter}"
    )))
}

/// The compiled core of `coresident`. Use the names of the package itself.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::aio::{Request, Wakeups};
    #[pymodule_export]
    use super::arena::{Area, AreaStatus, Arena, ArenaStatus, Block, DeviceTensor, Pins};
    #[pymodule_export]
    use super::budget::{Budget, BudgetStatus, BudgetUser, Reservation};
    #[pymodule_export]
    use super::context::{current_cancel_token, current_device};
    #[pymodule_export]
    use super::device::{
        Device, Occupied, devices, parse_size, register_provider, restore_device, size,
        virtual_devices,
    };
    #[pymodule_export]
    use super::exit::{LastMoment, about_to_fork, entered_child, has_forked, release_this_thread};
    #[pymodule_export]
    use super::load_lock::{LoadLock, LockGuard, LockStatus, LockUser};
    #[pymodule_export]
    use super::planner::{Planner, RunningJob};
    #[pymodule_export]
    use super::pool::{Borrow, DevicePool, DeviceStatus, Holder, Lease, Waiter};
    #[pymodule_export]
    use super::queue::{Claim, Event, Events, Job, JobQueue, Offer, QueueStatus, UserStatus};
    #[pymodule_export]
    use super::residency::{Replayed, policies, replay_trace};
    #[pymodule_export]
    use super::runtime::{Connection, connect};
    #[pymodule_export]
    use super::shares::shares;
    #[pymodule_export]
    use super::streaming::{Streaming, StreamingStatus};
    #[pymodule_export]
    use super::trace::{Hint, Recording, Timeline, hint_kinds, trace_hints};
    #[pymodule_export]
    use super::wait::CancelToken;
    #[pymodule_export]
    use super::weights::{PrivateWeights, Tensor, WeightStore, Weights, WeightsStatus};
    #[pymodule_export]
    use super::worker::{Lane, Ticket, WorkerPool, WorkerStatus};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::refuse_subinterpreters()?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
