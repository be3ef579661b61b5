//! `Planner`: a policy that decides on a live device.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::running::{Jobs, Origin, Told, stages};
use super::{Bounds, Component, Forecast, Needs, Outlook, Policy, PolicyName};
use crate::arena::{About, Evictable, EvictionOrder};
use crate::device::Name;
use crate::sync::{AtomicBool, AtomicU64, Mutant, Mutex, Ordering, planted};
use crate::trace::{Event, Kind, Label, Timeline};
use crate::wait::{Birth, Forked, Owner};

/// So many jobs are asked for that come next.
const AHEAD: usize = Event::LISTS;

/// No use by anybody.
const NOTHING: u64 = u64::MAX;
/// So many bits tell who has used something.
const OWNER: u32 = 40;

/// Who uses what, in one number.
fn use_of(component: Component, owner: u64) -> u64 {
    u64::from(component) << OWNER | (owner & ((1 << OWNER) - 1))
}

/// One device's policy, with what it has to know: which jobs run, what they have used and will use,
/// and who knows which come next. Clones share it.
#[derive(Clone)]
pub struct Planner(Arc<Shared>);

struct Shared {
    birth: Birth,
    device: Name,
    name: PolicyName,
    bounds: Option<Arc<dyn Bounds>>,
    forecast: Mutex<Option<Arc<dyn Forecast>>>,
    /// Where jobs are recorded, and what the device is called there.
    records: OnceLock<(Timeline, Label)>,
    /// What was used last, and by whom: of that nothing new has to be noted. Written under the mutex of
    /// the books.
    last: AtomicU64,
    books: Mutex<Books>,
}

struct Books {
    policy: Box<dyn Policy>,
    jobs: Jobs,
    numbers: HashMap<String, Component>,
    /// Which jobs were recorded last as those that are known to come, if any were.
    recorded: Option<Vec<Needs>>,
}

impl Books {
    fn number(&mut self, key: &str) -> Component {
        if let Some(known) = self.numbers.get(key) {
            return *known;
        }
        let number = Component::try_from(self.numbers.len()).unwrap_or(Component::MAX);
        self.numbers.insert(key.to_owned(), number);
        number
    }

    fn outlook(&mut self, coming: &[Arc<[String]>]) -> Outlook {
        let next =
            coming.iter().map(|needs| stages(needs.iter().map(|key| self.number(key)).collect()));
        Outlook { next: next.collect(), rest: self.jobs.rest() }
    }

    fn tell(&mut self, told: Vec<Told>) {
        for told in told {
            match told {
                Told::Begins(job) => self.policy.begin(&job),
                Told::Corrected { said, job } => self.policy.corrected(&said, &job),
            }
        }
    }
}

