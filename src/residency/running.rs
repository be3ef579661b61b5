//! The jobs that use a device now: what each has used, and what it still will, by what was declared or
//! by what jobs before it have done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Component;

/// So many orders of stages are remembered, each once.
const REMEMBERED: usize = 64;
/// So many stages of a job are remembered.
const STAGES: usize = 256;
/// So often something is used within one lease that is taken for one job.
const AGAIN: usize = 8;

/// Where a job has its bounds from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Somebody has said that it begins, and says when it ends.
    Declared {
        /// Who.
        owner: u64,
    },
    /// What it uses was used within these bounds.
    Within(Option<u64>),
}

/// One job.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) number: u64,
    pub(super) origin: Origin,
    /// The job of the same owner that it is a part of.
    within: Option<u64>,
    /// Whether its stages were declared.
    declared: bool,
    /// All its stages as far as they are known.
    expected: Vec<Component>,
    /// How many of them are behind it.
    done: usize,
    /// What it uses now.
    at: Option<Component>,
    /// What it has used.
    used: Vec<Component>,
    /// What the policy was told that it uses.
    told: Vec<Component>,
    /// When it has used something last.
    active: u64,
}

impl Running {
    fn rest(&self) -> &[Component] {
        self.expected.get(self.done..).unwrap_or_default()
    }

    /// Whether a job that nobody has declared may be said to use this too. Without bounds the next one
    /// begins when what began this one comes again; and who uses something over and over has begun
    /// another job, or several.
    fn goes_on_with(&self, component: Component) -> bool {
        let again = self.used.iter().filter(|used| **used == component).count();
        match self.origin {
            Origin::Within(None) => again < 2 && self.used.first() != Some(&component),
            _ => again < AGAIN && self.used.len() < STAGES,
        }
    }

    /// Whether this is what it uses now.
    fn is_at(&self, component: Component) -> bool {
        self.at == Some(component)
    }
}

/// What a policy is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A job begins that uses these.
    Begins(Vec<Component>),
    /// A job of which that was said uses these.
    Corrected { said: Vec<Component>, job: Vec<Component> },
}

/// All jobs of a device.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    running: Vec<Running>,
    clock: u64,
    /// Orders in which jobs have used components, the latest last.
    seen: VecDeque<Vec<Component>>,
}

/// A number that no other job has, on whatever device: a recording has jobs of all of them.
fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// A stage that is followed by itself is one stage.
pub(super) fn stages(mut job: Vec<Component>) -> Vec<Component> {
    job.dedup();
    job
}

