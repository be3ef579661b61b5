//! The ledger of a memory: what is granted, to whom next, and what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coresident::budget::{
    Budget, BudgetError, Evictor, Figures, Limit, Probe, Reservation, Shared, Spec,
    default_host_limit,
};
use coresident::sync::Mutex;
use coresident::wait::{CancelToken, Kind, Owner, Parker, Patience, Pending, WaitError};

use super::{
    Random, at_once, imagined_thread, in_line, refusal, somebody, spawn, this_thread, until,
};

const GIB: u64 = 1 << 30;

fn of(limit: u64) -> Budget {
    Budget::new(Spec { limit, ..Spec::named("ram") })
}

fn take(budget: &Budget, bytes: u64) -> Reservation {
    budget.try_reserve(bytes, None, &somebody("taker")).unwrap().expect("there is no room")
}

fn join(budget: &Budget, bytes: u64, name: &str) -> Pending<Shared> {
    in_line(budget.ask(bytes, None, &somebody(name), Parker::new()).unwrap())
}

fn got(pending: &mut Pending<Shared>) -> Option<Reservation> {
    pending.poll().map(|outcome| outcome.unwrap_or_else(|error| panic!("{error}")))
}

/// A memory of which the test says what is free.
#[derive(Default)]
struct Memory(AtomicU64);

impl Probe for Memory {
    fn free(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst))
    }
}

fn watched(total: u64, headroom: u64, look_every: Duration) -> (Budget, Arc<Memory>) {
    let memory = Arc::new(Memory(AtomicU64::new(total)));
    let budget = Budget::new(Spec {
        total: Some(total),
        headroom,
        probe: Some(memory.clone()),
        look_every,
        ..Spec::named("cuda:0")
    });
    (budget, memory)
}

/// Gives back what it keeps, as much as it is asked for; notes what that was.
#[derive(Default)]
struct Cache {
    kept: Mutex<Vec<Reservation>>,
    asked: Mutex<Vec<u64>>,
}

impl Evictor for Cache {
    fn evict(&self, bytes: u64) {
        self.asked.lock().push(bytes);
        let mut freed = 0;
        while freed < bytes {
            let Some(reservation) = self.kept.lock().pop() else { break };
            freed += reservation.bytes();
        }
    }
}

fn cached(budget: &Budget, priority: i64, sizes: &[u64]) -> Arc<Cache> {
    let cache = Arc::new(Cache::default());
    cache.kept.lock().extend(sizes.iter().map(|&bytes| take(budget, bytes)));
    budget.add_evictor(priority, cache.clone());
    cache
}

#[test]
fn what_fits_to_the_byte_is_granted_and_one_byte_more_is_not() {
    let budget = of(10);
    let most = take(&budget, 9);
    assert!(budget.try_reserve(2, None, &somebody("a")).unwrap().is_none());
    let last = take(&budget, 1);
    assert_eq!((budget.used(), budget.free()), (10, 0));
    assert!(take(&budget, 0).bytes() == 0);
    drop((most, last));
    assert_eq!((budget.used(), budget.free(), budget.peak()), (0, 10, 10));
}

#[test]
fn more_than_there_can_ever_be_is_refused_at_once() {
    let (budget, _) = watched(100, 10, Duration::ZERO);
    let message = refusal(budget.reserve(91, None, &somebody("a"), &Patience::FOREVER));
    assert!(message.starts_with("cuda:0 can never have 91 B"), "{message}");
    let message = refusal(budget.try_reserve(u64::MAX, None, &somebody("a")));
    assert!(message.contains("can never have 16 EiB"), "{message}");
    let reservation = take(&budget, 50);
    let grown = reservation.grow(41, &this_thread("main"), &Patience::FOREVER);
    assert!(matches!(grown, Err(BudgetError::Impossible(Figures { asked: 41, .. }))));
    assert_eq!(reservation.bytes(), 50);
}

#[test]
fn nobody_overtakes_who_waits_however_little_he_wants_unless_he_only_tries() {
    let budget = of(10);
    let held = take(&budget, 8);
    let mut large = join(&budget, 5, "large");
    let mut small = join(&budget, 1, "small");
    assert!(got(&mut large).is_none() && got(&mut small).is_none());
    let tried = take(&budget, 2);
    drop(tried);
    assert!(got(&mut small).is_none());
    drop(held);
    assert_eq!(got(&mut large).unwrap().bytes(), 5);
    assert_eq!(got(&mut small).unwrap().bytes(), 1);
    assert_eq!(budget.used(), 0);
}

