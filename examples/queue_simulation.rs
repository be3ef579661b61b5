//! A million jobs of a thousand users on sixty-four devices, in virtual time, through the real queue.
//!
//! `cargo run --release --example queue_simulation -- [JOBS]` prints what happened as JSON: how long jobs
//! waited, by how much their users queue, and how many bytes of weights were moved; in one line for all
//! users, fair, and fair with placement. `examples/queue_simulation.py` draws it.

#![allow(clippy::unwrap_used, reason = "an example that cannot run should say so and stop")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use coresident::device::{Name, VirtualSpec, virtual_devices};
use coresident::queue::{
    Claim, Clock, Holdings, Inner, JobQueue, ManualClock, Micros, Outcome, Payload, Placement,
    Rules, Settings, Spec,
};
use coresident::wait::{Asked, Owner, Pending, Wake};

const DEVICES: usize = 64;
const USERS: usize = 1000;
const SECOND: Micros = 1_000_000;
/// What a device holds, and how fast weights come.
const MEMORY: u64 = 48 << 30;
const BYTES_PER_SECOND: u64 = 8 << 30;
/// A weight, and parts with their GiB.
type Family = (u64, &'static [(&'static str, u64)]);
/// Families of models: how popular each is, and the GiB of its parts.
const FAMILIES: [Family; 8] = [
    (30, &[("sdxl/text", 2), ("sdxl/unet", 5)]),
    (24, &[("flux/t5", 9), ("flux/transformer", 23)]),
    (14, &[("qwen/text", 15), ("qwen/transformer", 28)]),
    (10, &[("wan/text", 11), ("wan/high", 14), ("wan/low", 14)]),
    (8, &[("flux/t5", 9), ("chroma/transformer", 17)]),
    (6, &[("sd3/t5", 9), ("sd3/transformer", 16)]),
    (5, &[("lumina/text", 5), ("lumina/transformer", 5)]),
    (3, &[("hidream/text", 16), ("hidream/transformer", 32)]),
];

/// Knuth's MMIX generator: the same numbers for the same seed, on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Jobs that a user submits at once.
struct Batch {
    at: Micros,
    user: usize,
    jobs: u64,
    family: usize,
    seconds: f64,
}

/// Who submits what and when: a few users have most of the jobs, in large batches.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "made-up numbers"
)]
fn batches(jobs: u64) -> Vec<Batch> {
    let mut random = Random(1);
    let share: f64 = (1..=USERS).map(|rank| 1.0 / rank as f64).sum();
    let popular: u64 = FAMILIES.iter().map(|(weight, _)| weight).sum();
    let mut all = Vec::new();
    let mut work = 0.0;
    for user in 0..USERS {
        let mut left = (jobs as f64 / share / (user + 1) as f64).ceil() as u64;
        let mut pick = random.below(popular);
        let mut family = 0;
        while pick >= FAMILIES[family].0 {
            pick -= FAMILIES[family].0;
            family += 1;
        }
        let seconds = 2.0 + random.below(160) as f64 / 10.0;
        while left > 0 {
            let size = (1 + random.below(1 + left / 12)).min(left);
            // Now and then something else than usual.
            let other = usize::try_from(random.below(FAMILIES.len() as u64)).unwrap();
            let family = if random.below(5) == 0 { other } else { family };
            all.push(Batch { at: 0, user, jobs: size, family, seconds });
            work += size as f64 * seconds;
            left -= size;
        }
    }
    // Over so long a time that the devices have as much to do as they can, weights included.
    let horizon = work * 1.04 / DEVICES as f64;
    for batch in &mut all {
        batch.at = (random.below(1 << 30) as f64 / f64::from(1 << 30) * horizon) as Micros * SECOND;
    }
    all.sort_by_key(|batch| batch.at);
    all
}

/// Keys and their bytes.
type Held = Vec<(Arc<str>, u64)>;

/// What each device holds, the least recently used first.
#[derive(Default)]
struct Resident(Mutex<Vec<Held>>);

