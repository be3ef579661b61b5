//! `DevicePool`, its leases and borrows.

use std::time::{Duration, SystemTime};

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::aio::{self, Request};
use super::device::{self, Device};
use super::error::{Error, Result, invalid_type};
use super::guard::{Taker, released, warn_forgotten};
use super::wait::{Terms, caller, settle};
use super::{argument, context};
use crate::pool;
use crate::wait::{Owner, Parker};

/// A set of devices, each with one holder or none.
#[pyclass(frozen, weakref, module = "coresident", name = "DevicePool")]
pub(super) struct DevicePool(pool::DevicePool);

#[pymethods]
impl DevicePool {
    #[new]
    fn new(devices: &Bound<'_, PyAny>) -> Result<Self> {
        Ok(Self(pool::DevicePool::new(device::select("DevicePool()", devices)?)?))
    }

    #[getter]
    fn devices(&self) -> Result<Vec<Device>> {
        Ok(self.0.devices()?.into_iter().map(Device::of).collect())
    }

    #[pyo3(signature = (device=None, *, timeout=None, cancel=None))]
    fn lease(
        &self,
        py: Python<'_>,
        device: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Lease> {
        let name = device.map(argument::name).transpose()?;
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        terms.check("a device")?;
        if let Some(lease) = self.0.try_lease(name, &owner)? {
            return Lease::of(py, lease, &owner);
        }
        let parker = Parker::new();
        let asked = self.0.ask(name, &owner, parker.clone())?;
        Lease::of(py, settle(py, asked, &parker, terms)?, &owner)
    }

    #[pyo3(signature = (device=None, *, timeout=None, cancel=None))]
    fn lease_async<'py>(
        slf: &Bound<'py, Self>,
        device: Option<&Bound<'py, PyAny>>,
        timeout: Option<&Bound<'py, PyAny>>,
        cancel: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        let name = device.map(argument::name).transpose()?;
        let terms = Terms::of(timeout, cancel)?;
        let pool = slf.get().0.clone();
        aio::awaitable(slf.py(), terms, move |py, terms, target| {
            let owner = caller(py)?;
            terms.check("a device")?;
            let asked = pool.ask(name, &owner, target.waker())?;
            Request::of(asked, terms, target, move |py, lease| {
                Py::new(py, Lease::of(py, lease, &owner)?).map(Py::into_any).map_err(Error::from)
            })
        })
    }

    #[pyo3(signature = (prefer=None, *, affinity=None, any_type=false, min_free=None))]
    fn borrow(
        &self,
        py: Python<'_>,
        prefer: Option<&Bound<'_, PyAny>>,
        affinity: Option<&Bound<'_, PyAny>>,
        any_type: bool,
        min_free: Option<&Bound<'_, PyAny>>,
    ) -> Result<Borrow> {
        let prefer = match prefer.filter(|prefer| !prefer.is_none()) {
            Some(prefer) => argument::names("prefer", prefer)?,
            None => Vec::new(),
        };
        let affinity = affinity.filter(|key| !key.is_none()).map(text_of_affinity).transpose()?;
        let min_free = min_free.filter(|bytes| !bytes.is_none());
        let min_free = min_free.map(|bytes| argument::bytes("min_free", bytes)).transpose()?;
        let owner = caller(py)?;
        let lender = if any_type { None } else { context::current(py)? };
        let only = lender.map(|device| device.name().kind());
        let wish = pool::Wish { prefer: &prefer, affinity: affinity.as_deref(), only, min_free };
        // Drivers may take a while to tell what is free.
        let lent = if min_free.is_some() {
            py.detach(|| self.0.borrow(&wish, &owner))?
        } else {
            self.0.borrow(&wish, &owner)?
        };
        lent.map(|lease| Lease::of(py, lease, &owner)).transpose().map(Borrow)
    }

    fn reconfigure(&self, devices: &Bound<'_, PyAny>) -> Result<Vec<Device>> {
        let devices = device::select("reconfigure()", devices)?;
        Ok(self.0.reconfigure(devices)?.into_iter().map(Device::of).collect())
    }

    fn status(&self, py: Python<'_>) -> Result<Vec<DeviceStatus>> {
        let told = self.0.status()?.into_iter().map(|one| DeviceStatus::of(py, one));
        told.collect::<PyResult<_>>().map_err(Error::from)
    }

    fn close(&self) {
        self.0.close();
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.0.close();
    }

    fn __repr__(&self) -> Result<String> {
        let status = self.0.status()?;
        let told = status.iter().map(|one| {
            let state = one.holder.as_ref().map_or("idle", |holder| holder.owner.as_str());
            format!("{}: {state}", one.device)
        });
        Ok(format!("<DevicePool {}>", told.collect::<Vec<_>>().join(", ")))
    }
}