impl Planner {
    /// A policy for a device, of which nothing is known yet.
    #[must_use]
    pub fn new(device: Name, policy: PolicyName, bounds: Option<Arc<dyn Bounds>>) -> Self {
        let (jobs, numbers) = (Jobs::default(), HashMap::new());
        Self(Arc::new(Shared {
            birth: Birth::default(),
            device,
            name: policy,
            bounds,
            forecast: Mutex::new(None),
            records: OnceLock::new(),
            last: AtomicU64::new(NOTHING),
            books: Mutex::new(Books { policy: policy.make(), jobs, numbers, recorded: None }),
        }))
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> Name {
        self.0.device
    }

    /// Whether both are the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What its policy is called.
    #[must_use]
    pub fn policy(&self) -> PolicyName {
        self.0.name
    }

    /// Asks somebody else which jobs come next, or nobody. Returns who was asked so far.
    pub fn set_forecast(&self, forecast: Option<Arc<dyn Forecast>>) -> Option<Arc<dyn Forecast>> {
        std::mem::replace(&mut *self.0.forecast.lock(), forecast)
    }

    /// A job begins on the device, until the guard is dropped. It uses these, in this order, if that
    /// is known; else what jobs have used before that began like it. What it uses otherwise costs time,
    /// and nothing else.
    ///
    /// # Errors
    /// [`Forked`].
    pub fn begin(&self, stages: Option<&[String]>, owner: &Owner) -> Result<Job, Forked> {
        self.0.birth.check("planner")?;
        let origin = Origin::Declared { owner: owner.number() };
        let mut books = self.0.books.lock();
        let expected = stages.map(|keys| keys.iter().map(|key| books.number(key)).collect());
        let mut told = Vec::new();
        let number = books.jobs.begin(origin, expected, &mut told);
        let outer = books.jobs.outer(number);
        books.tell(told);
        self.0.last.store(NOTHING, Ordering::Relaxed);
        drop(books);
        self.0.record(Kind::JobDeclared, number, |timeline, event| {
            event.component = stages.map_or(Label::NOTHING, |stages| timeline.list(stages));
            event.of = outer.map_or(0, recorded);
        });
        Ok(Job { planner: self.clone(), number, ended: AtomicBool::new(false) })
    }

    /// By which number a timeline has what somebody uses on the device now; 0 is no job in particular.
    #[must_use]
    pub fn recorded_job(&self, owner: &Owner) -> u64 {
        if !self.0.birth.is_here() {
            return 0;
        }
        let declared = self.0.books.lock().jobs.declared_by(owner.number());
        // Told apart, and none of them 0.
        match declared {
            Some(number) => recorded(number),
            None => self.0.bounds().map_or(0, |bounds| 2 * bounds + 2),
        }
    }

    /// Somebody uses weights, which have so many bytes on the device; for the job that is named, else
    /// for his own, or the one that runs.
    pub fn note_use(&self, key: &str, bytes: u64, job: Option<&Job>, owner: &Owner) {
        if self.0.birth.is_here() {
            let component = self.number(key);
            self.0.note(component, bytes, job.map(|job| job.number), owner);
        }
    }

    /// Nothing is left of weights on the device.
    pub fn note_left(&self, key: &str) {
        if self.0.birth.is_here() {
            let component = self.number(key);
            self.left(component);
        }
    }

    /// Puts weights in the order in which they should leave.
    #[must_use]
    pub fn order(&self, keys: &[String]) -> Vec<String> {
        if !self.0.birth.is_here() {
            return keys.to_vec();
        }
        let mut numbered: Vec<(Component, &String)> =
            keys.iter().map(|key| (self.number(key), key)).collect();
        let ranks = self.0.ranks(numbered.iter().map(|(component, _)| *component).collect());
        numbered.sort_by_key(|(component, _)| ranks.rank(*component));
        numbered.into_iter().map(|(_, key)| key.clone()).collect()
    }
}

/// By which number a job that was declared is recorded: odd, others' are even, and none is 0.
fn recorded(number: u64) -> u64 {
    2 * number + 1
}

impl Shared {
    /// Records something of a job that was declared.
    fn record(&self, kind: Kind, number: u64, tell: impl FnOnce(&Timeline, &mut Event)) {
        let Some((timeline, device)) = self.records.get() else { return };
        if timeline.is_on() {
            let (at, job) = (timeline.now(), recorded(number));
            let mut event = Event { device: *device, at, job, ..Event::of(kind) };
            tell(timeline, &mut event);
            timeline.record(&event);
        }
    }

    /// What the next jobs need, if anybody knows; with no lock held.
    fn coming(&self) -> Option<Vec<Needs>> {
        let forecast = self.forecast.lock().clone();
        forecast.map(|forecast| forecast.coming(self.device, AHEAD))
    }

    /// Records what is known to come, if that was not recorded before; under the books' mutex, so that
    /// it is in the order of decisions.
    fn record_coming(&self, books: &mut Books, coming: Option<&[Needs]>) {
        let Some((timeline, device)) = self.records.get() else { return };
        if books.recorded.as_deref() == coming || !timeline.is_on() {
            return;
        }
        let known = coming.unwrap_or_default();
        let labels: Vec<Label> = known.iter().take(AHEAD).map(|job| timeline.list(job)).collect();
        let event = Event { device: *device, at: timeline.now(), ..Event::of(Kind::Forecast) };
        timeline.record(&event.with_lists(&labels));
        books.recorded = coming.map(<[Needs]>::to_vec);
    }

    fn bounds(&self) -> Option<u64> {
        self.bounds.as_ref().and_then(|bounds| bounds.current(self.device))
    }

