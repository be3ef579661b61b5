//! The core without Python, next to what the standard library and `parking_lot` offer.
//!
//! `cargo bench`, or `cargo bench -- lease` for some. Peers do less: they name no holder, keep no
//! order and find no deadlock. They tell what that costs.
#![allow(missing_docs, reason = "a bench's name is its documentation")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot run should say so and stop")]

use coresident::device::{Device, Name, VirtualSpec, virtual_devices};
use coresident::pool::{DevicePool, Wish};
use coresident::wait::{Owner, Patience};

fn main() {
    divan::main();
}

fn me() -> Owner {
    Owner::thread(|| "bench".into())
}

fn pool(devices: u64) -> (DevicePool, Vec<Name>) {
    let devices = virtual_devices(devices, VirtualSpec::default()).unwrap();
    let names = devices.iter().map(Device::name).collect();
    (DevicePool::new(devices).unwrap(), names)
}

/// A device held and given back; the name asked for is the last of the pool.
#[divan::bench_group]
mod lease {
    use divan::Bencher;

    use super::{Patience, me, pool};

    #[divan::bench(args = [2, 8, 64])]
    fn coresident(bencher: Bencher, devices: u64) {
        let ((pool, names), me) = (pool(devices), me());
        let last = names.last().copied();
        bencher.bench_local(|| drop(pool.lease(last, &me, &Patience::FOREVER).unwrap()));
    }

    #[divan::bench(args = [2, 8, 64])]
    fn coresident_try(bencher: Bencher, devices: u64) {
        let ((pool, names), me) = (pool(devices), me());
        let last = names.last().copied();
        bencher.bench_local(|| drop(pool.try_lease(last, &me).unwrap().unwrap()));
    }

    #[divan::bench]
    fn mutex_of_bool(bencher: Bencher) {
        let taken = parking_lot::Mutex::new(false);
        bencher.bench_local(|| {
            assert!(!std::mem::replace(&mut *taken.lock(), true));
            *taken.lock() = false;
        });
    }
}

/// An idle device lent and given back: all idle, or all but the last busy.
#[divan::bench_group]
mod borrow {
    use divan::Bencher;

    use super::{Wish, me, pool};

    #[divan::bench(args = [2, 8, 64])]
    fn coresident_all_idle(bencher: Bencher, devices: u64) {
        let ((pool, _), me) = (pool(devices), me());
        bencher.bench_local(|| drop(pool.borrow(&Wish::default(), &me).unwrap().unwrap()));
    }

    #[divan::bench(args = [2, 8, 64])]
    fn coresident_last_idle(bencher: Bencher, devices: u64) {
        let ((pool, names), me) = (pool(devices), me());
        let (_, busy) = names.split_last().unwrap();
        let lease = |name: &_| pool.try_lease(Some(*name), &me).unwrap().unwrap();
        let _held: Vec<_> = busy.iter().map(lease).collect();
        bencher.bench_local(|| drop(pool.borrow(&Wish::default(), &me).unwrap().unwrap()));
    }

    #[divan::bench(args = [2, 8, 64])]
    fn mutexes_last_idle(bencher: Bencher, devices: usize) {
        let all: Vec<_> = (0..devices).map(|_| parking_lot::Mutex::new(())).collect();
        let _held: Vec<_> = all[..devices - 1].iter().map(|mutex| mutex.lock()).collect();
        bencher.bench_local(|| drop(all.iter().find_map(|mutex| mutex.try_lock()).unwrap()));
    }
}

/// Nothing to be had: the answer is no.
#[divan::bench_group]
mod all_busy {
    use divan::Bencher;

    use super::{Wish, me, pool};

    #[divan::bench(args = [2, 8, 64])]
    fn coresident_try_lease(bencher: Bencher, devices: u64) {
        let ((pool, names), me) = (pool(devices), me());
        let _held: Vec<_> = names.iter().map(|name| pool.try_lease(Some(*name), &me)).collect();
        let last = names.last().copied();
        bencher.bench_local(|| assert!(pool.try_lease(last, &me).unwrap().is_none()));
    }

    #[divan::bench(args = [2, 8, 64])]
    fn coresident_borrow(bencher: Bencher, devices: u64) {
        let ((pool, names), me) = (pool(devices), me());
        let _held: Vec<_> = names.iter().map(|name| pool.try_lease(Some(*name), &me)).collect();
        bencher.bench_local(|| assert!(pool.borrow(&Wish::default(), &me).unwrap().is_none()));
    }

