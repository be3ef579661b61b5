//! `Arena`, its areas, and what is pinned in them.

mod area;
mod pins;
mod status;
mod tensor;

use std::sync::atomic::{AtomicU64, Ordering};

use indexmap::IndexMap;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PySequence, PyString};

pub(super) use area::{Area, Block};
pub(super) use pins::Pins;
pub(super) use status::{AreaStatus, ArenaStatus};
pub(super) use tensor::DeviceTensor;

use super::budget::Budget;
use super::error::{Error, Result, invalid_type, invalid_value, raise};
use super::exit::detached;
use super::planner::Planner;
use super::trace::Timeline;
use super::wait::caller;
use super::weights::{PrivateWeights, Weights, strings};
use super::{argument, device};
use crate::arena::{self, ArenaError, Content, HostSide, Identity};
use crate::device::{ByteSize, MemoryError, Pinning};
use crate::runtime;
use crate::weights::Tensor;

/// One device's memory in pages, and the models that have some of it.
#[pyclass(frozen, weakref, module = "coresident", name = "Arena")]
pub(super) struct Arena {
    pub(super) pages: arena::Arena,
    device: Py<device::Device>,
    budget: Py<Budget>,
    ram: Option<Py<Budget>>,
    planner: Option<Py<Planner>>,
    timeline: Option<Py<Timeline>>,
}

#[pymethods]
impl Arena {
    #[new]
    #[pyo3(
        signature = (device, budget, *, ram=None, pin=None, planner=None, timeline=None),
        text_signature = "(device, budget, *, ram=None, pin='staging', planner=None, timeline=None)"
    )]
    fn new(
        device: &Bound<'_, PyAny>,
        budget: &Bound<'_, PyAny>,
        ram: Option<&Bound<'_, PyAny>>,
        pin: Option<&Bound<'_, PyAny>>,
        planner: Option<&Bound<'_, PyAny>>,
        timeline: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let py = device.py();
        let pinning = pin.map_or(Ok(Pinning::default()), pinning)?;
        let budget = charged("an arena is", budget)?;
        let ram = ram.filter(|ram| !ram.is_none());
        let ram = ram.map(|ram| charged("what copies take of the host's memory is", ram));
        let ram = ram.transpose()?;
        let device = device::select_one("an arena", device)?;
        let host = HostSide { pinning, budget: ram.as_ref().map(|ram| ram.get().ledger()) };
        let planner = planner.filter(|planner| !planner.is_none());
        let planner = planner.map(|planner| planned(&device, planner)).transpose()?;
        let timeline = timeline.filter(|timeline| !timeline.is_none()).map(recorder).transpose()?;
        let ledger = budget.get().ledger();
        let pages = match &planner {
            None => arena::Arena::new(&device, &ledger, host)?,
            Some(planner) => runtime::arena(&device, &ledger, host, &planner.get().plans)?,
        };
        if let Some(timeline) = &timeline {
            pages.record_in(timeline.get().inner());
        }
        let device = Py::new(py, device::Device::of(device))?;
        let (ram, planner) = (ram.map(Bound::unbind), planner.map(Bound::unbind));
        let (budget, timeline) = (budget.unbind(), timeline.map(Bound::unbind));
        Ok(Self { pages, device, budget, ram, planner, timeline })
    }

    /// The device.
    #[getter]
    fn device(&self, py: Python<'_>) -> Py<device::Device> {
        self.device.clone_ref(py)
    }

    /// Whether tensors have addresses only while they are pinned.
    #[getter]
    fn moving(&self) -> Result<bool> {
        self.pages.check()?;
        Ok(self.pages.moves()?)
    }

    /// What the pages are charged to.
    #[getter]
    fn budget(&self, py: Python<'_>) -> Py<Budget> {
        self.budget.clone_ref(py)
    }

    /// What page-locked buffers are charged to.
    #[getter]
    fn ram(&self, py: Python<'_>) -> Option<Py<Budget>> {
        self.ram.as_ref().map(|ram| ram.clone_ref(py))
    }

    /// Who says what leaves first.
    #[getter]
    fn planner(&self, py: Python<'_>) -> Option<Py<Planner>> {
        self.planner.as_ref().map(|planner| planner.clone_ref(py))
    }

    /// Where it records what happens.
    #[getter]
    fn timeline(&self, py: Python<'_>) -> Option<Py<Timeline>> {
        self.timeline.as_ref().map(|timeline| timeline.clone_ref(py))
    }

    /// What of the host's memory is page-locked for copies.
    #[getter]
    fn pin(&self) -> &'static str {
        PINNINGS.iter().find(|(_, how)| *how == self.pages.host().pinning).map_or("", |it| it.0)
    }

    /// The place of some weights on the device: the one that somebody has, or a new one.
    #[pyo3(signature = (weights, order=None, *, groups=None))]
    fn area(
        slf: &Bound<'_, Self>,
        weights: &Bound<'_, PyAny>,
        order: Option<&Bound<'_, PyAny>>,
        groups: Option<&Bound<'_, PyAny>>,
    ) -> Result<Area> {
        let owner = caller(slf.py())?;
        let (key, identity, known) = tensors_of(weights)?;
        let order = order.filter(|order| !order.is_none());
        let names = order.map(|order| strings("order", order)).transpose()?;
        let tensors = match names {
            None => known.into_iter().collect(),
            Some(names) => {
                let mut tensors = Vec::with_capacity(names.len());
                for name in names {
                    let missing = || {
                        let device = slf.get().pages.device();
                        ArenaError::NoTensor { name: name.clone(), key: key.clone(), device }
                    };
                    let tensor = known.get(&name).cloned().ok_or_else(missing)?;
                    tensors.push((name, tensor));
                }
                tensors
            }
        };
        let tensors: Vec<(String, Tensor)> = tensors;
        let groups = groups.filter(|groups| !groups.is_none());
        let groups = groups.map(|groups| begins(groups, tensors.len())).transpose()?;
        let mut order: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
        if groups.is_some() {
            // Its own: no tensor has such a name twice.
            static NEXT: AtomicU64 = AtomicU64::new(0);
            order.push(format!("\0{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        }
        let identity = Identity { of: identity, order };
        let contents =
            || tensors.into_iter().map(|(name, tensor)| Content::of(&name, tensor)).collect();
        let groups = groups.unwrap_or_default();
        let area = slf.get().pages.area_in_groups(&key, identity, &owner, &groups, contents)?;
        Ok(Area::new(area, slf.clone().unbind()))
    }

    /// Evicts unpinned pages.
    #[pyo3(signature = (nbytes=None))]
    fn evict(&self, py: Python<'_>, nbytes: Option<&Bound<'_, PyAny>>) -> Result<u64> {
        self.pages.check()?;
        let nbytes = nbytes.filter(|nbytes| !nbytes.is_none());
        let bytes = nbytes.map(|nbytes| argument::bytes("nbytes", nbytes)).transpose()?;
        Ok(detached(py, || self.pages.evict(bytes.unwrap_or(u64::MAX))))
    }

    /// Sets where eviction begins without being asked, and where it ends.
    #[pyo3(signature = (low, high))]
    fn set_watermarks(
        &self,
        py: Python<'_>,
        low: &Bound<'_, PyAny>,
        high: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let low = argument::bytes("low", low)?;
        let high = high.filter(|high| !high.is_none());
        let high = high.map(|high| argument::bytes("high", high)).transpose()?;
        Ok(detached(py, || self.pages.set_watermarks(low, high))?)
    }

    /// What is there now.
    fn status(&self, py: Python<'_>) -> Result<ArenaStatus> {
        ArenaStatus::of(py, detached(py, || self.pages.status())?)
    }

    fn __repr__(&self) -> String {
        match self.pages.status() {
            Ok(status) => {
                let (resident, pinned) = (ByteSize(status.resident), ByteSize(status.pinned));
                format!("<Arena {}: {resident} resident, {pinned} pinned>", status.device)
            }
            Err(_) => format!("<Arena {} of another process>", self.pages.device()),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.budget)?;
        self.ram.as_ref().map_or(Ok(()), |ram| visit.call(ram))?;
        self.planner.as_ref().map_or(Ok(()), |planner| visit.call(planner))
    }
}

impl Arena {
    pub(super) fn ledger<'py>(&self, py: Python<'py>) -> Bound<'py, Budget> {
        self.budget.bind(py).clone()
    }
}

