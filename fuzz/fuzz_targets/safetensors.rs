//! A header is read exactly as the safetensors library reads it, whatever the bytes are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

mod opened;

fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"GGUF") {
        return;
    }
    match (opened::file(bytes, "safetensors"), SafeTensors::deserialize(bytes)) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            for (name, view) in theirs.iter() {
                let tensor = ours.tensor(name).expect("the library has it");
                assert_eq!((tensor.shape(), tensor.data()), (view.shape(), Some(view.data())));
            }
        }
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!("{:?}, but {:?}", ours.map(|_| ()), theirs.map(|_| ())),
    }
});