    #[divan::bench(args = [2, 8, 64])]
    fn mutexes(bencher: Bencher, devices: usize) {
        let all: Vec<_> = (0..devices).map(|_| parking_lot::Mutex::new(())).collect();
        let _held: Vec<_> = all.iter().map(|mutex| mutex.lock()).collect();
        bencher.bench_local(|| assert!(all.iter().all(|mutex| mutex.try_lock().is_none())));
    }
}

/// The load lock taken and given back, nobody else about.
#[divan::bench_group]
mod lock_pair {
    use coresident::load_lock::{LoadLock, Mode};
    use divan::Bencher;

    use super::{Patience, me};

    #[divan::bench(args = [Mode::Read, Mode::Write])]
    fn coresident(bencher: Bencher, mode: Mode) {
        let (lock, me) = (LoadLock::new(), me());
        bencher.bench_local(|| drop(lock.acquire(mode, &me, &Patience::FOREVER).unwrap()));
    }

    #[divan::bench(args = [Mode::Read, Mode::Write])]
    fn coresident_try(bencher: Bencher, mode: Mode) {
        let (lock, me) = (LoadLock::new(), me());
        bencher.bench_local(|| drop(lock.try_acquire(mode, &me).unwrap().unwrap()));
    }

    #[divan::bench(args = [Mode::Read, Mode::Write])]
    fn parking_lot(bencher: Bencher, mode: Mode) {
        let lock = parking_lot::RwLock::new(());
        match mode {
            Mode::Read => bencher.bench_local(|| drop(lock.read())),
            Mode::Write => bencher.bench_local(|| drop(lock.write())),
        }
    }

    #[divan::bench(args = [Mode::Read, Mode::Write])]
    fn std(bencher: Bencher, mode: Mode) {
        let lock = std::sync::RwLock::new(());
        match mode {
            Mode::Read => bencher.bench_local(|| drop(lock.read().unwrap())),
            Mode::Write => bencher.bench_local(|| drop(lock.write().unwrap())),
        }
    }
}

/// A task through a queue: on one thread, and to another thread and back, asleep in between.
#[divan::bench_group]
mod task {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use coresident::wait::Parker;
    use coresident::worker::Lane;
    use divan::Bencher;

    use super::{Owner, Patience, me};

    #[divan::bench]
    fn push_take_finish_coresident(bencher: Bencher) {
        let lane: Arc<Lane<u64, u64>> = Lane::new("virtual:0");
        bencher.bench_local(|| {
            let ticket = lane.push(20).unwrap().ticket;
            let taken = lane.try_take().unwrap();
            taken.finish(taken.start().unwrap() + 1).wake();
            ticket.outcome(|outcome| *outcome)
        });
    }

    #[divan::bench]
    fn push_take_finish_mpsc(bencher: Bencher) {
        let (push, take) = mpsc::channel::<(u64, mpsc::SyncSender<u64>)>();
        bencher.bench_local(|| {
            let (finish, finished) = mpsc::sync_channel(1);
            push.send((20, finish)).unwrap();
            let (task, finish) = take.recv().unwrap();
            finish.send(task + 1).unwrap();
            finished.recv().unwrap()
        });
    }

    #[divan::bench]
    fn round_trip_coresident(bencher: Bencher) {
        let lane: Arc<Lane<u64, u64>> = Lane::new("virtual:0");
        let serving = lane.clone();
        let worker = thread::spawn(move || {
            serving.serve(Owner::thread(|| "worker".into()));
            while let Some(ticket) = serving.take() {
                ticket.finish(ticket.start().unwrap() + 1).wake();
            }
        });
        let me = me();
        bencher.bench_local(|| {
            let ticket = lane.push(20).unwrap().ticket;
            let parker = Parker::new();
            ticket.ask(&me, parker.clone()).wait(&parker, &Patience::FOREVER).unwrap();
            ticket.outcome(|outcome| *outcome)
        });
        lane.drain();
        worker.join().unwrap();
    }

    #[divan::bench]
    fn round_trip_mpsc(bencher: Bencher) {
        let (push, take) = mpsc::channel::<(u64, mpsc::SyncSender<u64>)>();
        let worker = thread::spawn(move || {
            while let Ok((task, finish)) = take.recv() {
                finish.send(task + 1).unwrap();
            }
        });
        bencher.bench_local(|| {
            let (finish, finished) = mpsc::sync_channel(1);
            push.send((20, finish)).unwrap();
            finished.recv().unwrap()
        });
        drop(push);
        worker.join().unwrap();
    }
}

/// Joining a line that is this long already, and leaving it: one device, or any of eight.
#[divan::bench_group]
mod join_line {
    use coresident::pool::{DevicePool, Shared};
    use coresident::wait::{Asked, Kind, Parker, Pending};
    use divan::Bencher;

    use super::{Name, Owner, pool};

