//! `DevicePool`, its leases and borrows.

mod lease;
mod status;

use pyo3::prelude::*;
use pyo3::types::PyString;

pub(super) use lease::{Borrow, Lease};
pub(super) use status::{DeviceStatus, Holder, Waiter, since};

use super::aio::{self, Request};
use super::device::{self, Device};
use super::error::{Error, Result, invalid_type};
use super::exit::detached;
use super::wait::{Terms, caller, settle};
use super::{argument, context};
use crate::pool;
use crate::wait::Parker;

/// A set of devices, each with one holder or none.
#[pyclass(frozen, weakref, module = "coresident", name = "DevicePool")]
pub(super) struct DevicePool(pool::DevicePool);

impl DevicePool {
    pub(super) fn inner(&self) -> &pool::DevicePool {
        &self.0
    }
}

#[pymethods]
impl DevicePool {
    #[new]
    fn new(devices: &Bound<'_, PyAny>) -> Result<Self> {
        Ok(Self(pool::DevicePool::new(device::select("DevicePool()", devices)?)?))
    }

    /// The devices of the pool in order, without those that drain.
    #[getter]
    fn devices(&self) -> Result<Vec<Device>> {
        Ok(self.0.devices()?.into_iter().map(Device::of).collect())
    }

    /// Takes a device for the caller alone; waits in line for it.
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

    /// As `lease`, for asyncio: the task waits, its thread does not.
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

    /// Takes an idle device for one piece of work, or nothing. Never waits.
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
            detached(py, || self.0.borrow(&wish, &owner))?
        } else {
            self.0.borrow(&wish, &owner)?
        };
        lent.map(|lease| Lease::of(py, lease, &owner)).transpose().map(Borrow)
    }

    /// Makes these the devices of the pool. Does not wait.
    fn reconfigure(&self, devices: &Bound<'_, PyAny>) -> Result<Vec<Device>> {
        let devices = device::select("reconfigure()", devices)?;
        Ok(self.0.reconfigure(devices)?.into_iter().map(Device::of).collect())
    }

    /// Who holds what since when, and who waits. Does not wait.
    fn status(&self, py: Python<'_>) -> Result<Vec<DeviceStatus>> {
        let told = self.0.status()?.into_iter().map(|one| DeviceStatus::of(py, one));
        told.collect::<PyResult<_>>().map_err(Error::from)
    }

    /// Refuses everybody from now on, and whoever waits, with `ClosedError`.
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