fn text_of_affinity(key: &Bound<'_, PyAny>) -> Result<String> {
    match key.cast::<PyString>() {
        Ok(text) => text.extract().map_err(Error::from),
        Err(_) => {
            Err(invalid_type(&format!("affinity is a text, not {}", argument::type_name(key))))
        }
    }
}

/// The exclusive right to run on a device.
#[pyclass(frozen, weakref, module = "coresident", name = "Lease")]
pub(super) struct Lease {
    lease: pool::Lease,
    taker: Taker,
}

impl Lease {
    /// Wraps a lease and makes its device current.
    fn of(py: Python<'_>, lease: pool::Lease, owner: &Owner) -> Result<Self> {
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
        if self.lease.is_live() { Ok(()) } else { Err(released(&self.what())) }
    }

    fn told(&self, kind: &str) -> String {
        let state = if self.lease.is_live() { "held" } else { "released" };
        format!("<{kind} {} {state}>", self.lease.device())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.lease.is_live() && self.lease.is_here() {
            self.lease.release();
            warn_forgotten(&self.what());
        }
    }
}

#[pymethods]
impl Lease {
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.lease.device().clone())
    }

    #[getter]
    fn released(&self) -> bool {
        !self.lease.is_live()
    }

    #[getter]
    fn wanted(&self) -> bool {
        self.lease.is_wanted()
    }

    fn release(&self) {
        self.lease.release();
    }

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
pub(super) struct Borrow(Option<Lease>);

impl Borrow {
    fn lease(&self) -> Result<&Lease> {
        let nothing = || {
            let message = "this borrow holds no device: none was idle, which `if spare:` tells";
            super::error::raise("ReleasedError", message, |_| Ok(()))
        };
        self.0.as_ref().ok_or_else(nothing)
    }
}

#[pymethods]
impl Borrow {
    #[getter]
    fn device(&self) -> Option<Device> {
        self.0.as_ref().map(Lease::device)
    }

    #[getter]
    fn released(&self) -> bool {
        self.0.as_ref().is_none_or(Lease::released)
    }

    #[getter]
    fn wanted(&self) -> bool {
        self.0.as_ref().is_some_and(Lease::wanted)
    }

    fn release(&self) {
        if let Some(lease) = &self.0 {
            lease.release();
        }
    }

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

/// One device of a pool: who holds it, who waits for it.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct DeviceStatus {
    device: Py<Device>,
    holder: Option<Py<Holder>>,
    waiting: Vec<Py<Waiter>>,
    draining: bool,
}

/// Who holds a device, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct Holder {
    owner: String,
    since: f64,
    seconds: f64,
    borrowed: bool,
    handed_over: bool,
}

/// Who waits for a device, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct Waiter {
    owner: String,
    device: Option<String>,
    since: f64,
    seconds: f64,
}

impl DeviceStatus {
    fn of(py: Python<'_>, status: pool::DeviceStatus) -> PyResult<Self> {
        let holder = status.holder.map(|holder| {
            let (since, seconds) = since(holder.held_for);
            let pool::HolderStatus { owner, borrowed, handed_over, .. } = holder;
            Py::new(py, Holder { owner, since, seconds, borrowed, handed_over })
        });
        let waiting = status.waiting.into_iter().map(|waiter| {
            let (since, seconds) = since(waiter.waited_for);
            let device = waiter.device.map(|name| name.to_string());
            Py::new(py, Waiter { owner: waiter.owner, device, since, seconds })
        });
        Ok(Self {
            device: Py::new(py, Device::of(status.device))?,
            holder: holder.transpose()?,
            waiting: waiting.collect::<PyResult<_>>()?,
            draining: status.draining,
        })
    }
}

/// When something began that has lasted so long: seconds since the epoch, and how many.
pub(super) fn since(lasted: Duration) -> (f64, f64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.saturating_sub(lasted).as_secs_f64(), lasted.as_secs_f64())
}

#[pymethods]
impl DeviceStatus {
    fn __repr__(&self, py: Python<'_>) -> String {
        let device = self.device.get().inner();
        let holder = self.holder.as_ref().map_or("idle".to_owned(), |holder| holder.get().told());
        let draining = if self.draining { ", draining" } else { "" };
        let waiting: Vec<&str> =
            self.waiting.iter().map(|one| one.bind(py).get().owner.as_str()).collect();
        let waiting = match waiting.as_slice() {
            [] => String::new(),
            waiting => format!(", wanted by {}", waiting.join(", ")),
        };
        format!("<{device}: {holder}{draining}{waiting}>")
    }
}

impl Holder {
    fn told(&self) -> String {
        let how = if self.borrowed { "borrowed" } else { "held" };
        format!("{how} by {} for {:.1} s", self.owner, self.seconds)
    }
}

#[pymethods]
impl Holder {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}

#[pymethods]
impl Waiter {
    fn __repr__(&self) -> String {
        let device = self.device.as_deref().unwrap_or("any device");
        format!("<{} waits for {device} for {:.1} s>", self.owner, self.seconds)
    }
}
