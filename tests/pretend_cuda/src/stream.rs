//! Streams: threads that begin each piece of work late, and out of step with each other.

use std::collections::VecDeque;
use std::ffi::{c_int, c_uint};
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::bus::Chance;
use crate::capture::Capture;
use crate::code::{Answer, Code};
use crate::context;
use crate::driver::{At, Driver, State, answer};
use crate::foreign::Out;
use crate::work::Work;

/// Set, with the state locked, once some work is done, or will never be: when that was.
pub type Done = Arc<OnceLock<Instant>>;

pub struct Stream {
    pub device: usize,
    /// Whether it keeps order with the legacy stream.
    pub blocking: bool,
    /// Whether nobody made it: the legacy stream, or that of a thread.
    pub implied: bool,
    pub capture: Option<Capture>,
    /// It ends when its work is done.
    pub destroyed: bool,
    queue: VecDeque<Task>,
    last: Option<Done>,
}

struct Task {
    after: Vec<Done>,
    work: Work,
    done: Done,
}

const NON_BLOCKING: c_uint = 1;
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// Says that work is done now.
fn end(done: &Done) {
    done.get_or_init(Instant::now);
}

/// Whether work is still to be done.
pub fn pending(done: &Done) -> bool {
    done.get().is_none()
}

impl Stream {
    /// The last of its work, unless that is done.
    pub fn last_pending(&self) -> Option<Done> {
        self.last.clone().filter(pending)
    }

    /// Forgets the work that has not begun.
    pub fn drop_work(&mut self) {
        for task in mem::take(&mut self.queue) {
            end(&task.done);
        }
    }
}

impl State {
    /// The streams of a device which somebody made and nobody destroyed.
    pub fn streams_of(&self, device: usize) -> usize {
        let live = |stream: &&Stream| !stream.implied && !stream.destroyed;
        self.streams.values().filter(live).filter(|stream| stream.device == device).count()
    }

    /// What a stream has to do; the legacy stream has what all blocking ones have.
    fn outstanding(&self, handle: usize) -> Vec<Done> {
        let stream = &self.streams[&handle];
        if self.contexts[stream.device].legacy == Some(handle) {
            self.implied_order(handle, stream)
        } else {
            stream.last_pending().into_iter().collect()
        }
    }

    /// What work on this stream waits for, besides the stream's own: the legacy stream for all
    /// blocking ones, and they for it ("NULL stream").
    fn implied_order(&self, handle: usize, stream: &Stream) -> Vec<Done> {
        let legacy = self.contexts[stream.device].legacy;
        if legacy == Some(handle) {
            let blocking = |other: &&Stream| other.device == stream.device && other.blocking;
            self.streams.values().filter(blocking).filter_map(Stream::last_pending).collect()
        } else if stream.blocking {
            let legacy = legacy.and_then(|legacy| self.streams.get(&legacy));
            legacy.and_then(Stream::last_pending).into_iter().collect()
        } else {
            Vec::new()
        }
    }
}

impl Driver {
    fn new_stream(
        &'static self,
        state: &mut State,
        device: usize,
        blocking: bool,
        implied: bool,
    ) -> Answer<usize> {
        let handle = state.handle();
        let chance = Chance::new(self.seed.load(Ordering::Relaxed), handle as u64);
        let thread = thread::Builder::new().name(format!("stream {handle:x}"));
        let spawned = thread.spawn(move || self.run(handle, device, chance));
        spawned.map_err(|_| Code::OUT_OF_MEMORY)?;
        let stream = Stream {
            device,
            blocking,
            implied,
            capture: None,
            destroyed: false,
            queue: VecDeque::new(),
            last: None,
        };
        state.streams.insert(handle, stream);
        Ok(handle)
    }

    /// The stream that a handle means to this thread, of a device whose work has not failed.
    pub fn stream(&'static self, state: &mut State, handle: usize) -> Answer<usize> {
        let found = match handle {
            0 | LEGACY | PER_THREAD => self.implied_stream(state, handle == PER_THREAD)?,
            _ => handle,
        };
        let stream = state.streams.get(&found).filter(|stream| !stream.destroyed);
        let device = stream.ok_or(Code::INVALID_HANDLE)?.device;
        state.contexts[device].healthy()?;
        Ok(found)
    }

    /// The legacy stream of the current context, or this thread's one.
    fn implied_stream(&'static self, state: &mut State, per_thread: bool) -> Answer<usize> {
        let device = context::current().ok_or(Code::INVALID_CONTEXT)?;
        let thread = thread::current().id();
        let context = &state.contexts[device];
        let known =
            if per_thread { context.per_thread.get(&thread).copied() } else { context.legacy };
        if let Some(known) = known {
            return Ok(known);
        }
        let made = self.new_stream(state, device, true, true)?;
        let context = &mut state.contexts[device];
        if per_thread {
            context.per_thread.insert(thread, made);
        } else {
            context.legacy = Some(made);
        }
        Ok(made)
    }

