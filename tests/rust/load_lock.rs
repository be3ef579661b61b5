//! The readers-writer lock: who is inside together, and whose turn is next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coresident::load_lock::{LoadLock, LockError, LockGuard, Mode, Shared};
use coresident::wait::{Kind, Owner, Parker, Patience, Pending, WaitError};

use super::helpers::{
    Random, at_once, imagined_thread, in_line, refusal, somebody, spawn, this_thread,
};

/// Enters a lock that is open.
fn enter(lock: &LoadLock, mode: Mode, owner: &Owner) -> LockGuard {
    lock.try_acquire(mode, owner).unwrap().expect("the lock is not open")
}

fn is_open(lock: &LoadLock, mode: Mode) -> bool {
    lock.try_acquire(mode, &somebody("passer-by")).unwrap().is_some()
}

/// Joins the line at a lock that is not open.
fn join(lock: &LoadLock, mode: Mode, name: &str) -> Pending<Shared> {
    in_line(lock.ask(mode, &somebody(name), Parker::new()).unwrap())
}

fn got(pending: &mut Pending<Shared>) -> Option<LockGuard> {
    pending.poll().map(|outcome| outcome.unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn readers_are_inside_together_and_a_writer_alone() {
    let lock = LoadLock::new();
    let readers = ["a", "b"].map(|name| enter(&lock, Mode::Read, &somebody(name)));
    assert!(is_open(&lock, Mode::Read) && !is_open(&lock, Mode::Write));
    drop(readers);
    let writer = enter(&lock, Mode::Write, &somebody("writer"));
    assert!(!is_open(&lock, Mode::Read) && !is_open(&lock, Mode::Write));
    drop(writer);
    assert!(is_open(&lock, Mode::Write));
}

#[test]
fn new_readers_wait_behind_a_waiting_writer() {
    let lock = LoadLock::new();
    let reader = enter(&lock, Mode::Read, &somebody("reader"));
    let mut writer = join(&lock, Mode::Write, "writer");
    let mut late = join(&lock, Mode::Read, "late reader");
    drop(reader);
    assert!(got(&mut late).is_none());
    drop(got(&mut writer).unwrap());
    assert!(got(&mut late).is_some());
}

#[test]
fn after_a_writer_all_readers_that_wait_go_before_the_next_writer() {
    let lock = LoadLock::new();
    let writer = enter(&lock, Mode::Write, &somebody("first writer"));
    let mut early = join(&lock, Mode::Read, "early reader");
    let mut next = join(&lock, Mode::Write, "next writer");
    let mut late = join(&lock, Mode::Read, "late reader");
    drop(writer);
    let readers = [got(&mut early).unwrap(), got(&mut late).unwrap()];
    assert!(got(&mut next).is_none());
    drop(readers);
    assert!(got(&mut next).is_some());
}

#[test]
fn writers_go_in_order_of_arrival() {
    let lock = LoadLock::new();
    let mut inside = Some(enter(&lock, Mode::Write, &somebody("holder")));
    let mut line: Vec<_> = (0..5).map(|at| join(&lock, Mode::Write, &at.to_string())).collect();
    for place in 0..line.len() {
        drop(inside.take());
        assert!(line[place + 1..].iter_mut().all(|later| got(later).is_none()));
        inside = got(&mut line[place]);
        assert!(inside.is_some());
    }
}

#[test]
fn an_owner_that_is_inside_may_read_again_even_while_a_writer_waits() {
    let (lock, me) = (LoadLock::new(), somebody("me"));
    let outer = enter(&lock, Mode::Read, &me);
    let mut writer = join(&lock, Mode::Write, "writer");
    assert!(!is_open(&lock, Mode::Read));
    let inner = enter(&lock, Mode::Read, &me);
    drop(outer);
    assert!(got(&mut writer).is_none());
    drop(inner);
    assert!(got(&mut writer).is_some());
    let write = enter(&lock, Mode::Write, &me);
    let nested = enter(&lock, Mode::Read, &me);
    drop(write);
    assert!(is_open(&lock, Mode::Read) && !is_open(&lock, Mode::Write));
    drop(nested);
}

#[test]
fn a_task_is_inside_what_the_code_below_its_event_loop_holds() {
    let (lock, thread) = (LoadLock::new(), imagined_thread());
    let below = Owner::with_thread(Kind::Thread, thread, "main".to_owned());
    let task = Owner::with_thread(Kind::Task, thread, "Task-1".to_owned());
    let held = enter(&lock, Mode::Write, &below);
    drop(enter(&lock, Mode::Read, &task));
    drop(held);
    let _of_task = enter(&lock, Mode::Write, &task);
    assert!(lock.try_acquire(Mode::Read, &below).unwrap().is_none(), "not the other way round");
}

#[test]
fn a_guard_handed_over_makes_its_owner_a_stranger() {
    let (lock, me) = (LoadLock::new(), somebody("me"));
    let guard = enter(&lock, Mode::Write, &me);
    guard.hand_over();
    assert!(guard.is_live() && !guard.is_with_owner());
    assert!(lock.try_acquire(Mode::Read, &me).unwrap().is_none());
    guard.adopt(&me);
    assert!(lock.try_acquire(Mode::Read, &me).unwrap().is_some());
}

#[test]
fn writing_while_one_is_inside_is_refused_at_once() {
    let me = somebody("me");
    for inside in [Mode::Read, Mode::Write] {
        let lock = LoadLock::new();
        let _held = enter(&lock, inside, &me);
        assert_eq!(
            refusal(lock.acquire(Mode::Write, &me, &Patience::FOREVER)),
            "this wait would never end: thread 'me' waits for the load lock to write, which it \
             holds itself"
        );
        assert!(lock.status().unwrap().waiting.is_empty());
    }
}

#[test]
fn whoever_gives_up_leaves_the_line_as_if_never_there() {
    let lock = LoadLock::new();
    let reader = enter(&lock, Mode::Read, &somebody("reader"));
    let gives_up = join(&lock, Mode::Write, "gives up");
    let mut behind = join(&lock, Mode::Read, "behind");
    drop(gives_up);
    let behind = got(&mut behind).expect("no writer waits any more");
    let too_late = join(&lock, Mode::Write, "gives up after its turn");
    let mut next = join(&lock, Mode::Write, "next");
    drop((reader, behind));
    assert!(got(&mut next).is_none());
    drop(too_late);
    assert!(got(&mut next).is_some());
}

#[test]
fn a_guard_releases_once_and_from_any_thread() {
    let lock = LoadLock::new();
    let first = Arc::new(enter(&lock, Mode::Write, &somebody("first")));
    let elsewhere = first.clone();
    assert!(spawn(move || elsewhere.release()).join());
    let second = enter(&lock, Mode::Write, &somebody("second"));
    assert!(!first.release() && !first.is_live());
    drop(first);
    assert!(second.is_live() && !is_open(&lock, Mode::Read));
}

#[test]
fn a_timeout_says_what_was_wanted_and_who_is_in_the_way() {
    let lock = LoadLock::new();
    let reader = enter(&lock, Mode::Read, &somebody("reader"));
    let at_once = Patience::at_most(Duration::ZERO);
    let error = refusal(lock.acquire(Mode::Write, &somebody("me"), &at_once));
    let wanted = "timed out after 0 s waiting for the load lock to write, held by thread 'reader' \
                  to read for 0";
    assert!(error.starts_with(wanted), "{error}");
    let _writer = join(&lock, Mode::Write, "writer");
    assert_eq!(
        refusal(lock.acquire(Mode::Read, &somebody("me"), &at_once)),
        "timed out after 0 s waiting for the load lock to read, for which a writer waits already"
    );
    drop(reader);
}

#[test]
fn a_status_tells_who_is_inside_and_who_waits() {
    let lock = LoadLock::new();
    let _reader = enter(&lock, Mode::Read, &somebody("reader"));
    let _waiting = [join(&lock, Mode::Write, "writer"), join(&lock, Mode::Read, "late")];
    let status = lock.status().unwrap();
    let told = |users: &[coresident::load_lock::LockUser]| -> Vec<String> {
        users.iter().map(|user| format!("{} {}", user.owner, user.mode)).collect()
    };
    assert_eq!(told(&status.holders), ["thread 'reader' read"]);
    assert_eq!(told(&status.waiting), ["thread 'writer' write", "thread 'late' read"]);
}

/// Who is inside: a writer counts for more than all readers together.
#[derive(Default)]
struct Inside(AtomicU64);

const WRITER: u64 = 1 << 32;

impl Inside {
    fn stay(&self, mode: Mode, random: &mut Random) {
        let weight = if mode == Mode::Write { WRITER } else { 1 };
        let before = self.0.fetch_add(weight, Ordering::Relaxed);
        match mode {
            Mode::Write => assert_eq!(before, 0, "a writer is not alone"),
            Mode::Read => assert!(before < WRITER, "a reader is beside a writer"),
        }
        for _ in 0..random.below(64) {
            std::hint::spin_loop();
        }
        if random.below(4) == 0 {
            std::thread::yield_now();
        }
        self.0.fetch_sub(weight, Ordering::Relaxed);
    }
}

#[test]
fn a_writer_is_alone_whatever_eight_threads_do() {
    let (lock, inside) = (LoadLock::new(), Arc::new(Inside::default()));
    let shared = lock.clone();
    at_once(8, move |worker| {
        let me = this_thread(&format!("worker {worker}"));
        let mut random = Random(worker as u64);
        for _ in 0..4_000 {
            let mode = if random.below(4) == 0 { Mode::Write } else { Mode::Read };
            let guard = match random.below(6) {
                0 => shared.try_acquire(mode, &me).unwrap(),
                1 => {
                    let most = Duration::from_micros(random.below(50));
                    match shared.acquire(mode, &me, &Patience::at_most(most)) {
                        Err(LockError::Wait(WaitError::Timeout { .. })) => None,
                        outcome => Some(outcome.unwrap_or_else(|error| panic!("{error}"))),
                    }
                }
                2 => {
                    drop(shared.ask(mode, &me, Parker::new()).unwrap());
                    None
                }
                _ => {
                    let guard = shared.acquire(mode, &me, &Patience::FOREVER);
                    Some(guard.unwrap_or_else(|error| panic!("{error}")))
                }
            };
            if guard.is_some() {
                inside.stay(mode, &mut random);
            }
            if guard.is_some() && random.below(4) == 0 {
                // Nested, whoever waits; a writer's own read does not count as beside it.
                drop(enter(&shared, Mode::Read, &me));
            }
        }
    });
    let status = lock.status().unwrap();
    assert!(status.holders.is_empty() && status.waiting.is_empty());
    assert!(is_open(&lock, Mode::Write));
}
