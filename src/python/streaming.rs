//! `Streaming`: a model that is larger than its device, block by block.

use std::collections::HashSet;
use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::arena::Area;
use super::argument;
use super::budget::Reservation;
use super::error::{Error, Result, invalid_type, invalid_value, raise};
use super::exit::detached;
use super::wait::{Terms, caller, patiently};
use super::weights::strings;
use crate::arena::PageSet;
use crate::device::{ByteSize, Stream};
use crate::streaming::{self, Spec, StreamingError};
use crate::wait::{self, Owner, Patience};

/// A model that is larger than its device: some of its pages stay, the others come block by block.
#[pyclass(frozen, weakref, module = "coresident", name = "Streaming")]
pub(super) struct Streaming {
    runs: streaming::Streaming,
    area: Py<Area>,
    working: Option<Py<Reservation>>,
    /// Of each block's tensors, how many of its pages have to stay so that it stays.
    ends: Vec<Vec<usize>>,
    page: u64,
}

impl Streaming {
    /// Begins to stream the tensors of an area in these blocks.
    pub(super) fn open(
        area: &Bound<'_, Area>,
        blocks: &Bound<'_, PyAny>,
        working_memory: Option<&Bound<'_, PyAny>>,
        leave: Option<&Bound<'_, PyAny>>,
        stream: Option<&Bound<'_, PyAny>>,
        (timeout, cancel): (Option<&Bound<'_, PyAny>>, Option<&Bound<'_, PyAny>>),
    ) -> Result<Self> {
        let (py, this) = (area.py(), area.get());
        let placed = this.placed();
        let Ok(blocks) = blocks.cast::<PyList>() else {
            let given = argument::type_name(blocks);
            return Err(invalid_type(&format!("blocks is a list of lists of names, not {given}")));
        };
        if blocks.is_empty() {
            return Err(invalid_value("blocks is empty: there is nothing to stream"));
        }
        let (mut sets, mut ends): (Vec<Arc<PageSet>>, Vec<_>) = (Vec::new(), Vec::new());
        let (mut resident, mut streamed) = (placed.all(), HashSet::new());
        for block in blocks {
            let mut tensors = Vec::new();
            for name in strings("a block", &block)? {
                tensors.push(placed.find(&name)?);
            }
            let set = placed.block(&tensors);
            if set.is_empty() {
                return Err(invalid_value("a block has no tensors with bytes: leave it out"));
            }
            if sets.iter().any(|other| other.without(&set).len() < other.len()) {
                return Err(invalid_value(
                    "two blocks have a page in common: make the area with groups, one for each block",
                ));
            }
            ends.push(tensors.iter().map(|tensor| placed.end_in(&set, *tensor)).collect());
            resident = Arc::new(resident.without(&set));
            sets.push(set);
            streamed.extend(tensors);
        }
        let stay: Vec<usize> =
            (0..placed.contents().len()).filter(|at| !streamed.contains(at)).collect();
        if !placed.block(&stay).without(&resident).is_empty() {
            return Err(invalid_value(
                "what is in no block has a page in common with one: make the area with groups, one for \
                 each block",
            ));
        }
        let stream = this.stream(stream)?;
        let optional = |what: &str, given: Option<&Bound<'_, PyAny>>| match given {
            Some(bytes) if !bytes.is_none() => argument::bytes(what, bytes),
            _ => Ok(0),
        };
        let working_memory = optional("working_memory", working_memory)?;
        let leave = optional("leave", leave)?;
        let terms = Terms::of(timeout, cancel)?;
        let device = placed.arena().device();
        terms.check(&format!("the streaming of {:?} on {device}", placed.key()))?;
        let owner = caller(py)?;
        let page = placed.page() as u64;
        let spec = Spec { resident, blocks: sets, working_memory, leave };
        let (streaming, working) = patiently(py, terms, |patience| {
            streaming::Streaming::open(placed, spec, stream, &owner, patience)
        })?;
        let ledger = this.arena_of(py).get().ledger(py);
        let working = working.map(|working| Py::new(py, Reservation::of(working, &ledger)));
        let (area, working) = (area.clone().unbind(), working.transpose()?);
        Ok(Self { runs: streaming, area, working, ends, page })
    }

    /// Ends it, without the interpreter: its thread may need that for what it is doing.
    fn end(&self, py: Python<'_>, owner: &Owner) {
        detached(py, || self.runs.close(owner));
    }

    fn pages(&self, bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(self.page)).unwrap_or(usize::MAX)
    }

    fn block(&self, block: &Bound<'_, PyAny>) -> Result<usize> {
        let number = argument::whole_number("block", block)?;
        usize::try_from(number).ok().filter(|block| *block < self.ends.len()).ok_or_else(|| {
            let most = self.ends.len() - 1;
            invalid_value(&format!(
                "block must be between 0 and {most}, the last one, not {number}"
            ))
        })
    }

    /// How many pages stay: those that a block has not are not counted.
    fn keep(keep: &Bound<'_, PyAny>) -> Result<usize> {
        Ok(usize::try_from(argument::whole_number("keep", keep)?).unwrap_or(usize::MAX))
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if !wait::exiting() && !self.runs.is_closed() {
            let owner = Owner::thread(|| "whoever lets go of a streaming".to_owned());
            Python::attach(|py| self.end(py, &owner));
        }
    }
}

