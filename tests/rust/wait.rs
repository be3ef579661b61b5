//! Waiting: cancelled, interrupted, timed out, deadlocked; threads that end; forked children.

use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};
use std::{env, mem};

use coresident::device::{DeviceType, Name, VirtualSpec, virtual_devices};
use coresident::load_lock::{LoadLock, Mode};
use coresident::pool::{DevicePool, Lease, PoolError, Wish};
use coresident::wait::{
    CancelToken, Interrupt, Kind, Owner, Parker, Patience, PerProcess, WaitError, Wake, begin_exit,
    entered_child, exiting, reason_suffix, seconds, shut_out,
};
use coresident::worker::Lane;

use super::{
    Spawned, at_once, imagined_thread, in_line, refusal, somebody, spawn, this_thread, until,
    wait_apart,
};

fn pool(count: u64) -> DevicePool {
    DevicePool::new(virtual_devices(count, VirtualSpec::default()).unwrap()).unwrap()
}

fn virt(index: u32) -> Name {
    Name::new(DeviceType::Virtual, index).unwrap()
}

fn take(pool: &DevicePool, index: u32, owner: &Owner) -> Lease {
    pool.try_lease(Some(virt(index)), owner).unwrap().expect("the device is not free")
}

fn is_free(pool: &DevicePool, index: u32) -> bool {
    pool.try_lease(Some(virt(index)), &somebody("passer-by")).unwrap().is_some()
}

#[test]
fn durations_read_as_people_say_them() {
    for (micros, text) in [
        (0, "0 s"),
        (400, "0 s"),
        (600, "0.001 s"),
        (50_400, "0.05 s"),
        (1_500_000, "1.5 s"),
        (9_999_400, "9.999 s"),
        (9_999_600, "10 s"),
        (12_400_000, "12 s"),
        (3_600_000_000, "3600 s"),
    ] {
        assert_eq!(seconds(Duration::from_micros(micros)), text);
    }
}

#[test]
fn a_reason_ends_a_sentence() {
    assert_eq!(reason_suffix(Some("enough")), ": enough");
    assert_eq!(reason_suffix(None), "");
}

#[test]
fn owners_say_what_they_are_and_are_never_the_same_twice() {
    let thread = imagined_thread();
    let [plain, task, callbacks] = [Kind::Thread, Kind::Task, Kind::Loop]
        .map(|kind| Owner::with_thread(kind, thread, "it".to_owned()));
    let told = [&plain, &task, &callbacks].map(Owner::to_string);
    assert_eq!(told, ["thread 'it'", "task 'it'", "event loop of thread 'it'"]);
    assert!(task.runs_above(&plain) && callbacks.runs_above(&plain));
    assert!(!plain.runs_above(&task) && !task.runs_above(&callbacks));
    assert!(!task.runs_above(&somebody("else")));
    assert_ne!(task, Owner::with_thread(Kind::Task, thread, "it".to_owned()));
    let numbers = at_once(8, |_| {
        let (me, again) = (this_thread("me"), this_thread("asked only once"));
        assert_eq!((&me, me.to_string()), (&again, "thread 'me'".to_owned()));
        assert_eq!(me.thread_number(), Owner::this_thread());
        [
            me.number(),
            Owner::task("one".to_owned()).number(),
            Owner::try_callbacks(|| Ok::<_, ()>(String::new())).unwrap().number(),
        ]
    });
    let mut numbers = numbers.concat();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 8 * 3);
}

/// Has nothing to say, but knows how often a wait looked up.
#[derive(Default)]
struct LookUps(Cell<u32>);

impl Interrupt for LookUps {
    fn slice(&self) -> Option<Duration> {
        None
    }

    fn interrupted(&self) -> bool {
        self.0.set(self.0.get() + 1);
        false
    }
}

