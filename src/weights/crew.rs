//! Long work on weights, done piece by piece by threads of our own while the caller waits patiently: he
//! can be interrupted, cancelled and told of progress, and holds no other thread up meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::WeightsError;
use crate::sync::Mutex;
use crate::wait::{Birth, Parker, Patience, WaitError, Wake};

/// How often progress is told.
const TICK: Duration = Duration::from_millis(50);
/// How much is done on the caller's own thread, faster than threads are started.
const LITTLE: u64 = 8 << 20;
/// By how much the threads are nicer than the caller's: who has something to do on a busy machine does
/// not wait for a copy's time slice to end.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// What is to be done.
pub(super) trait Work: Send + Sync + 'static {
    /// How many pieces it has.
    fn pieces(&self) -> usize;
    /// Bytes of all pieces.
    fn nbytes(&self) -> u64;
    /// Does one piece. Returns its bytes.
    fn run(&self, piece: usize) -> Result<u64, WeightsError>;
    /// What the caller waits for, for an error.
    fn wants(&self) -> String;
}

/// What the threads and the caller share.
#[derive(Default)]
struct Crew {
    next: AtomicUsize,
    done: AtomicU64,
    stopped: AtomicBool,
    working: AtomicUsize,
    panicked: AtomicBool,
    failed: Mutex<Option<WeightsError>>,
    parker: Arc<Parker>,
}

/// Does all pieces by so many threads. `progress` is told the bytes that are done, and all of them.
/// When it returns without having lost its patience, nobody but the caller has the work.
///
/// Who loses his patience leaves at once: each thread ends after its piece, and the last one drops the
/// work.
pub(super) fn complete<W: Work>(
    work: &Arc<W>,
    threads: usize,
    patience: &Patience<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    let total = work.nbytes();
    let threads = if total < LITTLE { 0 } else { threads.clamp(1, work.pieces().max(1)) };
    let crew = Arc::new(Crew::default());
    let waker: Arc<dyn Wake> = crew.parker.clone();
    let _listening = patience.cancel.map(|token| token.listen(waker));
    let patient = Patient { work: work.as_ref(), patience, started: Instant::now() };
    if threads > 0 {
        patient.check()?;
    }
    let hired = (0..threads).take_while(|_| Crew::hire(&crew, work.clone())).count();
    if hired == 0 {
        // Little, or there can be no threads.
        return patient.does_it_alone(progress);
    }
    let waited = crew.wait(&patient, progress);
    crew.stopped.store(true, Ordering::Relaxed);
    waited?;
    assert!(!crew.panicked.load(Ordering::Relaxed), "a thread that worked on weights panicked");
    match crew.failed.lock().take() {
        Some(error) => Err(error),
        None => {
            progress(total, total);
            Ok(())
        }
    }
}

/// Counts a thread as working until it is dropped, however that comes.
struct Working(Arc<Crew>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.panicked.fetch_or(thread::panicking(), Ordering::Relaxed);
        self.0.working.fetch_sub(1, Ordering::AcqRel);
        self.0.parker.wake();
    }
}

impl Crew {
    /// Starts one more thread. Returns whether there is one.
    fn hire<W: Work>(crew: &Arc<Self>, work: Arc<W>) -> bool {
        crew.working.fetch_add(1, Ordering::AcqRel);
        let working = Working(crew.clone());
        let builder = thread::Builder::new().name("coresident weights".to_owned());
        let hired = builder.spawn(move || {
            // Dropped after the work.
            let working = working;
            let work = work;
            #[cfg(target_os = "linux")]
            // Of this thread alone. Without it others only wait a little longer.
            let _ = rustix::process::nice(NICENESS);
            working.0.work(work.as_ref());
        });
        hired.is_ok()
    }

    fn work(&self, work: &impl Work) {
        while !self.stopped.load(Ordering::Relaxed) {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= work.pieces() {
                break;
            }
            match work.run(piece) {
                Ok(bytes) => drop(self.done.fetch_add(bytes, Ordering::Relaxed)),
                Err(error) => {
                    self.stopped.store(true, Ordering::Relaxed);
                    self.failed.lock().get_or_insert(error);
                }
            }
        }
    }

    fn wait(
        &self,
        patient: &Patient<'_, impl Work>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightsError> {
        let (birth, total) = (Birth::default(), patient.work.nbytes());
        while self.working.load(Ordering::Acquire) > 0 {
            patient.check()?;
            self.parker.park(Some(Instant::now() + patient.tick()));
            patient.check_interrupt()?;
            progress(self.done.load(Ordering::Relaxed), total);
            // Forked by what was just called: the threads are the parent's.
            birth.check("wait")?;
        }
        Ok(())
    }
}

/// Who waits for a work, and how long he does.
struct Patient<'a, W> {
    work: &'a W,
    patience: &'a Patience<'a>,
    started: Instant,
}

impl<W: Work> Patient<'_, W> {
    fn does_it_alone(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), WeightsError> {
        let (mut done, total) = (0, self.work.nbytes());
        for piece in 0..self.work.pieces() {
            if total >= LITTLE {
                self.check()?;
                self.check_interrupt()?;
                progress(done, total);
            }
            done += self.work.run(piece)?;
        }
        progress(total, total);
        Ok(())
    }

    fn check(&self) -> Result<(), WeightsError> {
        let wants = || self.work.wants();
        if let Some(token) = self.patience.cancel.filter(|token| token.is_cancelled()) {
            return Err(WaitError::Cancelled { wants: wants(), reason: token.reason() }.into());
        }
        let over = |timeout: &Duration| self.started.elapsed() >= *timeout;
        if let Some(after) = self.patience.timeout.filter(over) {
            let (wants, held) = (wants(), String::new());
            return Err(WaitError::Timeout { wants, held, after }.into());
        }
        Ok(())
    }

    fn check_interrupt(&self) -> Result<(), WeightsError> {
        if self.patience.interrupt.interrupted() {
            return Err(WaitError::Interrupted.into());
        }
        Ok(())
    }

    /// How long to sleep until the next look.
    fn tick(&self) -> Duration {
        let tick = self.patience.interrupt.slice().map_or(TICK, |slice| slice.min(TICK));
        let left = |timeout: Duration| timeout.saturating_sub(self.started.elapsed());
        self.patience.timeout.map_or(tick, |timeout| tick.min(left(timeout)))
    }
}
