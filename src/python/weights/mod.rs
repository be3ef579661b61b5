//! `WeightStore`, the weights in it, and their tensors.

mod handle;
mod private;
pub(super) mod state_dict;
mod tensor;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyMapping, PyString};

pub(super) use handle::Weights;
pub(super) use private::PrivateWeights;
pub(super) use tensor::Tensor;

use state_dict::Known;

use super::budget::Budget;
use super::error::{Error, Result, invalid_type, invalid_value};
use super::exit::{Inside, detached};
use super::wait::{Terms, caller, patiently};
use super::{argument, dlpack};
use crate::device::ByteSize;
use crate::weights::{self, MemoryKind, Opening, Settings, WeightsError};

/// One host copy of each model's weights, whoever uses it.
#[pyclass(frozen, weakref, module = "coresident", name = "WeightStore")]
pub(super) struct WeightStore {
    store: weights::WeightStore,
    budget: Option<Py<Budget>>,
    torch_tensors: Known,
}

#[pymethods]
impl WeightStore {
    #[new]
    #[pyo3(signature = (*, budget=None))]
    fn new(budget: Option<Bound<'_, Budget>>) -> Self {
        let ledger = budget.as_ref().map(|budget| budget.get().ledger());
        Self {
            store: weights::WeightStore::new(ledger),
            budget: budget.map(Bound::unbind),
            torch_tensors: Known::default(),
        }
    }

    /// The budget in which every byte is reserved; `None` without one.
    #[getter]
    fn budget(&self, py: Python<'_>) -> Option<Py<Budget>> {
        self.budget.as_ref().map(|budget| budget.clone_ref(py))
    }

    /// The weights under a key that is there.
    fn acquire(&self, key: &Bound<'_, PyAny>) -> Result<Weights> {
        Ok(Weights::of(self.store.acquire(&text("key", key)?)?, &self.torch_tensors))
    }

    /// The weights at a path under a key: loaded, or those that are there.
    #[pyo3(signature = (key, path, *, settings=None, copy=None, timeout=None, cancel=None))]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn open(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        path: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyAny>>,
        copy: Option<bool>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Weights> {
        let key = text("key", key)?;
        let path = path.extract::<PathBuf>().map_err(|_| {
            let given = argument::type_name(path);
            invalid_type(&format!("path is a text or a path, not {given}"))
        })?;
        let opening =
            Opening { settings: self::settings(settings)?, private: copy, ..Opening::default() };
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        terms.check(&format!("the weights {key:?}"))?;
        let opened = patiently(py, terms, |patience| {
            self.store.open(&key, &path, &opening, &owner, patience)
        })?;
        Ok(Weights::of(opened, &self.torch_tensors))
    }

    /// Tensors that somebody has in memory, under a key; or those that are there.
    #[pyo3(signature = (key, tensors, *, settings=None, copy=None, cost=None, timeout=None, cancel=None))]
    #[expect(clippy::too_many_arguments, reason = "the Python signature")]
    fn share(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        tensors: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyAny>>,
        copy: Option<bool>,
        cost: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        cancel: Option<&Bound<'_, PyAny>>,
    ) -> Result<Weights> {
        let key = text("key", key)?;
        let cost = argument::seconds("cost", cost)?;
        let opening = Opening { settings: self::settings(settings)?, private: copy, cost };
        let terms = Terms::of(timeout, cancel)?;
        let owner = caller(py)?;
        terms.check(&format!("the weights {key:?}"))?;
        let mut given: Vec<weights::Given> = Vec::new();
        let mut names = HashSet::new();
        for (name, tensor) in items("tensors", tensors)? {
            let name = text("the name of a tensor", &name)?;
            if !names.insert(name.clone()) {
                return Err(invalid_value(&format!("there are two tensors {name:?}")));
            }
            given.push(dlpack::import(&name, &plain(&name, tensor, copy == Some(true))?)?);
        }
        let shared = patiently(py, terms, |patience| {
            self.store.share(&key, given, &opening, &owner, patience)
        })?;
        Ok(Weights::of(shared, &self.torch_tensors))
    }

