//! `Reservation`: so many bytes of a budget, until they are released or move to another.

use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::super::argument;
use super::super::error::Result;
use super::super::guard::{released, warn_forgotten};
use super::super::wait::{Terms, caller, patiently};
use super::Budget;
use crate::budget;
use crate::device::ByteSize;
use crate::sync::Mutex;

/// A reservation, and the budget that it is of: both change when it moves.
struct Held {
    reservation: Arc<budget::Reservation>,
    budget: Py<Budget>,
    /// Released by its user, also while it moves.
    released: bool,
}

/// So many bytes of a memory, until they are released.
#[pyclass(frozen, weakref, module = "coresident", name = "Reservation")]
pub(in crate::python) struct Reservation {
    held: Mutex<Held>,
}

impl Reservation {
    pub(in crate::python) fn of(
        reservation: budget::Reservation,
        budget: &Bound<'_, Budget>,
    ) -> Self {
        let budget = budget.clone().unbind();
        let held = Held { reservation: Arc::new(reservation), budget, released: false };
        Self { held: Mutex::new(held) }
    }

    fn inner(&self) -> Arc<budget::Reservation> {
        self.held.lock().reservation.clone()
    }

    pub(in crate::python) fn disown(&self) {
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
    pub(in crate::python) fn release(&self) {
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
