//! Devices, and where they come from.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyString};

use super::argument;
use super::error::{Error, Result, invalid_type, raise};
use super::exit::{Inside, detached};
use super::guard::released;
use crate::device::{
    self, ByteSize, Choice, DeviceError, DeviceType, Driver, Found, Inventory, Name, Provider,
    Selection, VirtualSpec,
};
use crate::sync::Mutex;

/// Something to run on.
#[pyclass(frozen, eq, hash, module = "coresident", name = "Device")]
#[derive(PartialEq)]
pub(super) struct Device(device::Device);

impl std::hash::Hash for Device {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl Device {
    pub(super) fn of(device: device::Device) -> Self {
        Self(device)
    }

    pub(super) fn inner(&self) -> &device::Device {
        &self.0
    }
}

#[pymethods]
impl Device {
    /// The name in its one normal form: `'cuda:0'`, `'mps'`, `'virtual:1'`.
    #[getter]
    fn name(&self) -> String {
        self.0.to_string()
    }

    /// The part of the name before the colon. ROCm devices are `'cuda'`, as torch has them.
    #[getter]
    fn r#type(&self) -> &'static str {
        self.0.name().kind().as_str()
    }

    /// The index among the devices of this type; 0 for `'mps'` and `'cpu'`.
    #[getter]
    fn index(&self) -> u32 {
        self.0.name().index()
    }

    /// The product, numbered from 1 where several are alike: `'RTX 3090 #2'`.
    #[getter]
    fn model(&self) -> String {
        self.0.model()
    }

    /// The product and the name, for people: `'RTX 3090 #2 (cuda:1)'`.
    #[getter]
    fn label(&self) -> String {
        self.0.label()
    }

    /// The device's memory in bytes; `None` if it is not known, or is not its own.
    #[getter]
    fn memory(&self) -> Option<u64> {
        self.0.memory()
    }

    /// Whether weights are used where they lie in host memory, without a copy.
    #[getter]
    fn unified(&self) -> bool {
        self.0.is_unified()
    }

    /// Whether an `Arena` can place pages in its memory.
    #[getter]
    fn paged(&self) -> bool {
        self.0.driver().memory().is_some()
    }

    /// Bytes per second of the imitated bus of a virtual device; `None` without one.
    #[getter]
    fn bandwidth(&self) -> Option<u64> {
        self.0.bandwidth()
    }

    /// What torch calls the device; `'cpu'` for a virtual one.
    #[getter]
    fn torch_name(&self) -> String {
        match self.0.name().kind() {
            DeviceType::Cpu | DeviceType::Virtual => "cpu".to_owned(),
            DeviceType::Cuda | DeviceType::Xpu | DeviceType::Mps => self.0.to_string(),
        }
    }

    /// Pickled by name: it is looked up where it arrives. A virtual device is made anew there.
    fn __reduce__(slf: &Bound<'_, Self>) -> Result<(Py<PyAny>, DeviceState)> {
        let restore = slf.py().import("coresident._core")?.getattr("restore_device")?;
        let device = &slf.get().0;
        let is_virtual = device.name().kind() == DeviceType::Virtual;
        let memory = if is_virtual { device.memory() } else { None };
        Ok((restore.unbind(), (device.to_string(), memory, device.bandwidth())))
    }

    /// The bytes that nobody uses now, in this process or another, by the driver.
    fn free_memory(&self, py: Python<'_>) -> Option<u64> {
        detached(py, || self.0.free_memory())
    }

