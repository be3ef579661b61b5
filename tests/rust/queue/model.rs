//! Random calls, and a model that does the same one job after the other with plain lists.

use std::collections::BTreeMap;

use coresident::queue::Durability;

use super::durable::Folder;
use super::*;

const USERS: [&str; 3] = ["ann", "bob", "cleo"];
const AGEING: Micros = 60 * SECOND;

#[derive(Debug, Clone)]
struct Known {
    user: usize,
    batch: u64,
    mask: usize,
    priority: i32,
    rank: i64,
    estimate: Micros,
    state: JobState,
    attempts: u32,
    /// Cancel ordered, deletion ordered.
    cancelling: bool,
    deleting: bool,
    charged: Micros,
    began: Micros,
}

#[derive(Debug, Clone, Default)]
struct Person {
    had: Micros,
    paused: bool,
    running: Option<u64>,
    /// Whether he could go on when last looked at.
    ready: bool,
}

struct Model {
    jobs: BTreeMap<u64, Known>,
    people: [Person; 3],
    virtual_time: Micros,
    now: Micros,
    next: u64,
}

impl Model {
    fn of(&self, user: usize, state: JobState) -> impl Iterator<Item = (&u64, &Known)> {
        self.jobs.iter().filter(move |(_, job)| job.user == user && job.state == state)
    }

    fn is_ready(&self, user: usize) -> bool {
        let person = &self.people[user];
        let running = self.of(user, JobState::Running).count() as u64;
        !person.paused
            && person.running.is_none_or(|most| running < most)
            && self.of(user, JobState::Queued).next().is_some()
    }

    /// After every change: who can go on now and could not before starts where the others are.
    fn settle(&mut self, user: usize) {
        let ready = self.is_ready(user);
        if ready && !self.people[user].ready {
            self.people[user].had = self.people[user].had.max(self.virtual_time);
        }
        self.people[user].ready = ready;
    }

    fn next_for(&mut self, device: usize) -> Option<u64> {
        let ready: Vec<usize> = (0..3).filter(|user| self.is_ready(*user)).collect();
        let may = |job: &Known| job.mask >> device & 1 == 1;
        let first = |user: usize| {
            let jobs = self.of(user, JobState::Queued).filter(|(_, job)| may(job));
            jobs.map(|(id, job)| (job.rank, *id)).min()
        };
        let users = ready.iter();
        let users = users.filter_map(|user| Some((self.people[*user].had, *user, first(*user)?)));
        let (.., (_, id)) = users.min()?;
        let certain = |user: usize| {
            let expected = self.of(user, JobState::Running).map(|(_, job)| job.charged);
            self.people[user].had - expected.sum::<Micros>()
        };
        let least = ready.iter().map(|user| certain(*user)).min();
        self.virtual_time = self.virtual_time.max(least.unwrap_or(0));
        Some(id)
    }

    fn end(&mut self, id: u64, state: JobState) {
        let now = self.now;
        let job = self.jobs.get_mut(&id).unwrap();
        job.state = if job.cancelling { JobState::Cancelled } else { state };
        let (user, charged, took) = (job.user, job.charged, now - job.began);
        let gone = job.deleting && job.state.is_over();
        job.cancelling = false;
        self.people[user].had += took - charged;
        if gone {
            self.jobs.remove(&id);
        }
        self.settle(user);
    }

    /// What a process that opens the file finds.
    fn reopened(&mut self) {
        let now = self.now;
        for job in self.jobs.values_mut() {
            if job.state == JobState::Running {
                job.state = match (job.cancelling, job.attempts >= 3) {
                    (true, _) => JobState::Cancelled,
                    (false, true) => JobState::Failed,
                    (false, false) => JobState::Queued,
                };
                (job.cancelling, job.deleting, job.began) = (false, false, now);
            }
        }
        for user in 0..3 {
            self.people[user].paused = false;
            self.people[user].ready = false;
            self.settle(user);
        }
    }
}

struct Run {
    random: Random,
    queue: Queue,
    clock: Arc<ManualClock>,
    model: Model,
    claims: Vec<Claim<u64>>,
    folder: Option<Folder>,
}

impl Run {
    fn new(seed: u64, durable: bool) -> Self {
        let folder = durable.then(Folder::new);
        let (queue, clock) = Self::open(folder.as_ref(), 1000 * SECOND);
        // In this order, as the queue numbers them.
        for user in USERS {
            queue.set_limits(&user.into(), |_| {}).unwrap();
        }
        let model = Model {
            jobs: BTreeMap::new(),
            people: Default::default(),
            virtual_time: 0,
            now: 1000 * SECOND,
            next: 1,
        };
        Self { random: Random(seed), queue, clock, model, claims: Vec::new(), folder }
    }

