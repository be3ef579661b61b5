//! `Budget` and its reservations.

mod callback;
mod reservation;
mod status;

use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

pub(super) use reservation::Reservation;
pub(super) use status::{BudgetStatus, BudgetUser};

use super::error::{Error, Result, invalid_type, raise};
use super::exit::{Inside, detached};
use super::wait::{Terms, caller, patiently};
use super::{argument, device};
use crate::budget::{self, BudgetError, Figures, Limit, Spec, default_host_limit};
use crate::device::{ByteSize, Driver, Host, host_memory};
use crate::sync::Mutex;
use callback::{PythonEvictor, PythonProbe};

/// A ledger of the bytes of one memory, with a limit.
#[pyclass(frozen, weakref, module = "coresident", name = "Budget")]
pub(super) struct Budget {
    ledger: budget::Budget,
    evictors: Mutex<Vec<Registered>>,
    probe: Option<Arc<PythonProbe>>,
}

/// The least that host memory is limited to where nobody has set a limit.
const LEAST: u64 = 4 << 30;

/// An evictor, and the number by which the core knows it.
type Registered = (u64, Arc<PythonEvictor>);

/// Bytes, or a share of the memory.
fn limit(value: &Bound<'_, PyAny>) -> Result<Limit> {
    match value.cast::<PyString>() {
        Ok(text) => Ok(text.to_string_lossy().parse::<Limit>()?),
        Err(_) => Ok(Limit::Bytes(argument::bytes("a limit", value)?)),
    }
}

fn purpose(value: Option<&Bound<'_, PyAny>>) -> Result<Option<String>> {
    match value.filter(|value| !value.is_none()) {
        None => Ok(None),
        Some(value) => match value.cast::<PyString>() {
            Ok(text) => Ok(Some(text.to_string_lossy().into_owned())),
            Err(_) => {
                let given = argument::type_name(value);
                Err(invalid_type(&format!("purpose is a text, not {given}")))
            }
        },
    }
}

impl Budget {
    pub(super) fn ledger(&self) -> budget::Budget {
        self.ledger.clone()
    }
}

#[pymethods]
impl Budget {
    #[new]
    #[pyo3(signature = (name, limit=None, *, headroom=None, probe=None))]
    fn new(
        name: &Bound<'_, PyAny>,
        limit: Option<&Bound<'_, PyAny>>,
        headroom: Option<&Bound<'_, PyAny>>,
        probe: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let is_ram = name
            .cast::<PyString>()
            .is_ok_and(|name| name.to_string_lossy().trim().eq_ignore_ascii_case("ram"));
        let (name, total, driver): (String, Option<u64>, Arc<dyn Driver>) = if is_ram {
            ("ram".to_owned(), host_memory(), Arc::new(Host))
        } else {
            let device = device::select_one("a budget", name)?;
            (device.to_string(), device.memory(), device.driver())
        };
        let limit = limit.filter(|limit| !limit.is_none()).map(self::limit).transpose()?;
        let limit = match (limit, is_ram, total) {
            (Some(limit), ..) => limit,
            // Where the system does not tell what there is, as little as it is ever limited to.
            (None, true, total) => Limit::Bytes(default_host_limit(total.unwrap_or(0).max(LEAST))),
            (None, ..) => Limit::ALL,
        };
        let headroom = headroom.filter(|headroom| !headroom.is_none());
        let headroom =
            headroom.map(|headroom| argument::bytes("headroom", headroom)).transpose()?;
        let (probe, python) = callback::probe(probe, driver)?;
        let spec = Spec {
            total,
            limit: limit.bytes(&name, total)?,
            headroom: headroom.unwrap_or(0),
            probe,
            ..Spec::named(name)
        };
        let ledger = budget::Budget::new(spec);
        Ok(Self { ledger, evictors: Mutex::new(Vec::new()), probe: python })
    }

    /// What the memory is called.
    #[getter]
    fn name(&self) -> &str {
        self.ledger.name()
    }

    /// The bytes of the memory; `None` if they are not known.
    #[getter]
    fn total(&self) -> Result<Option<u64>> {
        self.ledger.check()?;
        Ok(self.ledger.total())
    }

    /// The most bytes that can be reserved.
    #[getter]
    fn limit(&self) -> Result<u64> {
        self.ledger.check()?;
        Ok(self.ledger.limit())
    }

    #[setter]
    fn set_limit(&self, py: Python<'_>, limit: &Bound<'_, PyAny>) -> Result<()> {
        self.ledger.check()?;
        let limit = self::limit(limit)?.bytes(self.ledger.name(), self.ledger.total())?;
        Ok(detached(py, || self.ledger.set_limit(limit))?)
    }

    /// The bytes of the memory that stay free.
    #[getter]
    fn headroom(&self) -> Result<u64> {
        self.ledger.check()?;
        Ok(self.ledger.headroom())
    }

    #[setter]
    fn set_headroom(&self, py: Python<'_>, headroom: &Bound<'_, PyAny>) -> Result<()> {
        let headroom = argument::bytes("headroom", headroom)?;
        Ok(detached(py, || self.ledger.set_headroom(headroom))?)
    }

    /// The bytes that are reserved.
    #[getter]
    fn used(&self) -> Result<u64> {
        self.ledger.check()?;
        Ok(self.ledger.used())
    }

    /// The bytes that can be reserved now, by the last look at the memory.
    #[getter]
    fn free(&self) -> Result<u64> {
        self.ledger.check()?;
        Ok(self.ledger.free())
    }

