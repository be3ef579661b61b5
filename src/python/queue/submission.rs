//! What callers say of the jobs that they queue.

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyString};

use super::super::argument;
use super::super::error::{Result, invalid_type};
use super::text::{self, AGES, micros_of, unexpected};
use crate::device::Name;
use crate::queue::Spec;

/// The job that the keyword arguments of a call tell of, without its payload. What is `None` is as if it
/// was left out.
pub(super) fn spec(call: &str, said: Option<&Bound<'_, PyDict>>) -> Result<Spec> {
    let mut spec = Spec::of("default", b"");
    for (key, value) in said.into_iter().flatten() {
        let key = text::keyword(&key)?;
        let given = Some(&value).filter(|value| !value.is_none());
        match key {
            "user" => spec.user = text::optional_name("user", given)?.unwrap_or(spec.user),
            "priority" => spec.priority = given.map(priority).transpose()?.unwrap_or(0),
            "batch" => spec.batch = text::optional_name("batch", given)?,
            "tags" => spec.tags = text::names("tags", given)?,
            "needs" => spec.needs = text::names("needs", given)?,
            "devices" => spec.devices = given.map(only).transpose()?,
            "memory" => {
                spec.memory = given.map(|bytes| argument::bytes("memory", bytes)).transpose()?;
            }
            "estimate" => {
                let seconds = |value| text::number("estimate", value, 0.0, AGES);
                spec.estimate = given.map(seconds).transpose()?.map(micros_of);
            }
            "max_attempts" => spec.max_attempts = given.map(attempts).transpose()?,
            _ => return Err(unexpected(call, key)),
        }
    }
    Ok(spec)
}

/// Jobs that differ in their payloads alone.
pub(super) fn specs(
    payloads: &Bound<'_, PyAny>,
    said: Option<&Bound<'_, PyDict>>,
) -> Result<Vec<Spec>> {
    let spec = spec("submit_many", said)?;
    let is_one = payloads.is_instance_of::<PyString>()
        || payloads.is_instance_of::<PyBytes>()
        || payloads.is_instance_of::<PyByteArray>()
        || payloads.is_instance_of::<PyMemoryView>()
        || payloads.is_instance_of::<PyDict>();
    if is_one {
        let given = argument::type_name(payloads);
        return Err(invalid_type(&format!(
            "submit_many takes a list of payloads, and one {given} is a payload"
        )));
    }
    let payloads = text::items("submit_many", "payloads", payloads)?;
    let of = |payload| Ok(Spec { payload: text::payload(payload)?, ..spec.clone() });
    payloads.iter().map(of).collect()
}

/// One device, or several.
fn only(value: &Bound<'_, PyAny>) -> Result<Vec<Name>> {
    if value.is_instance_of::<PyString>() || argument::is_one_device(value) {
        return Ok(vec![argument::name(value)?]);
    }
    argument::names("devices", value)
}

pub(super) fn priority(value: &Bound<'_, PyAny>) -> Result<i32> {
    let priority = text::whole("priority", value, -1000, 1000)?;
    Ok(i32::try_from(priority).unwrap_or_default())
}

pub(super) fn attempts(value: &Bound<'_, PyAny>) -> Result<u32> {
    let attempts = text::whole("max_attempts", value, 1, 1_000_000)?;
    Ok(u32::try_from(attempts).unwrap_or(1))
}
