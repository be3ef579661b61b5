//! A budget at a glance.

use pyo3::prelude::*;

use super::super::pool::since;
use crate::budget;
use crate::device::ByteSize;

/// A budget at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct BudgetStatus {
    name: String,
    limit: u64,
    headroom: u64,
    used: u64,
    peak: u64,
    free: u64,
    outside: u64,
    holders: Vec<Py<BudgetUser>>,
    waiting: Vec<Py<BudgetUser>>,
}

impl BudgetStatus {
    pub(super) fn of(py: Python<'_>, status: budget::BudgetStatus) -> PyResult<Self> {
        let users = |users: Vec<budget::BudgetUser>| -> PyResult<Vec<Py<BudgetUser>>> {
            users.into_iter().map(|user| Py::new(py, BudgetUser::of(user))).collect()
        };
        Ok(Self {
            holders: users(status.holders)?,
            waiting: users(status.waiting)?,
            name: status.name,
            limit: status.limit,
            headroom: status.headroom,
            used: status.used,
            peak: status.peak,
            free: status.free,
            outside: status.outside,
        })
    }
}

#[pymethods]
impl BudgetStatus {
    fn __repr__(&self) -> String {
        let told = |users: &[Py<BudgetUser>]| {
            let users: Vec<String> = users.iter().map(|user| user.get().told()).collect();
            if users.is_empty() { "nobody".to_owned() } else { users.join(", ") }
        };
        let (free, limit) = (ByteSize(self.free), ByteSize(self.limit));
        let (holders, waiting) = (told(&self.holders), told(&self.waiting));
        format!(
            "<Budget {}: {free} of {limit} free; held by {holders}; waiting: {waiting}>",
            self.name
        )
    }
}

/// Who has bytes of a budget or waits for some, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(in crate::python) struct BudgetUser {
    holder: String,
    nbytes: u64,
    since: f64,
    seconds: f64,
}

impl BudgetUser {
    fn of(user: budget::BudgetUser) -> Self {
        let (since, seconds) = since(user.lasted);
        let budget::BudgetUser { holder, bytes: nbytes, .. } = user;
        Self { holder, nbytes, since, seconds }
    }

    fn told(&self) -> String {
        format!("{} with {} for {:.1} s", self.holder, ByteSize(self.nbytes), self.seconds)
    }
}

#[pymethods]
impl BudgetUser {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}
