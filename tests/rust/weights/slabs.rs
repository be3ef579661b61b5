//! Slabs: sealed memory of the store's own, used again and again.

use super::*;

/// A budget of so many bytes and a store that uses it.
fn store_of(limit: u64) -> (Budget, WeightStore) {
    let budget = Budget::new(Spec { limit, ..Spec::named("ram") });
    (budget.clone(), WeightStore::new(Some(budget)))
}

/// Opens a private copy of one tensor of so many such bytes, and checks it.
fn copy(store: &WeightStore, key: &str, (byte, length): (u8, usize)) -> Weights {
    let name = format!("slab-{}-{byte}", key.replace('/', "-"));
    let bytes = vec![byte; length];
    let written = Written::new(&name, &one_tensor("a", &bytes));
    let weights = privately(store, key, &written.0).unwrap();
    assert!(weights.tensor("a").unwrap().data().unwrap() == bytes);
    weights
}

fn start(weights: &Weights) -> *const u8 {
    weights.tensor("a").unwrap().start()
}

#[test]
fn a_slab_that_is_left_is_filled_again_with_its_bytes_reserved_throughout() {
    let (budget, store) = store_of(10_000_000);
    let first = copy(&store, "one", (1, 6_000_000));
    let place = start(&first);
    assert!(place.addr().is_multiple_of(2 << 20));
    store.invalidate("one").unwrap();
    assert_eq!(store.spare().unwrap(), 0, "somebody has it");
    drop(first);
    assert_eq!((store.spare().unwrap(), budget.used()), (6_000_000, 6_000_000));
    let second = copy(&store, "two", (2, 6_000_000));
    assert_eq!((store.spare().unwrap(), budget.used()), (0, 6_000_000));
    assert_eq!(start(&second), place);
}

