//! The thread that has copies made, so that whoever wants them need not wait while they are read: it
//! gives the stream for copies what it is to do, in the order in which it was asked.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::direct::Direct;
use super::staging::Ring;
use super::stream::{Opened, Recorded};
use crate::device::{Charge, Event, Fence, MemoryError, Piece, Pinning};
use crate::wait::exiting;

/// How long the thread sleeps before it looks whether the device has read what it still reads.
const LOOK: Duration = Duration::from_millis(5);

/// How often it looks whether copies are over of which somebody wants to know when they were.
const WATCH: Duration = Duration::from_millis(1);

/// What the stream for copies is to do.
enum Order {
    Copy {
        after: Vec<Event>,
        pieces: Vec<Piece>,
        how: Pinning,
        done: Arc<Promised>,
    },
    After(Event),
    Record(Arc<Promised>),
    /// Somebody pays for the buffers.
    Stage(Arc<Staged>, Charge),
    /// He does no more.
    Leave(Arc<Staged>),
}

/// By whom buffers are charged to something: each is another one.
struct Staged(Arc<Opened>);

/// Keeps the buffers until it is dropped.
struct Staging {
    staged: Arc<Staged>,
    orders: Sender<Order>,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.staged.0.primary.library.is_here() {
            // Without the thread they are gone.
            let _ = self.orders.send(Order::Leave(self.staged.clone()));
        }
    }
}

/// The stream for copies, and the thread that serves it.
pub(super) struct Uploads {
    device: Arc<Opened>,
    pub(super) stream: usize,
    orders: Sender<Order>,
}

impl Uploads {
    /// Begins a stream and its thread.
    pub(super) fn begin(device: &Arc<Opened>) -> Result<Self, MemoryError> {
        let stream = device.stream()?;
        let (orders, given) = channel();
        let serving = device.clone();
        let builder = thread::Builder::new().name(format!("{} copies", device.name));
        let started = builder.spawn(move || serve(&serving, stream, &given));
        started.map_err(|why| device.lost(format!("there can be no thread for copies: {why}")))?;
        Ok(Self { device: device.clone(), stream, orders })
    }

    /// Copies when all of `after` have passed. Returns what passes then, or tells what went wrong with
    /// this copy, whoever else copies.
    pub(super) fn copy(&self, after: &[Event], pieces: Vec<Piece>, how: Pinning) -> Event {
        let done = Arc::new(Promised::default());
        self.give(Order::Copy { after: after.to_vec(), pieces, how, done: done.clone() });
        done
    }

    /// Keeps `charge` for as long as there are buffers.
    pub(super) fn stage(&self, charge: Charge) -> Box<dyn Any + Send> {
        let staged = Arc::new(Staged(self.device.clone()));
        self.give(Order::Stage(staged.clone(), charge));
        Box::new(Staging { staged, orders: self.orders.clone() })
    }

    pub(super) fn after(&self, event: &Event) {
        self.give(Order::After(event.clone()));
    }

    pub(super) fn record(&self) -> Event {
        let promised = Arc::new(Promised::default());
        self.give(Order::Record(promised.clone()));
        promised
    }

    fn give(&self, order: Order) {
        let refused = self.orders.send(order).err();
        if let Some(SendError(Order::Record(done) | Order::Copy { done, .. })) = refused {
            done.keep(None, Some(self.device.lost("its thread for copies has ended".to_owned())));
        }
    }
}

/// What the thread has.
struct Serving {
    device: Arc<Opened>,
    stream: usize,
    pinned: Ring,
    pageable: Ring,
    direct: Direct,
    charges: Vec<(Arc<Staged>, Charge)>,
    /// Of buffers that could not be given back.
    kept: Vec<Charge>,
    /// What the stream could not be told to wait for: the next event tells it.
    wrong: Option<MemoryError>,
    /// Copies that are under way.
    watched: Vec<Arc<Promised>>,
}

