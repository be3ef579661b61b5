//! An arena at a glance.

use pyo3::prelude::*;

use crate::arena;
use crate::device::ByteSize;
use crate::python::error::Result;

/// An arena at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct ArenaStatus {
    device: String,
    page: u64,
    resident: u64,
    pinned: u64,
    filled: u64,
    evicted: u64,
    low: u64,
    high: Option<u64>,
    areas: Vec<Py<AreaStatus>>,
}

impl ArenaStatus {
    pub(super) fn of(py: Python<'_>, status: arena::ArenaStatus) -> Result<Self> {
        let arena::ArenaStatus {
            device,
            page,
            resident,
            pinned,
            filled,
            evicted,
            low,
            high,
            areas,
        } = status;
        let areas: PyResult<_> =
            areas.into_iter().map(|area| Py::new(py, AreaStatus::of(area))).collect();
        Ok(Self { device, page, resident, pinned, filled, evicted, low, high, areas: areas? })
    }
}

#[pymethods]
impl ArenaStatus {
    /// The bytes that could be evicted now.
    #[getter]
    fn evictable(&self) -> u64 {
        self.resident.saturating_sub(self.pinned)
    }

    fn __repr__(&self) -> String {
        let areas: Vec<String> = self.areas.iter().map(|area| area.get().told()).collect();
        let areas = if areas.is_empty() { "nothing".to_owned() } else { areas.join("; ") };
        let (resident, pinned) = (ByteSize(self.resident), ByteSize(self.pinned));
        format!("<Arena {}: {resident} resident, {pinned} pinned: {areas}>", self.device)
    }
}

/// What one model has of an arena.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct AreaStatus {
    key: String,
    nbytes: u64,
    resident: u64,
    pinned: u64,
    priority: i64,
    pinned_tensors: Vec<String>,
}

impl AreaStatus {
    fn of(status: arena::AreaStatus) -> Self {
        let arena::AreaStatus { key, bytes, resident, pinned, priority, pinned_tensors } = status;
        Self { key, nbytes: bytes, resident, pinned, priority, pinned_tensors }
    }

    fn told(&self) -> String {
        let (resident, bytes) = (ByteSize(self.resident), ByteSize(self.nbytes));
        let pinned = (self.pinned > 0).then(|| format!(", {} pinned", ByteSize(self.pinned)));
        let tensors = (!self.pinned_tensors.is_empty())
            .then(|| format!(", kept by tensors: {}", self.pinned_tensors.join(", ")));
        let more: String = pinned.into_iter().chain(tensors).collect();
        format!("{:?} with {resident} of {bytes}{more}", self.key)
    }
}

#[pymethods]
impl AreaStatus {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}
