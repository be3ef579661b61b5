//! What a key stands for: copies, settings, versions.

use super::*;

#[test]
fn a_private_copy_is_aligned_and_outlives_whatever_happens_to_its_file() {
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let header = format!(
        r#"{{"a":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}},
            "b":{{"dtype":"U8","shape":[{0}],"data_offsets":[3,{1}]}}}}"#,
        large.len(),
        large.len() + 3
    );
    let written = Written::new("private", &file(&header, &[b"xyz", &large[..]].concat()));
    let store = WeightStore::default();
    let weights = privately(&store, "model", &written.0).unwrap();
    fs::write(&written.0, b"cut").unwrap();
    let (a, b) = (weights.tensor("a").unwrap(), weights.tensor("b").unwrap());
    assert_eq!(a.data().unwrap(), b"xyz");
    assert!(b.data().unwrap() == large.as_slice());
    assert!([&a, &b].iter().all(|tensor| tensor.start().addr().is_multiple_of(64)));
    assert_eq!(weights.kinds(), [(MemoryKind::Slab, 20_000_064)]);
}

#[test]
fn a_copy_and_a_map_do_not_stand_for_each_other() {
    let written = Written::new("both", &two_tensors());
    let store = WeightStore::default();
    let _mapped = open(&store, &written.0);
    let told = refusal(privately(&store, "model", &written.0));
    assert!(told.contains("it is no copy there, not a copy of its own"), "{told}");
}

#[test]
fn who_does_not_mind_is_content_with_either() {
    let written = Written::new("either", &two_tensors());
    for private in [true, false] {
        let store = WeightStore::default();
        let open = |private| {
            let opening = Opening { private, ..Opening::default() };
            let (owner, path) = (somebody("main"), &written.0);
            store.open("model", path, &opening, &owner, &Patience::FOREVER).unwrap()
        };
        let first = open(Some(private));
        assert_eq!(open(None).kinds(), first.kinds());
    }
}

#[test]
fn who_opens_a_key_with_other_settings_is_told_the_first_difference() {
    let written = Written::new("settings", &two_tensors());
    let store = WeightStore::default();
    let with = |settings: &[(&str, &str)]| {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let opening =
            Opening { settings: settings.collect(), private: Some(false), ..Opening::default() };
        store.open("model", &written.0, &opening, &this_thread("main"), &Patience::FOREVER)
    };
    let first = with(&[("dtype", "fp16"), ("scale", "1")]).unwrap();
    assert!(first.shares_with(&with(&[("scale", "1"), ("dtype", "fp16")]).unwrap()));
    for (settings, why) in [
        (
            &[("dtype", "fp32"), ("scale", "1")][..],
            r#"its setting "dtype" is "fp16" there, not "fp32""#,
        ),
        (&[("dtype", "fp16")][..], r#"its setting "scale" is "1" there, not nothing"#),
        (&[][..], r#"its setting "dtype" is "fp16" there, not nothing"#),
    ] {
        let told = refusal(with(settings));
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn an_invalidated_key_is_whole_for_its_holders_and_gone_for_everybody_else() {
    let (one, other) =
        (Written::new("v1", &two_tensors()), Written::new("v2", &one_tensor("c", b"!")));
    let budget = Budget::new(Spec { limit: 100, ..Spec::named("ram") });
    let store = WeightStore::new(Some(budget.clone()));
    let opened = ["flux", "flux/vae", "flux/vae/decoder", "fluxus"]
        .map(|key| try_open(&store, key, &one.0).unwrap());
    let tensor = opened[1].tensor("b").unwrap();
    assert_eq!(store.invalidate("flux").unwrap(), 3);
    assert_eq!(store.invalidate("flux").unwrap(), 0);
    assert!(matches!(store.acquire("flux/vae"), Err(WeightsError::NotOpen { .. })));
    assert!(store.acquire("fluxus").unwrap().shares_with(&opened[3]));
    // Something else can be there at once, beside what is still held.
    let next = try_open(&store, "flux/vae", &other.0).unwrap();
    assert!(next.version() > opened[1].version());
    assert_eq!(opened[1].tensor("b").unwrap().data().unwrap(), b"xyz");
    assert_eq!(budget.used(), 4 * 11 + 1);
    let retired = store.status().unwrap().iter().filter(|status| status.retired).count();
    assert_eq!(retired, 3);
    drop(opened);
    assert_eq!(budget.used(), 11 + 11 + 1, "a tensor of one is still held, and two are kept");
    assert_eq!(tensor.data().unwrap(), b"xyz");
    drop(tensor);
    assert_eq!(budget.used(), 11 + 1);
}