#[test]
fn who_gives_up_lets_those_behind_go() {
    let budget = of(10);
    let held = take(&budget, 8);
    let large = join(&budget, 5, "large");
    let mut small = join(&budget, 2, "small");
    drop(large);
    let small = got(&mut small).unwrap();
    drop(held);
    assert_eq!(budget.used(), small.bytes());
    assert!(budget.status().unwrap().waiting.is_empty());
}

#[test]
fn what_was_granted_but_never_collected_comes_back() {
    let budget = of(10);
    let held = take(&budget, 10);
    let waiting = join(&budget, 4, "a");
    drop(held);
    assert_eq!(budget.used(), 4);
    drop(waiting);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_timeout_says_who_has_the_rest() {
    let budget = of(8 * GIB);
    let weights = budget.try_reserve(6 * GIB, Some("flux"), &somebody("a")).unwrap().unwrap();
    let plain = budget.try_reserve(GIB, None, &somebody("b")).unwrap().unwrap();
    let patience = Patience::at_most(Duration::from_millis(5));
    let message = refusal(budget.reserve(3 * GIB, None, &somebody("c"), &patience));
    assert_eq!(
        message,
        "timed out after 0.005 s waiting for 3 GiB of ram, where 1 GiB of 8 GiB are free; \
         \"flux\" has 6 GiB, thread 'b' has 1 GiB"
    );
    drop((weights, plain));
}

#[test]
fn a_cancel_ends_the_wait() {
    let budget = of(1);
    let _held = take(&budget, 1);
    let token = CancelToken::new();
    token.cancel(Some("enough".to_owned()));
    let patience = Patience::FOREVER.or_cancelled(&token);
    let message = refusal(budget.reserve(1, None, &somebody("a"), &patience));
    assert_eq!(message, "cancelled while waiting for 1 B of ram: enough");
}

#[test]
fn waiting_for_what_one_has_oneself_is_refused() {
    let budget = of(10);
    let me = this_thread("main");
    let held = budget.reserve(6, None, &me, &Patience::FOREVER).unwrap();
    let message = refusal(budget.reserve(5, None, &me, &Patience::FOREVER));
    assert!(message.contains("which it holds itself"), "{message}");
    held.disown();
    let patience = Patience::at_most(Duration::ZERO);
    assert!(matches!(budget.reserve(5, None, &me, &patience), Err(BudgetError::Timeout { .. })));
}

#[test]
fn two_who_grow_into_each_others_bytes_are_refused_once() {
    let budget = of(10);
    let grow = |name: &'static str| {
        let budget = budget.clone();
        move || {
            let me = this_thread(name);
            let held = budget.reserve(4, None, &me, &Patience::FOREVER).unwrap();
            until(|| budget.used() >= 8 || budget.status().unwrap().waiting.len() == 1);
            let grown = held.grow(4, &me, &Patience::FOREVER);
            (grown.is_ok(), held.bytes())
        }
    };
    let both = [spawn(grow("a")), spawn(grow("b"))].map(super::Spawned::join);
    let mut outcomes = both.to_vec();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [(false, 4), (true, 8)]);
    assert_eq!(budget.used(), 0);
}

