//! What a device was asked for, in order, as JSON.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Component;
use crate::device::ByteSize;

/// One component, needed whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Of which job. Requests of one job come one after the other.
    pub job: u64,
    /// What is needed.
    pub component: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// How many bytes have to be free beside all weights.
    #[serde(default)]
    pub working_bytes: u64,
}

/// All that was asked of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// What it is called.
    pub name: String,
    /// How many bytes the device has.
    pub capacity_bytes: u64,
    /// In order.
    pub requests: Vec<Request>,
}

/// Why a trace is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is no such JSON.
    #[error("this is no trace: {why}; it has a name, capacity_bytes and requests")]
    Malformed {
        /// What the parser says.
        why: String,
    },
    /// A recorded timeline has requests of several devices, or none of the one that is meant.
    #[error("{}", which(.given.as_deref(), .known))]
    Device {
        /// What was given.
        given: Option<String>,
        /// Those that it has requests of.
        known: Vec<String>,
    },
    /// Something that could not be served on the device even alone.
    #[error(
        "request {at} can never be served: {component:?} needs {} and {} beside, and the device has {}",
        ByteSize(*.bytes), ByteSize(*.beside), ByteSize(*.capacity)
    )]
    TooLarge {
        /// Which request.
        at: usize,
        /// What it wants.
        component: String,
        /// Bytes of that.
        bytes: u64,
        /// Bytes of working memory.
        beside: u64,
        /// Bytes of the device.
        capacity: u64,
    },
}

fn which(given: Option<&str>, known: &[String]) -> String {
    let has = if known.is_empty() {
        "this timeline has no requests of any device".to_owned()
    } else {
        format!("this timeline has requests of {}", known.join(", "))
    };
    match given {
        None if known.is_empty() => has,
        None => format!("{has}: name one of them"),
        Some(given) => format!("{has}, and none of {given}"),
    }
}

impl Trace {
    /// A trace as text.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let malformed = |error: serde_json::Error| TraceError::Malformed { why: error.to_string() };
        let trace: Self = serde_json::from_str(text).map_err(malformed)?;
        trace.check()?;
        Ok(trace)
    }

    /// Refuses what could never be served.
    ///
    /// # Errors
    /// [`TraceError::TooLarge`].
    pub fn check(&self) -> Result<(), TraceError> {
        let capacity = self.capacity_bytes;
        let fits = |request: &Request| {
            let all = request.bytes.checked_add(request.working_bytes);
            all.is_some_and(|all| all <= capacity)
        };
        match self.requests.iter().enumerate().find(|(_, request)| !fits(request)) {
            None => Ok(()),
            Some((at, Request { component, bytes, working_bytes, .. })) => {
                let (component, bytes, beside) = (component.clone(), *bytes, *working_bytes);
                Err(TraceError::TooLarge { at, component, bytes, beside, capacity })
            }
        }
    }

    /// Its requests' components by number, in order; and the name of each.
    pub(super) fn components(&self) -> (Vec<Component>, Vec<&str>) {
        let mut numbers: HashMap<&str, Component> = HashMap::new();
        let mut names = Vec::new();
        let mut all = Vec::with_capacity(self.requests.len());
        for request in &self.requests {
            all.push(*numbers.entry(&request.component).or_insert_with(|| {
                names.push(request.component.as_str());
                Component::try_from(names.len() - 1).unwrap_or(Component::MAX)
            }));
        }
        (all, names)
    }

    /// Its jobs, as ranges of its requests.
    pub(super) fn jobs(&self) -> Vec<std::ops::Range<usize>> {
        let mut jobs: Vec<std::ops::Range<usize>> = Vec::new();
        for (at, request) in self.requests.iter().enumerate() {
            match jobs.last_mut() {
                Some(job) if self.requests[job.start].job == request.job => job.end = at + 1,
                _ => jobs.push(at..at + 1),
            }
        }
        jobs
    }
}
