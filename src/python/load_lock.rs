//! `LoadLock` and its guards.

use pyo3::prelude::*;

use super::aio::{self, Request};
use super::error::{Error, Result};
use super::guard::{Taker, released, warn_forgotten};
use super::pool::since;
use super::wait::{Terms, caller, settle};
use crate::load_lock::{self, Mode};
use crate::wait::{Owner, Parker};

/// A phase-fair readers-writer lock.
#[pyclass(frozen, weakref, module = "coresident", name = "LoadLock")]
pub(super) struct LoadLock(load_lock::LoadLock);

impl LoadLock {
    fn acquire(
        &self,
        py: Python<'_>,
        mode: Mode,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<LockGuard> {
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        terms.check("the load lock")?;
        if let Some(guard) = self.0.try_acquire(mode, &owner)? {
            return Ok(LockGuard::of(guard, &owner));
        }
        let parker = Parker::new();
        let asked = self.0.ask(mode, &owner, parker.clone())?;
        Ok(LockGuard::of(settle(py, asked, &parker, terms)?, &owner))
    }

    fn acquire_async<'py>(
        &self,
        py: Python<'py>,
        mode: Mode,
        timeout: Option<&Bound<'py, PyAny>>,
        cancel: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        let terms = Terms::of(timeout, cancel)?;
        let lock = self.0.clone();
        aio::awaitable(py, terms, move |py, terms, target| {
            let owner = caller(py)?;
            terms.check("the load lock")?;
            let asked = lock.ask(mode, &owner, target.waker())?;
            Request::of(asked, terms, target, move |py, guard| {
                Py::new(py, LockGuard::of(guard, &owner)).map(Py::into_any).map_err(Error::from)
            })
        })
    }
}

#[pymethods]
impl LoadLock {
    #[new]
    fn new() -> Self {
        Self(load_lock::LoadLock::new())
    }

    /// Takes the lock together with other readers; waits in line.
    #[pyo3(signature = (*, timeout=None, cancel=None))]
    fn read(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<LockGuard> {
        self.acquire(py, Mode::Read, timeout, cancel)
    }

    /// Takes the lock alone; waits in line.
    #[pyo3(signature = (*, timeout=None, cancel=None))]
    fn write(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<LockGuard> {
        self.acquire(py, Mode::Write, timeout, cancel)
    }

    /// As `read`, for asyncio: the task waits, its thread does not.
    #[pyo3(signature = (*, timeout=None, cancel=None))]
    fn read_async<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'py, PyAny>>,
        cancel: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        self.acquire_async(py, Mode::Read, timeout, cancel)
    }

    /// As `write`, for asyncio: the task waits, its thread does not.
    #[pyo3(signature = (*, timeout=None, cancel=None))]
    fn write_async<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'py, PyAny>>,
        cancel: Option<&Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyAny>> {
        self.acquire_async(py, Mode::Write, timeout, cancel)
    }

    /// Who holds the lock, and who waits for it. Does not wait.
    fn status(&self, py: Python<'_>) -> Result<LockStatus> {
        let load_lock::LockStatus { holders, waiting } = self.0.status()?;
        let of = |users: Vec<load_lock::LockUser>| -> PyResult<Vec<Py<LockUser>>> {
            users.into_iter().map(|user| Py::new(py, LockUser::of(user))).collect()
        };
        Ok(LockStatus { holders: of(holders)?, waiting: of(waiting)? })
    }

    fn __repr__(&self, py: Python<'_>) -> Result<String> {
        Ok(self.status(py)?.__repr__())
    }
}

/// The right to read or to write.
#[pyclass(frozen, weakref, module = "coresident", name = "LockGuard")]
pub(super) struct LockGuard {
    guard: load_lock::LockGuard,
    taker: Taker,
}

impl LockGuard {
    fn of(guard: load_lock::LockGuard, owner: &Owner) -> Self {
        Self { guard, taker: Taker::of(owner) }
    }

    fn what(&self) -> String {
        format!("the load lock to {}", self.guard.mode())
    }

    fn check(&self) -> Result<()> {
        self.guard.check()?;
        if self.guard.is_live() { Ok(()) } else { Err(released(&self.what())) }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.guard.release() {
            warn_forgotten(&self.what());
        }
    }
}

#[pymethods]
impl LockGuard {
    /// What the lock is held for.
    #[getter]
    fn mode(&self) -> String {
        self.guard.mode().to_string()
    }

    /// Whether the lock is no longer held through this guard.
    #[getter]
    fn released(&self) -> bool {
        !self.guard.is_live()
    }

    /// Lets the next in line go. From any thread; again without effect. Does not wait.
    fn release(&self) {
        self.guard.release();
    }

    /// Lets another thread or task have this guard, as `Lease.hand_over`. Does not wait.
    fn hand_over(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        let guard = slf.get();
        guard.check()?;
        guard.guard.hand_over();
        Ok(slf)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        let guard = slf.get();
        if guard.guard.is_with_owner() && guard.taker.is_caller() {
            return Ok(slf);
        }
        guard.check()?;
        guard.guard.adopt(&caller(slf.py())?);
        Ok(slf)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.guard.release();
    }

    fn __repr__(&self) -> String {
        let state = if self.guard.is_live() { "held" } else { "released" };
        format!("<LockGuard {} {state}>", self.guard.mode())
    }
}

/// Everyone at a lock.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct LockStatus {
    holders: Vec<Py<LockUser>>,
    waiting: Vec<Py<LockUser>>,
}

#[pymethods]
impl LockStatus {
    fn __repr__(&self) -> String {
        let told = |users: &[Py<LockUser>]| {
            let users: Vec<String> = users.iter().map(|user| user.get().told()).collect();
            if users.is_empty() { "nobody".to_owned() } else { users.join(", ") }
        };
        format!("<LoadLock held by {}; waiting: {}>", told(&self.holders), told(&self.waiting))
    }
}

/// Who holds a lock or waits for it, and since when.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct LockUser {
    owner: String,
    mode: String,
    since: f64,
    seconds: f64,
    handed_over: bool,
}

impl LockUser {
    fn of(user: load_lock::LockUser) -> Self {
        let (since, seconds) = since(user.lasted);
        let load_lock::LockUser { owner, mode, handed_over, .. } = user;
        Self { owner, mode: mode.to_string(), since, seconds, handed_over }
    }

    fn told(&self) -> String {
        format!("{} to {} for {:.1} s", self.owner, self.mode, self.seconds)
    }
}

#[pymethods]
impl LockUser {
    fn __repr__(&self) -> String {
        format!("<{}>", self.told())
    }
}
