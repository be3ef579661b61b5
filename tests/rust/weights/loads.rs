//! One load for all, and the budget.

use super::*;

#[test]
fn who_comes_while_a_key_is_loaded_shares_the_error_and_a_later_try_starts_afresh() {
    let written = Written::new("flight", b"not yet");
    let store = WeightStore::default();
    let outcomes = at_once(8, {
        let (store, path) = (store.clone(), written.0.clone());
        move |_| try_open(&store, "model", &path).err().map(|error| error.to_string())
    });
    assert!(outcomes.iter().all(|told| told.as_ref().is_some_and(|told| told.contains("header"))));
    assert!(store.status().unwrap().is_empty());
    written.replace(&two_tensors());
    assert_eq!(open(&store, &written.0).len(), 2);
}

#[test]
fn a_load_that_waits_for_the_budget_is_joined_and_survives_who_gives_up() {
    let written = Written::new("patience", &two_tensors());
    let budget = Budget::new(Spec { limit: 11, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let held = budget.try_reserve(11, None, &somebody("holder")).unwrap().unwrap();
    held.disown();
    let token = CancelToken::new();
    let first = spawn({
        let (store, path, token) = (store.clone(), written.0.clone(), token.clone());
        move || {
            let patience = Patience::FOREVER.or_cancelled(&token);
            let opening = Opening::default();
            store.open("model", &path, &opening, &this_thread("first"), &patience).map(drop)
        }
    });
    until(|| budget.is_wanted());
    let second = spawn({
        let (store, path) = (store.clone(), written.0.clone());
        move || try_open(&store, "model", &path).map(|weights| weights.nbytes())
    });
    token.cancel(None);
    assert!(matches!(first.join(), Err(WeightsError::Budget(BudgetError::Wait(_)))));
    until(|| budget.is_wanted());
    drop(held);
    assert_eq!(second.join().unwrap(), 11);
}

#[test]
fn loads_that_race_invalidations_and_evictions_leave_nothing_behind() {
    let written = Written::new("race", &two_tensors());
    let budget = Budget::new(Spec { limit: 40, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let (shared, path) = (store.clone(), written.0.clone());
    at_once(8, move |worker| {
        let mut random = Random(worker as u64);
        let keys: [&str; 4] = ["a", "a/b", "c", "d/e"];
        let mut held: Vec<Weights> = Vec::new();
        for _ in 0..400 {
            match random.below(6) {
                0 => drop(shared.invalidate(random.pick::<&str>(&keys)).unwrap()),
                1 => drop(shared.clear().unwrap()),
                2 => held.clear(),
                _ => {
                    let patience = Patience::at_most(Duration::from_millis(1));
                    let (key, opening) = (random.pick::<&str>(&keys), Opening::default());
                    let opened =
                        shared.open(key, &path, &opening, &this_thread("racer"), &patience);
                    held.extend(opened.inspect(|opened| {
                        assert_eq!(opened.tensor("b").unwrap().data().unwrap(), b"xyz");
                    }));
                }
            }
        }
    });
    store.clear().unwrap();
    assert_eq!(budget.used(), 0);
    assert!(store.status().unwrap().is_empty());
}

#[test]
fn what_nobody_uses_goes_when_bytes_are_wanted_and_nothing_else_does() {
    let files = ["x", "y", "z"].map(|name| Written::new(name, &one_tensor("a", &[1; 100])));
    let budget = Budget::new(Spec { limit: 300, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let used = try_open(&store, "x", &files[0].0).unwrap();
    let tensor = try_open(&store, "y", &files[1].0).unwrap().tensor("a").unwrap();
    drop(try_open(&store, "z", &files[2].0).unwrap());
    assert_eq!(budget.used(), 300, "kept for whoever comes back");
    let again = try_open(&store, "z", &files[2].0).unwrap();
    let version = again.version();
    drop(again);
    let reserved = budget.reserve(50, None, &somebody("a"), &Patience::FOREVER).unwrap();
    assert_eq!(budget.used(), 250);
    assert!(matches!(store.acquire("z"), Err(WeightsError::NotOpen { .. })));
    let patience = Patience::at_most(Duration::from_millis(5));
    let told = refusal(budget.reserve(60, None, &somebody("b"), &patience));
    assert!(told.contains(r#""x" has 100 B, "y" has 100 B"#), "{told}");
    drop((used, reserved));
    let next = try_open(&store, "z", &files[2].0).unwrap();
    assert!(next.version() > version);
    drop(tensor);
}

#[test]
fn a_model_larger_than_the_budget_is_refused_before_it_is_loaded() {
    let written = Written::new("larger", &two_tensors());
    let budget = Budget::new(Spec { limit: 10, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let told = refusal(try_open(&store, "model", &written.0));
    assert_eq!(told, "ram can never have 11 B: its limit is 10 B");
    assert!(store.status().unwrap().is_empty());
    drop(store);
    assert_eq!(budget.used(), 0);
}

/// One store with room for `limit` bytes, and tensors of ten bytes that somebody has in memory.
fn kept(limit: u64) -> (WeightStore, impl Fn(&str, u64) -> Weights, Budget) {
    let budget = Budget::new(Spec { limit, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let own = store.clone();
    let share = move |key: &str, seconds: u64| {
        let bytes = Arc::new([0_u8; 10]);
        let memory = Memory::foreign(bytes.as_ptr(), 10, false, Box::new(bytes.clone()));
        let (name, element, shape) = ("a".to_owned(), ElementType::UInt8, vec![10]);
        let given = Given { name, element, shape, strides: None, memory, offset: 0 };
        let opening = Opening { cost: Duration::from_secs(seconds), ..Opening::default() };
        own.share(key, vec![given], &opening, &somebody("a"), &Patience::FOREVER).unwrap()
    };
    (store, share, budget)
}

/// The keys that are there.
fn keys(store: &WeightStore) -> Vec<String> {
    store.status().unwrap().into_iter().map(|status| status.key).collect()
}

#[test]
fn what_takes_long_to_make_again_stays_longer() {
    let (store, share, budget) = kept(30);
    for (key, seconds) in [("compiled", 60), ("copied", 0), ("converted", 5)] {
        drop(share(key, seconds));
    }
    let cost: Vec<u64> =
        store.status().unwrap().iter().map(|status| status.cost.as_secs()).collect();
    assert_eq!(cost, [60, 5, 0]);
    let reserve = |bytes| budget.reserve(bytes, None, &somebody("b"), &Patience::FOREVER).unwrap();
    let first = reserve(10);
    assert_eq!(keys(&store), ["compiled", "converted"]);
    let second = reserve(10);
    assert_eq!(keys(&store), ["compiled"]);
    drop((first, second));
}

#[test]
fn what_is_used_often_stays_longer_but_not_for_ever() {
    let (store, share, _) = kept(20);
    for _ in 0..3 {
        drop(share("often", 2));
    }
    drop(share("once", 4));
    assert_eq!(keys(&store), ["often", "once"]);
    // It takes the place of the one that is worth 4, and begins with that.
    drop(share("later", 4));
    assert_eq!(keys(&store), ["later", "often"]);
    drop(share("latest", 4));
    assert_eq!(keys(&store), ["later", "latest"]);
}

#[test]
fn what_is_mapped_costs_a_read_of_the_file() {
    let bytes = 1 << 20;
    let written = Written::new("mapped", &one_tensor("a", &vec![1; bytes]));
    let store = WeightStore::new(None);
    let cost = || store.status().unwrap()[0].cost;
    let weights = try_open(&store, "model", &written.0).unwrap();
    assert!(cost() >= Duration::from_millis(1), "{:?}", cost());
    let before = cost();
    weights.prefetch(1, &Patience::FOREVER, &mut |_, _| {}).unwrap();
    assert!(cost() >= before, "it was read from somewhere");
}
