//! The thread that has copies made, so that whoever wants them need not wait while they are read: it
//! gives the stream for copies what it is to do, in the order in which it was asked.

use std::any::Any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::staging::Ring;
use super::stream::{Opened, Recorded};
use crate::device::{Event, Fence, MemoryError, Piece};
use crate::wait::exiting;

/// What the stream for copies is to do.
enum Order {
    Copy(Vec<Piece>),
    After(Event),
    Record(Arc<Promised>),
}

/// The stream for copies, and the thread that serves it.
pub(super) struct Uploads {
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
        Ok(Self { stream, orders })
    }

    pub(super) fn copy(&self, pieces: Vec<Piece>) {
        self.give(Order::Copy(pieces));
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
        // The thread ends after this only.
        let _ = self.orders.send(order);
    }
}

fn serve(device: &Arc<Opened>, stream: usize, orders: &Receiver<Order>) {
    let ring = Ring::new(device.clone());
    // What has gone wrong since the last event: that one tells it.
    let mut wrong = None;
    while let Ok(order) = orders.recv() {
        if exiting() {
            break;
        }
        let outcome = match order {
            Order::Copy(_) if wrong.is_some() => Ok(()),
            Order::Copy(pieces) => ring.upload(stream, pieces),
            Order::After(event) => after(device, stream, &event),
            Order::Record(promised) => {
                let recorded = device.record(stream);
                promised.keep(match wrong.take() {
                    Some(error) => Err(error),
                    None => recorded,
                });
                Ok(())
            }
        };
        if let Err(error) = outcome {
            wrong.get_or_insert(error);
        }
    }
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
    kept: Mutex<Option<Result<Recorded, MemoryError>>>,
    changed: Condvar,
}

impl Promised {
    fn keep(&self, recorded: Result<Recorded, MemoryError>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(recorded);
        self.changed.notify_all();
    }

    /// Has a stream wait for it, for which the caller waits until it has begun.
    pub(super) fn precede(&self, device: &Opened, stream: usize) -> Result<(), MemoryError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*kept {
                Some(Ok(recorded)) => return device.after(stream, recorded),
                Some(Err(error)) => return Err(error.clone()),
                None => kept = self.changed.wait(kept).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Fence for Promised {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        match &*self.kept.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok(recorded)) => recorded.has_passed(),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(false),
        }
    }

    fn wait(&self, until: Option<Instant>) -> Result<bool, MemoryError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*kept {
                Some(Ok(recorded)) => return recorded.wait(until),
                Some(Err(error)) => return Err(error.clone()),
                None => {}
            }
            kept = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(kept).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Ok(false),
                Some(left) => {
                    let waited = self.changed.wait_timeout(kept, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn has_begun(&self) -> bool {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
