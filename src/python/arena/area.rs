//! `Area`: a model's place in a device's memory.

use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::pins::Pins;
use super::tensor::DeviceTensor;
use super::{Arena, no_block};
use crate::arena::{self, Beside, PageSet};
use crate::device::{ByteSize, DeviceType, Stream};
use crate::python::argument;
use crate::python::budget::Reservation;
use crate::python::error::{Error, Result, invalid_value};
use crate::python::streaming::Streaming;
use crate::python::wait::{Terms, caller, patiently};
use crate::python::weights::{state_dict, strings, text};

/// A model's place in a device's memory: addresses for all of its tensors, memory for some.
#[pyclass(frozen, weakref, module = "coresident", name = "Area")]
pub(in crate::python) struct Area {
    placed: arena::Area,
    arena: Py<Arena>,
    all: Arc<PageSet>,
}

/// The pages of some tensors of an area, to be made resident in one call.
#[pyclass(frozen, module = "coresident", name = "Block")]
pub(in crate::python) struct Block {
    area: arena::Area,
    set: Arc<PageSet>,
    tensors: Vec<usize>,
}

#[pymethods]
impl Block {
    /// How many pages there are.
    #[getter]
    fn pages(&self) -> usize {
        self.set.len()
    }

    fn __repr__(&self) -> String {
        format!("<Block of {:?}: {} pages>", self.area.key(), self.set.len())
    }
}

impl Area {
    pub(super) fn new(placed: arena::Area, arena: Py<Arena>) -> Self {
        let all = placed.all();
        Self { placed, arena, all }
    }

    pub(in crate::python) fn placed(&self) -> &arena::Area {
        &self.placed
    }

    pub(in crate::python) fn arena_of(&self, py: Python<'_>) -> Py<Arena> {
        self.arena.clone_ref(py)
    }

    fn set(&self, block: Option<&Bound<'_, PyAny>>) -> Result<Arc<PageSet>> {
        Ok(self.own(block)?.map_or_else(|| self.all.clone(), |block| block.set.clone()))
    }

    /// A block of this area; `None` for everything.
    fn own<'a>(&self, block: Option<&'a Bound<'_, PyAny>>) -> Result<Option<&'a Block>> {
        let Some(block) = block.filter(|block| !block.is_none()) else { return Ok(None) };
        let block = block.cast::<Block>().map_err(|_| no_block(block))?.get();
        if !block.area.is(&self.placed) {
            let (key, other) = (self.placed.key(), block.area.key());
            let message = format!("this block is of another area, of {other:?}, not of {key:?}'s");
            return Err(invalid_value(&message));
        }
        Ok(Some(block))
    }

    /// The stream of this handle; without one the default stream, or whoever calls on a device that is
    /// the host.
    pub(in crate::python) fn stream(&self, handle: Option<&Bound<'_, PyAny>>) -> Result<Stream> {
        let handle = handle.filter(|handle| !handle.is_none());
        let handle = handle.map(|handle| argument::whole_number("stream", handle)).transpose()?;
        let device = self.placed.arena().device();
        match (device.kind(), handle) {
            (DeviceType::Cuda, Some(2)) => Err(invalid_value(
                "stream is 2, the default stream of whichever thread: name one that all mean alike",
            )),
            (DeviceType::Cuda, None | Some(0)) => Ok(Stream::Device(0)),
            (DeviceType::Cuda, Some(handle)) => {
                let unknown = |why: String| invalid_value(&format!("stream is no handle: {why}"));
                let stream = usize::try_from(handle).map(Stream::Device);
                let stream = stream.map_err(|why| unknown(why.to_string()))?;
                let known = self.placed.arena().check_stream(stream);
                known.map_err(|why| unknown(why.to_string()))?;
                Ok(stream)
            }
            (_, None) => Ok(Stream::Host),
            (_, Some(_)) => {
                let message = format!("{device} has no streams of CUDA: leave stream out");
                Err(invalid_value(&message))
            }
        }
    }

    fn find(&self, name: &Bound<'_, PyAny>) -> Result<usize> {
        Ok(self.placed.find(&text("the name of a tensor", name)?)?)
    }
}

#[pymethods]
impl Area {
    /// The key of the weights.
    #[getter]
    fn key(&self) -> &str {
        self.placed.key()
    }

    /// The arena.
    #[getter]
    fn arena(&self, py: Python<'_>) -> Py<Arena> {
        self.arena.clone_ref(py)
    }