/// Waits with a token and no deadline. Returns how it ended, and how often it looked up.
fn wait_for_cancel(pool: &DevicePool, token: CancelToken) -> Spawned<(String, u32)> {
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &somebody("me"), parker.clone()).unwrap());
    let started = Arc::new(Barrier::new(2));
    let starting = started.clone();
    let waiting = spawn(move || {
        let look_ups = LookUps::default();
        let patience = Patience { interrupt: &look_ups, ..Patience::FOREVER };
        starting.wait();
        let outcome = refusal(pending.wait(&parker, &patience.or_cancelled(&token)));
        (outcome, look_ups.0.get())
    });
    started.wait();
    waiting
}

#[test]
fn a_cancel_wakes_a_wait_for_ever_and_nothing_else_does() {
    let pool = pool(1);
    let _held = take(&pool, 0, &somebody("holder"));
    for _ in 0..50 {
        let token = CancelToken::new();
        let waiting = wait_for_cancel(&pool, token.clone());
        assert!(token.cancel(Some("enough".to_owned())));
        let (outcome, look_ups) = waiting.join();
        assert_eq!(outcome, "cancelled while waiting for any of virtual:0: enough");
        assert!(look_ups <= 1, "it looked up {look_ups} times");
    }
    assert!(pool.status().unwrap()[0].waiting.is_empty());
}

#[test]
fn one_token_wakes_all_who_wait_with_it() {
    let (pool, token) = (pool(1), CancelToken::new());
    let _held = take(&pool, 0, &somebody("holder"));
    let waiting: Vec<_> = (0..8).map(|_| wait_for_cancel(&pool, token.clone())).collect();
    assert!(token.clone().cancel(None));
    for waiter in waiting {
        assert_eq!(waiter.join().0, "cancelled while waiting for any of virtual:0");
    }
}

#[test]
fn a_token_is_cancelled_once_and_keeps_the_first_reason() {
    let token = CancelToken::new();
    let wins = {
        let token = token.clone();
        at_once(8, move |worker| token.cancel(Some(worker.to_string())).then_some(worker))
    };
    let winner: Vec<_> = wins.into_iter().flatten().collect();
    assert_eq!(winner.len(), 1);
    assert_eq!(token.reason(), Some(winner[0].to_string()));
    assert!(token.is_cancelled() && token.same(&token.clone()));
    assert!(!token.same(&CancelToken::new()) && !CancelToken::new().is_cancelled());
}

/// Counts how often it was told to look again.
#[derive(Default)]
struct Told(AtomicU64);

impl Wake for Told {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_token_wakes_only_those_who_still_listen() {
    let (token, told) = (CancelToken::new(), Arc::new(Told::default()));
    let listening = token.listen(told.clone());
    drop(token.listen(told.clone()));
    token.cancel(None);
    token.cancel(None);
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    drop(listening);
    assert_eq!(Arc::strong_count(&told), 1, "nothing is kept for those who left");
}

#[test]
fn a_turn_that_came_in_the_instant_of_a_cancel_is_given_back() {
    let (pool, token) = (pool(1), CancelToken::new());
    let held = take(&pool, 0, &somebody("holder"));
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &somebody("me"), parker.clone()).unwrap());
    drop(held);
    token.cancel(None);
    assert!(pending.wait(&parker, &Patience::FOREVER.or_cancelled(&token)).is_err());
    assert!(is_free(&pool, 0));
}

#[test]
fn an_interrupt_ends_a_wait_at_the_end_of_a_slice() {
    /// Fires when it is asked for the third time.
    struct Third(LookUps);
    impl Interrupt for Third {
        fn slice(&self) -> Option<Duration> {
            Some(Duration::from_micros(100))
        }
        fn interrupted(&self) -> bool {
            self.0.interrupted();
            self.0.0.get() == 3
        }
    }
    let pool = pool(1);
    let _held = take(&pool, 0, &somebody("holder"));
    let third = Third(LookUps::default());
    let patience = Patience { interrupt: &third, ..Patience::FOREVER };
    let outcome = pool.lease(None, &somebody("me"), &patience);
    assert!(matches!(outcome, Err(PoolError::Wait(WaitError::Interrupted))));
    assert!(pool.status().unwrap()[0].waiting.is_empty());
}

