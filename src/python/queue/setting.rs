//! What callers say of a queue as a whole, and of its users.

use std::collections::HashMap;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyEllipsis};

use super::super::argument;
use super::super::error::{Result, invalid_type, invalid_value};
use super::submission::attempts;
use super::text::{self, AGES, given, micros_of, unexpected};
use crate::device::{Device, Name};
use crate::queue::{self, Durability, Limits, Micros, Settings};

/// How a queue goes about its jobs, by the keyword arguments of its constructor.
pub(super) fn settings(said: Option<&Bound<'_, PyDict>>) -> Result<Settings> {
    let mut settings = Settings::default();
    for (key, value) in said.into_iter().flatten() {
        let key = text::keyword(&key)?;
        let given = given(Some(&value));
        let Settings { rules, speeds, max_attempts, max_payload, history, .. } = &mut settings;
        match (key, given) {
            ("order", _) => {
                let word = text::name(key, &value)?;
                rules.fifo = text::word(key, &word, &[("fair", false), ("fifo", true)])?;
            }
            ("ageing", _) => rules.ageing = given.map(|value| time(key, value)).transpose()?,
            ("slack", _) => rules.slack = time(key, &value)?,
            ("priority_lead", _) => rules.lead = time(key, &value)?,
            ("speeds", Some(value)) => *speeds = self::speeds(value)?,
            ("max_attempts", Some(value)) => *max_attempts = attempts(value)?,
            ("max_payload", Some(value)) => *max_payload = argument::bytes(key, value)?,
            ("history", Some(value)) => {
                let count = text::whole(key, value, 0, 1 << 40)?;
                *history = usize::try_from(count).unwrap_or(usize::MAX);
            }
            ("speeds" | "max_attempts" | "max_payload" | "history", None) => {}
            _ => return Err(unexpected("__new__", key)),
        }
    }
    Ok(settings)
}

/// Seconds, as the core has them.
fn time(what: &str, value: &Bound<'_, PyAny>) -> Result<Micros> {
    let Ok(seconds) = value.extract::<f64>() else {
        let given = argument::type_name(value);
        return Err(invalid_type(&format!("{what} is a number of seconds, not {given}")));
    };
    if !(0.0..=AGES).contains(&seconds) {
        return Err(invalid_value(&format!("{what} must be 0 or more seconds, not {seconds}")));
    }
    Ok(micros_of(seconds))
}

/// What a written job survives.
pub(super) fn durability(word: &str) -> Result<Durability> {
    let words = [("process", Durability::Process), ("power", Durability::Power)];
    text::word("durability", word, &words)
}

/// The file of a queue, if it is to have one.
pub(super) fn path(value: Option<&Bound<'_, PyAny>>) -> Result<Option<PathBuf>> {
    let path = given(value).map(|value| {
        value.extract::<PathBuf>().map_err(|_| {
            invalid_type(&format!("path is a path or None, not {}", argument::type_name(value)))
        })
    });
    path.transpose()
}

/// How fast devices are.
fn speeds(value: &Bound<'_, PyAny>) -> Result<HashMap<Name, f64>> {
    let Ok(items) = value.call_method0("items") else {
        let given = argument::type_name(value);
        return Err(invalid_type(&format!(
            "speeds takes a mapping of devices to shares, not {given}"
        )));
    };
    let mut speeds = HashMap::new();
    for item in text::items("speeds", "items", &items)? {
        let (device, speed) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        speeds.insert(argument::name(&device)?, text::number("a speed", &speed, 0.001, 1.0)?);
    }
    Ok(speeds)
}

/// Refuses speeds of devices that a queue does not have.
pub(super) fn check_speeds(speeds: &HashMap<Name, f64>, devices: &[Device]) -> Result<()> {
    let unknown = speeds.keys().find(|name| devices.iter().all(|one| one.name() != **name));
    match unknown {
        None => Ok(()),
        Some(name) => {
            let present = devices.iter().map(Device::name).collect();
            Err(queue::QueueError::NoDevice { name: *name, present }.into())
        }
    }
}

/// What changes of what a user may have, by the keyword arguments of `set_user`.
pub(super) fn limits(said: Option<&Bound<'_, PyDict>>) -> Result<impl Fn(&mut Limits) + Send> {
    let (mut weight, mut running, mut queued, mut gpu_time) = (None, None, None, None);
    for (key, value) in said.into_iter().flatten() {
        if value.is_instance_of::<PyEllipsis>() {
            continue;
        }
        let count = |what: &str| -> Result<Option<u64>> {
            given(Some(&value)).map(|value| argument::whole_number(what, value)).transpose()
        };
        match text::keyword(&key)? {
            "weight" => weight = Some(text::number("weight", &value, 0.001, 1000.0)?),
            "running" => running = Some(count("running")?),
            "queued" => queued = Some(count("queued")?),
            "gpu_seconds_per_hour" => {
                let seconds = |value| text::number("gpu_seconds_per_hour", value, 0.0, AGES);
                gpu_time = Some(given(Some(&value)).map(seconds).transpose()?.map(micros_of));
            }
            key => {
                return Err(invalid_type(&format!(
                    "set_user() takes weight=, running=, queued= and gpu_seconds_per_hour=, not {key}"
                )));
            }
        }
    }
    Ok(move |limits: &mut Limits| {
        limits.weight = weight.unwrap_or(limits.weight);
        limits.running = running.unwrap_or(limits.running);
        limits.queued = queued.unwrap_or(limits.queued);
        limits.gpu_time_per_hour = gpu_time.unwrap_or(limits.gpu_time_per_hour);
    })
}
