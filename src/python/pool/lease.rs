//! Leases and borrows: the guards of devices.

use pyo3::prelude::*;

use super::super::context;
use super::super::device::Device;
use super::super::error::{Error, Result, raise};
use super::super::guard::{Taker, released, warn_forgotten};
use super::super::wait::caller;
use crate::pool;
use crate::wait::Owner;

/// The exclusive right to run on a device.
#[pyclass(frozen, weakref, module = "coresident", name = "Lease")]
pub(in crate::python) struct Lease {
    lease: pool::Lease,
    taker: Taker,
}

impl Lease {
    /// Wraps a lease and makes its device current.
    pub(super) fn of(py: Python<'_>, lease: pool::Lease, owner: &Owner) -> Result<Self> {
        context::pin_lease(py, lease.hold())?;
        Ok(Self { lease, taker: Taker::of(owner) })
    }

    fn enter(&self, py: Python<'_>) -> Result<()> {
        if self.lease.is_with_owner() && self.taker.is_caller() {
            return Ok(());
        }
        self.check()?;
        self.lease.adopt(&caller(py)?);
        context::pin_lease(py, self.lease.hold()).map_err(Error::from)
    }

    fn hand_over_to_anyone(&self) -> Result<()> {
        self.check()?;
        self.lease.hand_over();
        Ok(())
    }

    fn what(&self) -> String {
        format!("the lease of {}", self.lease.device())
    }

    fn check(&self) -> Result<()> {
        self.lease.check()?;
        if self.lease.is_live() { Ok(()) } else { Err(released(&self.what())) }
    }

    fn told(&self, kind: &str) -> String {
        let state = if self.lease.is_live() { "held" } else { "released" };
        format!("<{kind} {} {state}>", self.lease.device())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.lease.hold().is_held_here() {
            self.lease.release();
            warn_forgotten(&self.what());
        }
    }
}

#[pymethods]
impl Lease {
    /// The device, also once it is released.
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.lease.device().clone())
    }

    /// Whether the device is no longer held through this lease.
    #[getter]
    fn released(&self) -> bool {
        !self.lease.is_live()
    }

    /// Whether somebody waits for this device right now: a hint to release it soon.
    #[getter]
    fn wanted(&self) -> bool {
        self.lease.is_wanted()
    }

    /// Gives the device to the next in line. From any thread; again without effect.
    fn release(&self) {
        self.lease.release();
    }

    /// Lets another thread or task have this lease. Does not wait.
    fn hand_over(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        slf.get().hand_over_to_anyone()?;
        Ok(slf)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        slf.get().enter(slf.py())?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.lease.release();
    }

    fn __repr__(&self) -> String {
        self.told("Lease")
    }
}

/// An idle device on loan, or nothing.
#[pyclass(frozen, weakref, module = "coresident", name = "Borrow")]
pub(in crate::python) struct Borrow(pub(super) Option<Lease>);

impl Borrow {
    fn lease(&self) -> Result<&Lease> {
        let nothing = || {
            let message = "this borrow holds no device: none was idle, which `if spare:` tells";
            raise("ReleasedError", message, |_| Ok(()))
        };
        self.0.as_ref().ok_or_else(nothing)
    }
}

#[pymethods]
impl Borrow {
    /// The device, also once it is released; `None` when nothing was idle.
    #[getter]
    fn device(&self) -> Option<Device> {
        self.0.as_ref().map(Lease::device)
    }

    /// Whether no device is held through this borrow; `True` when nothing was idle.
    #[getter]
    fn released(&self) -> bool {
        self.0.as_ref().is_none_or(Lease::released)
    }

    /// Whether somebody waits for this device right now: a hint to release it soon.
    #[getter]
    fn wanted(&self) -> bool {
        self.0.as_ref().is_some_and(Lease::wanted)
    }

    /// Gives the device to the next in line. From any thread; again without effect.
    fn release(&self) {
        if let Some(lease) = &self.0 {
            lease.release();
        }
    }

    /// Lets another thread or task have this borrow, as `Lease.hand_over`. Does not wait.
    fn hand_over(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        slf.get().lease()?.hand_over_to_anyone()?;
        Ok(slf)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Option<Bound<'_, Self>>> {
        match &slf.get().0 {
            None => Ok(None),
            Some(lease) => {
                lease.enter(slf.py())?;
                Ok(Some(slf))
            }
        }
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.release();
    }

    fn __bool__(&self) -> bool {
        !self.released()
    }

    fn __repr__(&self) -> String {
        self.0
            .as_ref()
            .map_or_else(|| "<Borrow of nothing>".to_owned(), |lease| lease.told("Borrow"))
    }
}