#[test]
fn where_there_is_no_room_beside_it_a_slab_grows_and_shrinks_to_what_it_is_filled_with() {
    let (budget, store) = store_of(6_000_000);
    for (round, length) in
        [3_000_000, 5_000_000, 2_900_000, 6_000_000, 1 << 20].into_iter().enumerate()
    {
        let byte = u8::try_from(round).unwrap();
        let weights = copy(&store, "model", (byte, length));
        assert_eq!((budget.used(), store.spare().unwrap()), (length as u64, 0));
        store.invalidate("model").unwrap();
        drop(weights);
        assert_eq!(store.spare().unwrap(), length as u64);
    }
    assert_eq!(store.clear().unwrap(), 1 << 20);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_large_slab_is_not_spoilt_for_something_small_that_has_room_beside_it() {
    let (budget, store) = store_of(100_000_000);
    let place = start(&copy(&store, "large", (1, 50_000_000)));
    store.invalidate("large").unwrap();
    let small = copy(&store, "small", (2, 2_000_000));
    assert_eq!((store.spare().unwrap(), budget.used()), (50_000_000, 52_000_000));
    assert_eq!(start(&copy(&store, "large", (3, 50_000_000))), place);
    drop(small);
}

#[test]
fn what_is_little_is_not_kept() {
    let (budget, store) = store_of(100_000_000);
    for number in 0..20 {
        drop(copy(&store, &format!("keys/{number}"), (1, 1000)));
    }
    store.invalidate("keys").unwrap();
    assert_eq!((store.spare().unwrap(), budget.used()), (0, 0));
}

#[test]
fn nothing_is_kept_beyond_a_limit_that_was_lowered() {
    let (budget, store) = store_of(10_000_000);
    let weights = copy(&store, "model", (1, 8_000_000));
    budget.set_limit(4_000_000).unwrap();
    store.invalidate("model").unwrap();
    drop(weights);
    assert_eq!((store.spare().unwrap(), budget.used()), (0, 0));
}

#[test]
fn a_load_that_can_never_be_costs_nobody_anything() {
    let budget = Budget::new(Spec {
        limit: 10_000_000,
        headroom: 4_000_000,
        total: Some(10_000_000),
        ..Spec::named("ram")
    });
    let store = WeightStore::new(Some(budget.clone()));
    drop(copy(&store, "kept", (1, 2_000_000)));
    drop(copy(&store, "spare", (1, 2_000_000)));
    store.invalidate("spare").unwrap();
    let written = Written::new("never", &one_tensor("a", &vec![1; 7_000_000]));
    assert!(matches!(
        privately(&store, "never", &written.0),
        Err(WeightsError::Budget(BudgetError::Impossible(_)))
    ));
    assert_eq!((store.spare().unwrap(), budget.used()), (2_000_000, 4_000_000));
    assert!(store.acquire("kept").is_ok());
}

#[test]
fn a_store_that_goes_gives_its_slabs_back() {
    let (budget, store) = store_of(100_000_000);
    drop(copy(&store, "kept", (1, 20_000_000)));
    drop(copy(&store, "spare", (1, 20_000_000)));
    store.invalidate("spare").unwrap();
    drop(store);
    until(|| budget.used() == 0);
}

#[test]
fn of_several_spare_slabs_the_one_that_fits_best_is_taken() {
    let (_, store) = store_of(100_000_000);
    let slabs = [("a", 10_000_000), ("b", 30_000_000), ("c", 20_000_000)];
    let places = {
        let held = slabs.map(|(key, length)| copy(&store, key, (7, length)));
        for (key, _) in slabs {
            store.invalidate(key).unwrap();
        }
        held.each_ref().map(start)
    };
    assert_eq!(start(&copy(&store, "d", (8, 15_000_000))), places[2]);
    assert_eq!(store.spare().unwrap(), 40_000_000);
}

#[test]
fn weights_that_would_have_to_go_leave_their_slab_to_those_that_come() {
    let (budget, store) = store_of(10_000_000);
    let place = start(&copy(&store, "old", (1, 9_000_000)));
    let new = copy(&store, "new", (2, 8_000_000));
    assert_eq!(start(&new), place);
    assert!(matches!(store.acquire("old"), Err(WeightsError::NotOpen { .. })));
    assert_eq!(budget.used(), 8_000_000);
}

#[test]
fn spare_slabs_go_before_anything_else_when_bytes_are_wanted() {
    let (budget, store) = store_of(10_000_000);
    let kept = copy(&store, "kept", (1, 4_000_000));
    let spare = copy(&store, "spare", (2, 6_000_000));
    store.invalidate("spare").unwrap();
    drop((kept, spare));
    let reserved = budget.reserve(5_000_000, None, &somebody("a"), &Patience::FOREVER).unwrap();
    assert_eq!((store.spare().unwrap(), budget.used()), (0, 9_000_000));
    assert!(store.acquire("kept").is_ok());
    drop(reserved);
}

#[test]
fn a_slab_is_not_kept_from_those_who_wait_for_its_bytes() {
    let (budget, store) = store_of(10_000_000);
    let weights = copy(&store, "model", (1, 9_000_000));
    store.invalidate("model").unwrap();
    let waiting = spawn({
        let budget = budget.clone();
        move || budget.reserve(5_000_000, None, &somebody("waiter"), &Patience::FOREVER).is_ok()
    });
    until(|| budget.is_wanted());
    drop(weights);
    assert!(waiting.join());
    assert_eq!(store.spare().unwrap(), 0);
}

#[test]
fn a_slab_too_small_to_grow_within_the_budget_is_given_back_and_the_load_waits_in_line() {
    let (budget, store) = store_of(10_000_000);
    let small = copy(&store, "small", (1, 3_000_000));
    store.invalidate("small").unwrap();
    drop(small);
    let held = budget.reserve(4_000_000, None, &somebody("a"), &Patience::FOREVER).unwrap();
    held.disown();
    let load = spawn({
        let store = store.clone();
        move || copy(&store, "large", (2, 7_000_000)).nbytes()
    });
    until(|| budget.is_wanted());
    assert_eq!((store.spare().unwrap(), budget.used()), (0, 4_000_000));
    drop(held);
    assert_eq!(load.join(), 7_000_000);
}

#[test]
fn without_a_budget_no_slab_is_kept() {
    let store = WeightStore::default();
    let weights = copy(&store, "model", (1, 5_000_000));
    store.invalidate("model").unwrap();
    drop(weights);
    assert_eq!(store.spare().unwrap(), 0);
}

#[test]
fn a_load_that_fails_gives_its_slab_and_its_bytes_back() {
    let (budget, store) = store_of(20_000_000);
    drop(copy(&store, "model", (1, 5_000_000)));
    let header = r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#;
    let written = Written::new("slab-fails", &file(header, b"too few"));
    assert!(privately(&store, "broken", &written.0).is_err());
    store.clear().unwrap();
    assert_eq!((store.spare().unwrap(), budget.used()), (0, 0));
}

#[test]
fn a_copy_that_is_given_up_ends_at_once_and_leaves_nothing_behind() {
    let written = Written::new("given-up", &one_tensor("a", &vec![3; 64 << 20]));
    let (budget, store) = store_of(100 << 20);
    let token = CancelToken::new();
    token.cancel(Some("enough".to_owned()));
    let opening = Opening { private: Some(true), ..Opening::default() };
    for patience in [Patience::FOREVER.or_cancelled(&token), Patience::at_most(Duration::ZERO)] {
        let told = refusal(store.open("m", &written.0, &opening, &this_thread("main"), &patience));
        assert!(told.contains(r#"the weights "m" to be copied"#), "{told}");
        assert!(store.status().unwrap().is_empty());
        // The threads end after the piece that they are at.
        until(|| budget.used() == 0);
    }
    assert_eq!(privately(&store, "m", &written.0).unwrap().nbytes(), 64 << 20);
}

#[test]
fn threads_that_load_leave_and_clear_at_random_never_see_the_bytes_of_others() {
    let (budget, store) = store_of(8_000_000);
    let files = [10, 1_100_000, 1_500_000, 2_500_000, 4_000_000].map(|length: usize| {
        let bytes = vec![u8::try_from(length % 241).unwrap(); length];
        let written = Written::new(&format!("random-{length}"), &one_tensor("a", &bytes));
        (bytes, written)
    });
    let (shared, files) = (store.clone(), Arc::new(files));
    at_once(6, move |worker| {
        let mut random = Random(worker as u64);
        let mut held: Vec<(usize, Weights)> = Vec::new();
        for _ in 0..300 {
            match random.below(8) {
                0 => drop(shared.invalidate(&random.below(5).to_string()).unwrap()),
                1 => drop(shared.clear().unwrap()),
                2 | 3 => drop(held.pop()),
                _ => {
                    let at = usize::try_from(random.below(5)).unwrap();
                    let (_, written) = &files[at];
                    let patience = Patience::at_most(Duration::from_millis(1));
                    let opening = Opening { private: Some(true), ..Opening::default() };
                    let owner = this_thread("racer");
                    let key = at.to_string();
                    let opened = shared.open(&key, &written.0, &opening, &owner, &patience);
                    held.extend(opened.ok().map(|opened| (at, opened)));
                }
            }
            for (at, weights) in &held {
                let tensor = weights.tensor("a").unwrap();
                assert!(tensor.data().unwrap() == files[*at].0, "no byte is another's");
            }
        }
    });
    store.clear().unwrap();
    assert_eq!((budget.used(), store.spare().unwrap()), (0, 0));
}