#[test]
fn a_wait_lasts_as_long_as_it_was_given_and_no_longer_than_for_ever() {
    let pool = pool(1);
    let held = take(&pool, 0, &somebody("holder"));
    let (given, started) = (Duration::from_millis(20), Instant::now());
    let outcome = pool.lease(None, &somebody("me"), &Patience::at_most(given));
    assert!(matches!(
        outcome,
        Err(PoolError::Wait(WaitError::Timeout { after, .. })) if after == given
    ));
    assert!(started.elapsed() >= given);
    // Too long for the clock, which is as good as for ever.
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &somebody("me"), parker.clone()).unwrap());
    let waiting = spawn(move || pending.wait(&parker, &Patience::at_most(Duration::MAX)).is_ok());
    drop(held);
    assert!(waiting.join());
}

#[test]
fn only_looking_is_never_a_deadlock() {
    let (pool, me) = (pool(1), somebody("me"));
    let _held = take(&pool, 0, &me);
    let outcome = pool.lease(None, &me, &Patience::at_most(Duration::ZERO));
    assert!(matches!(outcome, Err(PoolError::Wait(WaitError::Timeout { .. }))));
}

#[test]
fn taking_again_what_one_holds_is_refused_even_with_a_timeout() {
    let (pool, me) = (pool(2), somebody("me"));
    let _held = [take(&pool, 0, &me), take(&pool, 1, &me)];
    for patience in [Patience::FOREVER, Patience::at_most(Duration::from_hours(1))] {
        assert_eq!(
            refusal(pool.lease(Some(virt(1)), &me, &patience)),
            "this wait would never end: thread 'me' waits for virtual:1, which it holds itself"
        );
    }
    assert_eq!(
        refusal(pool.lease(None, &me, &Patience::FOREVER)),
        "this wait would never end: thread 'me' waits for any of virtual:0, virtual:1, which it \
         holds itself"
    );
}

#[test]
fn a_cycle_through_devices_and_locks_is_refused_naming_everyone() {
    let (pool, lock) = (pool(2), LoadLock::new());
    let [ann, bob, cy] = ["ann", "bob", "cy"].map(somebody);
    let _devices = [take(&pool, 0, &ann), take(&pool, 1, &bob)];
    let _lock = lock.try_acquire(Mode::Write, &cy).unwrap();
    let mut first = in_line(pool.ask(Some(virt(1)), &ann, Parker::new()).unwrap());
    first.watch().unwrap();
    let mut second = in_line(lock.ask(Mode::Read, &bob, Parker::new()).unwrap());
    second.watch().unwrap();
    assert_eq!(
        refusal(pool.lease(Some(virt(0)), &cy, &Patience::FOREVER)),
        "this wait would never end: thread 'cy' waits for virtual:0, held by thread 'ann'; thread \
         'ann' waits for virtual:1, held by thread 'bob'; thread 'bob' waits for the load lock to \
         read, held by thread 'cy'"
    );
    first.check().unwrap();
}

#[test]
fn the_line_is_part_of_a_cycle() {
    let (pool, lock) = (pool(1), LoadLock::new());
    let [holder, first, me] = ["holder", "first", "me"].map(somebody);
    let _held = take(&pool, 0, &holder);
    let _read = lock.try_acquire(Mode::Read, &me).unwrap();
    let _first = in_line(pool.ask(None, &first, Parker::new()).unwrap());
    let mut writer = in_line(lock.ask(Mode::Write, &first, Parker::new()).unwrap());
    writer.watch().unwrap();
    // Nobody holds against us but `first`, who stands before us and waits for our read to end.
    assert_eq!(
        refusal(pool.lease(None, &me, &Patience::FOREVER)),
        "this wait would never end: thread 'me' waits for any of virtual:0, held by thread \
         'holder' and thread 'first'; thread 'first' waits for the load lock to write, held by \
         thread 'me'"
    );
}