    /// Takes bytes of a virtual device's memory, as another process would.
    fn occupy(&self, nbytes: &Bound<'_, PyAny>) -> Result<Occupied> {
        let bytes = argument::bytes("nbytes", nbytes)?;
        let Some(memory) = self.0.driver().virtual_memory() else {
            let message = format!(
                "occupy() imitates what others take from a virtual device with memory of its own: \
                 {} is none",
                self.0
            );
            return Err(raise("InvalidDeviceError", &message, |_| Ok(())));
        };
        Ok(Occupied(Mutex::new(Some(memory.occupy(bytes)?))))
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// Bytes of a virtual device that somebody else has, until they are released.
#[pyclass(frozen, weakref, module = "coresident", name = "Occupied")]
pub(super) struct Occupied(Mutex<Option<device::Occupied>>);

#[pymethods]
impl Occupied {
    /// How many; 0 once they are released.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.lock().as_ref().map_or(0, device::Occupied::bytes)
    }

    /// Has other bytes from now on. Returns false if the device has not so many.
    fn resize(&self, nbytes: &Bound<'_, PyAny>) -> Result<bool> {
        let nbytes = argument::bytes("nbytes", nbytes)?;
        let occupied = self.0.lock();
        let Some(occupied) = occupied.as_ref() else {
            return Err(released("the memory of others"));
        };
        Ok(occupied.resize(nbytes).is_ok())
    }

    /// Gives them back; again without effect.
    fn release(&self) {
        let occupied = self.0.lock().take();
        drop(occupied);
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
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
        format!("<Occupied {}>", ByteSize(self.nbytes()))
    }
}

/// The name of a pickled device and, of a virtual one, its memory and bandwidth.
type DeviceState = (String, Option<u64>, Option<u64>);

/// The device that was pickled under this name.
#[pyfunction]
pub(super) fn restore_device(
    py: Python<'_>,
    name: &str,
    memory: Option<u64>,
    bandwidth: Option<u64>,
) -> Result<Device> {
    let name: Name = name.parse()?;
    if memory.is_some() {
        let spec = VirtualSpec { memory, bandwidth, ..VirtualSpec::default() };
        let mut all = device::virtual_devices(u64::from(name.index()) + 1, spec)?;
        return Ok(Device(all.swap_remove(name.index() as usize)));
    }
    let mut chosen = select("a device", PyString::new(py, &name.to_string()).as_any())?;
    Ok(Device(chosen.swap_remove(0)))
}

/// A Python function that tells what accelerators there are.
struct PythonProvider(Vec<Reported>);

struct Reported {
    name: Name,
    model: String,
    memory: Option<u64>,
    unified: bool,
    free: Option<Arc<Py<PyAny>>>,
}

/// Asks a Python function for free memory; an error there means that it is not known.
struct PythonDriver(Option<Arc<Py<PyAny>>>);

impl Driver for PythonDriver {
    fn free_memory(&self) -> Option<u64> {
        let free = self.0.as_ref()?;
        // Asked by a thread that has left the interpreter: it may be too late to come back.
        let _inside = Inside::try_enter()?;
        Python::attach(|py| free.call0(py).and_then(|bytes| bytes.extract(py)).ok())
    }
}

impl Provider for PythonProvider {
    fn found(&self) -> Vec<Found> {
        let found = self.0.iter().map(|reported| Found {
            name: reported.name,
            model: reported.model.clone(),
            memory: reported.memory,
            unified: reported.unified,
            driver: Arc::new(PythonDriver(reported.free.clone())),
        });
        found.collect()
    }
}

fn providers(py: Python<'_>) -> &Bound<'_, PyList> {
    static PROVIDERS: PyOnceLock<Py<PyList>> = PyOnceLock::new();
    PROVIDERS.get_or_init(py, || PyList::empty(py).unbind()).bind(py)
}

/// Has `provider` asked whenever devices are looked up.
#[pyfunction]
pub(super) fn register_provider(provider: &Bound<'_, PyAny>) -> Result<()> {
    if !provider.is_callable() {
        let given = argument::type_name(provider);
        return Err(invalid_type(&format!(
            "a provider is a function without arguments, not {given}"
        )));
    }
    providers(provider.py()).append(provider).map_err(Error::from)
}

fn reported(py: Python<'_>) -> Result<Vec<Reported>> {
    let _inside = Inside::enter(py);
    let mut all = Vec::new();
    for provider in providers(py).iter() {
        for item in provider.call0().and_then(|items| items.try_iter())? {
            let item = item?;
            let attribute = |name: &str| item.getattr(name).map_err(Error::from);
            let free = attribute("free_memory")?;
            all.push(Reported {
                name: argument::name(&attribute("name")?)?,
                model: attribute("model")?.extract()?,
                memory: attribute("memory")?.extract()?,
                unified: attribute("unified")?.extract()?,
                free: (!free.is_none()).then(|| Arc::new(free.unbind())),
            });
        }
    }
    Ok(all)
}

fn selection(what: &str, wanted: &Bound<'_, PyAny>) -> Result<Selection> {
    if let Ok(text) = wanted.cast::<PyString>() {
        return Ok(Selection::parse(text.to_str()?)?);
    }
    if argument::is_one_device(wanted) {
        return Ok(Selection::These(vec![argument::choice(wanted)?]));
    }
    Ok(Selection::These(argument::choices(what, wanted)?))
}

/// The devices that are wanted, checked to be here. The machine is only looked at if it must be.
pub(super) fn select(what: &str, wanted: &Bound<'_, PyAny>) -> Result<Vec<device::Device>> {
    let py = wanted.py();
    let selection = selection(what, wanted)?;
    let known = |choice: &Choice| match choice {
        Choice::Given(_) => true,
        Choice::Named(name) => matches!(name.kind(), DeviceType::Virtual | DeviceType::Cpu),
    };
    let needs_no_look =
        matches!(&selection, Selection::These(choices) if choices.iter().all(known));
    let inventory = if needs_no_look {
        Inventory::of(Vec::new())
    } else {
        let provider: Arc<dyn Provider> = Arc::new(PythonProvider(reported(py)?));
        detached(py, || Inventory::take(&[provider]))
    };
    Ok(inventory.select(&selection)?)
}

/// The one device that is wanted, checked to be here.
pub(super) fn select_one(what: &str, wanted: &Bound<'_, PyAny>) -> Result<device::Device> {
    let name = match argument::choice(wanted)? {
        Choice::Given(device) => return Ok(device),
        Choice::Named(name) => name,
    };
    let name = PyString::new(wanted.py(), &name.to_string());
    Ok(select(what, name.as_any())?.swap_remove(0))
}

/// The devices of this machine.
#[pyfunction]
#[pyo3(signature = (wanted=None))]
pub(super) fn devices(py: Python<'_>, wanted: Option<&Bound<'_, PyAny>>) -> Result<Vec<Device>> {
    let auto = PyString::new(py, "auto").into_any();
    let chosen = select("devices()", wanted.unwrap_or(&auto))?;
    Ok(chosen.into_iter().map(Device).collect())
}

/// CPU-backed devices for machines without an accelerator.
#[pyfunction]
#[pyo3(signature = (count, *, memory=None, bandwidth=None, jitter=None, moving=false))]
pub(super) fn virtual_devices(
    count: &Bound<'_, PyAny>,
    memory: Option<&Bound<'_, PyAny>>,
    bandwidth: Option<&Bound<'_, PyAny>>,
    jitter: Option<&Bound<'_, PyAny>>,
    moving: bool,
) -> Result<Vec<Device>> {
    let given = |value: Option<&Bound<'_, PyAny>>, what| {
        value.filter(|value| !value.is_none()).map(|value| argument::bytes(what, value)).transpose()
    };
    let jitter = jitter.filter(|jitter| !jitter.is_none());
    let jitter = jitter.map(|seed| argument::whole_number("jitter", seed)).transpose()?;
    let (memory, bandwidth) = (given(memory, "memory")?, given(bandwidth, "bandwidth")?);
    let spec = VirtualSpec { memory, bandwidth, jitter, moving };
    let count = argument::whole_number("the number of virtual devices", count)?;
    let devices = device::virtual_devices(count, spec)?;
    Ok(devices.into_iter().map(Device).collect())
}

impl From<device::NameError> for Error {
    fn from(error: device::NameError) -> Self {
        DeviceError::from(error).into()
    }
}

/// The number of bytes that a size is.
#[pyfunction]
pub(super) fn parse_size(size: &Bound<'_, PyAny>) -> Result<u64> {
    argument::bytes("a size", size)
}

/// A number of bytes as people read it.
#[pyfunction]
pub(super) fn size(nbytes: u64) -> String {
    ByteSize(nbytes).to_string()
}
