//! All tensors of some weights as torch's: made once, and had by everybody who holds the weights.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::exceptions::PyImportError;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakrefMethods, PyWeakrefReference};

use super::tensor::Tensor;
use crate::python::dlpack;
use crate::python::error::Result;
use crate::python::exit::Inside;
use crate::sync::Mutex;
use crate::weights;

/// torch's tensors of one version of a key.
#[pyclass(frozen, weakref)]
pub(super) struct TorchTensors {
    by_name: Py<PyDict>,
}

#[pymethods]
impl TorchTensors {
    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.by_name)
    }
}

impl TorchTensors {
    /// A dict of them for somebody to have and change.
    pub(super) fn copied<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        Ok(self.by_name.bind(py).copy()?)
    }
}

/// Those that somebody has, by version. A store and all its weights share it.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<Mutex<HashMap<u64, Py<PyWeakrefReference>>>>);

impl Known {
    /// The tensors of `held`: those that somebody has, or new ones.
    pub(super) fn tensors_of(
        &self,
        py: Python<'_>,
        held: &weights::Weights,
    ) -> Result<Py<TorchTensors>> {
        let version = held.version();
        let found = self.0.lock().get(&version).and_then(|known| known.bind(py).upgrade());
        if let Some(found) = found {
            return Ok(found.cast_into::<TorchTensors>().map_err(PyErr::from)?.unbind());
        }
        let (names, tensors) = (held.names().collect::<Vec<_>>(), held.tensors());
        let by_name = of_weights(py, &names, &tensors)?.unbind();
        let made = Bound::new(py, TorchTensors { by_name })?;
        let mut reference = Some(PyWeakrefReference::new(&made)?.unbind());
        let mut known = self.0.lock();
        // Dropped when the lock is free: whatever was upgraded may be the last to have its tensors.
        let mut seen = Vec::new();
        if known.len() == known.capacity() {
            known.retain(|_, known| {
                let alive = known.bind(py).upgrade();
                let keeps = alive.is_some();
                // What is dead is a weak reference without a callback: nothing runs when it goes.
                seen.push(alive);
                keeps
            });
        }
        // Somebody may have made them meanwhile: everybody gets those that were there first.
        let found = known.get(&version).and_then(|known| known.bind(py).upgrade());
        let replaced = match &found {
            Some(_) => None,
            None => reference.take().and_then(|reference| known.insert(version, reference)),
        };
        drop(known);
        drop((seen, replaced, reference));
        match found {
            Some(found) => Ok(found.cast_into::<TorchTensors>().map_err(PyErr::from)?.unbind()),
            None => Ok(made.unbind()),
        }
    }
}

/// torch's tensors by name, where those of weights lie.
pub(super) fn of_weights<'py>(
    py: Python<'py>,
    names: &[&str],
    tensors: &[weights::Tensor],
) -> Result<Bound<'py, PyDict>> {
    make(py, names, tensors, |tensor| Ok(Bound::new(py, Tensor(tensor))?.into_any()))
}

/// torch's tensors by name, where ours lie. `wrap` makes the object that has the methods of DLPack.
pub(in crate::python) fn make<'py, T: dlpack::Exportable>(
    py: Python<'py>,
    names: &[&str],
    tensors: &[T],
    wrap: impl Fn(T) -> Result<Bound<'py, PyAny>>,
) -> Result<Bound<'py, PyDict>> {
    let _inside = Inside::enter(py);
    let torch = py.import(intern!(py, "torch")).map_err(|error| {
        if !error.is_instance_of::<PyImportError>(py) {
            return error;
        }
        let told =
            format!("state_dict() gives torch's tensors, and torch cannot be imported: {error}");
        let told = PyImportError::new_err(told);
        told.set_cause(py, Some(error));
        told
    })?;
    // Inference tensors would be so for everybody who gets them.
    let plain = torch.call_method1(intern!(py, "inference_mode"), (false,))?;
    plain.call_method0(intern!(py, "__enter__"))?;
    let made = make_plain(&torch, names, tensors, wrap);
    plain.call_method1(intern!(py, "__exit__"), (py.None(), py.None(), py.None()))?;
    made
}

fn make_plain<'py, T: dlpack::Exportable>(
    torch: &Bound<'py, PyModule>,
    names: &[&str],
    tensors: &[T],
    wrap: impl Fn(T) -> Result<Bound<'py, PyAny>>,
) -> Result<Bound<'py, PyDict>> {
    let py = torch.py();
    let from_dlpack = torch.getattr(intern!(py, "from_dlpack"))?;
    let made = dlpack::exchange(&from_dlpack, names, tensors, wrap)?;
    let by_name = PyDict::new(py);
    for (name, tensor) in names.iter().zip(made) {
        by_name.set_item(name, tensor)?;
    }
    Ok(by_name)
}
