//! A trace once more, on an imagined device.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::{
    Bounds, Component, Forecast, Job, Needs, Outlook, Planner, Policy, PolicyName, Trace,
    TraceError, least_bytes,
};
use crate::device::Name;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wait::{Kind, Owner};

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
    let multiple = multiple(moved, bound);
    let (name, policy) = (trace.name.clone(), policy.to_string());
    Ok(Replayed { name, policy, lookahead, bytes_moved: moved, bound, multiple })
}

/// How many times the bound was moved; once, if there was nothing to move.
#[must_use]
pub fn multiple(moved: u64, bound: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let multiple = if bound == 0 { 1.0 } else { moved as f64 / bound as f64 };
    multiple
}

/// The same, request by request.
///
/// # Errors
/// [`TraceError::TooLarge`].
pub fn steps(trace: &Trace, policy: PolicyName, lookahead: usize) -> Result<Vec<Step>, TraceError> {
    steps_under(trace, policy, lookahead, &Conditions::default())
}

/// What else holds on a device than what a trace says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Whose planner decides, which has to find out by itself what the rest of a job is, if nobody
    /// tells; `None` where the policy is told.
    pub observed: Option<Name>,
    /// By request, what bounds the job there, if anything does; nothing, if it is empty.
    pub bounds: Vec<Option<u64>>,
    /// By request, what was said of jobs since the one before it; nothing, if it is empty.
    pub said: Vec<Vec<Said>>,
    /// Whether that tells too which jobs are known to come, in place of those that do.
    pub foretold: bool,
    /// Weights leave without anybody asking until there are as few bytes as the first, when there are
    /// more than the second.
    pub watermarks: Option<(u64, u64)>,
    /// Whether components leave whole, where devices have no pages.
    pub whole: bool,
    /// By request, what else is in use then and cannot leave; none if it is empty.
    pub held: Vec<Vec<Component>>,
}

/// What somebody has said of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It begins.
    Begins {
        /// What bounds its requests.
        job: u64,
        /// The job that it is a part of; 0 is none.
        within: u64,
        /// What it uses, in order, if that is known.
        stages: Option<Vec<String>>,
    },
    /// It is over.
    Ends {
        /// What has bounded its requests.
        job: u64,
    },
    /// From now on these jobs are known to come.
    Coming(Vec<Needs>),
}

/// The same as [`steps`], where something else holds too.
///
/// # Errors
/// [`TraceError::TooLarge`].
pub fn steps_under(
    trace: &Trace,
    policy: PolicyName,
    lookahead: usize,
    conditions: &Conditions,
) -> Result<Vec<Step>, TraceError> {
    trace.check()?;
    let (components, names) = trace.components();
    let jobs = trace.jobs();
    let decider: Box<dyn Decider + '_> = match conditions.observed {
        Some(device) => Box::new(Observing::new(device, &names, policy, conditions.foretold)),
        None => Box::new(Told { policy: policy.make(), outlook: Outlook::default() }),
    };
    let always_evicts = policy == PolicyName::AlwaysEvict;
    let (whole, resident) = (conditions.whole, HashMap::new());
    let mut device = Device { decider, always_evicts, whole, resident };
    let mut all = Vec::with_capacity(components.len());
    for (number, job) in jobs.iter().enumerate() {
        let of = |job: &Range<usize>| components[job.clone()].to_vec();
        let next = jobs[number + 1..].iter().take(lookahead).map(of).collect();
        device.decider.begin(&components[job.clone()], next);
        for at in job.clone() {
            for said in conditions.said.get(at).into_iter().flatten() {
                device.decider.hear(said);
            }
            let bounds = conditions.bounds.get(at).copied().flatten();
            device.decider.goes_on(&components[at + 1..job.end], bounds);
            let request = &trace.requests[at];
            let room = trace.capacity_bytes - request.working_bytes;
            let held = conditions.held.get(at).map_or(&[][..], Vec::as_slice);
            let (moved, evicted) = device.serve(components[at], request.bytes, room, held);
            if let Some((low, high)) = conditions.watermarks {
                device.lower(low, high, held);
            }
            let by_name = |(component, bytes): (Component, u64)| {
                (names[component as usize].to_owned(), bytes)
            };
            all.push(Step { moved, evicted: evicted.into_iter().map(by_name).collect() });
        }
    }
    Ok(all)
}

/// Who says what leaves first.
trait Decider {
    /// A job begins, after which these come.
    fn begin(&mut self, job: &[Component], next: Vec<Vec<Component>>);
    /// Somebody says something of jobs.
    fn hear(&mut self, said: &Said);
    /// It has these left after the next use, which is within these bounds.
    fn goes_on(&mut self, rest: &[Component], bounds: Option<u64>);
    fn used(&mut self, component: Component, bytes: u64);
    fn order(&mut self, candidates: &mut [Component]);
    fn left(&mut self, component: Component);
}

/// A policy that is told what comes.
struct Told {
    policy: Box<dyn Policy>,
    outlook: Outlook,
}

impl Decider for Told {
    fn begin(&mut self, job: &[Component], next: Vec<Vec<Component>>) {
        self.policy.begin(job);
        self.outlook.next = next;
    }

    fn hear(&mut self, _said: &Said) {}

    fn goes_on(&mut self, rest: &[Component], _bounds: Option<u64>) {
        self.outlook.rest = rest.to_vec();
    }

    fn used(&mut self, component: Component, bytes: u64) {
        self.policy.used(component, bytes, &self.outlook);
    }

    fn order(&mut self, candidates: &mut [Component]) {
        self.policy.order(candidates, &self.outlook);
    }

    fn left(&mut self, component: Component) {
        self.policy.left(component);
    }
}