#[test]
fn growing_splitting_and_shrinking_keep_the_sum() {
    let budget = of(100);
    let whole = take(&budget, 10);
    whole.grow(30, &this_thread("main"), &Patience::FOREVER).unwrap();
    whole.fill(35).unwrap();
    let part = whole.split(15).unwrap();
    assert_eq!((whole.bytes(), whole.filled(), part.bytes(), part.filled()), (25, 25, 15, 10));
    part.shrink(6).unwrap();
    assert_eq!((part.bytes(), part.filled(), budget.used()), (9, 9, 34));
    whole.absorb(&part).unwrap();
    assert_eq!((whole.bytes(), whole.filled(), budget.used()), (34, 34, 34));
    assert!(part.is_released() && !part.release());
    assert_eq!(
        refusal(whole.split(35)),
        "this reservation has 34 bytes: splitting off takes at most that, not 35"
    );
    assert!(matches!(whole.shrink(u64::MAX), Err(BudgetError::TooMuch { has: 34, .. })));
    assert!(matches!(whole.fill(35), Err(BudgetError::TooMuch { .. })));
    assert!(whole.release() && !whole.release());
    assert_eq!(refusal(whole.shrink(1)), "the reservation of ram has been released already");
    assert!(matches!(whole.split(0), Err(BudgetError::Released { .. })));
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_reservation_moves_to_another_budget_or_stays_where_it_is() {
    let (ram, vram) = (of(10), of(4));
    let me = this_thread("main");
    let here = take(&ram, 6);
    let patience = Patience::at_most(Duration::ZERO);
    assert!(matches!(here.move_to(&vram, &me, &patience), Err(BudgetError::Impossible(_))));
    assert_eq!((ram.used(), vram.used()), (6, 0));
    here.shrink(2).unwrap();
    let there = here.move_to(&vram, &me, &patience).unwrap();
    assert!(here.is_released());
    assert_eq!((ram.used(), vram.used(), there.bytes()), (0, 4, 4));
    assert_eq!(
        refusal(here.move_to(&vram, &me, &patience)),
        "the reservation of ram has been released already"
    );
}

#[test]
fn a_lower_limit_takes_nothing_away_and_a_higher_one_lets_waiters_go() {
    let budget = of(10);
    let held = take(&budget, 8);
    budget.set_limit(4).unwrap();
    assert_eq!((held.bytes(), budget.used(), budget.free()), (8, 8, 0));
    let mut waiting = join(&budget, 4, "a");
    budget.set_limit(12).unwrap();
    assert_eq!(got(&mut waiting).unwrap().bytes(), 4);
}

#[test]
fn who_can_never_be_served_below_a_new_limit_is_turned_away() {
    let budget = of(10);
    let held = take(&budget, 10);
    let (mut large, mut small) = (join(&budget, 6, "large"), join(&budget, 5, "small"));
    budget.set_limit(5).unwrap();
    let refused = refusal(large.poll().unwrap());
    assert_eq!(refused, "ram can never have 6 B: its limit is 5 B");
    drop(held);
    assert!(got(&mut small).is_some());
}

#[test]
fn evictors_are_asked_in_order_for_what_is_missing_and_no_further() {
    let budget = of(100);
    let (late, early) = (cached(&budget, 5, &[20, 20]), cached(&budget, -1, &[10, 30]));
    let held = take(&budget, 15);
    let reservation = budget.reserve(40, None, &somebody("a"), &Patience::FOREVER).unwrap();
    // 5 were free; the second in the early cache covers 30 of 35, then 5 more are missing.
    assert_eq!(*early.asked.lock(), [35]);
    assert!(late.asked.lock().is_empty());
    drop(reservation);
    drop(budget.reserve(80, None, &somebody("a"), &Patience::FOREVER).unwrap());
    assert_eq!((early.asked.lock().len(), late.asked.lock().len()), (2, 1));
    drop(held);
}

#[test]
fn an_evictor_that_reserves_is_not_asked_again() {
    struct Careless(Budget, AtomicU64);
    impl Evictor for Careless {
        fn evict(&self, _: u64) {
            self.1.fetch_add(1, Ordering::SeqCst);
            let patience = Patience::at_most(Duration::ZERO);
            for _ in 0..2 {
                assert!(self.0.reserve(3, None, &somebody("evictor"), &patience).is_err());
            }
        }
    }
    let budget = of(4);
    let _held = take(&budget, 2);
    let careless = Arc::new(Careless(budget.clone(), AtomicU64::new(0)));
    let number = budget.add_evictor(0, careless.clone());
    let patience = Patience::at_most(Duration::ZERO);
    assert!(budget.reserve(3, None, &somebody("a"), &patience).is_err());
    assert_eq!(careless.1.load(Ordering::SeqCst), 1);
    assert!(budget.remove_evictor(number) && !budget.remove_evictor(number));
}

#[test]
fn an_evictor_of_one_budget_may_need_those_of_another() {
    struct Mover(Budget, Mutex<Option<Reservation>>);
    impl Evictor for Mover {
        fn evict(&self, _: u64) {
            if let Some(reservation) = self.1.lock().take() {
                let patience = Patience::at_most(Duration::ZERO);
                drop(reservation.move_to(&self.0, &somebody("mover"), &patience).unwrap());
            }
        }
    }
    let (ram, vram) = (of(10), of(10));
    let cache = cached(&ram, 0, &[8]);
    let mover = Mover(ram, Mutex::new(Some(take(&vram, 10))));
    vram.add_evictor(0, Arc::new(mover));
    drop(vram.reserve(5, None, &somebody("a"), &Patience::FOREVER).unwrap());
    assert_eq!(*cache.asked.lock(), [8]);
}

#[test]
fn bytes_that_change_while_they_move_are_moved_as_they_are_then() {
    let (ram, vram) = (of(100), of(10));
    let here = Arc::new(take(&ram, 10));
    let held = take(&vram, 10);
    let moving = spawn({
        let (here, vram) = (here.clone(), vram.clone());
        move || here.move_to(&vram, &this_thread("mover"), &Patience::FOREVER).unwrap()
    });
    until(|| vram.is_wanted());
    let part = here.split(6).unwrap();
    drop(held);
    let there = moving.join();
    assert_eq!((there.bytes(), vram.used(), ram.used()), (4, 4, 6));
    assert_eq!(part.bytes(), 6);
}

#[test]
fn who_would_grow_beyond_a_new_limit_is_turned_away() {
    let budget = of(10);
    let (other, mine) = (take(&budget, 4), take(&budget, 6));
    let growing = spawn({
        let budget = budget.clone();
        move || {
            let outcome = mine.grow(4, &this_thread("a"), &Patience::FOREVER);
            drop(mine);
            drop(budget);
            outcome
        }
    });
    until(|| budget.is_wanted());
    budget.set_limit(9).unwrap();
    assert!(matches!(growing.join(), Err(BudgetError::Impossible(_))));
    drop(other);
}

#[test]
fn what_is_in_memory_already_needs_no_room_a_second_time() {
    let (budget, memory) = watched(100, 0, Duration::ZERO);
    // Somebody has put 60 there, which are to be ours.
    memory.0.store(40, Ordering::SeqCst);
    budget.look().unwrap();
    let me = somebody("a");
    let patience = Patience::at_most(Duration::ZERO);
    assert!(budget.reserve(60, None, &me, &patience).is_err());
    let ours = budget.reserve_filled(60, 60, None, &me, &patience).unwrap();
    assert_eq!((ours.filled(), budget.free(), budget.status().unwrap().outside), (60, 40, 0));
    budget.look().unwrap();
    assert_eq!(budget.free(), 40);
    assert!(budget.reserve_filled(101, 101, None, &me, &patience).is_err());
}

#[test]
fn a_lower_limit_asks_the_evictors_for_the_difference() {
    let budget = of(100);
    let cache = cached(&budget, 0, &[30, 30]);
    budget.set_limit(40).unwrap();
    assert_eq!(*cache.asked.lock(), [20]);
    assert_eq!(budget.used(), 30);
}

#[test]
fn what_others_take_is_not_granted_and_what_is_filled_is_not_charged_twice() {
    let (budget, memory) = watched(100, 10, Duration::ZERO);
    let ours = take(&budget, 40);
    assert_eq!(budget.free(), 50);
    // We fill ours, and others take 20.
    ours.fill(40).unwrap();
    memory.0.store(40, Ordering::SeqCst);
    budget.look().unwrap();
    assert_eq!((budget.free(), budget.status().unwrap().outside), (30, 20));
    assert!(budget.try_reserve(31, None, &somebody("a")).unwrap().is_none());
    let last = take(&budget, 30);
    // Others give theirs back.
    memory.0.store(60, Ordering::SeqCst);
    budget.look().unwrap();
    assert_eq!(budget.free(), 20);
    drop((ours, last));
}

#[test]
fn who_waits_for_others_outside_goes_when_they_have_gone() {
    let (budget, memory) = watched(100, 0, Duration::from_millis(1));
    memory.0.store(30, Ordering::SeqCst);
    budget.look().unwrap();
    let waiting = spawn({
        let budget = budget.clone();
        move || budget.reserve(50, None, &this_thread("a"), &Patience::FOREVER).unwrap().bytes()
    });
    until(|| budget.is_wanted());
    memory.0.store(50, Ordering::SeqCst);
    assert_eq!(waiting.join(), 50);
}

#[test]
fn a_look_is_believed_for_a_while_and_each_budget_has_its_own() {
    struct Counting(AtomicU64);
    impl Probe for Counting {
        fn free(&self) -> Option<u64> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Some(1000)
        }
    }
    let probe = Arc::new(Counting(AtomicU64::new(0)));
    let budgets = [0, 1].map(|number| {
        Budget::new(Spec {
            probe: Some(probe.clone()),
            look_every: Duration::from_hours(1),
            ..Spec::named(format!("cuda:{number}"))
        })
    });
    for budget in &budgets {
        for _ in 0..10 {
            drop(take(budget, 1));
        }
    }
    assert_eq!(probe.0.load(Ordering::SeqCst), 2);
}

