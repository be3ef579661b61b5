//! What callers pass: devices, sizes, timeouts. Anything else is refused at once, by name.

use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

use super::device::Device;
use super::error::{Result, invalid_type, invalid_value};
use super::exit::Inside;
use super::owner::unless_interrupted;
use crate::device::{self, ByteSize, Choice, DeviceError, Name};

/// The type of a value, for messages.
pub(super) fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

/// The most devices that anyone lists; what goes on after that goes on for ever.
const MOST_DEVICES: usize = 1 << 16;

fn parse(text: &Bound<'_, PyString>) -> Result<Name> {
    // Lone surrogates are in no name either.
    let name = text.to_string_lossy().parse::<Name>();
    name.map_err(|error| DeviceError::from(error).into())
}

/// A device by its name, as a `Device`, or as a `torch.device`.
pub(super) fn name(value: &Bound<'_, PyAny>) -> Result<Name> {
    if let Ok(text) = value.cast::<PyString>() {
        return parse(text);
    }
    match choice(value)? {
        Choice::Named(name) => Ok(name),
        Choice::Given(device) => Ok(device.name()),
    }
}

/// The same, keeping a `Device` as it is.
pub(super) fn choice(value: &Bound<'_, PyAny>) -> Result<Choice> {
    if let Ok(device) = value.cast::<Device>() {
        return Ok(Choice::Given(device.get().inner().clone()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return parse(text).map(Choice::Named);
    }
    torch_device(value).map(Choice::Named)
}

fn is_torch_device(value: &Bound<'_, PyAny>) -> bool {
    let class = value.get_type();
    let is_torch = class.module().is_ok_and(|module| module == "torch");
    is_torch && class.name().is_ok_and(|name| name == "device")
}

/// Whether this is one device rather than several: a `Device` or a `torch.device`.
pub(super) fn is_one_device(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<Device>() || is_torch_device(value)
}

/// A `torch.device`: told by its `type` and `index`, without importing torch.
fn torch_device(value: &Bound<'_, PyAny>) -> Result<Name> {
    let py = value.py();
    let refused = || {
        let message = format!(
            "a device is given by its name ('cuda:0'), as a Device or as a torch.device, not as {}",
            type_name(value)
        );
        invalid_type(&message)
    };
    if !is_torch_device(value) {
        return Err(refused());
    }
    let kind = value.getattr(intern!(py, "type")).and_then(|kind| kind.extract::<String>());
    let index =
        value.getattr(intern!(py, "index")).and_then(|index| index.extract::<Option<u32>>());
    let (Ok(kind), Ok(index)) = (kind, index) else { return Err(refused()) };
    let text = index.map_or_else(|| kind.clone(), |index| format!("{kind}:{index}"));
    text.parse::<Name>().map_err(|error| DeviceError::from(error).into())
}

/// The devices of an iterable; a text is refused, for it would be taken letter by letter.
pub(super) fn choices(what: &str, value: &Bound<'_, PyAny>) -> Result<Vec<Choice>> {
    if value.is_instance_of::<PyString>() {
        return Err(invalid_type(&format!(
            "{what} takes a list of devices, not the text {value:?}"
        )));
    }
    let _inside = Inside::enter(value.py());
    let items = value.try_iter().map_err(|_| {
        invalid_type(&format!("{what} takes a list of devices, not {}", type_name(value)))
    })?;
    let mut choices = Vec::new();
    for item in items {
        if choices.len() == MOST_DEVICES {
            return Err(invalid_value(&format!("{what} takes {MOST_DEVICES} devices at most")));
        }
        choices.push(choice(&item?)?);
    }
    Ok(choices)
}

/// The names of the devices of an iterable.
pub(super) fn names(what: &str, value: &Bound<'_, PyAny>) -> Result<Vec<Name>> {
    let name = |choice| match choice {
        Choice::Named(name) => name,
        Choice::Given(device) => device::Device::name(&device),
    };
    Ok(choices(what, value)?.into_iter().map(name).collect())
}

/// Bytes: a whole number, or a text such as `"12GiB"`.
pub(super) fn bytes(what: &str, value: &Bound<'_, PyAny>) -> Result<u64> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(text.to_string_lossy().parse::<ByteSize>()?.0);
    }
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        let message = format!(
            "{what} is a number of bytes or a text such as '12GiB', not {}",
            type_name(value)
        );
        return Err(invalid_type(&message));
    }
    value.extract::<u64>().map_err(|_| {
        let given = shown(value);
        invalid_value(&format!("{what} must be between 0 and 2**64 - 1 bytes, not {given}"))
    })
}

/// A number, for messages; Python shows none of more than a few thousand digits.
fn shown(value: &Bound<'_, PyAny>) -> String {
    value.str().map_or_else(|_| "a much larger number".to_owned(), |text| text.to_string())
}

/// Seconds; `None` for ever.
pub(super) fn timeout(value: Option<&Bound<'_, PyAny>>) -> Result<Option<Duration>> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    let is_number = !value.is_instance_of::<PyBool>() && !value.is_instance_of::<PyString>();
    let seconds = unless_interrupted(value.py(), value.extract::<f64>())?.filter(|_| is_number);
    let Some(seconds) = seconds else {
        let message = format!(
            "timeout is a number of seconds, or None to wait for ever, not {}",
            type_name(value)
        );
        return Err(invalid_type(&message));
    };
    if !seconds.is_finite() || seconds < 0.0 {
        let message = format!(
            "timeout must be 0 or more seconds, or None to wait for ever, not {}",
            value.str()?
        );
        return Err(invalid_value(&message));
    }
    // Longer than a Duration can be is for ever.
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

/// Seconds that something took; none, if they are left out.
pub(super) fn seconds(what: &str, value: Option<&Bound<'_, PyAny>>) -> Result<Duration> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(Duration::ZERO) };
    let is_number = !value.is_instance_of::<PyBool>() && !value.is_instance_of::<PyString>();
    let seconds = unless_interrupted(value.py(), value.extract::<f64>())?.filter(|_| is_number);
    let Some(seconds) = seconds else {
        let given = type_name(value);
        return Err(invalid_type(&format!("{what} is a number of seconds, not {given}")));
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        let given = shown(value);
        invalid_value(&format!("{what} must be 0 or more seconds, and finite, not {given}"))
    })
}

/// A count: a whole number of 0 or more.
pub(super) fn whole_number(what: &str, value: &Bound<'_, PyAny>) -> Result<u64> {
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        return Err(invalid_type(&format!("{what} is a whole number, not {}", type_name(value))));
    }
    value.extract::<u64>().map_err(|_| {
        let given = shown(value);
        invalid_value(&format!("{what} must be between 0 and 2**64 - 1, not {given}"))
    })
}