    /// Retires a key and everything below it; returns how many keys that were.
    fn invalidate(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> Result<usize> {
        let key = text("key", key)?;
        Ok(detached(py, || self.store.invalidate(&key))?)
    }

    /// Lets go of all weights that nobody uses; returns their bytes.
    fn clear(&self, py: Python<'_>) -> Result<u64> {
        Ok(detached(py, || self.store.clear())?)
    }

    /// What is there, and what is retired but still used.
    fn status(&self) -> Result<Vec<WeightsStatus>> {
        Ok(self.store.status()?.into_iter().map(WeightsStatus::of).collect())
    }

    /// Bytes of all weights by what holds them.
    fn stats(&self) -> Result<HashMap<String, u64>> {
        let kinds = [MemoryKind::Mapped, MemoryKind::Slab, MemoryKind::Foreign, MemoryKind::Pinned];
        let mut all: HashMap<String, u64> =
            kinds.iter().map(|kind| (kind.to_string(), 0)).collect();
        for (kind, bytes) in self.store.status()?.into_iter().flat_map(|status| status.kinds) {
            *all.entry(kind.to_string()).or_default() += bytes;
        }
        all.insert("spare".to_owned(), self.store.spare()?);
        Ok(all)
    }

    /// Bytes that are page-locked for copies to GPUs.
    #[getter]
    fn locked(&self) -> Result<u64> {
        Ok(self.store.locked()?)
    }

    fn __repr__(&self) -> Result<String> {
        let all = self.store.status()?;
        let bytes: u64 = all.iter().map(|status| status.nbytes).sum();
        Ok(format!("<WeightStore {} open, {}>", all.len(), ByteSize(bytes)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        self.budget.as_ref().map_or(Ok(()), |budget| visit.call(budget))
    }
}

pub(super) fn text(what: &str, value: &Bound<'_, PyAny>) -> Result<String> {
    match value.cast::<PyString>() {
        Ok(text) => text.extract().map_err(Error::from),
        Err(_) => {
            Err(invalid_type(&format!("{what} is a text, not {}", argument::type_name(value))))
        }
    }
}

/// The texts of an iterable; a text itself is refused, for it would be taken letter by letter.
pub(super) fn strings(what: &str, value: &Bound<'_, PyAny>) -> Result<Vec<String>> {
    let refused = |given: &Bound<'_, PyAny>| {
        let given = argument::type_name(given);
        invalid_type(&format!("{what} takes a list of names, not {given}"))
    };
    if value.is_instance_of::<PyString>() {
        return Err(refused(value));
    }
    let _inside = Inside::enter(value.py());
    let mut texts = Vec::new();
    for item in value.try_iter().map_err(|_| refused(value))? {
        texts.push(text(what, &item?)?);
    }
    Ok(texts)
}

/// The pairs of a mapping.
fn items<'py>(
    what: &str,
    value: &Bound<'py, PyAny>,
) -> Result<Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
    let mapping = value.cast::<PyMapping>().map_err(|_| {
        invalid_type(&format!("{what} is a mapping, not {}", argument::type_name(value)))
    })?;
    let _inside = Inside::enter(value.py());
    let mut pairs = Vec::new();
    for pair in mapping.items()?.iter() {
        pairs.push(pair.extract()?);
    }
    Ok(pairs)
}

/// Names and values, compared as texts.
fn settings(value: Option<&Bound<'_, PyAny>>) -> Result<Settings> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(Settings::new()) };
    let mut settings = Settings::new();
    let _inside = Inside::enter(value.py());
    for (name, value) in items("settings", value)? {
        settings.push((text("the name of a setting", &name)?, value.str()?.extract()?));
    }
    Ok(settings)
}

/// A tensor of torch's without its gradient, which DLPack cannot carry, and with the signs that it
/// only notes, which torch leaves behind without a word.
fn plain<'py>(name: &str, tensor: Bound<'py, PyAny>, copied: bool) -> Result<Bound<'py, PyAny>> {
    let py = tensor.py();
    let _inside = Inside::enter(py);
    let Some(requires) = tensor.getattr_opt(intern!(py, "requires_grad"))? else {
        return Ok(tensor);
    };
    let tensor =
        if requires.is_truthy()? { tensor.call_method0(intern!(py, "detach"))? } else { tensor };
    let is_neg = tensor.getattr_opt(intern!(py, "is_neg"))?;
    match is_neg.map(|is_neg| is_neg.call0()?.is_truthy()).transpose()? {
        Some(true) if copied => Ok(tensor.call_method0(intern!(py, "resolve_neg"))?),
        Some(true) => {
            let why =
                "its signs are only noted, not in its memory: resolve_neg() it first".to_owned();
            Err(WeightsError::Unshareable { name: name.to_owned(), why }.into())
        }
        _ => Ok(tensor),
    }
}

fn by_name(kinds: &[(MemoryKind, u64)]) -> HashMap<String, u64> {
    kinds.iter().map(|(kind, bytes)| (kind.to_string(), *bytes)).collect()
}

/// Weights at a glance.
#[pyclass(frozen, get_all, module = "coresident")]
pub(super) struct WeightsStatus {
    key: String,
    version: u64,
    path: Option<PathBuf>,
    nbytes: u64,
    kinds: HashMap<String, u64>,
    locked: u64,
    cost: f64,
    holders: usize,
    retired: bool,
}

impl WeightsStatus {
    fn of(status: weights::WeightsStatus) -> Self {
        let weights::WeightsStatus {
            key,
            version,
            path,
            nbytes,
            kinds,
            locked,
            cost,
            holders,
            retired,
        } = status;
        let (kinds, cost) = (by_name(&kinds), cost.as_secs_f64());
        Self { key, version, path, nbytes, kinds, locked, cost, holders, retired }
    }
}

#[pymethods]
impl WeightsStatus {
    fn __repr__(&self) -> String {
        let retired = if self.retired { ", retired" } else { "" };
        let (key, bytes, holders) = (&self.key, ByteSize(self.nbytes), self.holders);
        format!("<{key:?} version {}: {bytes}, {holders} holders{retired}>", self.version)
    }
}