    /// Puts work on a stream. `None` when it was captured instead.
    pub fn enqueue(
        &'static self,
        state: &mut State,
        handle: usize,
        work: Work,
        mut after: Vec<Done>,
    ) -> Answer<Option<Done>> {
        if state.captures(handle)? {
            return Ok(None);
        }
        let stream = &state.streams[&handle];
        after.extend(state.implied_order(handle, stream));
        let done = Done::default();
        if let Some(stream) = state.streams.get_mut(&handle) {
            stream.queue.push_back(Task { after, work, done: Arc::clone(&done) });
            stream.last = Some(Arc::clone(&done));
        }
        self.changed.notify_all();
        Ok(Some(done))
    }

    /// Waits until work is done, and says if the device's work failed.
    pub fn wait_for(&self, device: usize, all: &[Done]) -> Answer {
        let mut state = self.state();
        while all.iter().any(pending) {
            state = self.wait(state);
        }
        state.contexts[device].healthy()
    }

    /// Waits for all that the streams of a device have to do now.
    pub fn wait_for_all(&self, device: usize) -> Answer {
        let of_device = |stream: &&Stream| stream.device == device;
        let last: Vec<_> = self
            .state()
            .streams
            .values()
            .filter(of_device)
            .filter_map(Stream::last_pending)
            .collect();
        self.wait_for(device, &last)
    }

    /// What a stream's thread does.
    fn run(&'static self, handle: usize, device: usize, mut chance: Chance) {
        while let Some((work, done)) = self.next(handle, device) {
            let longest = Duration::from_nanos(self.delay.load(Ordering::Relaxed));
            if !longest.is_zero() {
                thread::sleep(chance.delay(longest));
            }
            let outcome = self.healthy(device).and_then(|()| work.perform(self, device));
            let mut state = self.state();
            let context = &mut state.contexts[device];
            if let Err(code) = outcome {
                context.failed = context.failed.or(context.lost.is_none().then_some(code));
            }
            end(&done);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The next work of a stream, once it may begin; `None` when the stream ends.
    fn next(&self, handle: usize, device: usize) -> Option<(Work, Done)> {
        let mut state = self.state();
        loop {
            let held = state.contexts[device].held;
            let stream = state.streams.get_mut(&handle)?;
            match stream.queue.front() {
                None if stream.destroyed => {
                    state.streams.remove(&handle);
                    return None;
                }
                Some(task) if !held && !task.after.iter().any(pending) => {
                    let task = stream.queue.pop_front()?;
                    return Some((task.work, task.done));
                }
                _ => state = self.wait(state),
            }
        }
    }
}

/// Makes a stream.
#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: Out<usize>, flags: c_uint) -> Code {
    answer("cuStreamCreate", At::Current, |driver| driver.create(stream, flags))
}

/// Makes a stream with a priority, which changes nothing here.
#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(
    stream: Out<usize>,
    flags: c_uint,
    _priority: c_int,
) -> Code {
    answer("cuStreamCreateWithPriority", At::Current, |driver| driver.create(stream, flags))
}

impl Driver {
    fn create(&'static self, stream: Out<usize>, flags: c_uint) -> Answer {
        let device = self.current()?;
        if flags & !NON_BLOCKING != 0 || stream.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let blocking = flags & NON_BLOCKING == 0;
        let mut state = self.state();
        stream.set(self.new_stream(&mut state, device, blocking, false)?)
    }
}

/// Lets a stream end when its work is done.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: usize) -> Code {
    answer("cuStreamDestroy_v2", At::Stream(stream), |driver| {
        driver.bound()?;
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        let stream = state.streams.get_mut(&handle).filter(|stream| !stream.implied);
        stream.ok_or(Code::INVALID_HANDLE)?.destroyed = true;
        drop(state);
        driver.changed.notify_all();
        Ok(())
    })
}

/// Whether a stream has nothing to do.
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: usize) -> Code {
    answer("cuStreamQuery", At::Stream(stream), |driver| {
        driver.bound()?;
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        state.not_captured(handle)?;
        if state.outstanding(handle).is_empty() { Ok(()) } else { Err(Code::NOT_READY) }
    })
}

/// Waits until a stream has nothing to do.
#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> Code {
    answer("cuStreamSynchronize", At::Stream(stream), |driver| {
        driver.bound()?;
        let (device, last) = {
            let mut state = driver.state();
            let handle = driver.stream(&mut state, stream)?;
            state.not_captured(handle)?;
            (state.streams[&handle].device, state.outstanding(handle))
        };
        driver.wait_for(device, &last)
    })
}

/// The context of a stream.
#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx(stream: usize, context: Out<usize>) -> Code {
    answer("cuStreamGetCtx", At::Stream(stream), |driver| {
        let mut state = driver.state();
        let handle = driver.stream(&mut state, stream)?;
        context.set(context::handle_of(state.streams[&handle].device))
    })
}
