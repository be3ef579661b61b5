//! The one conversion of the core's errors to Python's. The classes are in `coresident.errors`.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use super::exit::Inside;
use crate::device::{DeviceError, SizeError};
use crate::load_lock::LockError;
use crate::pool::PoolError;
use crate::queue::{JournalError, QueueError};
use crate::wait::{Deadlock, Forked, WaitError};
use crate::weights::WeightsError;
use crate::worker::{SharesError, WorkerError};

/// An error on its way to Python: the core's, or what a user's function has raised.
pub(super) struct Error {
    error: PyErr,
    of_task: bool,
}

impl Error {
    /// What a task raised.
    pub(super) fn of_task(error: PyErr) -> Self {
        Self { error, of_task: true }
    }

    /// Whether it is Ctrl-C, or anything else that no `except Exception` catches.
    pub(super) fn is_interrupt(&self, py: Python<'_>) -> bool {
        !self.error.is_instance_of::<PyException>(py)
    }

    /// Whether a task raised it, as an ordinary exception: not Ctrl-C or an exit.
    pub(super) fn is_of_a_task(&self, py: Python<'_>) -> bool {
        self.of_task && !self.is_interrupt(py)
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        error.error
    }
}

impl From<PyErr> for Error {
    fn from(error: PyErr) -> Self {
        Self { error, of_task: false }
    }
}

/// The result of a bound call.
pub(super) type Result<T> = std::result::Result<T, Error>;

/// An instance of `coresident.errors.<class>` with `message` and further fields.
pub(super) fn raise(
    class: &str,
    message: &str,
    fields: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> Error {
    Python::attach(|py| {
        let _inside = Inside::enter(py);
        let build = || -> PyResult<PyErr> {
            static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
            let errors = ERRORS
                .get_or_try_init(py, || PyResult::Ok(py.import("coresident.errors")?.unbind()))?;
            let class = errors.bind(py).getattr(class)?.cast_into::<PyType>()?;
            let kwargs = PyDict::new(py);
            fields(&kwargs)?;
            Ok(PyErr::from_value(class.call((message,), Some(&kwargs))?))
        };
        build().unwrap_or_else(|error| error).into()
    })
}

fn plain(class: &str, error: &dyn std::error::Error) -> Error {
    raise(class, &error.to_string(), |_| Ok(()))
}

/// A value that cannot be meant.
pub(super) fn invalid_value(message: &str) -> Error {
    raise("InvalidValueError", message, |_| Ok(()))
}

/// A value of a type that cannot be meant.
pub(super) fn invalid_type(message: &str) -> Error {
    raise("InvalidTypeError", message, |_| Ok(()))
}

impl From<WaitError> for Error {
    fn from(error: WaitError) -> Self {
        let message = error.to_string();
        match error {
            WaitError::Timeout { after, .. } => raise("WaitTimeoutError", &message, |fields| {
                fields.set_item("timeout", after.as_secs_f64())
            }),
            WaitError::Cancelled { reason, .. } => {
                raise("CancelledError", &message, |fields| fields.set_item("reason", reason))
            }
            WaitError::Deadlock(deadlock) => deadlock.into(),
            WaitError::Forked(error) => error.into(),
            WaitError::Interrupted => plain("CancelledError", &error),
        }
    }
}

impl From<Deadlock> for Error {
    fn from(deadlock: Deadlock) -> Self {
        let message = deadlock.to_string();
        let steps = deadlock.steps.into_iter().map(|step| (step.waiter, step.wants, step.holders));
        let cycle: Vec<_> = steps.collect();
        raise("DeadlockError", &message, |fields| fields.set_item("cycle", cycle))
    }
}

impl From<Forked> for Error {
    fn from(error: Forked) -> Self {
        plain("ForkedError", &error)
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        let message = error.to_string();
        match error {
            DeviceError::Absent { name, present } => {
                let present: Vec<String> = present.iter().map(ToString::to_string).collect();
                raise("DeviceNotFoundError", &message, |fields| {
                    fields.set_item("device", name.to_string())?;
                    fields.set_item("present", present)
                })
            }
            DeviceError::Name(_) | DeviceError::Empty => plain("InvalidDeviceError", &error),
            DeviceError::Count { .. }
            | DeviceError::Zero { .. }
            | DeviceError::NeedsMemory { .. } => plain("InvalidValueError", &error),
        }
    }
}

impl From<SizeError> for Error {
    fn from(error: SizeError) -> Self {
        plain("InvalidValueError", &error)
    }
}

impl From<SharesError> for Error {
    fn from(error: SharesError) -> Self {
        plain("InvalidValueError", &error)
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        let message = error.to_string();
        match error {
            PoolError::Wait(error) => error.into(),
            PoolError::Forked(error) => error.into(),
            PoolError::Device(error) => error.into(),
            PoolError::NotInPool { name, present } => {
                let present: Vec<String> = present.iter().map(ToString::to_string).collect();
                raise("DeviceNotFoundError", &message, |fields| {
                    fields.set_item("device", name.to_string())?;
                    fields.set_item("present", present)
                })
            }
            PoolError::Removed { name, .. } => raise("DeviceRemovedError", &message, |fields| {
                fields.set_item("device", name.to_string())
            }),
            PoolError::Closed => plain("ClosedError", &error),
        }
    }
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Wait(error) => error.into(),
            LockError::Forked(error) => error.into(),
        }
    }
}