    /// A component is used.
    fn note(&self, component: Component, bytes: u64, job: Option<u64>, owner: &Owner) {
        let (bounds, owner) = (self.bounds(), owner.number());
        let now = use_of(component, owner);
        let books = self.books.lock();
        if books.jobs.is_in_use(component, job, owner, bounds) {
            self.last.store(now, Ordering::Relaxed);
            return;
        }
        drop(books);
        let coming = self.coming();
        let mut books = self.books.lock();
        let mut told = Vec::new();
        books.jobs.used(component, job, owner, bounds, &mut told);
        books.tell(told);
        self.record_coming(&mut books, coming.as_deref());
        let outlook = books.outlook(coming.as_deref().unwrap_or_default());
        books.policy.used(component, bytes, &outlook);
        self.last.store(now, Ordering::Relaxed);
    }

    /// At which place each of these leaves.
    fn ranks(&self, mut components: Vec<Component>) -> Ranks {
        components.sort_unstable();
        components.dedup();
        let (bounds, coming) = (self.bounds(), self.coming());
        let mut books = self.books.lock();
        let mut told = Vec::new();
        books.jobs.end_beyond(bounds, &mut told);
        books.tell(told);
        self.record_coming(&mut books, coming.as_deref());
        let outlook = books.outlook(coming.as_deref().unwrap_or_default());
        books.policy.order(&mut components, &outlook);
        drop(books);
        Ranks::of(&components)
    }
}

/// At which place components leave, by their number.
struct Ranks(Vec<usize>);

impl Ranks {
    fn of(order: &[Component]) -> Self {
        let length = order.iter().max().map_or(0, |last| *last as usize + 1);
        let mut ranks = vec![0; length];
        for (rank, component) in order.iter().enumerate() {
            ranks[*component as usize] = rank;
        }
        Self(ranks)
    }

    /// 0 of those that are in no order.
    fn rank(&self, component: Component) -> usize {
        self.0.get(component as usize).copied().unwrap_or(0)
    }
}

impl EvictionOrder for Planner {
    fn number(&self, key: &str) -> u32 {
        self.0.books.lock().number(key)
    }

    fn used(&self, weights: u32, bytes: u64, owner: &Owner) {
        let last = self.0.last.load(Ordering::Relaxed);
        let by_anybody = planted(Mutant::OthersUseIsOwn) && last >> OWNER == u64::from(weights);
        if last != use_of(weights, owner.number()) && !by_anybody {
            self.0.note(weights, bytes, None, owner);
        }
    }

    fn sort(&self, areas: &mut [Evictable]) {
        let idle = areas.iter().filter(|area| !area.in_use);
        let ranks = self.0.ranks(idle.map(|area| area.weights).collect());
        // What is in use is needed before anything else is.
        areas.sort_unstable_by_key(|area| (area.in_use, ranks.rank(area.weights), area.used_at));
    }

    fn left(&self, weights: u32) {
        self.0.books.lock().policy.left(weights);
    }

    fn job(&self, owner: &Owner) -> u64 {
        self.recorded_job(owner)
    }

    fn record_in(&self, timeline: &Timeline) {
        let device = || timeline.label(&self.0.device.to_string());
        self.0.records.get_or_init(|| (timeline.clone(), device()));
    }

    fn about(&self) -> About {
        let lookahead = if self.0.forecast.lock().is_some() { AHEAD as u64 } else { 0 };
        About { policy: self.0.name.name(), lookahead }
    }
}

/// A job on a device, until it is dropped.
pub struct Job {
    planner: Planner,
    number: u64,
    ended: AtomicBool,
}

impl Job {
    /// By which number a timeline has what is done for it; no other job of this process has it.
    #[must_use]
    pub fn recorded_as(&self) -> u64 {
        recorded(self.number)
    }

    /// The planner of its device.
    #[must_use]
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Whether it has ended, or is a parent process's.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire) || !self.planner.0.birth.is_here()
    }

    /// Ends it. Returns whether that was the end: again without effect.
    pub fn end(&self) -> bool {
        if !self.planner.0.birth.is_here() || self.ended.swap(true, Ordering::AcqRel) {
            return false;
        }
        let shared = &self.planner.0;
        let mut books = shared.books.lock();
        let mut told = Vec::new();
        books.jobs.end(self.number, &mut told);
        books.tell(told);
        shared.last.store(NOTHING, Ordering::Relaxed);
        drop(books);
        shared.record(Kind::JobReleased, self.number, |_, _| {});
        true
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.end();
    }
}