/// A planner as live devices have one, which only knows what jobs come next.
struct Observing<'a> {
    names: &'a [&'a str],
    planner: Planner,
    owner: Owner,
    job: Arc<Current>,
    coming: Arc<Coming>,
    /// Jobs that somebody has begun, by what bounds their requests, each with who it was.
    declared: HashMap<u64, (Job, Owner)>,
    bounds: Option<u64>,
    /// Whether somebody tells what comes next.
    foretold: bool,
}

/// What bounds the running job, plus one.
struct Current(AtomicU64);

impl Bounds for Current {
    fn current(&self, _device: Name) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// What comes next.
#[derive(Default)]
struct Coming(Mutex<Vec<Arc<[String]>>>);

impl Forecast for Coming {
    fn coming(&self, _device: Name, jobs: usize) -> Vec<Arc<[String]>> {
        self.0.lock().iter().take(jobs).cloned().collect()
    }
}

impl<'a> Observing<'a> {
    fn new(device: Name, names: &'a [&'a str], policy: PolicyName, foretold: bool) -> Self {
        let job = Arc::new(Current(AtomicU64::new(0)));
        let planner = Planner::new(device, policy, Some(job.clone()));
        let coming = Arc::new(Coming::default());
        planner.set_forecast(Some(coming.clone()));
        let (owner, declared) = (somebody(), HashMap::new());
        Self { names, planner, owner, job, coming, declared, bounds: None, foretold }
    }

    fn name(&self, component: Component) -> String {
        self.names[component as usize].to_owned()
    }
}

/// Somebody else each time.
fn somebody() -> Owner {
    Owner::with_thread(Kind::Thread, 0, "replay".to_owned())
}

impl Decider for Observing<'_> {
    fn begin(&mut self, _job: &[Component], next: Vec<Vec<Component>>) {
        if self.foretold {
            return;
        }
        let named = |job: Vec<Component>| job.into_iter().map(|it| self.name(it)).collect();
        *self.coming.0.lock() = next.into_iter().map(named).collect();
    }

    fn hear(&mut self, said: &Said) {
        match said {
            Said::Begins { job, within, stages } => {
                let outer = self.declared.get(within).map(|(_, owner)| owner.clone());
                let owner = outer.unwrap_or_else(somebody);
                // Refused only to a forked child, which has no planner that it could ask either.
                if let Ok(begun) = self.planner.begin(stages.as_deref(), &owner) {
                    self.declared.insert(*job, (begun, owner));
                }
            }
            Said::Ends { job } => {
                self.declared.remove(job);
            }
            Said::Coming(needs) => {
                if self.foretold {
                    needs.clone_into(&mut self.coming.0.lock());
                }
            }
        }
    }

    fn goes_on(&mut self, _rest: &[Component], bounds: Option<u64>) {
        self.bounds = bounds;
        self.job.0.store(bounds.map_or(0, |bounds| bounds.saturating_add(1)), Ordering::Relaxed);
    }

    fn used(&mut self, component: Component, bytes: u64) {
        let job = self.bounds.and_then(|bounds| self.declared.get(&bounds));
        let (job, owner) = job.map_or((None, &self.owner), |(job, owner)| (Some(job), owner));
        self.planner.note_use(self.names[component as usize], bytes, job, owner);
    }

    fn order(&mut self, candidates: &mut [Component]) {
        let numbers: HashMap<String, Component> =
            candidates.iter().map(|component| (self.name(*component), *component)).collect();
        let names: Vec<String> = candidates.iter().map(|it| self.name(*it)).collect();
        for (place, name) in candidates.iter_mut().zip(self.planner.order(&names)) {
            *place = numbers.get(&name).copied().unwrap_or(*place);
        }
    }

    fn left(&mut self, component: Component) {
        self.planner.note_left(self.names[component as usize]);
    }
}

/// An imagined one.
struct Device<'a> {
    decider: Box<dyn Decider + 'a>,
    always_evicts: bool,
    whole: bool,
    /// Bytes of components that are there.
    resident: HashMap<Component, u64>,
}

impl Device<'_> {
    /// Makes a component resident, within so much room. Returns the bytes copied, and what left.
    fn serve(
        &mut self,
        component: Component,
        bytes: u64,
        room: u64,
        held: &[Component],
    ) -> (u64, Vec<(Component, u64)>) {
        self.decider.used(component, bytes);
        let own = self.resident.remove(&component).unwrap_or(0);
        let others: u64 = self.resident.values().sum();
        let missing =
            if self.always_evicts { others } else { (others + bytes).saturating_sub(room) };
        let evicted = if missing > 0 { self.evict(missing, held) } else { Vec::new() };
        self.resident.insert(component, bytes);
        (bytes.saturating_sub(own), evicted)
    }

    /// Has weights leave until there are as few bytes as `low`, if there are more than `high`.
    fn lower(&mut self, low: u64, high: u64, held: &[Component]) {
        let all: u64 = self.resident.values().sum();
        if all > high {
            self.evict(all - low.min(all), held);
        }
    }

    fn evict(&mut self, mut missing: u64, held: &[Component]) -> Vec<(Component, u64)> {
        let idle = self.resident.keys().copied().filter(|component| !held.contains(component));
        let mut candidates: Vec<Component> = idle.collect();
        // In an order that is the same each time.
        candidates.sort_unstable();
        self.decider.order(&mut candidates);
        let mut evicted = Vec::new();
        for victim in candidates {
            if missing == 0 {
                break;
            }
            let Some(has) = self.resident.get_mut(&victim) else { continue };
            let leaves = if self.whole { *has } else { missing.min(*has) };
            (*has, missing) = (*has - leaves, missing.saturating_sub(leaves));
            evicted.push((victim, leaves));
            if *has == 0 {
                self.resident.remove(&victim);
                self.decider.left(victim);
            }
        }
        evicted
    }
}