    /// The bytes of the tensors, with what lies between them.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.placed.nbytes()
    }

    /// How many pages there are addresses for.
    #[getter]
    fn pages(&self) -> usize {
        self.placed.pages()
    }

    /// Areas of a lower priority are evicted first.
    #[getter]
    fn priority(&self) -> Result<i64> {
        self.placed.arena().check()?;
        Ok(self.placed.priority())
    }

    #[setter]
    fn set_priority(&self, priority: &Bound<'_, PyAny>) -> Result<()> {
        self.placed.arena().check()?;
        let refused = || {
            let given = argument::type_name(priority);
            invalid_value(&format!("a priority is a whole number of 64 bits, not this {given}"))
        };
        let priority = priority.extract::<i64>().map_err(|_| refused())?;
        self.placed.set_priority(priority);
        Ok(())
    }

    /// The names of the tensors, in the order in which they lie there.
    fn keys(&self) -> Vec<&str> {
        self.placed.contents().iter().map(|content| content.name.as_str()).collect()
    }

    /// The pages of these tensors.
    fn block(&self, names: &Bound<'_, PyAny>) -> Result<Block> {
        let mut tensors = Vec::new();
        for name in strings("names", names)? {
            tensors.push(self.placed.find(&name)?);
        }
        Ok(Block { area: self.placed.clone(), set: self.placed.block(&tensors), tensors })
    }

    /// Makes pages resident and pins them.
    #[pyo3(signature = (block=None, *, working_memory=None, stream=None, timeout=None, cancel=None))]
    fn fault(
        slf: &Bound<'_, Self>,
        block: Option<&Bound<'_, PyAny>>,
        working_memory: Option<&Bound<'_, PyAny>>,
        stream: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Pins> {
        let (py, this) = (slf.py(), slf.get());
        let (set, stream) = (this.set(block)?, this.stream(stream)?);
        let owner = caller(py)?;
        let given = working_memory.filter(|bytes| !bytes.is_none());
        let bytes = given.map(|bytes| argument::bytes("working_memory", bytes)).transpose()?;
        let beside = Beside { bytes: bytes.unwrap_or(0) };
        let terms = Terms::of(timeout, cancel)?;
        terms.check(&format!(
            "pages of {:?} on {}",
            this.placed.key(),
            this.placed.arena().device()
        ))?;
        if beside.bytes == 0
            && let Some(pins) = this.placed.pin(&set, stream, &owner)?
        {
            return Ok(Pins::new(slf, pins, None));
        }
        let (pins, working) = patiently(py, terms, |patience| {
            this.placed.fault(&set, beside, stream, &owner, patience)
        })?;
        let working = working
            .map(|working| {
                let ledger = this.arena.get().budget.bind(py);
                Py::new(py, Reservation::of(working, ledger))
            })
            .transpose()?;
        Ok(Pins::new(slf, pins, working))
    }

    /// Streams it, block by block.
    #[pyo3(signature = (
        blocks, *, working_memory=None, leave=None, stream=None, timeout=None, cancel=None
    ))]
    fn stream_blocks(
        slf: &Bound<'_, Self>,
        blocks: &Bound<'_, PyAny>,
        working_memory: Option<&Bound<'_, PyAny>>,
        leave: Option<&Bound<'_, PyAny>>,
        stream: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Streaming> {
        Streaming::open(slf, blocks, working_memory, leave, stream, (timeout, cancel))
    }

    /// Views of the tensors' addresses, for a module whose pages somebody pins.
    #[pyo3(signature = (block=None))]
    fn state_dict<'py>(
        &self,
        py: Python<'py>,
        block: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyDict>> {
        let contents = self.placed.contents();
        let tensors = match self.own(block)? {
            Some(block) => block.tensors.clone(),
            None => (0..contents.len()).collect(),
        };
        let names: Vec<&str> = tensors.iter().map(|at| contents[*at].name.as_str()).collect();
        let views = tensors.iter().map(|at| self.placed.view(*at));
        let views = views.collect::<std::result::Result<Vec<_>, _>>()?;
        state_dict::make(py, &names, &views, |view| {
            Ok(Bound::new(py, DeviceTensor::view(view))?.into_any())
        })
    }

    /// A tensor that stays for as long as somebody has it.
    #[pyo3(signature = (name, *, stream=None, timeout=None, cancel=None))]
    fn pinned(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        stream: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<DeviceTensor> {
        let (tensor, stream) = (self.find(name)?, self.stream(stream)?);
        let owner = caller(py)?;
        let terms = Terms::of(timeout, cancel)?;
        terms.check(&format!("a tensor of {:?}", self.placed.key()))?;
        let pinned =
            patiently(py, terms, |patience| self.placed.pinned(tensor, stream, &owner, patience))?;
        Ok(DeviceTensor::pinned(pinned))
    }

    /// Has every page filled again before it is used.
    fn renew(&self) -> Result<()> {
        self.placed.arena().check()?;
        self.placed.renew();
        Ok(())
    }

    /// What there is of each page, as an array.
    fn residency<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        self.placed.arena().check()?;
        let pages = PyBytes::new(py, &self.placed.residency());
        let numpy = py.import("numpy").map_err(|error| {
            let told = PyRuntimeError::new_err("residency() gives an array of numpy");
            told.set_cause(py, Some(error));
            told
        })?;
        numpy.call_method1("frombuffer", (pages, "uint8")).map_err(Error::from)
    }

    fn __len__(&self) -> usize {
        self.placed.contents().len()
    }

    fn __repr__(&self) -> String {
        let (key, device) = (self.placed.key(), self.placed.arena().device());
        format!("<Area of {key:?} on {device}: {}>", ByteSize(self.placed.nbytes()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.arena)
    }
}