    fn join(pool: &DevicePool, wanted: Option<Name>, number: u64) -> Pending<Shared> {
        let owner = Owner::with_thread(Kind::Task, u64::MAX - number, number.to_string());
        match pool.ask(wanted, &owner, Parker::new()).unwrap() {
            Asked::Granted(_) => unreachable!("every device is held"),
            Asked::Waiting(mut pending) => {
                pending.watch().unwrap();
                pending
            }
        }
    }

    fn lines(
        bencher: Bencher,
        devices: u64,
        wanted: impl Fn(&[Name]) -> Option<Name>,
        length: u64,
    ) {
        let (pool, names) = pool(devices);
        let holder = Owner::with_thread(Kind::Task, u64::MAX, "holder".into());
        let _held: Vec<_> = names.iter().map(|name| pool.try_lease(Some(*name), &holder)).collect();
        let wanted = wanted(&names);
        let _line: Vec<_> = (1..=length).map(|number| join(&pool, wanted, number)).collect();
        bencher.bench_local(|| drop(join(&pool, wanted, length + 1)));
    }

    #[divan::bench(args = [0, 10, 100, 1000])]
    fn one_device(bencher: Bencher, length: u64) {
        lines(bencher, 1, |names| names.first().copied(), length);
    }

    #[divan::bench(args = [0, 10, 100, 1000])]
    fn any_of_eight(bencher: Bencher, length: u64) {
        lines(bencher, 8, |_| None, length);
    }
}

/// One event, by one thread or several at once; and a push to a vector under a mutex.
#[divan::bench_group(threads = [1, 2, 4], sample_size = 1000)]
mod timeline {
    use std::time::Instant;

    use coresident::trace::{Cause, Event, Kind, Timeline};
    use divan::{Bencher, black_box};

    #[divan::bench]
    fn request_coresident(bencher: Bencher) {
        let timeline = Timeline::new(1 << 16);
        let track = timeline.track("cuda:0", "unet");
        let began = Instant::now();
        bencher.bench(|| track.requested(black_box(5 << 30), 1 << 30, 20 << 30, began));
    }

    #[divan::bench]
    fn copy_coresident(bencher: Bencher) {
        let timeline = Timeline::new(1 << 16);
        let track = timeline.track("cuda:0", "unet");
        let began = Instant::now();
        bencher.bench(|| track.copied(Cause::CameBack, black_box(5 << 30), began, began, 1));
    }

    #[divan::bench]
    fn evict_coresident(bencher: Bencher) {
        let timeline = Timeline::new(1 << 16);
        let track = timeline.track("cuda:0", "unet");
        bencher.bench(|| track.evicted(black_box(5 << 30)));
    }

    #[divan::bench]
    fn evict_off(bencher: Bencher) {
        let timeline = Timeline::new(1 << 16);
        timeline.turn(false);
        let track = timeline.track("cuda:0", "unet");
        bencher.bench(|| track.evicted(black_box(5 << 30)));
    }

    #[divan::bench]
    fn evict_mutex_of_vec(bencher: Bencher) {
        let kept = parking_lot::Mutex::new(Vec::with_capacity(1 << 16));
        let began = Instant::now();
        bencher.bench(|| {
            let at = u64::try_from(began.elapsed().as_nanos()).unwrap();
            let event = Event { at, bytes: black_box(5 << 30), ..Event::of(Kind::Evict) };
            let mut kept = kept.lock();
            if kept.len() == 1 << 16 {
                kept.clear();
            }
            kept.push(event);
        });
    }
}

/// What leaves next, of so many components, when each decision is the first after a job of many kinds, and
/// when it is one more of the same job.
#[divan::bench_group]
mod residency {
    use std::sync::{Arc, Mutex};

    use coresident::arena::{Evictable, EvictionOrder};
    use coresident::device::{DeviceType, Name};
    use coresident::residency::{Forecast, Needs, Outlook, Planner, PolicyName};
    use divan::Bencher;

    use super::me;

    /// So many components in jobs of eight, which have come often, and the next two known.
    fn jobs(components: u32) -> Vec<Vec<u32>> {
        let all: Vec<u32> = (0..components).collect();
        let jobs: Vec<Vec<u32>> = all.chunks(8).map(<[u32]>::to_vec).collect();
        (0..200).map(|at| jobs[at / 3 * 7 % jobs.len()].clone()).collect()
    }