    fn open(folder: Option<&Folder>, now: Micros) -> (Queue, Arc<ManualClock>) {
        let rules = Rules { ageing: Some(AGEING), ..plain() };
        let (settings, clock) = settings(rules);
        clock.set(now);
        let queue = match folder {
            None => JobQueue::new(devices(3), settings),
            Some(folder) => {
                JobQueue::open(&folder.file(), Durability::Process, devices(3), settings)
            }
        };
        (queue.unwrap(), clock)
    }

    fn any_job(&mut self) -> u64 {
        1 + self.random.below(self.model.next)
    }

    fn submit(&mut self) {
        let user = usize::try_from(self.random.below(3)).unwrap();
        let mask = usize::try_from(1 + self.random.below(7)).unwrap();
        let priority = i32::try_from(self.random.below(4)).unwrap() - 1;
        let batch = self.random.below(4);
        let estimate = i64::try_from(self.random.below(20)).unwrap() * SECOND;
        let allowed = (0..3).filter(|device| mask >> device & 1 == 1).map(name).collect();
        let spec = Spec {
            priority,
            batch: Some(batch.to_string().into()),
            devices: Some(allowed),
            estimate: Some(estimate),
            ..spec(USERS[user])
        };
        let job = self.queue.submit(spec).unwrap();
        assert_eq!(job.id, self.model.next);
        let known = Known {
            user,
            batch,
            mask,
            priority,
            rank: self.model.now - i64::from(priority) * AGEING,
            estimate,
            state: JobState::Queued,
            attempts: 0,
            cancelling: false,
            deleting: false,
            charged: 0,
            began: 0,
        };
        self.model.jobs.insert(self.model.next, known);
        self.model.next += 1;
        self.model.settle(user);
    }

    fn claim(&mut self) {
        let device = usize::try_from(self.random.below(3)).unwrap();
        let expected = self.model.next_for(device);
        let claim = claim(&self.queue, device);
        assert_eq!(claim.as_ref().map(|claim| claim.job().id), expected);
        let (Some(id), Some(claim)) = (expected, claim) else { return };
        let now = self.model.now;
        let job = self.model.jobs.get_mut(&id).unwrap();
        (job.state, job.began, job.charged) = (JobState::Running, now, job.estimate);
        job.attempts += 1;
        assert_eq!(claim.attempt(), job.attempts);
        let (user, charged) = (job.user, job.charged);
        self.model.people[user].had += charged;
        self.model.settle(user);
        self.claims.push(claim);
    }

