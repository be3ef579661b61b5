//! `WeightStore`: one host copy of each model's weights, whoever uses it.
//!
//! **What it is.** A key stands for one safetensors file, mapped read-only. Opening a key that is
//! open already gives the same map; the file is unmapped when the last [`Weights`] and the last
//! exported tensor of it are gone, in whatever order.
//!
//! **Invariants.** A map is never written. A key never changes what it stands for while anybody
//! uses it: a file that was replaced meanwhile is refused, not mixed in. A file is checked as a whole
//! before any of it can be seen.
//!
//! **Not guarded.** A file that is shortened in place while it is mapped takes the process with it
//! (`SIGBUS`), as with every map; replace files by renaming.
//!
//! **Errors.** [`WeightsError`].
//!
//! ```
//! use coresident::weights::WeightStore;
//! # let path = std::env::temp_dir().join("coresident-doc.safetensors");
//! # let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! # let length = (header.len() as u64).to_le_bytes();
//! # std::fs::write(&path, [&length[..], header.as_bytes(), &[0; 8]].concat())?;
//!
//! let store = WeightStore::new();
//! let weights = store.open("model", &path)?;
//! assert_eq!(weights.tensor("w")?.data().len(), 8);
//! assert!(weights.shares_with(&store.open("model", &path)?));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod file;
mod tensor;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

pub use tensor::{ElementType, Tensor};

use crate::sync::Mutex;
use crate::wait::{Birth, Forked};
use file::{Identity, Mapped};

/// Why weights cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path:?}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The file is something else, or broken.
    #[error("{path:?} is not a safetensors file: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key is in use for another file, or for what the file was before.
    #[error("the key {key:?} is in use for {open:?}{}: release that first, or use another key",
        if *.replaced { ", which has been replaced since" } else { "" })]
    InUse {
        /// The key.
        key: String,
        /// The file that it stands for.
        open: PathBuf,
        /// Whether that was at the same path.
        replaced: bool,
    },
    /// A key that cannot be meant.
    #[error("a key is a text such as 'flux/transformer', not {key:?}")]
    InvalidKey {
        /// The key.
        key: String,
    },
    /// A tensor that is not among the weights.
    #[error("there is no tensor {name:?} in {key:?}, which has {}", listed(.near, *.count))]
    NoTensor {
        /// The tensor asked for.
        name: String,
        /// The key.
        key: String,
        /// Some that are there, the most alike first.
        near: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// Used in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
}

fn listed(near: &[String], count: usize) -> String {
    let near: Vec<String> = near.iter().map(|name| format!("{name:?}")).collect();
    match count - near.len() {
        0 if near.is_empty() => "none".to_owned(),
        0 => near.join(", "),
        more => format!("{} and {more} more", near.join(", ")),
    }
}

/// The weights that are open, by key. Clones share them.
#[derive(Clone)]
pub struct WeightStore(Arc<Shared>);

struct Shared {
    birth: Birth,
    open: Mutex<HashMap<String, Weak<Mapped>>>,
}

impl Default for WeightStore {
    fn default() -> Self {
        Self::new()
    }
}

impl WeightStore {
    /// A store with nothing open.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared { birth: Birth::default(), open: Mutex::new(HashMap::new()) }))
    }

    /// Maps the file at `path` as `key`, or shares the map if it is open already. Reads the header
    /// only; the system reads the rest when it is used.
    ///
    /// # Errors
    /// [`WeightsError`]; nothing is open then that was not before.
    pub fn open(&self, key: &str, path: &Path) -> Result<Weights, WeightsError> {
        self.0.birth.check("weight store")?;
        if key.trim().is_empty() {
            return Err(WeightsError::InvalidKey { key: key.to_owned() });
        }
        let identity = Identity::of(path)?;
        if let Some(mapped) = self.known(key) {
            return mapped.shared_as(path, &identity).map(Weights);
        }
        // Mapped with no lock held; whoever was faster meanwhile has made the one that counts.
        let fresh = Arc::new(Mapped::open(key, path)?);
        let mut open = self.0.open.lock();
        if let Some(mapped) = open.get(key).and_then(Weak::upgrade) {
            drop(open);
            return mapped.shared_as(path, fresh.identity()).map(Weights);
        }
        if open.len() == open.capacity() {
            open.retain(|_, mapped| mapped.strong_count() > 0);
        }
        open.insert(key.to_owned(), Arc::downgrade(&fresh));
        drop(open);
        Ok(Weights(fresh))
    }

    /// The weights that are open, by key.
    ///
    /// # Errors
    /// [`WeightsError::Forked`].
    pub fn opened(&self) -> Result<Vec<Weights>, WeightsError> {
        self.0.birth.check("weight store")?;
        let all: Vec<_> = self.0.open.lock().values().filter_map(Weak::upgrade).collect();
        let mut all: Vec<_> = all.into_iter().map(Weights).collect();
        all.sort_by(|a, b| a.key().cmp(b.key()));
        Ok(all)
    }

    fn known(&self, key: &str) -> Option<Arc<Mapped>> {
        self.0.open.lock().get(key)?.upgrade()
    }
}

/// A model's weights. Clones share the map.
#[derive(Clone)]
pub struct Weights(Arc<Mapped>);

impl Weights {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.key()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The names of the tensors, in the order in which they lie in the file.
    #[must_use]
    pub fn names(&self) -> &[String] {
        self.0.names()
    }

    /// The text that the file says of itself, by name.
    #[must_use]
    pub fn metadata(&self) -> &HashMap<String, String> {
        self.0.metadata()
    }

    /// The bytes of all tensors together.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// One tensor; it keeps the map alive by itself.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor, WeightsError> {
        Mapped::tensor(&self.0, name)
    }

    /// Whether both are the same map.
    #[must_use]
    pub fn shares_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