impl Jobs {
    /// A job begins. Returns its number.
    pub(super) fn begin(
        &mut self,
        origin: Origin,
        job: Option<Vec<Component>>,
        told: &mut Vec<Told>,
    ) -> u64 {
        self.end_undeclared(told);
        let within = match origin {
            Origin::Declared { .. } => self.running.iter().rfind(|job| job.origin == origin),
            Origin::Within(_) => None,
        };
        let within = within.map(|job| job.number);
        let (number, declared) = (next_number(), job.is_some());
        let expected = stages(job.unwrap_or_default());
        if !expected.is_empty() {
            told.push(Told::Begins(expected.clone()));
        }
        let told = expected.clone();
        let (done, used, active) = (0, Vec::new(), self.tick());
        self.running.push(Running {
            number,
            origin,
            within,
            declared,
            expected,
            done,
            at: None,
            used,
            told,
            active,
        });
        number
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The job that somebody works for, and whether that is certain: the one that he names, the one that
    /// he has begun, the only one or the one that was active last; `None` if nobody has declared any.
    fn job_of(&self, named: Option<u64>, owner: u64) -> Option<(usize, bool)> {
        let by_name = self.running.iter().position(|job| Some(job.number) == named);
        let own = || {
            let origin = Origin::Declared { owner };
            self.running.iter().rposition(|job| job.origin == origin)
        };
        let last = || {
            let declared = self.running.iter().enumerate();
            let declared =
                declared.filter(|(_, job)| matches!(job.origin, Origin::Declared { .. }));
            declared.max_by_key(|(_, job)| job.active).map(|(at, _)| at)
        };
        let certain = by_name.or_else(own).map(|at| (at, true));
        certain.or_else(|| last().map(|at| (at, false)))
    }

    /// The job that somebody has begun himself, or the one that was active last of those that were
    /// begun.
    pub(super) fn declared_by(&self, owner: u64) -> Option<u64> {
        self.job_of(None, owner).map(|(at, _)| self.running[at].number)
    }

    /// Whether some job uses this now, as far as it matters who asks.
    pub(super) fn is_in_use(
        &self,
        component: Component,
        named: Option<u64>,
        owner: u64,
        bounds: Option<u64>,
    ) -> bool {
        match self.job_of(named, owner) {
            Some((at, true)) => self.running[at].is_at(component),
            Some((_, false)) => self.running.iter().any(|job| job.is_at(component)),
            None => self
                .running
                .last()
                .is_some_and(|job| job.origin == Origin::Within(bounds) && job.is_at(component)),
        }
    }

    /// Somebody uses a component that he did not use before.
    pub(super) fn used(
        &mut self,
        component: Component,
        named: Option<u64>,
        owner: u64,
        bounds: Option<u64>,
        told: &mut Vec<Told>,
    ) {
        let at = match self.job_of(named, owner) {
            Some((at, _)) => at,
            None => {
                let goes_on = |job: &Running| {
                    job.origin == Origin::Within(bounds) && job.goes_on_with(component)
                };
                if !self.running.last().is_some_and(goes_on) {
                    self.begin(Origin::Within(bounds), None, told);
                }
                self.running.len() - 1
            }
        };
        let now = self.tick();
        let Self { running, seen, .. } = self;
        let job = &mut running[at];
        (job.active, job.at) = (now, Some(component));
        if job.used.len() < STAGES {
            job.used.push(component);
        }
        match job.rest().iter().position(|stage| *stage == component) {
            // What comes between is left out.
            Some(ahead) if job.declared || ahead == 0 => job.done += ahead + 1,
            _ if job.declared => {}
            _ => {
                let alike = seen.iter().rev().find(|seen| seen.starts_with(&job.used));
                job.expected = alike.cloned().unwrap_or_default();
                job.done = job.used.len();
            }
        }
        if job.declared && !job.told.is_empty() {
            // What it has used otherwise is told when it has ended.
            return;
        }
        let known = if job.expected.is_empty() { &job.used } else { &job.expected };
        if job.told != *known {
            let said = std::mem::replace(&mut job.told, known.clone());
            let job = known.clone();
            told.push(if said.is_empty() {
                Told::Begins(job)
            } else {
                Told::Corrected { said, job }
            });
        }
    }

    /// The job that one is a part of.
    pub(super) fn outer(&self, number: u64) -> Option<u64> {
        self.running.iter().find(|job| job.number == number).and_then(|job| job.within)
    }

    /// A job has ended.
    pub(super) fn end(&mut self, number: u64, told: &mut Vec<Told>) {
        let Some(at) = self.running.iter().position(|job| job.number == number) else { return };
        let job = self.running.remove(at);
        for inner in self.running.iter_mut().filter(|inner| inner.within == Some(number)) {
            inner.within = job.within;
        }
        self.note(job, told);
    }

    /// Ends what was taken for a job, if its bounds are no longer these.
    pub(super) fn end_beyond(&mut self, bounds: Option<u64>, told: &mut Vec<Told>) {
        let over = |job: &Running| job.origin != Origin::Within(bounds);
        if self.running.last().is_some_and(over) {
            self.end_undeclared(told);
        }
    }

    fn end_undeclared(&mut self, told: &mut Vec<Told>) {
        let undeclared = |job: &&Running| matches!(job.origin, Origin::Within(_));
        if let Some(number) = self.running.iter().find(undeclared).map(|job| job.number) {
            self.end(number, told);
        }
    }

    fn note(&mut self, job: Running, told: &mut Vec<Told>) {
        let Running { used, told: said, .. } = job;
        if used != said {
            told.push(Told::Corrected { said, job: used.clone() });
        }
        if used.is_empty() {
            return;
        }
        self.seen.retain(|known| *known != used);
        self.seen.push_back(used);
        if self.seen.len() > REMEMBERED {
            self.seen.pop_front();
        }
    }

    /// What they will still use: each in its order, an inner one before the one that it is a part of,
    /// and those that run beside each other in turns, beginning with the one that was active last.
    pub(super) fn rest(&self) -> Vec<Component> {
        let mut by_activity: Vec<&Running> = self.running.iter().collect();
        by_activity.sort_by_key(|job| std::cmp::Reverse(job.active));
        let has_inner =
            |job: &Running| self.running.iter().any(|inner| inner.within == Some(job.number));
        let mut gone_through: Vec<u64> = Vec::new();
        let mut lines: Vec<VecDeque<Component>> = Vec::new();
        for job in by_activity.into_iter().filter(|job| !has_inner(job)) {
            let mut line: VecDeque<Component> = VecDeque::new();
            let mut next = Some(job);
            while let Some(job) = next.filter(|job| !gone_through.contains(&job.number)) {
                gone_through.push(job.number);
                line.extend(job.rest());
                next = self.running.iter().find(|outer| Some(outer.number) == job.within);
            }
            lines.push(line);
        }
        let mut all = Vec::new();
        while lines.iter().any(|line| !line.is_empty()) {
            all.extend(lines.iter_mut().filter_map(VecDeque::pop_front));
        }
        all
    }
}