const PINNINGS: [(&str, Pinning); 3] =
    [("staging", Pinning::Staging), ("all", Pinning::All), ("none", Pinning::Nothing)];

fn pinning(value: &Bound<'_, PyAny>) -> Result<Pinning> {
    let known = PINNINGS.iter().find(|(name, _)| value.eq(name).unwrap_or(false));
    known.map(|(_, how)| *how).ok_or_else(|| {
        let given = value.repr().map_or_else(|_| argument::type_name(value), |it| it.to_string());
        invalid_value(&format!("pin is 'staging', 'all' or 'none', not {given}"))
    })
}

fn charged<'py>(what: &str, budget: &Bound<'py, PyAny>) -> Result<Bound<'py, Budget>> {
    let budget = budget.cast::<Budget>().map_err(|_| {
        let given = argument::type_name(budget);
        invalid_type(&format!("{what} charged to a Budget, not to {given}"))
    })?;
    Ok(budget.clone())
}

/// The planner of a device's arena.
fn planned<'py>(
    device: &crate::device::Device,
    planner: &Bound<'py, PyAny>,
) -> Result<Bound<'py, Planner>> {
    let planner = planner.cast::<Planner>().map_err(|_| {
        let given = argument::type_name(planner);
        invalid_type(&format!("planner is a Planner or None, not {given}"))
    })?;
    let (own, other) = (device.name(), planner.get().plans.device());
    if own != other {
        return Err(invalid_value(&format!("a planner of {other} cannot decide on {own}")));
    }
    Ok(planner.clone())
}

