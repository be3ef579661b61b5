//! Weights: files, copies, versions, budgets.

mod files;
mod folders;
mod loads;
mod memory;
mod parsers;
mod slabs;
mod versions;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, process};

use safetensors::SafeTensors;

use coresident::budget::{Budget, BudgetError, Spec};
use coresident::wait::{CancelToken, Patience, WaitError};
use coresident::weights::{
    ElementType, Given, Memory, MemoryKind, Opening, WeightStore, Weights, WeightsError,
};

use super::{Random, at_once, refusal, somebody, spawn, this_thread, until};

/// A name that no other test has, whatever it calls its files.
fn unique(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("coresident-{}-{count}-{name}", process::id())
}

/// A file that is removed in the end.
struct Written(PathBuf);

impl Written {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("{}.safetensors", unique(name)));
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
        let folder = std::env::temp_dir().join(unique(name));
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

fn names(weights: &Weights) -> Vec<&str> {
    weights.names().collect()
}

fn privately(store: &WeightStore, key: &str, path: &Path) -> Result<Weights, WeightsError> {
    let opening = Opening { private: Some(true), ..Opening::default() };
    store.open(key, path, &opening, &this_thread("main"), &Patience::FOREVER)
}

const INDEX: &str = "model.safetensors.index.json";

fn one_tensor(name: &str, data: &[u8]) -> Vec<u8> {
    let length = data.len();
    let header =
        format!(r#"{{"{name}":{{"dtype":"U8","shape":[{length}],"data_offsets":[0,{length}]}}}}"#);
    file(&header, data)
}