#[test]
fn a_chain_is_no_cycle() {
    let pool = pool(8);
    let owners: Vec<_> = (0..9).map(|at| somebody(&at.to_string())).collect();
    let _held: Vec<_> = (0..8).map(|at| take(&pool, at, &owners[at as usize])).collect();
    let mut waits: Vec<_> = (0..8)
        .map(|at| {
            let next = &owners[at as usize + 1];
            in_line(pool.ask(Some(virt(at)), next, Parker::new()).unwrap())
        })
        .collect();
    for wait in &mut waits {
        wait.watch().unwrap();
    }
    let mut closing = in_line(pool.ask(Some(virt(7)), &owners[0], Parker::new()).unwrap());
    assert!(closing.watch().is_err());
}

#[test]
fn waiting_for_any_device_is_a_deadlock_only_if_every_one_is() {
    let pool = pool(2);
    let [me, other] = ["me", "other"].map(somebody);
    let mine = take(&pool, 0, &me);
    let others = take(&pool, 1, &other);
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &me, parker.clone()).unwrap());
    let waiting = wait_apart(pending, parker);
    drop(others);
    let Ok(lease) = waiting.join() else { panic!("the other device came free") };
    assert_eq!(lease.device().name(), virt(1));
    drop((mine, lease));
}

#[test]
fn what_was_handed_over_may_be_released_by_anybody() {
    let (pool, me) = (pool(1), somebody("me"));
    let held = take(&pool, 0, &me);
    held.hand_over();
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &me, parker.clone()).unwrap());
    let waiting = wait_apart(pending, parker);
    drop(held);
    assert!(waiting.join().is_ok());
}

#[test]
fn a_task_that_waits_for_the_code_below_its_event_loop_is_refused() {
    let (pool, thread) = (pool(1), imagined_thread());
    let main = Owner::with_thread(Kind::Thread, thread, "main".to_owned());
    let task = Owner::with_thread(Kind::Task, thread, "Task-1".to_owned());
    let _held = take(&pool, 0, &main);
    let mut pending = in_line(pool.ask(None, &task, Parker::new()).unwrap());
    assert_eq!(
        refusal(pending.watch()),
        "this wait would never end: task 'Task-1' waits for any of virtual:0, held by thread \
         'main', whose code runs only after its event loop"
    );
}

#[test]
fn a_wait_that_blocks_its_thread_stops_the_other_tasks_of_that_thread() {
    let (pool, thread) = (pool(1), imagined_thread());
    let [holder, waiter] =
        ["holder", "waiter"].map(|name| Owner::with_thread(Kind::Task, thread, name.to_owned()));
    let _held = take(&pool, 0, &holder);
    let mut pending = in_line(pool.ask(None, &waiter, Parker::new()).unwrap());
    pending.watch().unwrap();
    drop(pending);
    assert_eq!(
        refusal(pool.lease(None, &waiter, &Patience::FOREVER)),
        "this wait would never end: task 'waiter' waits for any of virtual:0, held by task \
         'holder', which cannot run while task 'waiter' blocks its thread"
    );
}

