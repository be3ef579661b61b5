//! Cancelling, waking, and cycles of waits through several primitives.

use coresident::device::{VirtualSpec, virtual_devices};
use coresident::load_lock::{LoadLock, LockError, LockGuard, Mode, Shared as Lock};
use coresident::pool::{DevicePool, Lease, PoolError};
use coresident::wait::{
    Asked, CancelToken, Kind, Owner, Parker, Patience, Pending, WaitError, Wake,
};
use coresident::worker::Lane;
use loom::thread;

use crate::owner;

/// A pool of `count` devices, of which each owner given holds one.
fn pool<const HELD: usize>(count: u64, holders: [&Owner; HELD]) -> (DevicePool, [Lease; HELD]) {
    let pool = DevicePool::new(virtual_devices(count, VirtualSpec::default()).unwrap()).unwrap();
    let leases = holders.map(|holder| pool.try_lease(None, holder).unwrap().unwrap());
    (pool, leases)
}

/// A lock that `writer` holds.
fn lock(writer: &Owner) -> (LoadLock, LockGuard) {
    let lock = LoadLock::new();
    let guard = lock.try_acquire(Mode::Write, writer).unwrap().unwrap();
    (lock, guard)
}

/// A place in the lock's line, known to the graph.
fn watch(lock: &LoadLock, mode: Mode, owner: &Owner) -> Pending<Lock> {
    let Asked::Waiting(mut pending) = lock.ask(mode, owner, Parker::new()).unwrap() else {
        panic!("the lock is free")
    };
    pending.watch().unwrap();
    pending
}

/// A task of the event loop on the thread with this number.
fn task(thread: u64) -> Owner {
    Owner::with_thread(Kind::Task, thread, thread.to_string())
}

pub(crate) fn a_wake_before_the_sleep_is_not_lost() {
    let parker = Parker::new();
    let waker = parker.clone();
    let waking = thread::spawn(move || waker.wake());
    parker.park(None);
    waking.join().unwrap();
}

pub(crate) fn a_cancel_wakes_who_waits() {
    let (pool, [held]) = pool(1, [&owner(0)]);
    let token = CancelToken::new();
    let waiter = thread::spawn({
        let token = token.clone();
        move || pool.lease(None, &owner(1), &Patience::FOREVER.or_cancelled(&token)).err()
    });
    assert!(token.cancel(None));
    let refusal = waiter.join().unwrap();
    assert!(matches!(refusal, Some(PoolError::Wait(WaitError::Cancelled { .. }))));
    assert!(held.is_live());
}

pub(crate) fn a_cycle_of_waits_is_found_by_exactly_one() {
    let (here, there) = (owner(0), owner(1));
    let (pool, [lease]) = pool(1, [&here]);
    let (lock, write) = lock(&there);
    let other = thread::spawn(move || {
        let found = match pool.lease(None, &there, &Patience::FOREVER) {
            Ok(_) => false,
            Err(PoolError::Wait(WaitError::Deadlock(_))) => true,
            Err(error) => panic!("{error}"),
        };
        drop(write);
        found
    });
    let found = match lock.acquire(Mode::Write, &here, &Patience::FOREVER) {
        Ok(_) => false,
        Err(LockError::Wait(WaitError::Deadlock(_))) => true,
        Err(error) => panic!("{error}"),
    };
    drop(lease);
    assert!(found ^ other.join().unwrap());
}

pub(crate) fn a_wait_that_can_end_is_never_refused() {
    let (here, there) = (owner(0), owner(1));
    let (pool, [lease]) = pool(1, [&here]);
    let (lock, write) = lock(&there);
    let other = thread::spawn(move || {
        drop(pool.lease(None, &there, &Patience::FOREVER).unwrap());
        drop(write);
    });
    drop(lease);
    drop(lock.acquire(Mode::Write, &here, &Patience::FOREVER).unwrap());
    other.join().unwrap();
}

