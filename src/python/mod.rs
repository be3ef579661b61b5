//! The only room that knows Python: `coresident._core`.
//!
//! Every call that may wait goes through one door, [`wait::patiently`]. Nothing of Python runs while
//! a lock of the core is held.

mod aio;
mod argument;
mod context;
mod device;
mod error;
mod exit;
mod guard;
mod load_lock;
mod owner;
mod pool;
mod shares;
mod torch;
mod wait;
mod worker;

use pyo3::prelude::*;

/// The compiled core of `coresident`. Use the names of the package itself.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::aio::{Request, Wakeups, wakeups};
    #[pymodule_export]
    use super::context::{current_cancel_token, current_device};
    #[pymodule_export]
    use super::device::{Device, devices, register_provider, restore_device, virtual_devices};
    #[pymodule_export]
    use super::exit::{begin_exit, entered_child, release_this_thread};
    #[pymodule_export]
    use super::load_lock::{LoadLock, LockGuard, LockStatus, LockUser};
    #[pymodule_export]
    use super::pool::{Borrow, DevicePool, DeviceStatus, Holder, Lease, Waiter};
    #[pymodule_export]
    use super::shares::shares;
    #[pymodule_export]
    use super::wait::CancelToken;
    #[pymodule_export]
    use super::worker::{Lane, Ticket, WorkerPool, WorkerStatus};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