impl From<WorkerError> for Error {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Wait(error) => error.into(),
            WorkerError::Forked(error) => error.into(),
            WorkerError::Closed { .. } => plain("ClosedError", &error),
        }
    }
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        let message = error.to_string();
        match error {
            QueueError::Wait(error) => error.into(),
            QueueError::Forked(error) => error.into(),
            QueueError::Journal(error) => error.into(),
            QueueError::NoDevice { name, present } => {
                let present: Vec<String> = present.iter().map(ToString::to_string).collect();
                raise("DeviceNotFoundError", &message, |fields| {
                    fields.set_item("device", name.to_string())?;
                    fields.set_item("present", present)
                })
            }
            QueueError::TooManyDevices { .. } => plain("InvalidValueError", &error),
            QueueError::Unrunnable { reason } => {
                raise("UnrunnableJobError", &message, |fields| fields.set_item("reason", reason))
            }
            QueueError::Full { user, queued, limit, .. } => {
                raise("QueueFullError", &message, |fields| {
                    fields.set_item("user", user)?;
                    fields.set_item("queued", queued)?;
                    fields.set_item("limit", limit)
                })
            }
            QueueError::Payload { bytes, limit } => raise("PayloadError", &message, |fields| {
                fields.set_item("nbytes", bytes)?;
                fields.set_item("limit", limit)
            }),
            QueueError::NoJob { id } => {
                raise("JobNotFoundError", &message, |fields| fields.set_item("job", id))
            }
            QueueError::Closed => plain("ClosedError", &error),
            QueueError::Ended { .. } => plain("ReleasedError", &error),
        }
    }
}

impl From<JournalError> for Error {
    fn from(error: JournalError) -> Self {
        let message = error.to_string();
        let (class, path) = match error {
            JournalError::InUse { path, .. } => ("QueueInUseError", path),
            JournalError::Newer { path, .. }
            | JournalError::NoQueue { path, .. }
            | JournalError::Failed { path, .. } => ("JournalError", path),
        };
        raise(class, &message, |fields| fields.set_item("path", path))
    }
}

impl From<WeightsError> for Error {
    fn from(error: WeightsError) -> Self {
        let message = error.to_string();
        match error {
            WeightsError::Forked(error) => error.into(),
            WeightsError::Unreadable { path, why } => {
                let class = match why.kind() {
                    std::io::ErrorKind::NotFound => "WeightsFileNotFoundError",
                    _ => "WeightsFileError",
                };
                raise(class, &message, |fields| fields.set_item("path", path))
            }
            WeightsError::Cut { path } | WeightsError::Folder { path, .. } => {
                raise("WeightsFileError", &message, |fields| fields.set_item("path", path))
            }
            WeightsError::Malformed { path, .. } => {
                raise("MalformedWeightsError", &message, |fields| fields.set_item("path", path))
            }
            WeightsError::InUse { key, open, .. } => {
                raise("WeightsInUseError", &message, |fields| {
                    fields.set_item("key", key)?;
                    fields.set_item("path", open)
                })
            }
            WeightsError::NoMemory { key, .. } => {
                raise("WeightsMemoryError", &message, |fields| fields.set_item("key", key))
            }
            WeightsError::NotPrivate { key } => {
                raise("WeightsNotMappedError", &message, |fields| fields.set_item("key", key))
            }
            WeightsError::NotOpen { key } => {
                raise("WeightsNotOpenError", &message, |fields| fields.set_item("key", key))
            }
            WeightsError::Unshareable { name, .. } => {
                raise("UnshareableTensorError", &message, |fields| fields.set_item("name", name))
            }
            WeightsError::Budget(error) => error.into(),
            WeightsError::Wait(error) => error.into(),
            WeightsError::InvalidKey { .. } => plain("InvalidValueError", &error),
            WeightsError::NoTensor { name, key, near, .. } => {
                raise("TensorNotFoundError", &message, |fields| {
                    fields.set_item("name", name)?;
                    fields.set_item("key", key)?;
                    fields.set_item("near", near)
                })
            }
        }
    }
}
