//! `WeightStore`, the weights in it, and their tensors.

use std::path::PathBuf;
use std::sync::Arc;

use dlpark::python::ExportRequest;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyList, PyString};

use super::error::{Error, Result, invalid_type};
use super::exit::detached;
use super::guard::released;
use super::{argument, dlpack};
use crate::sync::Mutex;
use crate::weights;

/// One host copy of each model's weights, whoever uses it.
#[pyclass(frozen, weakref, module = "coresident", name = "WeightStore")]
pub(super) struct WeightStore(weights::WeightStore);

#[pymethods]
impl WeightStore {
    #[new]
    fn new() -> Self {
        Self(weights::WeightStore::new())
    }

    /// Maps a safetensors file under a key, or shares the map if it is open already.
    fn open(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        path: &Bound<'_, PyAny>,
    ) -> Result<Weights> {
        let key = text("key", key)?;
        let path = path.extract::<PathBuf>().map_err(|_| {
            let given = argument::type_name(path);
            invalid_type(&format!("path is a text or a path, not {given}"))
        })?;
        let opened = detached(py, || self.0.open(&key, &path))?;
        Ok(Weights { opened: Mutex::new(Some(Arc::new(opened))), key, path })
    }

    /// What is open: the bytes of tensors by key.
    fn status<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let told = PyDict::new(py);
        for opened in self.0.opened()? {
            told.set_item(opened.key(), opened.nbytes())?;
        }
        Ok(told)
    }

    fn __repr__(&self) -> Result<String> {
        let opened = self.0.opened()?;
        let bytes: u64 = opened.iter().map(weights::Weights::nbytes).sum();
        Ok(format!("<WeightStore {} open, {}>", opened.len(), crate::device::ByteSize(bytes)))
    }
}

fn text(what: &str, value: &Bound<'_, PyAny>) -> Result<String> {
    match value.cast::<PyString>() {
        Ok(text) => text.extract().map_err(Error::from),
        Err(_) => {
            Err(invalid_type(&format!("{what} is a text, not {}", argument::type_name(value))))
        }
    }
}

/// The tensors of one file, by name.
#[pyclass(frozen, weakref, mapping, module = "coresident", name = "Weights")]
pub(super) struct Weights {
    opened: Mutex<Option<Arc<weights::Weights>>>,
    key: String,
    path: PathBuf,
}

impl Weights {
    fn held(&self) -> Result<Arc<weights::Weights>> {
        let held = self.opened.lock().clone();
        held.ok_or_else(|| released(&format!("the weights {:?}", self.key)))
    }

    fn names<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyList>> {
        PyList::new(py, self.held()?.names()).map_err(Error::from)
    }
}

#[pymethods]
impl Weights {
    /// The key under which they were opened.
    #[getter]
    fn key(&self) -> &str {
        &self.key
    }

    /// The file.
    #[getter]
    fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The bytes of all tensors together.
    #[getter]
    fn nbytes(&self) -> Result<u64> {
        Ok(self.held()?.nbytes())
    }

    /// What the file says of itself.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        self.held()?.metadata().into_pyobject(py).map_err(Error::from)
    }

    /// Whether they are no longer held through this object.
    #[getter]
    fn released(&self) -> bool {
        self.opened.lock().is_none()
    }

    /// Lets go of the file; the last one to do so unmaps it. Again without effect.
    fn release(&self) {
        let left = self.opened.lock().take();
        drop(left);
    }

    /// The names of the tensors, in the order of the file.
    fn keys<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyList>> {
        self.names(py)
    }

    /// The tensors, in the order of the file.
    fn values(&self) -> Result<Vec<Tensor>> {
        let held = self.held()?;
        held.names().iter().map(|name| Ok(Tensor(held.tensor(name)?))).collect()
    }

    /// Names and tensors, in the order of the file.
    fn items(&self) -> Result<Vec<(String, Tensor)>> {
        let held = self.held()?;
        held.names().iter().map(|name| Ok((name.clone(), Tensor(held.tensor(name)?)))).collect()
    }

    /// The tensor of this name, or `default`.
    #[pyo3(signature = (name, default=None))]
    fn get(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        default: Option<Py<PyAny>>,
    ) -> Result<Py<PyAny>> {
        if self.__contains__(name)? {
            return Ok(Py::new(py, self.__getitem__(name)?)?.into_any());
        }
        Ok(default.unwrap_or_else(|| py.None()))
    }

    fn __getitem__(&self, name: &Bound<'_, PyAny>) -> Result<Tensor> {
        Ok(Tensor(self.held()?.tensor(&text("the name of a tensor", name)?)?))
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> Result<bool> {
        let held = self.held()?;
        Ok(name.cast::<PyString>().is_ok_and(|name| held.contains(&name.to_string_lossy())))
    }

    fn __len__(&self) -> Result<usize> {
        Ok(self.held()?.names().len())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyIterator>> {
        self.names(py)?.try_iter().map_err(Error::from)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        slf.get().held()?;
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
        match self.held() {
            Ok(held) => {
                let bytes = crate::device::ByteSize(held.nbytes());
                format!("<Weights {:?}: {} tensors, {bytes}>", self.key, held.names().len())
            }
            Err(_) => format!("<Weights {:?} released>", self.key),
        }
    }
}

/// One tensor where it lies in the file: read-only, and exported through DLPack.
#[pyclass(frozen, module = "coresident", name = "Tensor")]
pub(super) struct Tensor(weights::Tensor);

#[pymethods]
impl Tensor {
    /// The type of the elements, as torch names it: `'bfloat16'`.
    #[getter]
    fn dtype(&self) -> String {
        self.0.element_type().to_string()
    }

    /// The dimensions, the slowest first.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> Result<Bound<'py, pyo3::types::PyTuple>> {
        pyo3::types::PyTuple::new(py, self.0.shape()).map_err(Error::from)
    }

    /// The number of bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.data().len()
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

    /// Host memory.
    #[expect(clippy::unused_self, reason = "a method of the protocol")]
    fn __dlpack_device__(&self) -> (u32, i32) {
        dlpack::HOST
    }

    fn __repr__(&self) -> String {
        format!("<Tensor {} {:?}>", self.0.element_type(), self.0.shape())
    }
}
