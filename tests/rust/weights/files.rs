//! One file: mapped, shared, refused.

use super::*;

#[test]
fn a_file_is_read_as_it_says_of_itself() {
    let written = Written::new("read", &two_tensors());
    let weights = open(&WeightStore::default(), &written.0);
    assert_eq!((weights.key(), weights.path()), ("model", Some(written.0.as_path())));
    assert_eq!(names(&weights), ["a", "b"], "in the order of the file, not of the header");
    assert_eq!(weights.nbytes(), 11);
    assert_eq!(weights.metadata()["format"], "pt");
    let (a, b) = (weights.tensor("a").unwrap(), weights.tensor("b").unwrap());
    assert_eq!((a.element_type().to_string(), a.shape()), ("float32".to_owned(), &[1, 2][..]));
    assert_eq!(a.data().unwrap(), b"\x00\x00\x80\x3f\x00\x00\x00\x40");
    assert_eq!(
        (b.element_type().to_string(), b.data().unwrap()),
        ("uint8".to_owned(), &b"xyz"[..])
    );
    assert!(b.is_aligned());
}

#[test]
fn a_key_that_is_open_is_shared_by_all_who_open_it_at_once() {
    let written = Written::new("shared", &two_tensors());
    let (store, path) = (WeightStore::default(), written.0.clone());
    let opened = at_once(8, move |_| (open(&store, &path), store.clone()));
    assert!(opened.iter().all(|(weights, _)| weights.shares_with(&opened[0].0)));
    let store = opened[0].1.clone();
    assert_eq!(store.status().unwrap().len(), 1);
    drop(opened);
    assert!(store.status().unwrap().is_empty(), "nobody has it, so nothing is mapped");
}

#[test]
fn a_tensor_keeps_its_file_when_the_weights_are_gone() {
    let written = Written::new("kept", &two_tensors());
    let store = WeightStore::default();
    let tensor = open(&store, &written.0).tensor("b").unwrap();
    assert_eq!(store.status().unwrap().len(), 1);
    fs::remove_file(&written.0).unwrap();
    assert_eq!(tensor.data().unwrap(), b"xyz");
    drop(tensor);
    assert!(store.status().unwrap().is_empty());
}