    /// The most bytes that were ever reserved.
    #[getter]
    fn peak(&self) -> Result<u64> {
        self.ledger.check()?;
        Ok(self.ledger.peak())
    }

    /// Reserves; waits in line.
    #[pyo3(signature = (nbytes, *, purpose=None, timeout=None, cancel=None))]
    fn reserve(
        slf: &Bound<'_, Self>,
        nbytes: &Bound<'_, PyAny>,
        purpose: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Reservation> {
        let (py, this) = (slf.py(), slf.get());
        let bytes = argument::bytes("nbytes", nbytes)?;
        let purpose = self::purpose(purpose)?;
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        terms.check(&format!("{} of {}", ByteSize(bytes), this.ledger.name()))?;
        let purpose = purpose.as_deref();
        if let Some(reservation) = this.ledger.reserve_at_once(bytes, purpose, &owner)? {
            return Ok(Reservation::of(reservation, slf));
        }
        let reservation =
            patiently(py, terms, |patience| this.ledger.reserve(bytes, purpose, &owner, patience))?;
        Ok(Reservation::of(reservation, slf))
    }

    /// Reserves if that needs no waiting, even before those who wait.
    #[pyo3(signature = (nbytes, *, purpose=None))]
    fn try_reserve(
        slf: &Bound<'_, Self>,
        nbytes: &Bound<'_, PyAny>,
        purpose: Option<&Bound<'_, PyAny>>,
    ) -> Result<Option<Reservation>> {
        let bytes = argument::bytes("nbytes", nbytes)?;
        let purpose = self::purpose(purpose)?;
        let owner = caller(slf.py())?;
        let reservation = slf.get().ledger.try_reserve(bytes, purpose.as_deref(), &owner)?;
        Ok(reservation.map(|reservation| Reservation::of(reservation, slf)))
    }

    /// Has `evictor` called with the number of missing bytes.
    #[pyo3(signature = (evictor, *, priority=0))]
    fn add_evictor(&self, evictor: &Bound<'_, PyAny>, priority: i64) -> Result<()> {
        if !evictor.is_callable() {
            let given = argument::type_name(evictor);
            let message = format!("an evictor is a function of a number of bytes, not {given}");
            return Err(invalid_type(&message));
        }
        let evictor = Arc::new(PythonEvictor(evictor.clone().unbind()));
        let number = self.ledger.add_evictor(priority, evictor.clone());
        self.evictors.lock().push((number, evictor));
        Ok(())
    }

    /// Has it called no more. Whether it was there.
    fn remove_evictor(&self, evictor: &Bound<'_, PyAny>) -> Result<bool> {
        let all: Vec<Registered> = self.evictors.lock().clone();
        let _inside = Inside::enter(evictor.py());
        for (number, known) in all {
            if known.0.bind(evictor.py()).eq(evictor)? && self.ledger.remove_evictor(number) {
                let mut evictors = self.evictors.lock();
                let at = evictors.iter().position(|(other, _)| *other == number);
                let removed = at.map(|at| evictors.remove(at));
                drop(evictors);
                drop(removed);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at the memory now.
    fn look(&self, py: Python<'_>) -> Result<()> {
        Ok(detached(py, || self.ledger.look())?)
    }

    /// Who has bytes, and who waits for some.
    fn status(&self, py: Python<'_>) -> Result<BudgetStatus> {
        Ok(BudgetStatus::of(py, self.ledger.status()?)?)
    }

    fn __repr__(&self) -> String {
        let name = self.ledger.name();
        if self.ledger.check().is_err() {
            return format!("<Budget {name} of another process>");
        }
        let (used, limit) = (ByteSize(self.ledger.used()), ByteSize(self.ledger.limit()));
        format!("<Budget {name}: {used} of {limit}>")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        if let Some(probe) = &self.probe {
            visit.call(&probe.0)?;
        }
        if let Some(evictors) = self.evictors.try_lock() {
            for (_, evictor) in evictors.iter() {
                visit.call(&evictor.0)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let gone = std::mem::take(&mut *self.evictors.lock());
        for (number, _) in &gone {
            self.ledger.remove_evictor(*number);
        }
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        // Its functions may hold what holds the ledger.
        for (number, _) in self.evictors.lock().iter() {
            self.ledger.remove_evictor(*number);
        }
    }
}

impl From<BudgetError> for Error {
    fn from(error: BudgetError) -> Self {
        let message = error.to_string();
        let exceeded = |class: &str, figures: &Figures, timeout: Option<f64>| {
            raise(class, &message, |fields| {
                fields.set_item("budget", &figures.budget)?;
                fields.set_item("asked", figures.asked)?;
                fields.set_item("free", figures.free)?;
                fields.set_item("limit", figures.limit)?;
                timeout.map_or(Ok(()), |timeout| fields.set_item("timeout", timeout))
            })
        };
        match error {
            BudgetError::Impossible(figures) => exceeded("BudgetExceededError", &figures, None),
            BudgetError::Timeout { after, figures } => {
                exceeded("BudgetTimeoutError", &figures, Some(after.as_secs_f64()))
            }
            BudgetError::TooMuch { .. } => super::error::invalid_value(&message),
            BudgetError::Released { .. } => raise("ReleasedError", &message, |_| Ok(())),
            BudgetError::Wait(error) => error.into(),
            BudgetError::Forked(error) => error.into(),
        }
    }
}

impl From<budget::LimitError> for Error {
    fn from(error: budget::LimitError) -> Self {
        super::error::invalid_value(&error.to_string())
    }
}