pub(crate) fn a_task_that_waits_for_its_own_worker_is_refused() {
    let lane = Lane::<(), ()>::new("virtual:0");
    let worker = owner(1);
    lane.serve(worker.clone());
    lane.push(()).unwrap();
    let later = lane.push(()).unwrap().ticket;
    let running = thread::spawn({
        let ticket = lane.take().unwrap();
        move || {
            assert!(ticket.start().is_some());
            let parker = Parker::new();
            later.ask(&worker, parker.clone()).wait(&parker, &Patience::FOREVER)
        }
    });
    lane.drain();
    assert!(matches!(running.join().unwrap(), Err(WaitError::Deadlock(_))));
}

pub(crate) fn waiting_for_any_device_ends_with_the_first() {
    let (here, there) = (owner(0), owner(1));
    let (pool, [lease, spare]) = pool(2, [&here, &owner(2)]);
    let (lock, write) = lock(&there);
    let other = thread::spawn(move || {
        drop(pool.lease(None, &there, &Patience::FOREVER).unwrap());
        drop(write);
    });
    let releasing = thread::spawn(move || drop(spare));
    drop(lock.acquire(Mode::Write, &here, &Patience::FOREVER).unwrap());
    drop(lease);
    other.join().unwrap();
    releasing.join().unwrap();
}

pub(crate) fn what_was_handed_over_is_in_no_cycle() {
    let here = owner(0);
    let (pool, [given]) = pool(1, [&here]);
    given.hand_over();
    let receiver = thread::spawn(move || drop(given));
    drop(pool.lease(None, &here, &Patience::FOREVER).unwrap());
    receiver.join().unwrap();
}

pub(crate) fn a_writer_waits_for_every_reader_that_goes_before_it() {
    let waiting = owner(1);
    let (pool, [_lease]) = pool(1, [&waiting]);
    let (lock, _write) = lock(&owner(0));
    let _writer = watch(&lock, Mode::Write, &waiting);
    // It comes later and goes first, but cannot leave while its thread waits for the writer.
    let _reader = watch(&lock, Mode::Read, &task(2));
    let refusal = pool.lease(None, &task(2), &Patience::FOREVER).err();
    assert!(matches!(refusal, Some(PoolError::Wait(WaitError::Deadlock(_)))));
}

pub(crate) fn a_reader_waits_for_no_writer_that_goes_after_it() {
    let reading = owner(1);
    let (pool, [lease]) = pool(1, [&reading]);
    let (lock, write) = lock(&owner(0));
    let _writer = watch(&lock, Mode::Write, &task(2));
    let mut reader = watch(&lock, Mode::Read, &reading);
    // It blocks the writer's thread, and the reader, who goes before the writer, will end that.
    let blocking = thread::spawn(move || pool.lease(None, &task(2), &Patience::FOREVER).map(drop));
    drop(write);
    drop(reader.poll());
    drop(lease);
    blocking.join().unwrap().unwrap();
}

pub(crate) fn a_look_at_the_graph_sees_no_line_change_its_order() {
    let (lock, reading) = {
        let lock = LoadLock::new();
        let guard = lock.try_acquire(Mode::Read, &owner(0)).unwrap().unwrap();
        (lock, guard)
    };
    let ask = |mode, number| {
        let parker = Parker::new();
        (lock.ask(mode, &owner(number), parker.clone()).unwrap(), parker)
    };
    // The reader goes before the second writer until the first gives up, and after it from then on.
    let (giving_up, _) = ask(Mode::Write, 1);
    let waiting = [ask(Mode::Write, 2), ask(Mode::Read, 3)].map(|(asked, parker)| {
        thread::spawn(move || drop(asked.wait(&parker, &Patience::FOREVER).unwrap()))
    });
    drop(giving_up);
    drop(reading);
    for waiting in waiting {
        waiting.join().unwrap();
    }
}

pub(crate) fn a_refused_wait_stops_nobody() {
    let (here, there) = (owner(0), owner(1));
    let (pool, [lease]) = pool(1, [&here]);
    let (lock, write) = lock(&there);
    let bystander = thread::spawn({
        let pool = pool.clone();
        move || drop(pool.lease(None, &owner(2), &Patience::FOREVER).unwrap())
    });
    let other = thread::spawn(move || {
        drop(pool.lease(None, &there, &Patience::FOREVER));
        drop(write);
    });
    drop(lock.acquire(Mode::Write, &here, &Patience::FOREVER));
    drop(lease);
    bystander.join().unwrap();
    other.join().unwrap();
}