#[test]
fn a_thread_that_ends_keeps_what_it_has_reserved_for_whoever_has_it_now() {
    let budget = of(10);
    let kept = spawn({
        let budget = budget.clone();
        move || budget.reserve(6, None, &this_thread("short"), &Patience::FOREVER).unwrap()
    })
    .join();
    assert_eq!(budget.used(), 6);
    // Nobody in particular has it now: waiting for it is no deadlock.
    let patience = Patience::at_most(Duration::from_millis(1));
    let refused = budget.reserve(5, None, &this_thread("main"), &patience);
    assert!(matches!(refused, Err(BudgetError::Timeout { .. })));
    drop(kept);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_thread_that_ends_gives_up_what_its_tasks_waited_for() {
    let budget = of(1);
    let held = take(&budget, 1);
    let thread = imagined_thread();
    let task = Owner::with_thread(Kind::Task, thread, "lost".to_owned());
    let mut lost = in_line(budget.ask(1, None, &task, Parker::new()).unwrap());
    let mut next = join(&budget, 1, "next");
    coresident::wait::thread_ended(thread);
    let refused = lost.poll().unwrap();
    assert!(matches!(refused, Err(BudgetError::Wait(WaitError::Cancelled { .. }))));
    drop(held);
    assert!(got(&mut next).is_some());
}

#[test]
fn thousands_of_threads_leave_the_ledger_at_zero() {
    let (ram, vram) = (of(1000), of(400));
    let cache = cached(&ram, 0, &[50, 50, 50]);
    for round in 0..40 {
        let (ram, vram, cache) = (ram.clone(), vram.clone(), cache.clone());
        at_once(64, move |worker| {
            let mut random = Random(round * 64 + worker as u64);
            let me = this_thread("worker");
            let patience = Patience::at_most(Duration::from_millis(random.below(3)));
            let mut held: Vec<Reservation> = Vec::new();
            for _ in 0..20 {
                match random.below(8) {
                    0 | 1 => held.extend(ram.reserve(random.below(300), None, &me, &patience).ok()),
                    2 => held.extend(ram.try_reserve(random.below(300), None, &me).ok().flatten()),
                    3 => drop(held.pop()),
                    4 => {
                        let half = held.last().and_then(|last| last.split(last.bytes() / 2).ok());
                        held.extend(half);
                    }
                    5 => drop(held.last().map(|last| last.grow(random.below(50), &me, &patience))),
                    6 => {
                        let moved = held.last().map(|last| last.move_to(&vram, &me, &patience));
                        held.extend(moved.and_then(Result::ok));
                    }
                    _ => {
                        let kept = ram.try_reserve(random.below(60), None, &me).ok().flatten();
                        let kept = kept.inspect(Reservation::disown);
                        cache.kept.lock().extend(kept);
                    }
                }
                assert!(ram.used() <= 1000 && vram.used() <= 400);
            }
        });
    }
    cache.kept.lock().clear();
    for budget in [ram, vram] {
        let status = budget.status().unwrap();
        assert_eq!((status.used, status.waiting.len(), status.holders.len()), (0, 0, 0));
    }
}

#[test]
fn limits_are_read_as_people_write_them() {
    let total = Some(16 * GIB);
    for (text, bytes) in [("12GiB", 12 * GIB), ("50%", 8 * GIB), (" 100 % ", 16 * GIB), ("7", 7)] {
        let limit: Limit = text.parse().unwrap();
        assert_eq!(limit.bytes("ram", total).unwrap(), bytes, "{text}");
    }
    for text in ["", "%", "x%", "GiB", "nan%"] {
        assert!(text.parse::<Limit>().is_err(), "{text}");
    }
    for text in ["0%", "101%", "-1%"] {
        assert!(refusal(text.parse::<Limit>()).contains("more than 0% and at most 100%"), "{text}");
    }
    let share: Limit = "50%".parse().unwrap();
    assert!(refusal(share.bytes("xpu:0", None)).starts_with("how much memory xpu:0 has"));
}

#[test]
fn host_memory_is_limited_to_half_less_two_and_at_least_four_gib_but_never_more_than_all() {
    for (total, limit) in [(64, 30), (16, 6), (12, 4), (8, 4), (4, 4), (2, 2)] {
        assert_eq!(default_host_limit(total * GIB), limit * GIB, "of {total} GiB");
    }
}
