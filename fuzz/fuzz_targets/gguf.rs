//! A GGUF file is read or refused, whatever its bytes are; what is read lies in the file.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod opened;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(weights) = opened::file(&[b"GGUF", bytes].concat(), "gguf") {
        for tensor in weights.tensors() {
            let data = tensor.data().expect("it is mapped");
            assert_eq!(data.len(), tensor.nbytes());
            std::hint::black_box(data.iter().fold(0_u8, |sum, byte| sum ^ byte));
        }
    }
});
