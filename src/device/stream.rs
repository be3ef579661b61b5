//! Streams of a virtual device: a thread each, which does its work in order and late.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Name;
use super::memory::{Event, Fence, MemoryError, Stream};

/// The longest that a stream with jitter waits before it does something.
const LATE: u64 = 300;

/// What a stream is told to do.
pub(super) enum Order {
    /// To run this.
    Work(Box<dyn FnOnce() -> Result<(), MemoryError> + Send>),
    /// To go on only after this.
    Wait(Event),
    /// To let this pass.
    Pass(Arc<Passing>),
}

/// All streams of a device.
pub(super) struct Streams {
    device: Name,
    jitter: Option<u64>,
    /// By the stream's number. A thread ends when its sender is dropped.
    queues: Mutex<HashMap<usize, Sender<Order>>>,
}

impl Streams {
    pub(super) fn new(device: Name, jitter: Option<u64>) -> Self {
        Self { device, jitter, queues: Mutex::default() }
    }

    pub(super) fn open(&self) -> Stream {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queues.len() + 1;
        let (sender, orders) = channel();
        let mut late = self.jitter.map(|seed| Lateness(seed.wrapping_add(number as u64) | 1));
        let builder = thread::Builder::new().name(format!("{} stream {number}", self.device));
        let started = builder.spawn(move || {
            // What a stream has done to itself, its later work hears of, as on a GPU.
            let mut broken = None;
            for order in orders {
                late.iter_mut().for_each(Lateness::pass);
                obey(order, &mut broken);
            }
        });
        // Without a thread its orders are refused, one by one.
        if started.is_ok() {
            queues.insert(number, sender);
        }
        Stream::Device(number)
    }

    /// Gives a stream something to do. The host has done it when this returns.
    pub(super) fn submit(&self, stream: Stream, order: Order) {
        let order = match stream {
            Stream::Host => Some(order),
            Stream::Device(number) => {
                let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
                match queues.get(&number) {
                    Some(queue) => queue.send(order).err().map(|refused| refused.0),
                    None => Some(order),
                }
            }
        };
        if let Some(order) = order {
            obey(order, &mut None);
        }
    }

    pub(super) fn record(&self, stream: Stream) -> Event {
        let passing = Arc::new(Passing::default());
        self.submit(stream, Order::Pass(passing.clone()));
        passing
    }
}

fn obey(order: Order, broken: &mut Option<MemoryError>) {
    let outcome = match order {
        Order::Work(_) if broken.is_some() => Ok(()),
        Order::Work(work) => work(),
        Order::Wait(event) => event.wait(None).map(drop),
        Order::Pass(passing) => {
            passing.pass(broken.clone().map_or(Ok(()), Err));
            Ok(())
        }
    };
    if let Err(error) = outcome {
        broken.get_or_insert(error);
    }
}

/// A fence of a virtual device.
#[derive(Default)]
pub(super) struct Passing {
    /// What came of it, and when.
    passed: Mutex<Option<(Result<(), MemoryError>, Instant)>>,
    changed: Condvar,
}

impl Passing {
    fn pass(&self, outcome: Result<(), MemoryError>) {
        let passed = Some((outcome, Instant::now()));
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) = passed;
        self.changed.notify_all();
    }
}

impl Fence for Passing {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        passed.map_or(Ok(false), |(outcome, _)| outcome.map(|()| true))
    }

    fn passed_at(&self) -> Option<Instant> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.as_ref().map(|(_, when)| *when)
    }

    fn wait(&self, until: Option<Instant>) -> Result<bool, MemoryError> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some((outcome, _)) = &*passed {
                return outcome.clone().map(|()| true);
            }
            let Some(until) = until else {
                passed = self.changed.wait(passed).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let waited = self.changed.wait_timeout(passed, left);
            passed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Random delays: xorshift, so that a seed gives the same ones again.
struct Lateness(u64);

impl Lateness {
    fn pass(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // Half of the time at once, so that streams overtake each other.
        let late = self.0 % (2 * LATE);
        if late > LATE {
            thread::sleep(Duration::from_micros(late - LATE));
        }
    }
}
