//! `Planner`, the jobs that run on its device, and who tells which come next.

use std::sync::Arc;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::argument;
use super::callback::call;
use super::device::{self, Device};
use super::error::{Error, Result, invalid_type};
use super::exit::detached;
use super::guard::{released, warn_forgotten};
use super::pool::DevicePool;
use super::wait::caller;
use super::weights::{strings, text};
use crate::device::Name;
use crate::residency::{self, Forecast, Job, Needs, PolicyName};
use crate::runtime;
use crate::sync::Mutex;

/// What a running job is called.
const WHAT: &str = "the guard of a running job";

/// Decides what leaves a device first.
#[pyclass(frozen, weakref, module = "coresident", name = "Planner")]
pub(super) struct Planner {
    pub(super) plans: residency::Planner,
    device: crate::device::Device,
    forecast: Mutex<Option<Told>>,
}

/// Who tells which jobs come next, as the user has given it.
#[derive(Clone)]
enum Told {
    Always(Vec<Needs>),
    By(Arc<Function>),
}

/// A function of Python's that tells which jobs come next.
struct Function {
    device: crate::device::Device,
    function: Py<PyAny>,
}

impl Forecast for Function {
    fn coming(&self, _device: Name, most: usize) -> Vec<Needs> {
        let ask = |function: &Bound<'_, PyAny>| {
            let told = function.call1((Device::of(self.device.clone()), most))?;
            Ok(jobs("a forecast", &told)?)
        };
        let mut jobs = call(&self.function, ask).unwrap_or_default();
        jobs.truncate(most);
        jobs
    }
}

/// Always the same.
struct Fixed(Vec<Needs>);

impl Forecast for Fixed {
    fn coming(&self, _device: Name, most: usize) -> Vec<Needs> {
        self.0.iter().take(most).cloned().collect()
    }
}

/// The most jobs that anyone tells of; what goes on after that goes on for ever.
const MOST_JOBS: usize = 1 << 10;

/// The jobs of an iterable, each an iterable of keys.
fn jobs(what: &str, value: &Bound<'_, PyAny>) -> Result<Vec<Needs>> {
    let refused = || {
        let given = argument::type_name(value);
        invalid_type(&format!("{what} is a list of jobs, each a list of keys, not {given}"))
    };
    if value.is_instance_of::<pyo3::types::PyString>() {
        return Err(refused());
    }
    let items = value.try_iter().map_err(|_| refused())?;
    let jobs: Result<Vec<Needs>> =
        items.take(MOST_JOBS).map(|job| Ok(strings("a job", &job?)?.into())).collect();
    jobs
}

#[pymethods]
impl Planner {
    #[new]
    #[pyo3(
        signature = (device, policy=PolicyName::default(), *, pool=None),
        text_signature = "(device, policy='look-ahead', *, pool=None)"
    )]
    fn new(
        device: &Bound<'_, PyAny>,
        policy: PolicyName,
        pool: Option<&Bound<'_, PyAny>>,
    ) -> Result<Self> {
        let device = device::select_one("a planner", device)?;
        let pool = pool.filter(|pool| !pool.is_none());
        let pool = pool.map(|pool| {
            pool.cast::<DevicePool>().map_err(|_| {
                let given = argument::type_name(pool);
                invalid_type(&format!("pool is a DevicePool or None, not {given}"))
            })
        });
        let pool = pool.transpose()?;
        let leases = pool.map(|pool| pool.get().inner());
        let plans = runtime::planner(device.name(), policy, leases);
        Ok(Self { plans, device, forecast: Mutex::new(None) })
    }

    /// The device.
    #[getter]
    fn device(&self) -> Device {
        Device::of(self.device.clone())
    }

    /// The name of the policy.
    #[getter]
    fn policy(&self) -> String {
        self.plans.policy().to_string()
    }

    /// Which jobs come next.
    #[getter]
    fn forecast<'py>(&self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>> {
        let told = self.forecast.lock().clone();
        match told {
            None => Ok(None),
            Some(Told::By(function)) => Ok(Some(function.function.bind(py).clone())),
            Some(Told::Always(jobs)) => {
                let jobs: Vec<Vec<String>> = jobs.iter().map(|job| job.to_vec()).collect();
                Ok(Some(jobs.into_pyobject(py).map_err(Error::from)?.into_any()))
            }
        }
    }

    #[setter]
    fn set_forecast(&self, forecast: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let told = match forecast {
            None => None,
            Some(function) if function.is_callable() => {
                let (device, function) = (self.device.clone(), function.clone().unbind());
                Some(Told::By(Arc::new(Function { device, function })))
            }
            Some(list) => Some(Told::Always(jobs("a forecast", list)?)),
        };
        self.ask(told);
        Ok(())
    }

    /// A job begins on the device.
    #[pyo3(signature = (stages=None))]
    fn job(&self, py: Python<'_>, stages: Option<&Bound<'_, PyAny>>) -> Result<RunningJob> {
        let stages = stages.filter(|stages| !stages.is_none());
        let stages = stages.map(|stages| strings("stages", stages)).transpose()?;
        let job = Arc::new(self.plans.begin(stages.as_deref(), &caller(py)?)?);
        carry(py, &job)?;
        Ok(RunningJob(job))
    }

    /// By which number a timeline has what the caller uses.
    fn recorded_job(&self, py: Python<'_>) -> Result<u64> {
        Ok(self.plans.recorded_job(&caller(py)?))
    }

    /// Says that weights are used, by the job that the context carries or by whoever calls.
    fn used(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        nbytes: &Bound<'_, PyAny>,
    ) -> Result<()> {
        let key = text("key", key)?;
        let (bytes, owner) = (argument::bytes("nbytes", nbytes)?, caller(py)?);
        let job = carried(py)?.and_then(|jobs| jobs.get().of(&self.plans));
        detached(py, || self.plans.note_use(&key, bytes, job.as_deref(), &owner));
        Ok(())
    }

    /// Says that nothing is left of weights on the device.
    fn left(&self, key: &Bound<'_, PyAny>) -> Result<()> {
        self.plans.note_left(&text("key", key)?);
        Ok(())
    }

    /// Puts keys in the order in which their weights should leave.
    fn order(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> Result<Vec<String>> {
        let keys = strings("keys", keys)?;
        Ok(detached(py, || self.plans.order(&keys)))
    }

    fn __repr__(&self) -> String {
        format!("<Planner of {}: {}>", self.plans.device(), self.plans.policy())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        match self.forecast.try_lock().as_deref() {
            Some(Some(Told::By(function))) => visit.call(&function.function),
            _ => Ok(()),
        }
    }

    fn __clear__(&self) {
        self.ask(None);
    }
}

