//! What the tests of the core share: threads that may hang, owners that are only imagined, and chance.

#![allow(dead_code, reason = "not every suite needs all of it")]

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use coresident::wait::{Asked, Kind, Owner, Parker, Patience, Pending, Queue};

/// Longer than anything here takes on a busy machine; what lasts longer hangs.
pub(crate) const AGES: Duration = Duration::from_secs(30);

/// A thread that hands back what its function returns.
pub(crate) struct Spawned<T> {
    outcome: Receiver<T>,
    thread: JoinHandle<()>,
}

pub(crate) fn spawn<T: Send + 'static>(
    function: impl FnOnce() -> T + Send + 'static,
) -> Spawned<T> {
    let (sender, outcome) = channel();
    let thread = thread::spawn(move || sender.send(function()).unwrap());
    Spawned { outcome, thread }
}

impl<T> Spawned<T> {
    /// What the function returned, once the thread is gone with all its thread-locals.
    pub(crate) fn join(self) -> T {
        let outcome = self.outcome.recv_timeout(AGES);
        let outcome = outcome.expect("the thread failed or hangs");
        self.thread.join().unwrap();
        outcome
    }
}

/// Runs a function once per worker, all at the same time, and waits for all of them.
pub(crate) fn at_once<T: Send + 'static>(
    workers: usize,
    function: impl Fn(usize) -> T + Send + Sync + Clone + 'static,
) -> Vec<T> {
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(workers));
    let spawned: Vec<_> = (0..workers)
        .map(|worker| {
            let (barrier, function) = (barrier.clone(), function.clone());
            spawn(move || {
                barrier.wait();
                function(worker)
            })
        })
        .collect();
    spawned.into_iter().map(Spawned::join).collect()
}

/// Returns once the condition holds; fails when it never does.
pub(crate) fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < AGES, "the expected state never came");
        thread::yield_now();
    }
}

/// The plain code of the calling thread.
pub(crate) fn this_thread(name: &str) -> Owner {
    Owner::thread(|| name.to_owned())
}

/// A thread number that no real thread has.
pub(crate) fn imagined_thread() -> u64 {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    u64::MAX - TAKEN.fetch_add(1, Ordering::Relaxed)
}

/// The plain code of a thread of its own, which is only imagined.
pub(crate) fn somebody(name: &str) -> Owner {
    Owner::with_thread(Kind::Thread, imagined_thread(), name.to_owned())
}

/// The place in line of one who cannot be served at once.
pub(crate) fn in_line<Q: Queue>(asked: Asked<Q>) -> Pending<Q> {
    match asked {
        Asked::Waiting(pending) => pending,
        Asked::Granted(_) => panic!("it was granted at once"),
    }
}

/// Waits for the turn on a thread of its own.
pub(crate) fn wait_apart<Q: Queue<Guard: Send, Error: Send>>(
    pending: Pending<Q>,
    parker: std::sync::Arc<Parker>,
) -> Spawned<Result<Q::Guard, Q::Error>> {
    spawn(move || pending.wait(&parker, &Patience::FOREVER))
}

/// Why it was refused, as people read it.
pub(crate) fn refusal<T, E: Display>(outcome: Result<T, E>) -> String {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}

/// Knuth's MMIX generator: the same numbers for the same seed, on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such a generator repeat soon.
        (self.0 >> 32) ^ (self.0 << 32)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// A place among so many.
    pub(crate) fn place(&mut self, of: usize) -> usize {
        usize::try_from(self.below(u64::try_from(of).unwrap())).unwrap()
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.place(all.len())]
    }
}
