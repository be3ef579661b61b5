//! `Budget` and its reservations.

use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

use super::callback::call;
use super::error::{Error, Result, invalid_type, raise};
use super::exit::{Inside, detached};
use super::guard::{released, warn_forgotten};
use super::pool::since;
use super::wait::{Terms, caller, patiently};
use super::{argument, device};
use crate::budget::{self, BudgetError, Evictor, Figures, Limit, Probe, Spec, default_host_limit};
use crate::device::{ByteSize, Driver, Host, host_memory};
use crate::sync::Mutex;

/// A ledger of the bytes of one memory, with a limit.
#[pyclass(frozen, weakref, module = "coresident", name = "Budget")]
pub(super) struct Budget {
    ledger: budget::Budget,
    evictors: Mutex<Vec<Registered>>,
    probe: Option<Arc<PythonProbe>>,
}

/// The least that host memory is limited to where nobody has set a limit.
const LEAST: u64 = 4 << 30;

/// A probe, and if it is a function of Python's, that as well.
type Probing = (Option<Arc<dyn Probe>>, Option<Arc<PythonProbe>>);

/// An evictor, and the number by which the core knows it.
type Registered = (u64, Arc<PythonEvictor>);

/// What a device, or the host, says of its own memory.
struct OfDriver(Arc<dyn Driver>);

impl Probe for OfDriver {
    fn free(&self) -> Option<u64> {
        self.0.free_memory()
    }
}

/// A Python function that says what is free; one that raises does not know.
struct PythonProbe(Py<PyAny>);

impl Probe for PythonProbe {
    fn free(&self) -> Option<u64> {
        call(&self.0, |function| function.call0()?.extract()).flatten()
    }
}

/// A Python function that gives bytes back.
struct PythonEvictor(Py<PyAny>);

impl Evictor for PythonEvictor {
    fn evict(&self, bytes: u64) {
        call(&self.0, |function| function.call1((bytes,)).map(drop));
    }
}

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

    fn probe(given: Option<&Bound<'_, PyAny>>, driver: Arc<dyn Driver>) -> Result<Probing> {
        let Some(given) = given.filter(|given| !given.is_none()) else {
            return Ok((Some(Arc::new(OfDriver(driver))), None));
        };
        if given.cast::<PyBool>().is_ok_and(|given| !given.is_true()) {
            return Ok((None, None));
        }
        if !given.is_callable() {
            let message = format!(
                "probe is a function that returns the bytes that are free, or False for none, not \
                 {}",
                argument::type_name(given)
            );
            return Err(invalid_type(&message));
        }
        let probe = Arc::new(PythonProbe(given.clone().unbind()));
        Ok((Some(probe.clone()), Some(probe)))
    }

    pub(super) fn reservation(
        slf: &Bound<'_, Self>,
        reservation: budget::Reservation,
    ) -> Reservation {
        let held = Held {
            reservation: Arc::new(reservation),
            budget: slf.clone().unbind(),
            released: false,
        };
        Reservation { held: Mutex::new(held) }
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
        let (probe, python) = Self::probe(probe, driver)?;
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
            return Ok(Self::reservation(slf, reservation));
        }
        let reservation =
            patiently(py, terms, |patience| this.ledger.reserve(bytes, purpose, &owner, patience))?;
        Ok(Self::reservation(slf, reservation))
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
        Ok(reservation.map(|reservation| Self::reservation(slf, reservation)))
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
        let status = self.ledger.status()?;
        let users = |users: Vec<budget::BudgetUser>| -> PyResult<Vec<Py<BudgetUser>>> {
            users.into_iter().map(|user| Py::new(py, BudgetUser::of(user))).collect()
        };
        Ok(BudgetStatus {
            holders: users(status.holders)?,
            waiting: users(status.waiting)?,
            name: status.name,
            limit: status.limit,
            headroom: status.headroom,
            used: status.used,
            peak: status.peak,
            free: status.free,
            outside: status.outside,
        })
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

/// A reservation, and the budget that it is of: both change when it moves.
struct Held {
    reservation: Arc<budget::Reservation>,
    budget: Py<Budget>,
    /// Released by its user, also while it moves.
    released: bool,
}

/// So many bytes of a memory, until they are released.
#[pyclass(frozen, weakref, module = "coresident", name = "Reservation")]
pub(super) struct Reservation {
    held: Mutex<Held>,
}

impl Reservation {
    fn inner(&self) -> Arc<budget::Reservation> {
        self.held.lock().reservation.clone()
    }

    pub(super) fn disown(&self) {
        self.inner().disown();
    }

    fn what(&self) -> String {
        let inner = self.inner();
        format!("the reservation of {} of {}", ByteSize(inner.bytes()), inner.budget().name())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let inner = self.inner();
        let bytes = inner.bytes();
        if inner.release() {
            let name = inner.budget().name().to_owned();
            warn_forgotten(&format!("the reservation of {} of {name}", ByteSize(bytes)));
        }
    }
}

