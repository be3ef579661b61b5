//! What Python gives to a job: results, errors and previews, by reference.

use pyo3::prelude::*;

use super::super::exit::Inside;

/// An object of Python's. It goes attached, wherever the last one lets go of it.
pub(in crate::python) struct Value {
    object: Option<Py<PyAny>>,
    /// Whether it is what a job failed with.
    pub(super) is_error: bool,
}

impl Value {
    pub(super) fn of(object: &Bound<'_, PyAny>) -> Self {
        Self { object: Some(object.clone().unbind()), is_error: false }
    }

    pub(super) fn error(object: &Bound<'_, PyAny>) -> Self {
        Self { object: Some(object.clone().unbind()), is_error: true }
    }

    pub(super) fn object(&self, py: Python<'_>) -> Py<PyAny> {
        self.object.as_ref().map_or_else(|| py.None(), |object| object.clone_ref(py))
    }

    pub(super) fn held(&self) -> Option<&Py<PyAny>> {
        self.object.as_ref()
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        // Once the interpreter exits there is nobody to drop it.
        match Inside::try_enter() {
            Some(_inside) => Python::attach(|_| drop(object)),
            None => std::mem::forget(object),
        }
    }
}
