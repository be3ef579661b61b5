//! `LoadLock`.

use std::sync::{Arc, Mutex};

use coresident::load_lock::{LoadLock, LockGuard, Mode};
use coresident::wait::{CancelToken, Parker, Patience, thread_ended};
use loom::cell::UnsafeCell;
use loom::thread;

use crate::owner;

/// A lock that the owner on thread 0 holds.
fn held(mode: Mode) -> (LoadLock, LockGuard) {
    let lock = LoadLock::new();
    let guard = lock.try_acquire(mode, &owner(0)).unwrap().unwrap();
    (lock, guard)
}

/// Whether nobody is inside or waits.
fn is_idle(lock: &LoadLock) -> bool {
    let status = lock.status().unwrap();
    status.holders.is_empty() && status.waiting.is_empty()
}

/// Those who have been inside, in order.
type Visits = Arc<Mutex<Vec<Mode>>>;

/// Goes in, says so, and leaves.
fn visit(lock: &LoadLock, mode: Mode, number: u64, visits: &Visits) {
    let guard = lock.acquire(mode, &owner(number), &Patience::FOREVER).unwrap();
    visits.lock().unwrap().push(mode);
    drop(guard);
}

pub(crate) fn a_writer_is_alone() {
    let lock = LoadLock::new();
    // loom fails if one writes it while another reads or writes.
    let memory = Arc::new(UnsafeCell::new(()));
    let writer = |number| {
        let (lock, memory) = (lock.clone(), memory.clone());
        move || {
            let guard = lock.acquire(Mode::Write, &owner(number), &Patience::FOREVER).unwrap();
            memory.with_mut(|_| ());
            drop(guard);
        }
    };
    let writers = [thread::spawn(writer(1)), thread::spawn(writer(2))];
    let guard = lock.acquire(Mode::Read, &owner(0), &Patience::FOREVER).unwrap();
    memory.with(|_| ());
    drop(guard);
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(is_idle(&lock));
}

pub(crate) fn new_readers_wait_behind_a_waiting_writer() {
    let (lock, guard) = held(Mode::Read);
    let visits = Visits::default();
    let parker = Parker::new();
    let writer = lock.ask(Mode::Write, &owner(1), parker.clone()).unwrap();
    let reader = thread::spawn({
        let (lock, visits) = (lock.clone(), visits.clone());
        move || visit(&lock, Mode::Read, 2, &visits)
    });
    drop(guard);
    let guard = writer.wait(&parker, &Patience::FOREVER).unwrap();
    visits.lock().unwrap().push(Mode::Write);
    drop(guard);
    reader.join().unwrap();
    assert_eq!(*visits.lock().unwrap(), [Mode::Write, Mode::Read]);
}

pub(crate) fn readers_that_wait_go_after_one_writer() {
    let (lock, guard) = held(Mode::Write);
    let visits = Visits::default();
    let visitors = [Mode::Write, Mode::Read].map(|mode| {
        let parker = Parker::new();
        let asked = lock.ask(mode, &owner(1 + mode as u64), parker.clone()).unwrap();
        let visits = visits.clone();
        thread::spawn(move || {
            let guard = asked.wait(&parker, &Patience::FOREVER).unwrap();
            visits.lock().unwrap().push(mode);
            drop(guard);
        })
    });
    drop(guard);
    for visitor in visitors {
        visitor.join().unwrap();
    }
    assert_eq!(*visits.lock().unwrap(), [Mode::Read, Mode::Write]);
}

pub(crate) fn a_writer_that_gives_up_lets_readers_go() {
    let (lock, guard) = held(Mode::Read);
    let token = CancelToken::new();
    let writer = thread::spawn({
        let (lock, token) = (lock.clone(), token.clone());
        move || {
            let patience = Patience::FOREVER.or_cancelled(&token);
            lock.acquire(Mode::Write, &owner(1), &patience).is_err()
        }
    });
    let reader = thread::spawn({
        let lock = lock.clone();
        move || drop(lock.acquire(Mode::Read, &owner(2), &Patience::FOREVER).unwrap())
    });
    token.cancel(None);
    assert!(writer.join().unwrap());
    reader.join().unwrap();
    assert!(guard.is_live());
}

pub(crate) fn a_writer_that_gives_up_lets_readers_go_before_later_writers() {
    let (lock, guard) = held(Mode::Read);
    let ask = |mode, number| {
        let parker = Parker::new();
        (lock.ask(mode, &owner(number), parker.clone()).unwrap(), parker)
    };
    let (giving_up, _) = ask(Mode::Write, 1);
    let (asked, parker) = ask(Mode::Read, 2);
    let later = ask(Mode::Write, 3);
    let reader = thread::spawn(move || drop(asked.wait(&parker, &Patience::FOREVER).unwrap()));
    drop(giving_up);
    reader.join().unwrap();
    drop(later);
    assert!(guard.is_live());
}

pub(crate) fn a_cancel_racing_a_turn_leaves_nothing_behind() {
    let (lock, guard) = held(Mode::Write);
    let token = CancelToken::new();
    let writer = thread::spawn({
        let (lock, token) = (lock.clone(), token.clone());
        move || {
            let patience = Patience::FOREVER.or_cancelled(&token);
            drop(lock.acquire(Mode::Write, &owner(1), &patience));
        }
    });
    let canceller = thread::spawn(move || token.cancel(None));
    drop(guard);
    writer.join().unwrap();
    canceller.join().unwrap();
    assert!(is_idle(&lock));
}

pub(crate) fn a_guard_released_twice_never_releases_anothers() {
    let (lock, first) = held(Mode::Write);
    let ending = thread::spawn(|| thread_ended(0));
    let second = lock.acquire(Mode::Write, &owner(1), &Patience::FOREVER).unwrap();
    first.release();
    ending.join().unwrap();
    assert!(!first.is_live() && second.is_live());
}
