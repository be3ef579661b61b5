//! Memory of others.

use super::*;

fn given(name: &str, bytes: &Arc<Vec<u8>>, start: usize, length: usize) -> Given {
    let owner = Box::new(bytes.clone());
    let memory = Memory::foreign(bytes[start..].as_ptr(), length, false, owner);
    let (element, shape) = (ElementType::UInt8, vec![length]);
    Given { name: name.to_owned(), element, shape, strides: None, memory, offset: 0 }
}

#[test]
fn tied_tensors_and_views_count_once_and_keep_what_they_were_made_of() {
    let bytes = Arc::new(vec![5_u8; 100]);
    let budget = Budget::new(Spec { limit: 1000, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let me = this_thread("main");
    let share =
        |tensors| store.share("clip", tensors, &Opening::default(), &me, &Patience::FOREVER);
    let tied =
        || vec![given("a", &bytes, 0, 60), given("b", &bytes, 0, 60), given("c", &bytes, 50, 30)];
    let shared = share(tied()).unwrap();
    assert_eq!((shared.nbytes(), budget.used()), (80, 80));
    assert_eq!(shared.kinds(), [(MemoryKind::Foreign, 80)]);
    assert_eq!(Arc::strong_count(&bytes), 4);
    assert!(shared.shares_with(&share(tied()).unwrap()), "those that are there are taken");
    assert_eq!(Arc::strong_count(&bytes), 4);
    let told = refusal(share(vec![given("a", &bytes, 0, 60)]));
    assert!(told.contains("it has 3 tensors there, not 1"), "{told}");
    let mut other = tied();
    other[1].shape = vec![6, 10];
    let told = refusal(share(other));
    assert!(told.contains(r#""b" is uint8 [60] there, not uint8 [6, 10]"#), "{told}");
    let tensor = shared.tensor("c").unwrap();
    assert_eq!(tensor.start(), bytes[50..].as_ptr());
    assert!(tensor.data().is_none(), "its owner may write it");
    drop((shared, tensor));
    store.clear().unwrap();
    assert_eq!((Arc::strong_count(&bytes), budget.used()), (1, 0));
}
