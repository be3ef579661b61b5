//! `Weights`: the tensors of one key, by name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyList, PyString};

use super::private::PrivateWeights;
use super::state_dict::{Known, TorchTensors};
use super::tensor::Tensor;
use super::{by_name, text};
use crate::python::argument;
use crate::python::error::{Error, Result, invalid_type, invalid_value};
use crate::python::exit::attached;
use crate::python::guard::released;
use crate::python::wait::{Terms, patiently};
use crate::sync::Mutex;
use crate::wait::{Interrupt, Patience};
use crate::weights;

/// The tensors of one key, by name.
#[pyclass(frozen, weakref, mapping, module = "coresident", name = "Weights")]
pub(in crate::python) struct Weights {
    opened: Mutex<Option<weights::Weights>>,
    /// torch's tensors, once somebody has asked for them here.
    tensors: Mutex<Option<Py<TorchTensors>>>,
    known: Known,
    key: String,
    version: u64,
    path: Option<PathBuf>,
}

impl Weights {
    pub(super) fn of(opened: weights::Weights, known: &Known) -> Self {
        Self {
            tensors: Mutex::new(None),
            known: known.clone(),
            key: opened.key().to_owned(),
            version: opened.version(),
            path: opened.path().map(Path::to_owned),
            opened: Mutex::new(Some(opened)),
        }
    }

    pub(in crate::python) fn held(&self) -> Result<weights::Weights> {
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

    /// Which version of the key.
    #[getter]
    fn version(&self) -> u64 {
        self.version
    }

    /// The file or folder; `None` for tensors that were shared from memory.
    #[getter]
    fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// Whether the key has been invalidated since.
    #[getter]
    fn retired(&self) -> Result<bool> {
        Ok(self.held()?.is_retired())
    }

    /// Bytes by what holds them.
    #[getter]
    fn kinds(&self) -> Result<HashMap<String, u64>> {
        Ok(by_name(self.held()?.kinds()))
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
        let left = (self.opened.lock().take(), self.tensors.lock().take());
        drop(left);
    }

    /// Reads all of what is mapped, by several threads.
    #[pyo3(signature = (*, threads=None, progress=None, timeout=None, cancel=None))]
    fn prefetch(
        &self,
        py: Python<'_>,
        threads: Option<&Bound<'_, PyAny>>,
        progress: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let threads = match threads.filter(|threads| !threads.is_none()) {
            None => std::thread::available_parallelism().map_or(1, usize::from),
            Some(threads) => match argument::whole_number("threads", threads)? {
                number @ 1..=256 => usize::try_from(number).unwrap_or(1),
                number => {
                    let message = format!("threads must be between 1 and 256, not {number}");
                    return Err(invalid_value(&message));
                }
            },
        };
        let progress = progress.filter(|progress| !progress.is_none());
        if let Some(progress) = progress.filter(|progress| !progress.is_callable()) {
            let given = argument::type_name(progress);
            let message = format!("progress is a function of two numbers of bytes, not {given}");
            return Err(invalid_type(&message));
        }
        let terms = Terms::of(timeout, cancel)?;
        let held = self.held()?;
        terms.check(&format!("the weights {:?} to be read", self.key))?;
        let progress = progress.map(|progress| progress.clone().unbind());
        let told = Stopping { raised: Mutex::new(None) };
        let outcome = patiently(py, terms, |patience| {
            let stopping = Both { one: patience.interrupt, other: &told };
            let patience = Patience { interrupt: &stopping, ..*patience };
            held.prefetch(threads, &patience, &mut |done, total| {
                told.tell(progress.as_ref(), done, total);
            })
        });
        match told.raised.into_inner() {
            Some(raised) => Err(raised.into()),
            None => outcome,
        }
    }

    /// The names of the tensors, in the order of the file.
    fn keys<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyList>> {
        self.names(py)
    }

    /// The tensors, in the order of the file.
    fn values(&self) -> Result<Vec<Tensor>> {
        Ok(self.held()?.tensors().into_iter().map(Tensor).collect())
    }

    /// Names and tensors, in the order of the file.
    fn items(&self) -> Result<Vec<(String, Tensor)>> {
        let held = self.held()?;
        let tensors = held.tensors().into_iter().map(Tensor);
        Ok(held.names().map(str::to_owned).zip(tensors).collect())
    }

    /// torch's tensors by name, where the weights have them.
    fn state_dict<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let held = self.held()?;
        let kept = self.tensors.lock().as_ref().map(|kept| kept.clone_ref(py));
        let tensors = match kept {
            Some(kept) => kept,
            None => {
                let tensors = self.known.tensors_of(py, &held)?;
                let replaced = self.tensors.lock().replace(tensors.clone_ref(py));
                drop(replaced);
                if self.opened.lock().is_none() {
                    // Released by somebody else meanwhile: this object keeps nothing.
                    let left = self.tensors.lock().take();
                    drop(left);
                }
                tensors
            }
        };
        tensors.get().copied(py)
    }

    /// A map of the same bytes of the caller's own, which may be written.
    fn private(&self) -> Result<PrivateWeights> {
        Ok(PrivateWeights(self.held()?.private()?))
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
        Ok(self.held()?.len())
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

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        match self.tensors.try_lock() {
            Some(tensors) => tensors.as_ref().map_or(Ok(()), |tensors| visit.call(tensors)),
            None => Ok(()),
        }
    }

    fn __clear__(&self) {
        let left = self.tensors.try_lock().and_then(|mut tensors| tensors.take());
        drop(left);
    }

    fn __repr__(&self) -> String {
        match self.held() {
            Ok(held) => {
                let bytes = crate::device::ByteSize(held.nbytes());
                format!("<Weights {:?}: {} tensors, {bytes}>", self.key, held.len())
            }
            Err(_) => format!("<Weights {:?} released>", self.key),
        }
    }
}

/// What a function that is told of progress has raised: the wait ends with it.
struct Stopping {
    raised: Mutex<Option<PyErr>>,
}

impl Stopping {
    fn tell(&self, progress: Option<&Py<PyAny>>, done: u64, total: u64) {
        let Some(progress) = progress else { return };
        if self.raised.lock().is_some() {
            return;
        }
        if let Err(error) = attached(|py| progress.call1(py, (done, total))) {
            *self.raised.lock() = Some(error);
        }
    }
}

impl Interrupt for Stopping {
    fn slice(&self) -> Option<Duration> {
        None
    }

    fn interrupted(&self) -> bool {
        self.raised.lock().is_some()
    }
}

/// Two reasons to give up.
struct Both<'a> {
    one: &'a dyn Interrupt,
    other: &'a dyn Interrupt,
}

impl Interrupt for Both<'_> {
    fn slice(&self) -> Option<Duration> {
        self.one.slice().into_iter().chain(self.other.slice()).min()
    }

    fn interrupted(&self) -> bool {
        self.one.interrupted() || self.other.interrupted()
    }
}
