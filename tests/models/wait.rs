//! Cancelling, waking, and cycles of waits through several primitives.

use coresident::device::{VirtualSpec, virtual_devices};
use coresident::load_lock::{LoadLock, LockError, Mode};
use coresident::pool::{DevicePool, PoolError};
use coresident::wait::{CancelToken, Parker, Patience, WaitError, Wake};
use coresident::worker::Lane;
use loom::thread;

use crate::owner;

fn pool(devices: u64) -> DevicePool {
    DevicePool::new(virtual_devices(devices, VirtualSpec::default()).unwrap()).unwrap()
}

pub(crate) fn a_wake_before_the_sleep_is_not_lost() {
    let parker = Parker::new();
    let waker = parker.clone();
    let waking = thread::spawn(move || waker.wake());
    parker.park(None);
    waking.join().unwrap();
}

pub(crate) fn a_cancel_wakes_who_waits() {
    let pool = pool(1);
    let held = pool.try_lease(None, &owner(0)).unwrap().unwrap();
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
    let (pool, lock) = (pool(1), LoadLock::new());
    let lease = pool.try_lease(None, &owner(0)).unwrap().unwrap();
    let write = lock.try_acquire(Mode::Write, &owner(1)).unwrap().unwrap();
    let other = thread::spawn(move || {
        let found = match pool.lease(None, &owner(1), &Patience::FOREVER) {
            Ok(_) => false,
            Err(PoolError::Wait(WaitError::Deadlock(_))) => true,
            Err(error) => panic!("{error}"),
        };
        drop(write);
        found
    });
    let found = match lock.acquire(Mode::Write, &owner(0), &Patience::FOREVER) {
        Ok(_) => false,
        Err(LockError::Wait(WaitError::Deadlock(_))) => true,
        Err(error) => panic!("{error}"),
    };
    drop(lease);
    assert!(found ^ other.join().unwrap());
}

pub(crate) fn a_task_that_waits_for_its_own_worker_is_refused() {
    let lane = Lane::<(), ()>::new("virtual:0");
    let worker = owner(1);
    lane.serve(worker.clone());
    lane.push(()).unwrap();
    let later = lane.push(()).unwrap().ticket;
    let running = thread::spawn(move || {
        assert!(lane.take().unwrap().start().is_some());
        let parker = Parker::new();
        later.ask(&worker, parker.clone()).wait(&parker, &Patience::FOREVER)
    });
    assert!(matches!(running.join().unwrap(), Err(WaitError::Deadlock(_))));
}

pub(crate) fn waiting_for_any_device_ends_with_the_first() {
    let (pool, lock) = (pool(2), LoadLock::new());
    let lease = pool.try_lease(None, &owner(0)).unwrap().unwrap();
    let spare = pool.try_lease(None, &owner(2)).unwrap().unwrap();
    let write = lock.try_acquire(Mode::Write, &owner(1)).unwrap().unwrap();
    let other = thread::spawn(move || {
        drop(pool.lease(None, &owner(1), &Patience::FOREVER).unwrap());
        drop(write);
    });
    let releasing = thread::spawn(move || drop(spare));
    drop(lock.acquire(Mode::Write, &owner(0), &Patience::FOREVER).unwrap());
    drop(lease);
    other.join().unwrap();
    releasing.join().unwrap();
}

pub(crate) fn what_was_handed_over_is_in_no_cycle() {
    let pool = pool(1);
    let given = pool.try_lease(None, &owner(0)).unwrap().unwrap();
    given.hand_over();
    let receiver = thread::spawn(move || drop(given));
    drop(pool.lease(None, &owner(0), &Patience::FOREVER).unwrap());
    receiver.join().unwrap();
}