#[pymethods]
impl Streaming {
    /// The area.
    #[getter]
    fn area(&self, py: Python<'_>) -> Py<Area> {
        self.area.clone_ref(py)
    }

    /// The working memory that was reserved with it.
    #[getter]
    fn working_memory(&self, py: Python<'_>) -> Option<Py<Reservation>> {
        self.working.as_ref().map(|working| working.clone_ref(py))
    }

    /// Of each block's tensors, how many of its pages have to stay so that it stays.
    fn ends(&self) -> Vec<Vec<usize>> {
        self.ends.clone()
    }

    /// How many pages each block has.
    fn pages_of_blocks(&self) -> Vec<usize> {
        self.runs.pages()
    }

    /// Has a block's pages there until `leave`.
    #[pyo3(signature = (block, *, stream=None, timeout=None, cancel=None))]
    fn enter(
        &self,
        py: Python<'_>,
        block: &Bound<'_, PyAny>,
        stream: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let block = self.block(block)?;
        let stream = match stream {
            None => Stream::Host,
            Some(_) => self.area.get().stream(stream)?,
        };
        let owner = caller(py)?;
        let terms = Terms::of(timeout, cancel)?;
        terms.check("a block of a streamed model")?;
        if self.runs.enter_at_once(block, stream, &owner)? {
            return Ok(());
        }
        let entered = patiently(py, terms, |patience| {
            self.runs.enter(block, stream, &owner, patience).map(|()| Entered {
                streaming: &self.runs,
                block,
                kept: false,
            })
        })?;
        entered.keep();
        Ok(())
    }

    /// Ends a visit of a block, of which so many pages stay.
    fn leave(&self, block: &Bound<'_, PyAny>, keep: &Bound<'_, PyAny>) -> Result<()> {
        self.runs.leave(self.block(block)?, Self::keep(keep)?);
        Ok(())
    }

    /// Has another stream of CUDA's use what stays, too.
    fn also_on(&self, py: Python<'_>, stream: &Bound<'_, PyAny>) -> Result<()> {
        let stream = self.area.get().stream(Some(stream))?;
        Ok(detached(py, || self.runs.also_on(stream))?)
    }

    /// What should stay of each block, with room for so many bytes in all.
    #[pyo3(signature = (nbytes=None))]
    fn plan(&self, nbytes: Option<&Bound<'_, PyAny>>) -> Result<Option<Vec<usize>>> {
        let room = match nbytes.filter(|nbytes| !nbytes.is_none()) {
            None => self.runs.allotted(),
            Some(nbytes) => {
                let bytes = argument::bytes("nbytes", nbytes)?;
                usize::try_from(bytes / self.page).unwrap_or(usize::MAX)
            }
        };
        Ok(self.runs.plan(room).map(|plan| plan.kept))
    }

    /// Lets a block keep no more than so many pages.
    fn keep_at_most(&self, block: &Bound<'_, PyAny>, keep: &Bound<'_, PyAny>) -> Result<bool> {
        Ok(self.runs.keep_at_most(self.block(block)?, Self::keep(keep)?))
    }

