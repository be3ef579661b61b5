//! Files of weights: mapped, shared, refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, process};

use coresident::budget::{Budget, BudgetError, Spec};
use coresident::wait::{CancelToken, Patience, WaitError};
use coresident::weights::{
    ElementType, Given, Memory, MemoryKind, Opening, WeightStore, Weights, WeightsError,
};

use super::{Random, at_once, refusal, somebody, spawn, this_thread, until};

/// A file that is removed in the end.
struct Written(PathBuf);

impl Written {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let name = format!("coresident-{}-{name}.safetensors", process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).unwrap();
        Self(path)
    }

    /// Another file takes its place, as a download does it.
    fn replace(&self, bytes: &[u8]) {
        let other = self.0.with_extension("new");
        fs::write(&other, bytes).unwrap();
        fs::rename(other, &self.0).unwrap();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A folder with these files in it, which is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &[u8])]) -> Self {
        let folder = std::env::temp_dir().join(format!("coresident-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file: the length of its header, the header, the data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let length = u64::try_from(header.len()).unwrap().to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

fn two_tensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},
        "a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    file(header, b"\x00\x00\x80\x3f\x00\x00\x00\x40xyz")
}

/// Opens a path under a key, as plain code does.
fn try_open(store: &WeightStore, key: &str, path: &Path) -> Result<Weights, WeightsError> {
    store.open(key, path, &Opening::default(), &this_thread("main"), &Patience::FOREVER)
}

fn open(store: &WeightStore, path: &Path) -> Weights {
    try_open(store, "model", path).unwrap()
}

#[test]
fn a_file_is_read_as_it_says_of_itself() {
    let written = Written::new("read", &two_tensors());
    let weights = open(&WeightStore::default(), &written.0);
    assert_eq!((weights.key(), weights.path()), ("model", Some(written.0.as_path())));
    assert_eq!(weights.names(), ["a", "b"], "in the order of the file, not of the header");
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
    assert_eq!(try_open(&store, "new", &written.0).unwrap().names(), ["c"]);
    drop(before);
    assert_eq!(open(&store, &written.0).names(), ["c"]);
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

// Several files, folders, GGUF

fn one_tensor(name: &str, data: &[u8]) -> Vec<u8> {
    let length = data.len();
    let header =
        format!(r#"{{"{name}":{{"dtype":"U8","shape":[{length}],"data_offsets":[0,{length}]}}}}"#);
    file(&header, data)
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn several_files_with_an_index_are_one_model() {
    let index = br#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let (a, b) = (one_tensor("a", b"aa"), one_tensor("b", b"bbb"));
    let files: [(&str, &[u8]); 3] = [("1.safetensors", &a), ("2.safetensors", &b), (INDEX, index)];
    let folder = Folder::new("sharded", &files);
    let store = WeightStore::default();
    let weights = open(&store, &folder.0);
    assert_eq!((weights.names().len(), weights.nbytes()), (2, 5));
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
    assert_eq!(weights.names(), ["a"]);
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

/// A GGUF file of two tensors: two rows of one packed block each, and three plain numbers.
fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |number: u64| number.to_le_bytes().to_vec();
    let kind = |number: u32| number.to_le_bytes().to_vec();
    let mut file = [b"GGUF".to_vec(), kind(3), number(2), number(3)].concat();
    file.extend([text("general.architecture"), kind(8), text("flux")].concat());
    file.extend([text("general.alignment"), kind(4), kind(64)].concat());
    let array = [text("tokens"), kind(9), kind(8), number(2), text("a"), text("b")];
    file.extend(array.concat());
    // The fastest dimension first.
    let packed = [text("packed"), kind(2), number(32), number(2), kind(8), number(64)];
    file.extend(packed.concat());
    file.extend([text("plain"), kind(1), number(3), kind(0), number(0)].concat());
    file.resize(file.len().next_multiple_of(64), 0);
    file.extend([1.0_f32, 2.0, 3.0].into_iter().flat_map(f32::to_le_bytes));
    file.resize(file.len().next_multiple_of(64), 0);
    file.extend([7; 68]);
    file
}

#[test]
fn a_gguf_file_has_its_blocks_as_they_lie() {
    let written = Written::new("gguf", &gguf());
    let weights = open(&WeightStore::default(), &written.0);
    assert_eq!(weights.names(), ["plain", "packed"]);
    assert_eq!(weights.metadata()["general.architecture"], "flux");
    assert!(!weights.metadata().contains_key("tokens"));
    let (plain, packed) = (weights.tensor("plain").unwrap(), weights.tensor("packed").unwrap());
    assert_eq!((plain.element_type().to_string(), plain.shape()), ("float32".to_owned(), &[3][..]));
    assert_eq!(plain.packing(), None);
    assert_eq!(packed.element_type().to_string(), "uint8");
    assert_eq!(packed.shape(), [2, 34], "rows, and the bytes of a row's blocks");
    let packing = packed.packing().unwrap();
    assert_eq!((packing.name, packing.number), ("Q8_0", 8));
    assert_eq!(packed.data().unwrap(), [7; 68]);
}

#[test]
fn every_cut_of_a_gguf_file_is_refused() {
    let (store, whole) = (WeightStore::default(), gguf());
    for length in 4..whole.len() {
        let written = Written::new("gguf-cut", &whole[..length]);
        let told = refusal(try_open(&store, "model", &written.0));
        assert!(told.contains("is not a GGUF file: "), "{length}: {told}");
    }
}

#[test]
fn whatever_bytes_a_file_has_it_is_read_or_refused_in_words() {
    let mut random = Random(7);
    let index = br#"{"weight_map":{"a":"1.safetensors"}}"#.to_vec();
    let part = one_tensor("a", b"aa");
    for round in 0..3_000 {
        let seed = [two_tensors(), gguf(), index.clone()][round % 3].clone();
        let mut bytes = seed;
        for _ in 0..=random.below(4) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            match random.below(3) {
                0 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
                1 => bytes[at] = [0, 0xff, 0x7f, b'"'][usize::try_from(random.below(4)).unwrap()],
                _ => drop(bytes.drain(at..(at + 3).min(bytes.len()))),
            }
        }
        let name = if round % 3 == 2 { INDEX } else { "model.safetensors" };
        let files: [(&str, &[u8]); 2] = [(name, &bytes), ("1.safetensors", &part)];
        let folder = Folder::new("fuzz", &files);
        let store = WeightStore::default();
        match try_open(&store, "model", &folder.0.join(name)) {
            Ok(weights) => {
                for tensor in weights.tensors() {
                    assert_eq!(tensor.data().unwrap().len(), tensor.nbytes());
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

// Copies, versions, differences

fn privately(store: &WeightStore, key: &str, path: &Path) -> Result<Weights, WeightsError> {
    let opening = Opening { private: Some(true), ..Opening::default() };
    store.open(key, path, &opening, &this_thread("main"), &Patience::FOREVER)
}

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
fn who_opens_a_key_with_other_settings_is_told_the_first_difference() {
    let written = Written::new("settings", &two_tensors());
    let store = WeightStore::default();
    let with = |settings: &[(&str, &str)]| {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let opening = Opening { settings: settings.collect(), private: Some(false) };
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

// One load for all

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
    assert_eq!(open(&store, &written.0).names().len(), 2);
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

// The budget

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

// Memory of others

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

// Reading ahead

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
