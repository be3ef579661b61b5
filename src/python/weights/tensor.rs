//! One tensor, for `torch.from_dlpack` and its like.

use dlpark::python::ExportRequest;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::python::dlpack;
use crate::python::error::{Error, Result};
use crate::weights;

/// One tensor where it lies in the file: read-only, and exported through DLPack.
#[pyclass(frozen, module = "coresident", name = "Tensor")]
pub(in crate::python) struct Tensor(pub(super) weights::Tensor);

#[pymethods]
impl Tensor {
    /// The type of the elements, as torch names it: `'bfloat16'`.
    #[getter]
    fn dtype(&self) -> String {
        self.0.element_type().to_string()
    }

    /// The dimensions, the slowest first.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.shape()).map_err(Error::from)
    }

    /// The number of bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    /// How its numbers are packed, if they are: GGUF's name and number.
    #[getter]
    fn packing(&self) -> Option<(&'static str, u32)> {
        self.0.packing().map(|packing| (packing.name, packing.number))
    }

    /// The tensor for `torch.from_dlpack` and its like: the file's own memory, or a copy.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<&Bound<'_, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(u32, i32)>,
        copy: Option<bool>,
    ) -> Result<Py<PyAny>> {
        let request = ExportRequest::parse(stream, max_version, dl_device, copy)?;
        dlpack::export(py, &self.0, &request)
    }

    /// Host memory: pageable, or locked for a GPU's copies.
    fn __dlpack_device__(&self) -> (u32, i32) {
        dlpack::device_of(&self.0)
    }

    fn __repr__(&self) -> String {
        format!("<Tensor {} {:?}>", self.0.element_type(), self.0.shape())
    }
}