    /// Takes as much as nobody uses, but for so many bytes. Returns the bytes.
    #[pyo3(signature = (leave=None), text_signature = "($self, leave=0)")]
    fn grow(&self, py: Python<'_>, leave: Option<&Bound<'_, PyAny>>) -> Result<u64> {
        let leave = leave.map_or(Ok(0), |leave| argument::bytes("leave", leave))?;
        let owner = caller(py)?;
        let pages = detached(py, || self.runs.grow(leave, &owner))?;
        Ok(pages as u64 * self.page)
    }

    /// Gives bytes back to the budget. Returns how many.
    fn shrink(&self, py: Python<'_>, nbytes: &Bound<'_, PyAny>) -> Result<u64> {
        let (owner, pages) = (caller(py)?, self.pages(argument::bytes("nbytes", nbytes)?));
        let given = detached(py, || self.runs.shrink(pages, &owner, &Patience::FOREVER))?;
        Ok(given as u64 * self.page)
    }

    /// What it has and has done.
    fn status(&self) -> Result<StreamingStatus> {
        let streaming::StreamingStatus {
            resident,
            blocks,
            kept,
            allotted,
            moved,
            visits,
            late,
            stalled,
            copying,
        } = self.runs.status()?;
        let status = StreamingStatus {
            resident,
            blocks,
            kept,
            allotted,
            moved,
            visits,
            late,
            stalled,
            copying,
        };
        Ok(status)
    }

    /// Ends it. Again without effect.
    fn close(&self, py: Python<'_>) -> Result<()> {
        self.end(py, &caller(py)?);
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<Streaming: {} blocks>", self.ends.len())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.area)?;
        self.working.as_ref().map_or(Ok(()), |working| visit.call(working))
    }
}

/// A visit that has begun, which ends if nobody hears of it.
struct Entered<'a> {
    streaming: &'a streaming::Streaming,
    block: usize,
    kept: bool,
}

impl Entered<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.streaming.leave_as_it_was(self.block);
        }
    }
}

/// A streaming at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct StreamingStatus {
    resident: u64,
    blocks: u64,
    kept: u64,
    allotted: u64,
    moved: u64,
    visits: u64,
    late: u64,
    stalled: f64,
    copying: f64,
}

#[pymethods]
impl StreamingStatus {
    /// The bytes of blocks that come anew at each visit.
    #[getter]
    fn streamed(&self) -> u64 {
        self.blocks - self.kept
    }

    /// The share of copying in which nobody waited for a copy.
    #[getter]
    fn hidden(&self) -> f64 {
        if self.copying > 0.0 { (1.0 - self.stalled / self.copying).clamp(0.0, 1.0) } else { 1.0 }
    }

    fn __repr__(&self) -> String {
        let (kept, blocks) =
            (ByteSize(self.kept + self.resident), ByteSize(self.blocks - self.kept));
        format!("<StreamingStatus: {kept} stay, {blocks} stream>")
    }
}

impl From<StreamingError> for Error {
    fn from(error: StreamingError) -> Self {
        let message = error.to_string();
        match error {
            StreamingError::Arena(error) => error.into(),
            StreamingError::Wait(error) => error.into(),
            StreamingError::Forked(error) => error.into(),
            StreamingError::Closed { .. } => raise("ReleasedError", &message, |_| Ok(())),
            StreamingError::Captured { .. } => invalid_value(&message),
            StreamingError::Moves { .. } => raise("InvalidDeviceError", &message, |_| Ok(())),
            StreamingError::NoRoom { device, asked, free, .. } => {
                raise("DeviceMemoryError", &message, |fields| {
                    fields.set_item("device", device.to_string())?;
                    fields.set_item("asked", asked)?;
                    fields.set_item("free", free)
                })
            }
            StreamingError::TooLarge { device, resident, largest, beside, most, free, .. } => {
                raise("BudgetExceededError", &message, |fields| {
                    fields.set_item("budget", device.to_string())?;
                    fields.set_item("asked", beside.saturating_add(resident + largest))?;
                    fields.set_item("free", free)?;
                    fields.set_item("limit", most)
                })
            }
        }
    }
}
