//! An index of several files is read or refused, whatever its bytes are.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod opened;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(weights) = opened::file(bytes, "safetensors.index.json") {
        assert!(weights.names().all(|name| weights.tensor(name).is_ok()));
    }
});
