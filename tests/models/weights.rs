//! `WeightStore`.

use std::sync::Arc;

use coresident::budget::{Budget, Spec};
use coresident::wait::{CancelToken, Patience};
use coresident::weights::{
    ElementType, Given, Memory, Opening, WeightStore, Weights, WeightsError,
};
use loom::thread;

use crate::owner;

/// A tensor of four bytes, which may be told from another by where it lies.
fn tensor() -> Vec<Given> {
    let bytes = Arc::new([0_u8; 4]);
    let memory = Memory::foreign(bytes.as_ptr(), 4, false, Box::new(bytes.clone()));
    let (name, element, shape) = ("a".to_owned(), ElementType::UInt8, vec![4]);
    vec![Given { name, element, shape, strides: None, memory, offset: 0 }]
}

fn share(
    store: &WeightStore,
    number: u64,
    patience: &Patience<'_>,
) -> Result<Weights, WeightsError> {
    store.share("key", tensor(), &Opening::default(), &owner(number), patience)
}

fn budget(limit: u64) -> Budget {
    Budget::new(Spec { limit, ..Spec::named("ram") })
}

pub(crate) fn one_load_serves_all_who_come_meanwhile() {
    let store = WeightStore::new(None);
    let other = thread::spawn({
        let store = store.clone();
        move || share(&store, 1, &Patience::FOREVER).unwrap()
    });
    let own = share(&store, 0, &Patience::FOREVER).unwrap();
    assert!(other.join().unwrap().shares_with(&own));
    assert_eq!(store.status().unwrap().len(), 1);
}

pub(crate) fn who_waits_for_a_load_that_is_given_up_loads_it_himself() {
    let ledger = budget(4);
    let store = WeightStore::new(Some(ledger.clone()));
    let held = ledger.try_reserve(4, None, &owner(9)).unwrap().unwrap();
    held.disown();
    let token = CancelToken::new();
    let impatient = thread::spawn({
        let (store, token) = (store.clone(), token.clone());
        move || share(&store, 1, &Patience::FOREVER.or_cancelled(&token)).map(drop)
    });
    let patient = thread::spawn({
        let store = store.clone();
        move || share(&store, 2, &Patience::FOREVER).unwrap().nbytes()
    });
    token.cancel(None);
    drop(held);
    let _ = impatient.join().unwrap();
    assert_eq!(patient.join().unwrap(), 4);
}

pub(crate) fn what_was_invalidated_while_it_was_loaded_is_had_by_nobody_else() {
    let store = WeightStore::new(None);
    let loading = thread::spawn({
        let store = store.clone();
        move || share(&store, 1, &Patience::FOREVER).unwrap()
    });
    let count = store.invalidate("key").unwrap();
    let after = share(&store, 0, &Patience::FOREVER).unwrap();
    let loaded = loading.join().unwrap();
    // Retired, or loaded after the key was invalidated.
    assert_eq!(count == 1, loaded.is_retired());
    assert_eq!(loaded.shares_with(&after), !loaded.is_retired());
    assert!(store.acquire("key").unwrap().shares_with(&after));
}

pub(crate) fn what_somebody_has_is_never_evicted() {
    let ledger = budget(4);
    let store = WeightStore::new(Some(ledger.clone()));
    let weights = share(&store, 0, &Patience::FOREVER).unwrap();
    let other = thread::spawn({
        let store = store.clone();
        move || store.acquire("key").ok().map(|weights| weights.nbytes())
    });
    let freed = store.clear().unwrap();
    assert_eq!(freed, 0);
    assert!(store.acquire("key").unwrap().shares_with(&weights));
    assert_eq!(other.join().unwrap(), Some(4));
    drop(weights);
    assert_eq!((store.clear().unwrap(), ledger.used()), (4, 0));
}