fn recorder<'py>(timeline: &Bound<'py, PyAny>) -> Result<Bound<'py, Timeline>> {
    let timeline = timeline.cast::<Timeline>().map_err(|_| {
        let given = argument::type_name(timeline);
        invalid_type(&format!("an arena records in a Timeline, not in {given}"))
    })?;
    Ok(timeline.clone())
}

/// Where groups of so many tensors begin.
fn begins(groups: &Bound<'_, PyAny>, tensors: usize) -> Result<Vec<usize>> {
    let refused = || {
        let given = argument::type_name(groups);
        invalid_type(&format!("groups is a list of whole numbers, not {given}"))
    };
    if groups.is_instance_of::<PyString>() {
        return Err(refused());
    }
    let groups = groups.cast::<PySequence>().map_err(|_| refused())?;
    let mut begins = Vec::new();
    for at in 0..groups.len()? {
        let number = argument::whole_number("a group", &groups.get_item(at)?)?;
        let at = usize::try_from(number).ok().filter(|at| *at < tensors);
        begins.push(at.ok_or_else(|| {
            invalid_value(&format!(
                "a group begins at one of {tensors} tensors, and not at {number}"
            ))
        })?);
    }
    Ok(begins)
}

/// The key, the identity and the tensors of what has weights.
fn tensors_of(weights: &Bound<'_, PyAny>) -> Result<(String, usize, IndexMap<String, Tensor>)> {
    fn by_name<'a>(
        names: impl Iterator<Item = &'a str>,
        tensors: Vec<Tensor>,
    ) -> IndexMap<String, Tensor> {
        names.map(str::to_owned).zip(tensors).collect()
    }
    if let Ok(weights) = weights.cast::<Weights>() {
        let held = weights.get().held()?;
        let tensors = by_name(held.names(), held.tensors());
        return Ok((held.key().to_owned(), held.identity(), tensors));
    }
    let Ok(private) = weights.cast::<PrivateWeights>() else {
        let given = argument::type_name(weights);
        return Err(invalid_type(&format!(
            "an area is of Weights or PrivateWeights, not of {given}"
        )));
    };
    let private = &private.get().0;
    let tensors = by_name(private.names(), private.tensors());
    Ok((private.key().to_owned(), private.identity(), tensors))
}

impl From<ArenaError> for Error {
    fn from(error: ArenaError) -> Self {
        let message = error.to_string();
        match error {
            ArenaError::Budget(error) => error.into(),
            ArenaError::Wait(error) => error.into(),
            ArenaError::Memory(error) => error.into(),
            ArenaError::Forked(error) => error.into(),
            ArenaError::TooLarge { device, weights, beside, most, free, .. } => {
                raise("BudgetExceededError", &message, |fields| {
                    fields.set_item("budget", device.to_string())?;
                    fields.set_item("asked", weights.saturating_add(beside))?;
                    fields.set_item("free", free)?;
                    fields.set_item("limit", most)
                })
            }
            ArenaError::Full { device, asked, free, .. } => {
                out_of_memory(&message, &device.to_string(), asked, free)
            }
            ArenaError::NoPages { .. } => raise("InvalidDeviceError", &message, |_| Ok(())),
            ArenaError::NoTensor { name, key, .. } => {
                raise("TensorNotFoundError", &message, |fields| {
                    fields.set_item("name", name)?;
                    fields.set_item("key", key)
                })
            }
            ArenaError::Watermarks { .. }
            | ArenaError::Nowhere { .. }
            | ArenaError::Exclusive { .. }
            | ArenaError::InUse { .. } => invalid_value(&message),
        }
    }
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        let message = error.to_string();
        match error {
            MemoryError::OutOfMemory { device, asked, free } => {
                out_of_memory(&message, &device.to_string(), asked, free)
            }
            MemoryError::NoAddresses { device, asked, .. } => {
                out_of_memory(&message, &device.to_string(), asked, 0)
            }
            MemoryError::Unmapped { device, .. }
            | MemoryError::Failed { device, .. }
            | MemoryError::Lost { device, .. } => raise("DeviceLostError", &message, |fields| {
                fields.set_item("device", device.to_string())
            }),
        }
    }
}

fn out_of_memory(message: &str, device: &str, asked: u64, free: u64) -> Error {
    raise("DeviceMemoryError", message, |fields| {
        fields.set_item("device", device)?;
        fields.set_item("asked", asked)?;
        fields.set_item("free", free)
    })
}

/// A block as a caller gives it: made before, or by the names of its tensors; `None` is everything.
fn no_block(value: &Bound<'_, PyAny>) -> Error {
    let given = argument::type_name(value);
    invalid_type(&format!("a block is made by area.block(names), or None for all, not {given}"))
}
