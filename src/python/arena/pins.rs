//! `Pins`: pages that stay.

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::area::Area;
use crate::arena;
use crate::python::budget::Reservation;
use crate::python::error::Result;
use crate::python::exit::detached;
use crate::python::guard::{released, warn_forgotten};
use crate::sync::Mutex;

/// What they are called.
const WHAT: &str = "the guard of pinned pages";

/// Pages that stay where they are until they are released, and working memory beside them.
#[pyclass(frozen, weakref, module = "coresident", name = "Pins")]
pub(in crate::python) struct Pins {
    area: Py<Area>,
    held: Mutex<Option<arena::Pins>>,
    working: Option<Py<Reservation>>,
}

impl Pins {
    pub(super) fn new(
        area: &Bound<'_, Area>,
        pins: arena::Pins,
        working: Option<Py<Reservation>>,
    ) -> Self {
        Self { area: area.clone().unbind(), held: Mutex::new(Some(pins)), working }
    }
}

#[pymethods]
impl Pins {
    /// The area.
    #[getter]
    fn area(&self, py: Python<'_>) -> Py<Area> {
        self.area.clone_ref(py)
    }

    /// The working memory that was reserved with them; `None` without any.
    #[getter]
    fn working_memory(&self, py: Python<'_>) -> Option<Py<Reservation>> {
        self.working.as_ref().map(|working| working.clone_ref(py))
    }

    /// Whether they have been released.
    #[getter]
    fn released(&self) -> bool {
        self.held.lock().is_none()
    }

    /// Lets them leave, and gives the working memory back. From any thread; again without effect.
    fn release(&self, py: Python<'_>) {
        let held = self.held.lock().take();
        if let Some(held) = held {
            detached(py, || drop(held));
            if let Some(working) = &self.working {
                working.get().release();
            }
        }
    }

    /// Has another stream of CUDA's use them too.
    fn also_on(&self, py: Python<'_>, stream: &Bound<'_, PyAny>) -> Result<()> {
        let stream = self.area.get().stream(Some(stream))?;
        detached(py, || {
            // The pins stay where they are: whoever releases them meanwhile waits.
            let held = self.held.lock();
            held.as_ref().map_or(Ok(()), |held| held.also_on(stream))
        })?;
        Ok(())
    }

    /// Says that nobody in particular will release them. Does not wait.
    fn hand_over(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        if let Some(held) = slf.get().held.lock().as_mut() {
            held.disown();
        }
        if let Some(working) = &slf.get().working {
            working.get().disown();
        }
        slf
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        let pins = slf.get();
        if pins.held.lock().is_none() {
            return Err(released(WHAT));
        }
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.release(py);
    }

    fn __repr__(&self) -> String {
        let state = if self.held.lock().is_none() { " released" } else { "" };
        format!("<Pins{state}>")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.area)?;
        self.working.as_ref().map_or(Ok(()), |working| visit.call(working))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let held = self.held.lock().take();
        if held.is_some() {
            drop(held);
            if let Some(working) = &self.working {
                working.get().release();
            }
            warn_forgotten(WHAT);
        }
    }
}