    fn end(&mut self) {
        if self.claims.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(self.claims.len() as u64)).unwrap();
        let claim = self.claims.swap_remove(at);
        let id = claim.job().id;
        let left = self.model.jobs[&id].attempts < 3;
        let state = match self.random.below(5) {
            0 => {
                claim.release();
                self.model.jobs.get_mut(&id).unwrap().attempts -=
                    u32::from(!self.model.jobs[&id].cancelling);
                JobState::Queued
            }
            1 => {
                claim.lose("by chance");
                if left { JobState::Queued } else { JobState::Failed }
            }
            2 => {
                let again = Outcome::Failed { error: "no".into(), value: None, retry: true };
                claim.finish(again).unwrap();
                if left { JobState::Queued } else { JobState::Failed }
            }
            3 => {
                claim.finish(Outcome::failed("no")).unwrap();
                JobState::Failed
            }
            _ => {
                claim.finish(Outcome::done(id)).unwrap();
                JobState::Done
            }
        };
        self.model.end(id, state);
    }

    /// Jobs by number, batch, user or all: as the queue is told, and as the model knows them.
    fn some(&mut self) -> (Selection, Vec<u64>) {
        let (mut selection, mut batch, mut user, mut id) = (Selection::default(), None, None, None);
        match self.random.below(8) {
            0 => {}
            1 | 2 => user = Some(usize::try_from(self.random.below(3)).unwrap()),
            3 => batch = Some(self.random.below(4)),
            _ => id = Some(self.any_job()),
        }
        selection.user = user.map(|user| USERS[user].into());
        selection.batch = batch.map(|batch| batch.to_string().into());
        selection.ids = id.map(|id| vec![id]);
        let meant = |(at, job): &(&u64, &Known)| {
            id.is_none_or(|id| id == **at)
                && user.is_none_or(|user| user == job.user)
                && batch.is_none_or(|batch| batch == job.batch)
        };
        (selection, self.model.jobs.iter().filter(meant).map(|(id, _)| *id).collect())
    }

    fn cancel(&mut self, delete: bool) {
        let (selection, ids) = self.some();
        let mut expected = 0;
        for id in ids {
            let job = self.model.jobs.get_mut(&id).unwrap();
            let user = job.user;
            match job.state {
                JobState::Queued => {
                    expected += 1;
                    job.state = JobState::Cancelled;
                    if delete {
                        self.model.jobs.remove(&id);
                    }
                }
                JobState::Running => {
                    expected += u64::from(!job.cancelling || (delete && !job.deleting));
                    job.cancelling = true;
                    job.deleting |= delete;
                }
                _ if delete => {
                    expected += 1;
                    self.model.jobs.remove(&id);
                }
                _ => {}
            }
            self.model.settle(user);
        }
        let counted = if delete {
            self.queue.delete(&selection)
        } else {
            self.queue.cancel(&selection, None)
        };
        assert_eq!(counted.unwrap(), expected);
    }

    fn retry(&mut self) {
        let (selection, ids) = self.some();
        let mut expected = 0;
        for id in ids {
            let now = self.model.now;
            let job = self.model.jobs.get_mut(&id).unwrap();
            if matches!(job.state, JobState::Failed | JobState::Cancelled) {
                expected += 1;
                (job.state, job.attempts) = (JobState::Queued, 0);
                job.rank = now - i64::from(job.priority) * AGEING;
                let user = job.user;
                self.model.settle(user);
            }
        }
        assert_eq!(self.queue.retry(&selection, false).unwrap(), expected);
    }

    fn move_one(&mut self) {
        let id = self.any_job();
        let front = [Some(true), Some(false), None][usize::try_from(self.random.below(3)).unwrap()];
        let priority = (self.random.below(2) == 0).then_some(2);
        let moved = self.queue.rearrange(&Selection::job(id), front, priority).unwrap();
        let Some(job) = self.model.jobs.get(&id).filter(|job| job.state == JobState::Queued) else {
            assert_eq!(moved, 0);
            return;
        };
        assert_eq!(moved, 1);
        let ranks = || self.model.of(job.user, JobState::Queued).map(|(_, job)| job.rank);
        let rank = match front {
            Some(true) => ranks().min().unwrap() - 2,
            Some(false) => ranks().max().unwrap() + 1,
            None => {
                let submitted = self.queue.job(id).unwrap().submitted;
                submitted - i64::from(priority.unwrap_or(job.priority)) * AGEING
            }
        };
        let job = self.model.jobs.get_mut(&id).unwrap();
        (job.rank, job.priority) = (rank, priority.unwrap_or(job.priority));
    }

    fn limit(&mut self) {
        let user = usize::try_from(self.random.below(3)).unwrap();
        if self.random.below(2) == 0 {
            let paused = self.random.below(2) == 0;
            self.queue.pause(Some(&USERS[user].into()), paused).unwrap();
            self.model.people[user].paused = paused;
        } else {
            let most = (self.random.below(3) > 0).then(|| self.random.below(3));
            self.queue.set_limits(&USERS[user].into(), |limits| limits.running = most).unwrap();
            self.model.people[user].running = most;
        }
        self.model.settle(user);
    }

    fn pass(&mut self) {
        self.model.now += i64::try_from(self.random.below(30)).unwrap() * SECOND;
        self.clock.set(self.model.now);
    }

    /// Ends the queue with everything that runs, and opens its file again.
    fn reopen(&mut self) {
        let Some(folder) = &self.folder else { return };
        // What runs is given up without a word, as when the process is killed.
        let copy = Folder::new();
        for end in ["", "-wal"] {
            let mut from = folder.file().into_os_string();
            from.push(end);
            let mut to = copy.file().into_os_string();
            to.push(end);
            if std::path::Path::new(&from).exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
        self.claims.clear();
        (self.queue, self.clock) = Self::open(Some(&copy), self.model.now);
        self.folder = Some(copy);
        self.model.reopened();
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..=9 => self.submit(),
            10..=19 => self.claim(),
            20..=28 => self.end(),
            29 => self.cancel(false),
            30 => self.cancel(true),
            31 => self.retry(),
            32 | 33 => self.move_one(),
            34 => self.limit(),
            35 => self.reopen(),
            _ => self.pass(),
        }
        self.compare();
    }

    fn compare(&self) {
        let jobs = self.queue.jobs(&Selection::default(), None).unwrap();
        let queue: Vec<_> = jobs
            .iter()
            .map(|job| {
                let now = job.now();
                (job.id, now.state, now.cancelling, now.attempts, now.priority)
            })
            .collect();
        let known = self.model.jobs.iter();
        let model: Vec<_> = known
            .map(|(id, job)| (*id, job.state, job.cancelling, job.attempts, job.priority))
            .collect();
        assert_eq!(queue, model);
        let counts = self.queue.status().unwrap().counts;
        for (state, count) in JobState::ALL.into_iter().zip(counts) {
            let known = self.model.jobs.values().filter(|job| job.state == state).count() as u64;
            assert_eq!(known, count, "{state:?}");
        }
    }
}

#[test]
fn a_queue_does_what_plain_lists_do() {
    for seed in 0..60 {
        let mut run = Run::new(seed, false);
        (0..400).for_each(|_| run.step());
    }
}

#[test]
fn a_queue_in_a_file_does_what_plain_lists_do_over_any_number_of_crashes() {
    for seed in 100..108 {
        let mut run = Run::new(seed, true);
        (0..250).for_each(|_| run.step());
    }
}
