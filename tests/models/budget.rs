//! `Budget`.

use std::sync::{Arc, Mutex};

use coresident::budget::{Budget, BudgetError, Reservation, Spec};
use coresident::wait::{CancelToken, Parker, Patience};
use loom::thread;

use crate::owner;

fn of(limit: u64) -> Budget {
    Budget::new(Spec { limit, ..Spec::named("ram") })
}

/// A budget of which somebody on thread 0 has so many bytes.
fn held(limit: u64, bytes: u64) -> (Budget, Reservation) {
    let budget = of(limit);
    let reservation = budget.try_reserve(bytes, None, &owner(0)).unwrap().unwrap();
    (budget, reservation)
}

fn is_idle(budget: &Budget) -> bool {
    let status = budget.status().unwrap();
    status.used == 0 && status.holders.is_empty() && status.waiting.is_empty()
}

pub(crate) fn no_more_is_reserved_than_there_is() {
    let budget = of(3);
    let takers = [1, 2].map(|number| {
        let budget = budget.clone();
        thread::spawn(move || {
            let taken = budget.reserve(2, None, &owner(number), &Patience::FOREVER).unwrap();
            assert!(budget.used() <= 3);
            drop(taken);
        })
    });
    let tried = budget.try_reserve(1, None, &owner(0)).unwrap();
    assert!(budget.used() <= 3);
    drop(tried);
    for taker in takers {
        taker.join().unwrap();
    }
    assert!(is_idle(&budget));
}

pub(crate) fn bytes_are_granted_in_order_of_arrival() {
    let (budget, held) = held(2, 2);
    let served = Arc::new(Mutex::new(Vec::new()));
    let parker = Parker::new();
    let large = budget.ask(2, None, &owner(1), parker.clone()).unwrap();
    let small = thread::spawn({
        let (budget, served) = (budget.clone(), served.clone());
        move || {
            let taken = budget.reserve(1, None, &owner(2), &Patience::FOREVER).unwrap();
            served.lock().unwrap().push("small");
            drop(taken);
        }
    });
    held.shrink(1).unwrap();
    drop(held);
    let taken = large.wait(&parker, &Patience::FOREVER).unwrap();
    served.lock().unwrap().push("large");
    drop(taken);
    small.join().unwrap();
    assert_eq!(*served.lock().unwrap(), ["large", "small"]);
}

pub(crate) fn bytes_that_come_back_go_to_who_waits() {
    let (budget, held) = held(2, 2);
    let waiters = [1, 2].map(|number| {
        let budget = budget.clone();
        thread::spawn(move || {
            drop(budget.reserve(1, None, &owner(number), &Patience::FOREVER).unwrap());
        })
    });
    drop(held);
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert!(is_idle(&budget));
}

pub(crate) fn a_cancel_racing_a_grant_leaves_no_bytes_behind() {
    let (budget, held) = held(1, 1);
    let token = CancelToken::new();
    let waiter = thread::spawn({
        let (budget, token) = (budget.clone(), token.clone());
        move || {
            let patience = Patience::FOREVER.or_cancelled(&token);
            drop(budget.reserve(1, None, &owner(1), &patience));
        }
    });
    let canceller = thread::spawn(move || token.cancel(None));
    drop(held);
    waiter.join().unwrap();
    canceller.join().unwrap();
    assert!(is_idle(&budget));
}

pub(crate) fn who_can_never_be_served_below_a_new_limit_hears_of_it() {
    let (budget, held) = held(2, 1);
    let waiter = thread::spawn({
        let budget = budget.clone();
        move || budget.reserve(2, None, &owner(1), &Patience::FOREVER).err()
    });
    budget.set_limit(1).unwrap();
    let refused = waiter.join().unwrap();
    assert!(matches!(refused, Some(BudgetError::Impossible(_))));
    drop(held);
    assert!(is_idle(&budget));
}

pub(crate) fn splitting_and_releasing_at_once_keep_the_sum() {
    let (budget, held) = held(4, 4);
    let held = Arc::new(held);
    let splitter = thread::spawn({
        let held = held.clone();
        move || held.split(1).ok().map(|part| part.bytes())
    });
    let released = held.release();
    let part = splitter.join().unwrap();
    assert!(released && part.is_none_or(|bytes| bytes == 1));
    assert!(is_idle(&budget));
}
