//! Several files of one model, and folders.

use super::*;

#[test]
fn several_files_with_an_index_are_one_model() {
    let index = br#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let (a, b) = (one_tensor("a", b"aa"), one_tensor("b", b"bbb"));
    let files: [(&str, &[u8]); 3] = [("1.safetensors", &a), ("2.safetensors", &b), (INDEX, index)];
    let folder = Folder::new("sharded", &files);
    let store = WeightStore::default();
    let weights = open(&store, &folder.0);
    assert_eq!((weights.len(), weights.nbytes()), (2, 5));
    assert_eq!(weights.tensor("b").unwrap().data().unwrap(), b"bbb");
    assert!(weights.shares_with(&open(&store, &folder.0)));
    let by_index = try_open(&store, "model", &folder.0.join(INDEX)).unwrap();
    assert!(weights.shares_with(&by_index));
    // One of the files is another one now.
    fs::write(folder.0.join("2.safetensors"), one_tensor("b", b"cccc")).unwrap();
    let told = refusal(try_open(&store, "model", &folder.0));
    assert!(told.contains(r#""b" is uint8 [3] there, not uint8 [4]"#), "{told}");
}

#[test]
fn an_index_that_names_more_tensors_is_another_model() {
    let two = two_tensors();
    let index = |names: &[&str]| {
        let entries: Vec<String> =
            names.iter().map(|name| format!(r#""{name}":"1.safetensors""#)).collect();
        format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))
    };
    let (one, both) = (index(&["a"]), index(&["a", "b"]));
    let folder = Folder::new("subset", &[("1.safetensors", &two), (INDEX, one.as_bytes())]);
    let store = WeightStore::default();
    let weights = open(&store, &folder.0.join(INDEX));
    assert_eq!(names(&weights), ["a"]);
    let told = refusal(try_open(&store, "model", &folder.0.join("1.safetensors")));
    assert!(told.contains(r#""b" is not there"#), "{told}");
    fs::write(folder.0.join(INDEX), both).unwrap();
    let told = refusal(try_open(&store, "model", &folder.0.join(INDEX)));
    assert!(told.contains(r#""b" is not there"#), "{told}");
}

#[test]
fn an_index_that_lies_is_refused() {
    let (store, a) = (WeightStore::default(), one_tensor("a", b"aa"));
    let cases = [
        ("{", "EOF"),
        ("[]", "it has no weight_map"),
        (r#"{"weight_map":{"a":3}}"#, "which is no file beside it"),
        (r#"{"weight_map":{"a":"../1.safetensors"}}"#, "which is no file beside it"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "which is no file beside it"),
        (r#"{"weight_map":{"a":""}}"#, "which is no file beside it"),
        (r#"{"weight_map":{"a":".."}}"#, "which is no file beside it"),
        (r#"{"weight_map":{"b":"1.safetensors"}}"#, r#""b" is not in "1.safetensors""#),
        (r#"{"weight_map":{"a":"2.safetensors"}}"#, "No such file"),
    ];
    for (index, why) in cases {
        let files: [(&str, &[u8]); 2] = [("1.safetensors", &a), (INDEX, index.as_bytes())];
        let folder = Folder::new("index", &files);
        let told = refusal(try_open(&store, "model", &folder.0));
        assert!(told.contains(why), "{index}: {told}");
    }
    assert!(store.status().unwrap().is_empty());
}

#[test]
fn a_folder_stands_for_the_weights_that_diffusers_and_transformers_put_there() {
    let (plain, variant) = (one_tensor("a", b"1"), one_tensor("a", b"2"));
    let usual = "diffusion_pytorch_model.safetensors";
    let fp16 = "diffusion_pytorch_model.fp16.safetensors";
    let store = WeightStore::default();
    let both = Folder::new("variants", &[(usual, &plain), (fp16, &variant)]);
    assert_eq!(open(&store, &both.0).tensor("a").unwrap().data().unwrap(), b"1");
    let only = Folder::new("variant", &[(fp16, &variant)]);
    assert_eq!(open(&store, &only.0).tensor("a").unwrap().data().unwrap(), b"2");
    let unusual = Folder::new("unusual", &[("x.safetensors", &plain), ("y.safetensors", &plain)]);
    let told = refusal(try_open(&store, "model", &unusual.0));
    assert!(told.ends_with("has several: name one of x.safetensors, y.safetensors"), "{told}");
    let whole = Folder::new("whole", &[("model_index.json", b"{}")]);
    let told = refusal(try_open(&store, "model", &whole.0));
    assert!(told.contains("is a whole pipeline: open its parts, such as"), "{told}");
}
