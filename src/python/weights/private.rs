//! `PrivateWeights`: the same bytes, for one who may write them.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::state_dict;
use crate::python::error::Result;
use crate::python::exit::detached;
use crate::weights;

/// A private map of some weights.
#[pyclass(frozen, weakref, module = "coresident", name = "PrivateWeights")]
pub(in crate::python) struct PrivateWeights(pub(in crate::python) weights::PrivateWeights);

#[pymethods]
impl PrivateWeights {
    /// torch's tensors by name, which may be written.
    fn state_dict<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        state_dict::of_weights(py, &self.0.names().collect::<Vec<_>>(), &self.0.tensors())
    }

    /// The names of the tensors that torch gets as copies.
    fn copies(&self) -> Vec<String> {
        let named = self.0.names().zip(self.0.tensors());
        let copies = named.filter(|(_, tensor)| !tensor.is_aligned());
        copies.map(|(name, _)| name.to_owned()).collect()
    }

    /// The names of the tensors that are no longer what the weights are.
    fn changed(&self, py: Python<'_>) -> Result<Vec<String>> {
        Ok(detached(py, || self.0.changed().map(owned))?)
    }

    /// Undoes all that was written; returns the names of the tensors that were changed.
    fn restore(&self, py: Python<'_>) -> Result<Vec<String>> {
        Ok(detached(py, || self.0.restore().map(owned))?)
    }

    fn __repr__(&self) -> String {
        format!("<PrivateWeights {:?}: {} tensors>", self.0.key(), self.0.names().len())
    }
}

fn owned(names: Vec<&str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}