impl Resident {
    /// Brings weights to a device, and returns the bytes that had to be moved.
    fn bring(&self, device: usize, needs: &[Arc<str>], bytes: &HashMap<Arc<str>, u64>) -> u64 {
        let held = &mut self.0.lock().unwrap()[device];
        let mut moved = 0;
        for key in needs {
            let size = bytes[key];
            match held.iter().position(|(known, _)| known == key) {
                Some(at) => {
                    let known = held.remove(at);
                    held.push(known);
                }
                None => {
                    moved += size;
                    held.push((key.clone(), size));
                }
            }
        }
        while held.iter().map(|(_, size)| size).sum::<u64>() > MEMORY {
            held.remove(0);
        }
        moved
    }
}

impl Placement for Resident {
    fn holdings(&self, device: Name) -> Holdings {
        self.0.lock().unwrap()[device.index() as usize].iter().cloned().collect()
    }
}

struct Deaf;

impl Wake for Deaf {
    fn wake(&self) {}
}

enum Slot {
    Waiting(Pending<Inner<()>>),
    Running(Claim<()>),
    Free,
}

/// One run: the queue, its devices, and what is counted.
struct World<'a> {
    batches: &'a [Batch],
    /// How many jobs each user queues in all.
    sizes: Vec<u64>,
    bytes: HashMap<Arc<str>, u64>,
    queue: JobQueue<()>,
    clock: Arc<ManualClock>,
    resident: Arc<Resident>,
    me: Owner,
    slots: Vec<Slot>,
    ends: BinaryHeap<Reverse<(Micros, usize)>>,
    waited: BTreeMap<u32, Vec<f64>>,
    moved: u64,
    done: u64,
    /// Device time used, and there was, while jobs waited.
    contended: (Micros, Micros),
}

impl<'a> World<'a> {
    fn new(order: &str, batches: &'a [Batch]) -> Self {
        let (fifo, placed) = (order == "fifo", order == "placed");
        let slack = if placed { 120 * SECOND } else { 0 };
        let clock = Arc::new(ManualClock::default());
        let resident = Arc::new(Resident(Mutex::new(vec![Vec::new(); DEVICES])));
        let settings = Settings {
            rules: Rules { fifo, slack, ..Rules::default() },
            history: 0,
            clock: clock.clone(),
            placement: placed.then(|| resident.clone() as Arc<dyn Placement>),
            ..Settings::default()
        };
        let devices = virtual_devices(DEVICES as u64, VirtualSpec::default()).unwrap();
        let parts = FAMILIES.iter().flat_map(|(_, parts)| parts.iter());
        let mut sizes = vec![0; USERS];
        for batch in batches {
            sizes[batch.user] += batch.jobs;
        }
        Self {
            batches,
            sizes,
            bytes: parts.map(|(key, gib)| (Arc::from(*key), gib << 30)).collect(),
            queue: JobQueue::new(devices, settings).unwrap(),
            clock,
            resident,
            me: Owner::thread(|| "simulation".into()),
            slots: (0..DEVICES).map(|_| Slot::Free).collect(),
            ends: BinaryHeap::new(),
            waited: BTreeMap::new(),
            moved: 0,
            done: 0,
            contended: (0, 0),
        }
    }

    fn submit(&self, number: usize) {
        let batch = &self.batches[number];
        let (_, parts) = FAMILIES[batch.family];
        let spec = Spec {
            payload: Payload::Bytes((number as u64).to_le_bytes().into()),
            needs: parts.iter().map(|(key, _)| Arc::from(*key)).collect(),
            ..Spec::of(&format!("user {}", batch.user), b"")
        };
        let jobs = vec![spec; usize::try_from(batch.jobs).unwrap()];
        self.queue.submit_all(jobs).unwrap();
    }

    /// Goes on to this time, and counts what was used of the devices while jobs waited.
    fn pass(&mut self, now: Micros) {
        if self.queue.queued().unwrap() > 0 {
            let passed = now - self.clock.now();
            let running = self.slots.iter().filter(|slot| matches!(slot, Slot::Running(_)));
            self.contended.0 += passed * i64::try_from(running.count()).unwrap();
            self.contended.1 += passed * i64::try_from(DEVICES).unwrap();
        }
        self.clock.set(now);
    }