#[pymethods]
impl Reservation {
    /// The bytes; 0 once they are released.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.inner().bytes()
    }

    /// How many of the bytes are in memory already.
    #[getter]
    fn filled(&self) -> u64 {
        self.inner().filled()
    }

    /// The budget.
    #[getter]
    fn budget(&self, py: Python<'_>) -> Py<Budget> {
        self.held.lock().budget.clone_ref(py)
    }

    /// Whether the bytes have been given back.
    #[getter]
    fn released(&self) -> bool {
        self.inner().is_released()
    }

    /// Gives the bytes back. From any thread; again without effect. Does not wait.
    pub(super) fn release(&self) {
        let reservation = {
            let mut held = self.held.lock();
            held.released = true;
            held.reservation.clone()
        };
        reservation.release();
    }

    /// Says how many of the bytes are in memory now.
    fn fill(&self, nbytes: &Bound<'_, PyAny>) -> Result<()> {
        Ok(self.inner().fill(argument::bytes("nbytes", nbytes)?)?)
    }

    /// Reserves more, and adds it; waits in line.
    #[pyo3(signature = (nbytes, *, timeout=None, cancel=None))]
    fn grow(
        &self,
        py: Python<'_>,
        nbytes: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let bytes = argument::bytes("nbytes", nbytes)?;
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        let inner = self.inner();
        terms.check(&format!("{} of {}", ByteSize(bytes), inner.budget().name()))?;
        patiently(py, terms, |patience| inner.grow(bytes, &owner, patience))
    }

    /// Gives some of the bytes back. Does not wait.
    fn shrink(&self, nbytes: &Bound<'_, PyAny>) -> Result<()> {
        Ok(self.inner().shrink(argument::bytes("nbytes", nbytes)?)?)
    }

    /// Makes a reservation of its own of some of the bytes. Does not wait.
    fn split(&self, py: Python<'_>, nbytes: &Bound<'_, PyAny>) -> Result<Self> {
        let bytes = argument::bytes("nbytes", nbytes)?;
        let (inner, budget) = (self.inner(), self.budget(py));
        let held = Held { reservation: Arc::new(inner.split(bytes)?), budget, released: false };
        Ok(Self { held: Mutex::new(held) })
    }

    /// Moves the bytes to another budget; waits in its line.
    #[pyo3(signature = (budget, *, timeout=None, cancel=None))]
    fn move_to(
        &self,
        budget: &Bound<'_, Budget>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let py = budget.py();
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        let (inner, target) = (self.inner(), &budget.get().ledger);
        terms.check(&format!("{} of {}", ByteSize(inner.bytes()), target.name()))?;
        let moved = patiently(py, terms, |patience| inner.move_to(target, &owner, patience))?;
        let (reservation, budget) = (Arc::new(moved), budget.clone().unbind());
        let (before, released) = {
            let mut held = self.held.lock();
            let released = held.released;
            let moved = Held { reservation: reservation.clone(), budget, released };
            (std::mem::replace(&mut *held, moved), released)
        };
        drop(before);
        if released {
            reservation.release();
        }
        Ok(())
    }

    /// Says that nobody in particular will release it. Does not wait.
    fn hand_over(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf.get().disown();
        slf
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        let reservation = slf.get();
        reservation.inner().check()?;
        if reservation.inner().is_released() {
            return Err(released(&reservation.what()));
        }
        Ok(slf)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.release();
    }

    fn __repr__(&self) -> String {
        let inner = self.inner();
        let name = inner.budget().name().to_owned();
        if inner.is_released() {
            format!("<Reservation of {name} released>")
        } else {
            format!("<Reservation of {} of {name}>", ByteSize(inner.bytes()))
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        match self.held.try_lock() {
            Some(held) => visit.call(&held.budget),
            None => Ok(()),
        }
    }
}

/// A budget at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct BudgetStatus {
    name: String,
    limit: u64,
    headroom: u64,
    used: u64,
    peak: u64,
    free: u64,
    outside: u64,
    holders: Vec<Py<BudgetUser>>,
    waiting: Vec<Py<BudgetUser>>,
}

#[pymethods]
impl BudgetStatus {
    fn __repr__(&self) -> String {
        let told = |users: &[Py<BudgetUser>]| {
            let users: Vec<String> = users.iter().map(|user| user.get().told()).collect();
            if users.is_empty() { "nobody".to_owned() } else { users.join(", ") }
        };
        let (free, limit) = (ByteSize(self.free), ByteSize(self.limit));
        let (holders, waiting) = (told(&self.holders), told(&self.waiting));
        format!(
            "<Budget {}: {free} of {limit} free; held by {holders}; waiting: {waiting}>",
            self.name
        )
    }
}

/// Who has bytes of a budget or waits for some, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct BudgetUser {
    holder: String,
    nbytes: u64,
    since: f64,
    seconds: f64,
}

impl BudgetUser {
    fn of(user: budget::BudgetUser) -> Self {
        let (since, seconds) = since(user.lasted);
        let budget::BudgetUser { holder, bytes: nbytes, .. } = user;
        Self { holder, nbytes, since, seconds }
    }

    fn told(&self) -> String {
        format!("{} with {} for {:.1} s", self.holder, ByteSize(self.nbytes), self.seconds)
    }
}

#[pymethods]
impl BudgetUser {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
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
