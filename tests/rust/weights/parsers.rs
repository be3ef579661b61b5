//! GGUF, and whatever else a file may have in it.

use super::*;

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
    assert_eq!(names(&weights), ["plain", "packed"]);
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

#[test]
fn a_header_is_read_exactly_as_the_safetensors_library_reads_it() {
    let mut random = Random(11);
    let seeds = [
        two_tensors(),
        file(r#"{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}  "#, b"xy"),
        file(
            r#"{"z":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},
                "y":{"shape":[],"data_offsets":[0,1],"dtype":"BOOL"},"__metadata__":null}"#,
            b"\x01",
        ),
        file(
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            b"x",
        ),
        file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[9]}}"#, b"x"),
        file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1e99}}"#, b"x"),
        file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":"\ud800"}}"#, b"x"),
    ];
    let (mut read, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        // The length and the header: digits and signs, so that much of it stays a header.
        for _ in 0..random.below(4) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            let others = br#"0123456789"{}[],: \uFIUz"#;
            bytes[at] = others[usize::try_from(random.below(others.len() as u64)).unwrap()];
        }
        let written = Written::new("differential", &bytes);
        let ours = try_open(&WeightStore::default(), "model", &written.0);
        match (SafeTensors::deserialize(&bytes), ours) {
            (Ok(theirs), Ok(ours)) => {
                assert_eq!(theirs.len(), ours.len());
                for (name, view) in theirs.iter() {
                    let tensor = ours.tensor(name).unwrap();
                    assert_eq!(
                        (view.shape(), view.data()),
                        (tensor.shape(), tensor.data().unwrap())
                    );
                }
                read += 1;
            }
            (Err(_), Err(_)) => refused += 1,
            (theirs, ours) => {
                let text = String::from_utf8_lossy(&bytes);
                panic!("{:?} and {:?} of {text}", theirs.is_ok(), ours.map(|_| ()));
            }
        }
    }
    assert!(read > 2_000 && refused > 2_000, "{read} read, {refused} refused");
}