    fn end(&mut self) {
        let Some(Reverse((_, device))) = self.ends.pop() else { return };
        if let Slot::Running(claim) = std::mem::replace(&mut self.slots[device], Slot::Free) {
            claim.finish(Outcome::done(())).unwrap();
            self.done += 1;
        }
    }

    /// Has a device ask that is free, or look whether it was given a job meanwhile.
    fn ask(&mut self, device: usize) {
        let name = self.queue.devices()[device].name();
        let offer = match std::mem::replace(&mut self.slots[device], Slot::Free) {
            Slot::Free => match self.queue.ask(name, &self.me, || Arc::new(Deaf)).unwrap() {
                Asked::Granted(offer) => offer,
                Asked::Waiting(pending) => {
                    self.slots[device] = Slot::Waiting(pending);
                    return;
                }
            },
            Slot::Waiting(mut pending) => match pending.poll() {
                Some(offer) => offer.unwrap(),
                None => {
                    self.slots[device] = Slot::Waiting(pending);
                    return;
                }
            },
            running @ Slot::Running(_) => {
                self.slots[device] = running;
                return;
            }
        };
        self.run(device, offer.accept().unwrap().unwrap());
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "seconds and bytes, as numbers for people"
    )]
    fn run(&mut self, device: usize, claim: Claim<()>) {
        let job = claim.job();
        let Payload::Bytes(number) = &job.payload else { return };
        let number = u64::from_le_bytes(number[..].try_into().unwrap());
        let batch = &self.batches[usize::try_from(number).unwrap()];
        let came = self.resident.bring(device, &job.needs, &self.bytes);
        self.moved += came;
        let takes = batch.seconds + came as f64 / BYTES_PER_SECOND as f64;
        let now = self.clock.now();
        let waits = self.waited.entry(self.sizes[batch.user].ilog10()).or_default();
        waits.push((now - job.submitted) as f64 / 1e6);
        self.ends.push(Reverse((now + (takes * 1e6) as Micros, device)));
        self.slots[device] = Slot::Running(claim);
    }
}

/// One run of everything, in figures.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn simulate(order: &str, batches: &[Batch]) -> serde_json::Value {
    let began = Instant::now();
    let mut world = World::new(order, batches);
    let mut next = 0;
    loop {
        let coming = batches.get(next).map(|batch| batch.at);
        let ending = world.ends.peek().map(|Reverse((at, _))| *at);
        let Some(now) = [coming, ending].into_iter().flatten().min() else { break };
        world.pass(now);
        if coming == Some(now) {
            world.submit(next);
            next += 1;
        }
        if ending == Some(now) {
            world.end();
        }
        (0..DEVICES).for_each(|device| world.ask(device));
    }
    let waits: Vec<_> = world
        .waited
        .iter_mut()
        .map(|(digits, waits)| {
            waits.sort_by(f64::total_cmp);
            let at = |share: usize| waits[(waits.len() - 1) * share / 100];
            serde_json::json!({
                "jobs_of_a_user": 10u64.pow(*digits), "jobs": waits.len(),
                "mean": waits.iter().sum::<f64>() / waits.len() as f64,
                "median": at(50), "p95": at(95),
            })
        })
        .collect();
    serde_json::json!({
        "order": order, "jobs": world.done, "bytes_moved": world.moved, "waits": waits,
        "busy_while_jobs_wait": world.contended.0 as f64 / world.contended.1 as f64,
        "virtual_days": world.clock.now() as f64 / 1e6 / 86400.0,
        "seconds": began.elapsed().as_secs_f64(),
    })
}

fn main() {
    let jobs = std::env::args().nth(1).map_or(1_000_000, |jobs| jobs.parse().unwrap());
    let batches = batches(jobs);
    let runs: Vec<_> =
        ["fifo", "fair", "placed"].into_iter().map(|one| simulate(one, &batches)).collect();
    println!("{}", serde_json::json!({ "users": USERS, "devices": DEVICES, "runs": runs }));
}