impl Planner {
    /// Asks somebody else from now on.
    fn ask(&self, told: Option<Told>) {
        let forecast = told.clone().map(|told| match told {
            Told::Always(jobs) => Arc::new(Fixed(jobs)) as Arc<dyn Forecast>,
            Told::By(function) => function,
        });
        // Dropped with no lock held: they may be the last to have a function.
        let before = self.plans.set_forecast(forecast);
        let own = std::mem::replace(&mut *self.forecast.lock(), told);
        drop((before, own));
    }
}

impl Drop for Planner {
    fn drop(&mut self) {
        // A function may hold what holds the arena, which has the plans too.
        if self.forecast.lock().is_some() {
            self.ask(None);
        }
    }
}

/// A job on a device, until it is released.
#[pyclass(frozen, weakref, module = "coresident", name = "RunningJob")]
pub(super) struct RunningJob(Arc<Job>);

#[pymethods]
impl RunningJob {
    /// The name of the device.
    #[getter]
    fn device(&self) -> String {
        self.0.planner().device().to_string()
    }

    /// By which number a timeline has what is done for it.
    #[getter]
    fn number(&self) -> u64 {
        self.0.recorded_as()
    }

    /// Whether it has ended.
    #[getter]
    fn released(&self) -> bool {
        self.0.has_ended()
    }

    /// Ends it. From any thread; again without effect.
    fn release(&self) {
        self.0.end();
    }

    fn __enter__(slf: Bound<'_, Self>) -> Result<Bound<'_, Self>> {
        if slf.get().0.has_ended() {
            return Err(released(WHAT));
        }
        // It may have been made somewhere else.
        carry(slf.py(), &slf.get().0)?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.0.end();
    }

    fn __repr__(&self) -> String {
        let state = if self.0.has_ended() { " ended" } else { "" };
        format!("<RunningJob on {}{state}>", self.0.planner().device())
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        if self.0.end() {
            warn_forgotten(WHAT);
        }
    }
}

/// The jobs that a context carries, outermost first. Tasks, copied contexts and workers inherit them;
/// one that has ended counts for nothing.
#[pyclass(frozen, module = "coresident._core")]
struct Jobs(Vec<Arc<Job>>);

impl Jobs {
    /// The innermost one on a device.
    fn of(&self, plans: &residency::Planner) -> Option<Arc<Job>> {
        let mut live = self.0.iter().rev().filter(|job| !job.has_ended());
        live.find(|job| job.planner().is(plans)).cloned()
    }
}

fn variable(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    static VARIABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    VARIABLE.get_or_try_init(py, || {
        let kwargs = pyo3::types::PyDict::new(py);
        kwargs.set_item("default", py.None())?;
        let class = py.import("contextvars")?.getattr("ContextVar")?;
        class.call(("coresident_jobs",), Some(&kwargs)).map(Bound::unbind)
    })
}

fn carried(py: Python<'_>) -> PyResult<Option<Bound<'_, Jobs>>> {
    Ok(variable(py)?.bind(py).call_method0("get")?.cast_into::<Jobs>().ok())
}

/// Has this context carry a job.
fn carry(py: Python<'_>, job: &Arc<Job>) -> PyResult<()> {
    let before = carried(py)?;
    let before = before.iter().flat_map(|jobs| &jobs.get().0);
    let others = before.filter(|other| !other.has_ended() && !Arc::ptr_eq(other, job));
    let jobs = others.chain([job]).cloned().collect();
    variable(py)?.bind(py).call_method1("set", (Jobs(jobs),)).map(drop)
}