#[test]
fn a_file_that_was_replaced_is_never_mixed_with_what_is_open() {
    let written = Written::new("replaced", &two_tensors());
    let store = WeightStore::default();
    let before = open(&store, &written.0);
    written.replace(&file(r#"{"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, b"!"));
    assert_eq!(before.tensor("b").unwrap().data().unwrap(), b"xyz");
    let told = refusal(try_open(&store, "model", &written.0));
    assert_eq!(
        told,
        "the key \"model\" is in use, and \"c\" is not there: release that first, or use another key"
    );
    written.replace(&two_tensors());
    let told = refusal(try_open(&store, "model", &written.0));
    assert!(told.contains("which has been replaced since: release that first"), "{told}");
    written.replace(&file(r#"{"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, b"!"));
    assert_eq!(names(&try_open(&store, "new", &written.0).unwrap()), ["c"]);
    drop(before);
    assert_eq!(names(&open(&store, &written.0)), ["c"]);
}

#[test]
fn a_key_stands_for_one_file() {
    let (one, other) = (Written::new("one", &two_tensors()), Written::new("other", &two_tensors()));
    let store = WeightStore::default();
    let _one = open(&store, &one.0);
    let told = refusal(try_open(&store, "model", &other.0));
    let stands = format!("is in use, and it stands for {}: release that first", one.0.display());
    assert!(told.contains(&stands), "{told}");
    for key in ["", "  ", "/flux", "flux/"] {
        assert!(matches!(try_open(&store, key, &one.0), Err(WeightsError::InvalidKey { .. })));
    }
}

#[test]
fn a_tensor_that_is_not_there_is_told_with_those_that_are() {
    let written = Written::new("absent", &two_tensors());
    let weights = open(&WeightStore::default(), &written.0);
    assert_eq!(
        refusal(weights.tensor("bias")),
        r#"there is no tensor "bias" in "model", which has "b", "a""#
    );
    let header: Vec<String> = (0..9)
        .map(|n| format!(r#""block.{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let many = Written::new("many", &file(&format!("{{{}}}", header.join(",")), b""));
    let told = refusal(open(&WeightStore::default(), &many.0).tensor("block.7.weight"));
    assert!(told.contains(r#"which has "block.7", "#) && told.ends_with("and 6 more"), "{told}");
    let none = Written::new("none", &file("{}", b""));
    let told = refusal(open(&WeightStore::default(), &none.0).tensor("a"));
    assert!(told.ends_with("which has none"), "{told}");
}

#[test]
fn whatever_is_no_safetensors_file_is_refused_and_opens_nothing() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        file(
            &format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#),
            b"12345678",
        )
    };
    let overlapping = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},
        "b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    let whole = two_tensors();
    let cases: [(&[u8], &str); 17] = [
        (b"", "it is empty"),
        (b"1234", "header too small"),
        (&[0xff; 64], "header too large"),
        (&file("{\"a\"", b""), "invalid JSON"),
        (&file("\u{fffd}", b"")[..9], "invalid header length"),
        (&file("[]", b""), "invalid JSON"),
        (&whole[..whole.len() - 1], "not fully covered"),
        (&[&whole[..], b"!"].concat(), "not fully covered"),
        (&tensor("F32", "[2]", "[0,4]"), "invalid"),
        (&tensor("F32", "[3]", "[0,8]"), "invalid shape"),
        (&tensor("F99", "[2]", "[0,8]"), "unknown variant"),
        (&tensor("F32", "[-2]", "[0,8]"), "invalid"),
        (&tensor("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), "overflow"),
        (&file(overlapping, b"12345678"), "invalid offset"),
        (b"PK\x03\x04 and so on, a zip", "PyTorch checkpoint (a zip archive): convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer: fetch the file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page: the download has failed"),
    ];
    let store = WeightStore::default();
    for (at, (bytes, why)) in cases.into_iter().enumerate() {
        let written = Written::new(&format!("malformed-{at}"), bytes);
        let told = refusal(try_open(&store, "model", &written.0));
        assert!(told.contains("is not a safetensors file: ") && told.contains(why), "{told}");
    }
    assert!(store.status().unwrap().is_empty());
}

#[test]
fn every_cut_of_a_good_file_is_refused() {
    let (store, whole) = (WeightStore::default(), two_tensors());
    for length in 0..whole.len() {
        let written = Written::new("cut", &whole[..length]);
        assert!(matches!(
            try_open(&store, "model", &written.0),
            Err(WeightsError::Malformed { .. })
        ));
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let store = WeightStore::default();
    let absent = std::env::temp_dir().join("coresident-absent.safetensors");
    assert!(
        refusal(try_open(&store, "model", &absent))
            .ends_with("No such file or directory (os error 2)")
    );
    let folder = Folder::new("empty", &[]);
    let told = refusal(try_open(&store, "model", &folder.0));
    assert!(told.ends_with("has no weights in it: no safetensors and no GGUF file"), "{told}");
}

#[test]
fn what_is_prefetched_is_told_and_whole() {
    let large = vec![3_u8; 40 << 20];
    let written = Written::new("prefetch", &one_tensor("a", &large));
    let weights = open(&WeightStore::default(), &written.0);
    let mut told = Vec::new();
    weights.prefetch(4, &Patience::FOREVER, &mut |done, total| told.push((done, total))).unwrap();
    let total = fs::metadata(&written.0).unwrap().len();
    assert_eq!(told.last(), Some(&(total, total)));
    assert!(told.is_sorted() && told.iter().all(|&(done, of)| done <= of && of == total));
    let token = CancelToken::new();
    token.cancel(Some("enough".to_owned()));
    let patience = Patience::FOREVER.or_cancelled(&token);
    let ended = weights.prefetch(1, &patience, &mut |_, _| {});
    assert!(matches!(ended, Err(WeightsError::Wait(WaitError::Cancelled { .. }))));
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_is_cut_while_it_is_mapped_is_reported_by_reading_ahead() {
    let written = Written::new("shortened", &one_tensor("a", &vec![3_u8; 1 << 20]));
    let weights = open(&WeightStore::default(), &written.0);
    fs::OpenOptions::new().write(true).open(&written.0).unwrap().set_len(4096).unwrap();
    let told = refusal(weights.prefetch(2, &Patience::FOREVER, &mut |_, _| {}));
    assert!(told.contains("has been cut short since it was opened"), "{told}");
}
