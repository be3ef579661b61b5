//! A trace once more, on an imagined device.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use super::{Component, Outlook, Policy, PolicyName, Trace, TraceError, least_bytes};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replayed {
    /// What the trace is called.
    pub name: String,
    /// Who decided.
    pub policy: String,
    /// How many jobs he knew that were to come.
    pub lookahead: usize,
    /// Bytes that were copied to the device.
    pub bytes_moved: u64,
    /// The fewest that anybody could have copied.
    pub bound: u64,
    /// How many times that.
    pub multiple: f64,
}

/// What serving one request took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes copied to the device.
    pub moved: u64,
    /// What left for that, in order, and how many bytes of it.
    pub evicted: Vec<(String, u64)>,
}

/// Has a policy serve a trace, knowing the rest of each job and so many jobs after it.
///
/// # Errors
/// [`TraceError::TooLarge`].
pub fn replay(trace: &Trace, policy: PolicyName, lookahead: usize) -> Result<Replayed, TraceError> {
    let moved = steps(trace, policy, lookahead)?.iter().map(|step| step.moved).sum();
    let bound = least_bytes(trace);
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let multiple = if bound == 0 { 1.0 } else { moved as f64 / bound as f64 };
    let (name, policy) = (trace.name.clone(), policy.to_string());
    Ok(Replayed { name, policy, lookahead, bytes_moved: moved, bound, multiple })
}

/// The same, request by request.
///
/// # Errors
/// [`TraceError::TooLarge`].
pub fn steps(trace: &Trace, policy: PolicyName, lookahead: usize) -> Result<Vec<Step>, TraceError> {
    trace.check()?;
    let (components, names) = trace.components();
    let jobs = trace.jobs();
    let mut device = Device {
        policy: policy.make(),
        always_evicts: policy == PolicyName::AlwaysEvict,
        resident: HashMap::new(),
    };
    let mut all = Vec::with_capacity(components.len());
    for (number, job) in jobs.iter().enumerate() {
        let of = |job: &Range<usize>| components[job.clone()].to_vec();
        let next: Vec<_> = jobs[number + 1..].iter().take(lookahead).map(of).collect();
        device.policy.begin(&components[job.clone()]);
        let mut outlook = Outlook { rest: Vec::new(), next };
        for at in job.clone() {
            outlook.rest = components[at + 1..job.end].to_vec();
            let request = &trace.requests[at];
            let room = trace.capacity_bytes - request.working_bytes;
            let (moved, evicted) = device.serve(components[at], request.bytes, room, &outlook);
            let by_name = |(component, bytes): (Component, u64)| {
                (names[component as usize].to_owned(), bytes)
            };
            all.push(Step { moved, evicted: evicted.into_iter().map(by_name).collect() });
        }
    }
    Ok(all)
}

/// An imagined one.
struct Device {
    policy: Box<dyn Policy>,
    always_evicts: bool,
    /// Bytes of components that are there.
    resident: HashMap<Component, u64>,
}

impl Device {
    /// Makes a component resident, within so much room. Returns the bytes copied, and what left.
    fn serve(
        &mut self,
        component: Component,
        bytes: u64,
        room: u64,
        outlook: &Outlook,
    ) -> (u64, Vec<(Component, u64)>) {
        self.policy.used(component, bytes, outlook);
        let own = self.resident.remove(&component).unwrap_or(0);
        let others: u64 = self.resident.values().sum();
        let missing =
            if self.always_evicts { others } else { (others + bytes).saturating_sub(room) };
        let evicted = if missing > 0 { self.evict(missing, outlook) } else { Vec::new() };
        self.resident.insert(component, bytes);
        (bytes.saturating_sub(own), evicted)
    }

    fn evict(&mut self, mut missing: u64, outlook: &Outlook) -> Vec<(Component, u64)> {
        let mut candidates: Vec<Component> = self.resident.keys().copied().collect();
        // In an order that is the same each time.
        candidates.sort_unstable();
        self.policy.order(&mut candidates, outlook);
        let mut evicted = Vec::new();
        for victim in candidates {
            if missing == 0 {
                break;
            }
            let Some(has) = self.resident.get_mut(&victim) else { continue };
            let leaves = missing.min(*has);
            (*has, missing) = (*has - leaves, missing - leaves);
            evicted.push((victim, leaves));
            if *has == 0 {
                self.resident.remove(&victim);
                self.policy.left(victim);
            }
        }
        evicted
    }
}