#[test]
fn threads_that_take_two_devices_in_any_order_finish_or_are_refused() {
    let pool = pool(2);
    let shared = pool.clone();
    let refused = at_once(8, move |worker| {
        let me = this_thread(&format!("worker {worker}"));
        let order = if worker % 2 == 0 { [0, 1] } else { [1, 0] };
        let mut refused = 0u32;
        for _ in 0..500 {
            let [first, second] = order;
            let outer = shared.lease(Some(virt(first)), &me, &Patience::FOREVER);
            let outer = outer.unwrap_or_else(|error| panic!("who holds nothing waits: {error}"));
            match shared.lease(Some(virt(second)), &me, &Patience::FOREVER) {
                Ok(inner) => drop(inner),
                Err(PoolError::Wait(WaitError::Deadlock(deadlock))) => {
                    assert!(deadlock.steps.len() >= 2, "{deadlock}");
                    assert_eq!(deadlock.steps[0].waiter, me.to_string());
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
            drop(outer);
        }
        refused
    });
    assert!(refused.iter().sum::<u32>() < 8 * 500);
    assert!(is_free(&pool, 0) && is_free(&pool, 1));
}

#[test]
fn whoever_gives_up_leaves_those_behind_to_look_again() {
    let (pool, lock) = (pool(1), LoadLock::new());
    let _held = take(&pool, 0, &somebody("holder"));
    let (ahead, behind) = (somebody("ahead"), somebody("behind"));
    let _write = lock.try_acquire(Mode::Write, &behind).unwrap().unwrap();
    let place =
        |owner: &Owner, told: &Arc<Told>| in_line(pool.ask(None, owner, told.clone()).unwrap());
    let (nobody, told) = (Arc::new(Told::default()), Arc::new(Told::default()));
    let mut first = place(&ahead, &nobody);
    let between = place(&somebody("between"), &nobody);
    let mut last = place(&behind, &told);
    first.watch().unwrap();
    last.watch().unwrap();
    // The one ahead will not run before the one behind does. As yet that one stands behind somebody
    // who can move.
    let mut crossed = in_line(lock.ask(Mode::Read, &ahead, nobody.clone()).unwrap());
    crossed.watch().unwrap();
    last.check().unwrap();
    drop(between);
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    assert!(matches!(last.check(), Err(WaitError::Deadlock(_))));
}

#[test]
fn whoever_is_served_from_the_middle_leaves_those_behind_to_look_again() {
    let (pool, lock) = (pool(2), LoadLock::new());
    let (ahead, behind) = (somebody("ahead"), somebody("behind"));
    let held = [take(&pool, 0, &somebody("one")), take(&pool, 1, &somebody("other"))];
    let _write = lock.try_acquire(Mode::Write, &behind).unwrap().unwrap();
    let place = |device, owner: &Owner, told: &Arc<Told>| {
        in_line(pool.ask(device, owner, told.clone()).unwrap())
    };
    let (nobody, told) = (Arc::new(Told::default()), Arc::new(Told::default()));
    let mut first = place(Some(virt(0)), &ahead, &nobody);
    let mut between = place(None, &somebody("between"), &nobody);
    let mut last = place(Some(virt(0)), &behind, &told);
    first.watch().unwrap();
    between.watch().unwrap();
    last.watch().unwrap();
    let mut crossed = in_line(lock.ask(Mode::Read, &ahead, nobody.clone()).unwrap());
    crossed.watch().unwrap();
    last.check().unwrap();
    // The one between has another device to go to, and goes.
    held[1].release();
    assert!(between.poll().unwrap().is_ok());
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    assert!(matches!(last.check(), Err(WaitError::Deadlock(_))));
}

#[test]
fn a_thread_that_ends_gives_up_what_its_event_loop_waits_for() {
    let (pool, lock) = (pool(1), LoadLock::new());
    let held =
        (take(&pool, 0, &somebody("holder")), lock.try_acquire(Mode::Read, &somebody("reader")));
    let (mut device, mut write) = spawn({
        let (pool, lock) = (pool.clone(), lock.clone());
        move || {
            let task = Owner::task("lost".to_owned());
            let device = in_line(pool.ask(None, &task, Parker::new()).unwrap());
            (device, in_line(lock.ask(Mode::Write, &task, Parker::new()).unwrap()))
        }
    })
    .join();
    assert_eq!(
        refusal(device.poll().unwrap()),
        "cancelled while waiting for any of virtual:0: the thread that waited has ended"
    );
    assert_eq!(
        refusal(write.poll().unwrap()),
        "cancelled while waiting for the load lock to write: the thread that waited has ended"
    );
    // Nobody stands before those who come now.
    assert!(lock.try_acquire(Mode::Read, &somebody("next")).unwrap().is_some());
    drop(held);
    assert!(is_free(&pool, 0));
}

#[test]
fn a_task_may_go_on_in_another_thread() {
    let task = spawn(|| Owner::task("wanderer".to_owned())).join();
    assert_ne!(task.thread_number(), Owner::this_thread());
    task.moved_here();
    assert_eq!(task.thread_number(), Owner::this_thread());
    assert!(task.runs_above(&this_thread("me")));
}

#[test]
fn a_name_that_asks_for_the_owner_again_finds_one() {
    spawn(|| {
        let outer = this_thread_asking(|| this_thread_asking(|| "inner".to_owned()).to_string());
        assert_eq!(outer.to_string(), "thread 'inner'");
    })
    .join();
}

fn this_thread_asking(name: impl FnOnce() -> String) -> Owner {
    Owner::thread(name)
}

#[test]
fn a_thread_that_ends_releases_what_it_leaked() {
    let (pool, lock) = (pool(3), LoadLock::new());
    let (its_pool, its_lock) = (pool.clone(), lock.clone());
    spawn(move || {
        let me = this_thread("forgetful");
        mem::forget(take(&its_pool, 0, &me));
        mem::forget(take(&its_pool, 1, &Owner::task("of the same thread".to_owned())));
        mem::forget(its_pool.borrow(&Wish::default(), &me).unwrap());
        mem::forget(its_lock.try_acquire(Mode::Write, &me).unwrap());
        mem::forget(its_lock.try_acquire(Mode::Read, &me).unwrap());
    })
    .join();
    assert!((0..3).all(|at| is_free(&pool, at)));
    assert!(lock.try_acquire(Mode::Write, &somebody("else")).unwrap().is_some());
}

#[test]
fn a_thread_that_ends_keeps_what_was_handed_over_and_what_others_hold() {
    let pool = pool(3);
    let (theirs, its_pool) = (take(&pool, 2, &somebody("else")), pool.clone());
    let leases = spawn(move || {
        let me = this_thread("leaving");
        let leases = [take(&its_pool, 0, &me), take(&its_pool, 1, &me)];
        leases[0].hand_over();
        leases
    })
    .join();
    assert_eq!(leases.each_ref().map(Lease::is_live), [true, false]);
    assert!(theirs.is_live());
    assert!(!is_free(&pool, 0) && is_free(&pool, 1));
}

#[test]
fn the_end_of_a_thread_serves_the_next_in_line() {
    let pool = pool(1);
    let (taken, may_end) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (its_pool, its_taken, its_may_end) = (pool.clone(), taken.clone(), may_end.clone());
    let forgetful = spawn(move || {
        mem::forget(take(&its_pool, 0, &this_thread("forgetful")));
        its_taken.wait();
        its_may_end.wait();
    });
    taken.wait();
    let parker = Parker::new();
    let pending = in_line(pool.ask(None, &somebody("next"), parker.clone()).unwrap());
    let waiting = wait_apart(pending, parker);
    may_end.wait();
    assert!(waiting.join().is_ok());
    forgetful.join();
}

#[test]
fn a_value_of_a_process_is_made_once() {
    static VALUE: PerProcess<u64> = PerProcess::new();
    static MADE: AtomicU64 = AtomicU64::new(0);
    let values = at_once(8, |worker| {
        *VALUE.get_or_init(|| {
            MADE.fetch_add(1, Ordering::Relaxed);
            worker as u64
        })
    });
    assert_eq!(MADE.load(Ordering::Relaxed), 1);
    assert!(values.iter().all(|value| *value == values[0]));
}

/// Whether this is the process that may change what concerns a process as a whole. If it is not,
/// runs the test named so in one that is.
fn in_a_process_of_its_own(test: &str) -> bool {
    const ALONE: &str = "CORESIDENT_TEST_ALONE";
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let mut alone = Command::new(env::current_exe().unwrap());
    let done = alone.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && told.contains("1 passed"), "{told}");
    false
}

#[test]
fn what_was_made_before_a_fork_is_refused_in_the_child() {
    static VALUE: PerProcess<OnceLock<&str>> = PerProcess::new();
    if !in_a_process_of_its_own("wait::what_was_made_before_a_fork_is_refused_in_the_child") {
        return;
    }
    VALUE.get_or_init(OnceLock::new).set("the parent's").unwrap();
    let (pool, lock, me) = (pool(1), LoadLock::new(), this_thread("me"));
    let lane: Arc<Lane<u64, u64>> = Lane::new("virtual:0");
    let lease = take(&pool, 0, &me);
    let guard = lock.try_acquire(Mode::Write, &me).unwrap().unwrap();
    let ticket = lane.push(1).unwrap().ticket;
    let (token, told) = (CancelToken::new(), Arc::new(Told::default()));
    let listening = token.listen(told.clone());
    entered_child();
    let forked = |what: &str| {
        let pid = std::process::id();
        format!(
            "this {what} was made in process {pid}, before a fork; threads and locks do not survive \
             a fork, so make a new one in the child (or start it with the 'spawn' method)"
        )
    };
    assert_eq!(refusal(pool.try_lease(None, &me)), forked("device pool"));
    assert_eq!(refusal(pool.lease(None, &me, &Patience::FOREVER)), forked("device pool"));
    assert_eq!(refusal(pool.borrow(&Wish::default(), &me)), forked("device pool"));
    assert_eq!(refusal(pool.status()), forked("device pool"));
    assert_eq!(refusal(lock.try_acquire(Mode::Read, &me)), forked("load lock"));
    assert_eq!(refusal(lane.push(2)), forked("worker pool"));
    assert_eq!(refusal(ticket.check()), forked("worker pool"));
    assert_eq!(refusal(lease.check()), forked("lease"));
    assert_eq!(refusal(guard.check()), forked("guard of a load lock"));
    assert!(!lease.is_with_owner() && !lease.hold().is_held_here());
    assert!(!guard.is_with_owner() && !guard.is_live() && !guard.release());
    assert_eq!(refusal(token.check()), forked("cancel token"));
    assert!(token.cancel(None) && !token.cancel(None) && token.is_cancelled());
    assert_eq!((token.reason(), told.0.load(Ordering::SeqCst)), (None, 0));
    pool.close();
    lane.drain();
    drop((lease, guard, listening));
    assert_eq!(VALUE.get_or_init(OnceLock::new).get(), None, "the child has its own");
    let fresh = self::pool(1);
    let held = take(&fresh, 0, &me);
    assert!(refusal(fresh.lease(None, &me, &Patience::FOREVER)).contains("which it holds itself"));
    drop(held);
    assert!(is_free(&fresh, 0));
}

#[test]
fn once_the_process_exits_threads_release_nothing() {
    if !in_a_process_of_its_own("wait::once_the_process_exits_threads_release_nothing") {
        return;
    }
    let pool = pool(1);
    let its_pool = pool.clone();
    assert!(!exiting());
    spawn(move || {
        mem::forget(take(&its_pool, 0, &this_thread("forgetful")));
        begin_exit(Owner::this_thread());
    })
    .join();
    assert!(exiting());
    assert!(shut_out(Owner::this_thread()));
    assert!(!is_free(&pool, 0));
}

#[test]
fn a_wake_before_the_sleep_is_not_lost() {
    let parker = Parker::new();
    parker.wake();
    parker.wake();
    assert!(parker.park(None));
    assert!(!parker.park(Some(Instant::now())), "two wakes are one");
    let sleeper = parker.clone();
    let asleep = spawn(move || sleeper.park(None));
    parker.wake();
    asleep.join();
}

#[test]
fn a_pending_place_is_visible_until_it_is_given_up() {
    let pool = pool(1);
    let _held = take(&pool, 0, &somebody("holder"));
    let (token, waiting) =
        (CancelToken::new(), |pool: &DevicePool| pool.status().unwrap()[0].waiting.len());
    let waits = wait_for_cancel(&pool, token.clone());
    until(|| waiting(&pool) == 1);
    token.cancel(None);
    waits.join();
    assert_eq!(waiting(&pool), 0);
}