fn serve(device: &Arc<Opened>, stream: usize, orders: &Receiver<Order>) {
    // With its buffers, and those who help to fill them.
    device.stay_near();
    let mut serving = Serving {
        device: device.clone(),
        stream,
        pinned: Ring::new(device.clone(), true),
        pageable: Ring::new(device.clone(), false),
        direct: Direct::new(device.clone()),
        charges: Vec::new(),
        kept: Vec::new(),
        wrong: None,
        watched: Vec::new(),
    };
    loop {
        let order = if !serving.watched.is_empty() {
            orders.recv_timeout(WATCH)
        } else if serving.direct.is_reading() {
            orders.recv_timeout(LOOK)
        } else {
            orders.recv().map_err(RecvTimeoutError::from)
        };
        if exiting() {
            break;
        }
        serving.watched.retain(|copy| copy.is_watched() && copy.is_under_way());
        match order {
            Ok(order) => serving.obey(order),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}

impl Serving {
    fn obey(&mut self, order: Order) {
        match order {
            Order::Copy { after, pieces, how, done } => {
                let outcome = self.copy(&after, pieces, how);
                self.keep(&done, outcome.err());
                self.watched.push(done);
            }
            Order::After(event) => {
                if let Err(error) = after(&self.device, self.stream, &event) {
                    self.wrong.get_or_insert(error);
                }
            }
            Order::Record(promised) => {
                let wrong = self.wrong.take();
                self.keep(&promised, wrong);
            }
            Order::Stage(staged, charge) => self.charges.push((staged, charge)),
            Order::Leave(staged) => self.leave(&staged),
        }
    }

    /// Keeps a promise: it passes when the stream comes to here.
    fn keep(&self, promised: &Promised, wrong: Option<MemoryError>) {
        match record(&self.device, self.stream) {
            Ok(recorded) => promised.keep(Some(recorded), wrong),
            Err(error) => promised.keep(None, Some(wrong.unwrap_or(error))),
        }
    }

    fn copy(&self, fences: &[Event], pieces: Vec<Piece>, how: Pinning) -> Result<(), MemoryError> {
        for event in fences {
            after(&self.device, self.stream, event)?;
        }
        // Whoever has made the bytes may have made a mistake.
        let copied = catch_unwind(AssertUnwindSafe(|| match how {
            Pinning::Nothing => self.pageable.upload(self.stream, pieces),
            Pinning::Staging => self.pinned.upload(self.stream, pieces),
            Pinning::All => {
                let rest = self.direct.upload(self.stream, pieces)?;
                self.pinned.upload(self.stream, rest)
            }
        }));
        // Nobody pays for these.
        self.pageable.clear();
        copied.unwrap_or_else(|_| Err(self.device.lost("reading weights panicked".to_owned())))
    }

    /// Gives the buffers back, if nobody else pays for them.
    fn leave(&mut self, staged: &Arc<Staged>) {
        let left = self.charges.extract_if(.., |(who, _)| Arc::ptr_eq(who, staged));
        self.kept.extend(left.map(|(_, charge)| charge));
        if !self.charges.is_empty() || self.pinned.clear() {
            self.kept.clear();
        }
    }
}

/// Marks where the stream is. Without a mark nobody could tell what is done, so that one that fails is
/// tried again.
fn record(device: &Arc<Opened>, stream: usize) -> Result<Recorded, MemoryError> {
    const TRIES: usize = 3;
    let mut recorded = device.record(stream);
    for _ in 1..TRIES {
        if recorded.is_ok() {
            break;
        }
        recorded = device.record(stream);
    }
    recorded
}

fn after(device: &Opened, stream: usize, event: &Event) -> Result<(), MemoryError> {
    let known: &dyn Any = event.as_ref();
    if let Some(recorded) = known.downcast_ref::<Recorded>() {
        return device.after(stream, recorded);
    }
    // Promised by this very thread, on this stream: it comes before by itself.
    if known.is::<Promised>() { Ok(()) } else { event.wait(None).map(drop) }
}

/// A place in the stream for copies, once the thread has come to it.
#[derive(Default)]
pub(super) struct Promised {
    kept: Mutex<Option<Kept>>,
    changed: Condvar,
    /// Whether somebody wants to know when it has passed, and when that was seen.
    watched: AtomicBool,
    passed: OnceLock<Instant>,
}

/// What has become of it.
struct Kept {
    /// It passes when what went well before is done.
    recorded: Option<Recorded>,
    /// What did not go well.
    wrong: Option<MemoryError>,
}

impl Kept {
    /// What it says when everything before it is over.
    fn outcome(&self, over: bool) -> Result<bool, MemoryError> {
        match &self.wrong {
            Some(MemoryError::Lost { device, why }) if over && self.recorded.is_some() => {
                Err(MemoryError::Failed { device: *device, why: why.clone() })
            }
            Some(error) if over => Err(error.clone()),
            _ => Ok(over),
        }
    }
}

impl Promised {
    fn keep(&self, recorded: Option<Recorded>, wrong: Option<MemoryError>) {
        let kept = Kept { recorded, wrong };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        self.changed.notify_all();
    }

    fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Whether it has not passed, as far as anybody knows.
    fn is_under_way(&self) -> bool {
        matches!(self.has_passed(), Ok(false))
    }

    /// What it says, and that it has passed now, if it has.
    fn seen(&self, outcome: Result<bool, MemoryError>) -> Result<bool, MemoryError> {
        if matches!(outcome, Ok(true)) {
            self.passed.get_or_init(Instant::now);
        }
        outcome
    }

    /// Waits until the thread has come to it, or until then.
    fn begun(&self, until: Option<Instant>) -> MutexGuard<'_, Option<Kept>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.is_none() {
            kept = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(kept).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(kept, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        kept
    }

    /// Has a stream wait for it, for which the caller waits until it has begun.
    pub(super) fn precede(&self, device: &Opened, stream: usize) -> Result<(), MemoryError> {
        match &*self.begun(None) {
            Some(Kept { recorded: Some(recorded), wrong: None }) => device.after(stream, recorded),
            Some(kept) => kept.outcome(true).map(drop),
            None => Ok(()),
        }
    }
}

impl Fence for Promised {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        match &*self.kept.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(kept) => {
                let over = kept.recorded.as_ref().map_or(Ok(true), Fence::has_passed)?;
                self.seen(kept.outcome(over))
            }
            None => Ok(false),
        }
    }

    fn watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    fn passed_at(&self) -> Option<Instant> {
        self.passed.get().copied()
    }

    fn wait(&self, until: Option<Instant>) -> Result<bool, MemoryError> {
        match &*self.begun(until) {
            Some(kept) => {
                let over = kept.recorded.as_ref().map_or(Ok(true), |event| event.wait(until))?;
                self.seen(kept.outcome(over))
            }
            None => Ok(false),
        }
    }

    fn has_failed(&self) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = |kept: &Kept| {
            kept.wrong.is_some() || kept.recorded.as_ref().is_some_and(Fence::has_failed)
        };
        kept.as_ref().is_some_and(wrong)
    }

    fn has_begun(&self) -> bool {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
