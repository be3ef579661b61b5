//! Opens bytes as a file.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::{env, fs, process};

use coresident::wait::{Owner, Patience};
use coresident::weights::{Opening, WeightStore, Weights, WeightsError};

/// A folder of this process alone, in memory where there is such.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let shared = PathBuf::from("/dev/shm");
        let parent = if shared.is_dir() { shared } else { env::temp_dir() };
        let folder = parent.join(format!("coresident-fuzz-{}", process::id()));
        fs::create_dir_all(&folder).expect("a folder for the files");
        let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
        let length = (header.len() as u64).to_le_bytes();
        let part = [&length[..], header, b"aa"].concat();
        fs::write(folder.join("1.safetensors"), part).expect("a part for the indices");
        folder
    })
}

/// Opens `bytes` as a file whose name ends so.
pub fn file(bytes: &[u8], ending: &str) -> Result<Weights, WeightsError> {
    let path = folder().join(format!("model.{ending}"));
    fs::write(&path, bytes).expect("a file to open");
    let owner = Owner::thread(|| "fuzzer".into());
    let store = WeightStore::default();
    store.open("model", &path, &Opening::default(), &owner, &Patience::FOREVER)
}
