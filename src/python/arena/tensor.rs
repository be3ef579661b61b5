//! Tensors on a device, for other libraries.

use std::sync::Arc;

use dlpark::python::ExportRequest;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::arena::{PinnedTensor, RangeView};
use crate::device::{DeviceType, Stream};
use crate::python::dlpack;
use crate::python::error::{Error, Result, invalid_value};
use crate::python::exit::detached;

/// A tensor on a device: one that stays there for as long as somebody has it, or a view of addresses.
#[pyclass(frozen, module = "coresident", name = "DeviceTensor")]
pub(in crate::python) struct DeviceTensor(Placed);

/// What a capsule of it keeps.
#[derive(Clone)]
enum Placed {
    View(RangeView),
    Pinned(Arc<PinnedTensor>),
}

impl DeviceTensor {
    pub(super) fn view(view: RangeView) -> Self {
        Self(Placed::View(view))
    }

    pub(super) fn pinned(pinned: PinnedTensor) -> Self {
        Self(Placed::Pinned(Arc::new(pinned)))
    }

    fn range(&self) -> &RangeView {
        match &self.0 {
            Placed::View(view) => view,
            Placed::Pinned(pinned) => pinned.view(),
        }
    }
}

/// The stream that a consumer names as the array API standard has it: on CUDA 1 is the default one, and
/// -1 none.
fn consumer(view: &RangeView, stream: Option<&Bound<'_, PyAny>>) -> Result<Option<Stream>> {
    let stream = stream.filter(|stream| !stream.is_none());
    let Some(stream) = stream.filter(|_| view.device().kind() == DeviceType::Cuda) else {
        return Ok(None);
    };
    match stream.extract::<i64>() {
        Ok(-1) => Ok(None),
        Ok(1) => Ok(Some(Stream::Device(0))),
        Ok(handle) if handle > 2 => {
            let handle = usize::try_from(handle).unwrap_or_default();
            Ok(Some(Stream::Device(handle)))
        }
        _ => {
            let message = "stream is 1 for the default stream, -1 for none, or a stream's handle";
            Err(invalid_value(message))
        }
    }
}

#[pymethods]
impl DeviceTensor {
    /// The type of the elements, as torch names it.
    #[getter]
    fn dtype(&self) -> String {
        self.range().element_type().to_string()
    }

    /// The dimensions, the slowest first.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.range().shape()).map_err(Error::from)
    }

    /// The number of bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.range().nbytes()
    }

    /// The tensor for `torch.from_dlpack` and its like.
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
        match &self.0 {
            Placed::View(view) => dlpack::export_placed(py, view, Box::new(view.clone()), &request),
            Placed::Pinned(pinned) => {
                if let Some(stream) = consumer(pinned.view(), stream)? {
                    detached(py, || pinned.also_on(stream))?;
                }
                dlpack::export_placed(py, pinned.view(), Box::new(pinned.clone()), &request)
            }
        }
    }

    /// Where it is, as DLPack numbers devices; a virtual device is host memory.
    fn __dlpack_device__(&self) -> (u32, i32) {
        dlpack::device_of_range(self.range())
    }

    fn __repr__(&self) -> String {
        let view = self.range();
        let kind = if matches!(self.0, Placed::View(_)) { "a view" } else { "pinned" };
        format!(
            "<DeviceTensor {} {:?} on {}, {kind}>",
            view.element_type(),
            view.shape(),
            view.device()
        )
    }
}