    #[divan::bench(sample_count = 4000, args = [(PolicyName::LookAhead, 24), (PolicyName::LookAhead, 200), (PolicyName::Lru, 200)])]
    fn decision(bencher: Bencher, (policy, components): (PolicyName, u32)) {
        let (jobs, mut policy) = (jobs(components), policy.make());
        let mut candidates: Vec<u32> = (0..components).collect();
        let mut at = 0;
        bencher.bench_local(|| {
            // A job of eight stages, one decision each.
            let job = &jobs[at / 8 % jobs.len()];
            let next =
                [jobs[(at / 8 + 1) % jobs.len()].clone(), jobs[(at / 8 + 2) % jobs.len()].clone()];
            if at % 8 == 0 {
                policy.begin(job);
            }
            let outlook = Outlook { rest: job[at % 8..].to_vec(), next: next.to_vec() };
            policy.used(job[at % 8], 1 << 30, &outlook);
            policy.order(&mut candidates, &outlook);
            at += 1;
            candidates[0]
        });
    }

    /// The same by a planner, of areas that an arena asks it for.
    #[divan::bench(sample_count = 4000, args = [(PolicyName::LookAhead, 24), (PolicyName::LookAhead, 200), (PolicyName::Lru, 200)])]
    fn decision_of_a_planner(bencher: Bencher, (policy, components): (PolicyName, u32)) {
        let (planner, me) = (planner(policy), me());
        let keys = |job: Vec<u32>| job.iter().map(u32::to_string).collect::<Vec<_>>();
        let jobs: Vec<Vec<String>> = jobs(components).into_iter().map(keys).collect();
        let next = Arc::new(Next(Mutex::default()));
        planner.set_forecast(Some(next.clone()));
        for component in 0..components {
            planner.number(&component.to_string());
        }
        let area = |weights| Evictable { area: 0, weights, used_at: 0, in_use: weights == 0 };
        let mut areas: Vec<Evictable> = (0..components).map(area).collect();
        let (mut at, mut running) = (0, None);
        bencher.bench_local(|| {
            let job = &jobs[at / 8 % jobs.len()];
            if at % 8 == 0 {
                drop(running.take());
                let coming = [1, 2].map(|ahead| jobs[(at / 8 + ahead) % jobs.len()].clone().into());
                *next.0.lock().unwrap() = coming.to_vec();
                running = planner.begin(Some(job), &me).ok();
            }
            planner.used(planner.number(&job[at % 8]), 1 << 30, &me);
            planner.sort(&mut areas);
            at += 1;
            areas[0].weights
        });
    }

    /// That something is used which is in use.
    #[divan::bench]
    fn use_noted_again(bencher: Bencher) {
        let (planner, me) = (planner(PolicyName::LookAhead), me());
        planner.used(7, 1 << 30, &me);
        bencher.bench_local(|| planner.used(7, 1 << 30, &me));
    }

    fn planner(policy: PolicyName) -> Planner {
        Planner::new(Name::new(DeviceType::Virtual, 0).unwrap(), policy, None)
    }

    struct Next(Mutex<Vec<Needs>>);

    impl Forecast for Next {
        fn coming(&self, _device: Name, most: usize) -> Vec<Needs> {
            self.0.lock().unwrap().iter().take(most).cloned().collect()
        }
    }
}

/// A claim with so many jobs pending, of twenty users; a heap knows no users.
#[divan::bench_group]
mod claim {
    use std::collections::BinaryHeap;

    use coresident::queue::{JobQueue, Outcome, Settings, Spec};
    use divan::Bencher;

    use super::{Patience, me, virtual_devices};
    use coresident::device::VirtualSpec;

    /// The queue, which gets a job for each that is claimed.
    fn pending(count: usize) -> JobQueue<()> {
        let devices = virtual_devices(1, VirtualSpec::default()).unwrap();
        let settings = Settings { history: 0, ..Settings::default() };
        let queue = JobQueue::new(devices, settings).unwrap();
        for user in 0..20 {
            let spec = Spec::of(&format!("user {user}"), b"");
            queue.submit_all(vec![spec; count.div_ceil(20)]).unwrap();
        }
        queue
    }

    #[divan::bench(args = [10, 1000, 100_000])]
    fn coresident(bencher: Bencher, count: usize) {
        let (queue, me) = (pending(count), me());
        let device = queue.devices()[0].name();
        bencher.with_inputs(|| queue.submit(Spec::of("user 3", b"")).unwrap()).bench_local_refs(
            |_| {
                let claim = queue.claim(device, &me, &Patience::FOREVER).unwrap();
                claim.finish(Outcome::done(())).unwrap()
            },
        );
    }

    #[divan::bench(args = [10, 1000, 100_000])]
    fn binary_heap(bencher: Bencher, count: usize) {
        let mut heap: BinaryHeap<(u64, usize)> = (0..count).map(|number| (0, number)).collect();
        bencher.bench_local(|| {
            let first = heap.pop().unwrap();
            heap.push(first);
        });
    }
}
