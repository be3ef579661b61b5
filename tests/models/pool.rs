//! `DevicePool`.

use std::sync::{Arc, Mutex};

use coresident::device::{Device, VirtualSpec, virtual_devices};
use coresident::pool::{DevicePool, Lease, PoolError, Wish};
use coresident::wait::{CancelToken, Parker, Patience, thread_ended};
use loom::cell::UnsafeCell;
use loom::thread;

use crate::owner;

fn devices(count: u64) -> Vec<Device> {
    virtual_devices(count, VirtualSpec::default()).unwrap()
}

/// A pool of `count` devices; the owner on thread 0 holds the first.
fn held(count: u64) -> (DevicePool, Lease) {
    let pool = DevicePool::new(devices(count)).unwrap();
    let lease = pool.try_lease(None, &owner(0)).unwrap().unwrap();
    (pool, lease)
}

/// Whether nobody holds the pool's device or waits for it.
fn is_idle(pool: &DevicePool) -> bool {
    let status = pool.status().unwrap();
    status.iter().all(|device| device.holder.is_none() && device.waiting.is_empty())
}

pub(crate) fn a_device_has_one_holder_at_a_time() {
    let (pool, lease) = held(1);
    // loom fails if two touch it and neither comes after the other.
    let memory = Arc::new(UnsafeCell::new(()));
    let waiter = thread::spawn({
        let (pool, memory) = (pool.clone(), memory.clone());
        move || {
            let lease = pool.lease(None, &owner(1), &Patience::FOREVER).unwrap();
            memory.with_mut(|_| ());
            drop(lease);
        }
    });
    let borrower = thread::spawn({
        let (pool, memory) = (pool.clone(), memory.clone());
        move || {
            if let Some(lease) = pool.borrow(&Wish::default(), &owner(2)).unwrap() {
                memory.with_mut(|_| ());
                drop(lease);
            }
        }
    });
    memory.with_mut(|_| ());
    drop(lease);
    waiter.join().unwrap();
    borrower.join().unwrap();
    assert!(is_idle(&pool));
}

pub(crate) fn waiters_are_served_in_order_of_arrival() {
    let (pool, lease) = held(1);
    let served = Arc::new(Mutex::new(Vec::new()));
    let waiters = [1, 2].map(|number| {
        let parker = Parker::new();
        let asked = pool.ask(None, &owner(number), parker.clone()).unwrap();
        let served = served.clone();
        thread::spawn(move || {
            let lease = asked.wait(&parker, &Patience::FOREVER).unwrap();
            served.lock().unwrap().push(number);
            drop(lease);
        })
    });
    drop(lease);
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert_eq!(*served.lock().unwrap(), [1, 2]);
}

pub(crate) fn a_borrow_never_overtakes_a_waiting_lease() {
    let (pool, lease) = held(1);
    let parker = Parker::new();
    let asked = pool.ask(None, &owner(1), parker.clone()).unwrap();
    let borrower = thread::spawn({
        let pool = pool.clone();
        move || pool.borrow(&Wish::default(), &owner(2)).unwrap().is_some()
    });
    drop(lease);
    let lease = asked.wait(&parker, &Patience::FOREVER).unwrap();
    assert!(!borrower.join().unwrap());
    drop(lease);
}

pub(crate) fn a_lease_released_twice_never_releases_anothers() {
    let (pool, first) = held(1);
    let first = Arc::new(first);
    let elsewhere = thread::spawn({
        let first = first.clone();
        move || first.release()
    });
    first.release();
    let second = pool.lease(None, &owner(1), &Patience::FOREVER).unwrap();
    elsewhere.join().unwrap();
    assert!(!first.is_live() && second.is_live());
}

pub(crate) fn a_cancel_racing_a_grant_leaves_nothing_behind() {
    let (pool, lease) = held(1);
    let token = CancelToken::new();
    let waiter = thread::spawn({
        let (pool, token) = (pool.clone(), token.clone());
        move || drop(pool.lease(None, &owner(1), &Patience::FOREVER.or_cancelled(&token)))
    });
    let canceller = thread::spawn(move || token.cancel(None));
    drop(lease);
    waiter.join().unwrap();
    canceller.join().unwrap();
    assert!(is_idle(&pool));
}

pub(crate) fn closing_a_pool_turns_away_whoever_waits() {
    let (pool, lease) = held(1);
    let waiter = thread::spawn({
        let pool = pool.clone();
        move || pool.lease(None, &owner(1), &Patience::FOREVER).err()
    });
    pool.close();
    assert!(matches!(waiter.join().unwrap(), Some(PoolError::Closed)));
    assert!(lease.is_live());
}

pub(crate) fn a_device_put_back_into_the_pool_keeps_its_holder() {
    let (pool, lease) = held(2);
    let memory = Arc::new(UnsafeCell::new(()));
    let changer = thread::spawn({
        let (pool, memory) = (pool.clone(), memory.clone());
        move || {
            let both = devices(2);
            pool.reconfigure(vec![both[1].clone()]).unwrap();
            pool.reconfigure(both.clone()).unwrap();
            if let Some(lease) = pool.try_lease(Some(both[0].name()), &owner(1)).unwrap() {
                memory.with_mut(|_| ());
                drop(lease);
            }
        }
    });
    memory.with_mut(|_| ());
    drop(lease);
    changer.join().unwrap();
    assert!(is_idle(&pool));
}

pub(crate) fn a_thread_that_ends_releases_all_but_what_it_handed_over() {
    let (pool, handed_over) = held(2);
    handed_over.hand_over();
    let forgotten = pool.try_lease(None, &owner(0)).unwrap().unwrap();
    let waiter = thread::spawn({
        let (pool, name) = (pool.clone(), forgotten.device().name());
        move || drop(pool.lease(Some(name), &owner(1), &Patience::FOREVER).unwrap())
    });
    thread_ended(0);
    waiter.join().unwrap();
    assert!(handed_over.is_live() && !forgotten.is_live());
}
