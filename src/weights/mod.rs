//! `WeightStore`: one host copy of each model's weights, whoever uses it.
//!
//! **What it is.** A key stands for the weights of one model: a safetensors or GGUF file, several
//! with an index, a folder, or tensors that somebody has in memory. Files are mapped read-only, or
//! copied into sealed memory where that is asked for. Who opens a key that is there already shares
//! it; who comes while it is being loaded waits for that one load, and shares its outcome or its
//! error.
//!
//! **Invariants.** Weights are never written. A key never changes what it stands for while anybody
//! may use it: something else under the same key is refused, with the first difference. A version of
//! a key that was invalidated is never had again, but stays whole, and counted, for those who have
//! it. Bytes are counted by memory, not by name, and given back when the last weights and the last
//! tensor of them are gone, in whatever order. With a [budget](crate::budget::Budget) what nobody uses
//! stays until the budget needs the bytes; then the cheapest to bring back goes first.
//!
//! **What goes first.** By Greedy-Dual-Size-Frequency: weights are worth the seconds that a byte of them takes to bring
//! back, once for each time that somebody has opened them, and age as others leave. What was copied or read into
//! memory of the store's own takes as long as that was measured to take; what is mapped as long as the slowest
//! [`Weights::prefetch`] of it, and at least as long as a disk of 1 GiB/s would, because the system is told to forget the
//! file with it; and tensors that were made somewhere take what [`Opening::cost`] says beside.
//!
//! **Not guarded.** A file that is shortened in place while it is mapped takes the process with it
//! (`SIGBUS`) when it is touched, as with every map; [`Weights::prefetch`] and private copies report
//! it instead. Replace files by renaming.
//!
//! **Errors.** [`WeightsError`].
//!
//! ```
//! use coresident::wait::{Owner, Patience};
//! use coresident::weights::{Opening, WeightStore};
//! # let path = std::env::temp_dir().join("coresident-doc.safetensors");
//! # let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! # let length = (header.len() as u64).to_le_bytes();
//! # std::fs::write(&path, [&length[..], header.as_bytes(), &[0; 8]].concat())?;
//!
//! let (store, me) = (WeightStore::default(), Owner::thread(|| "main".into()));
//! let open = || store.open("model", &path, &Opening::default(), &me, &Patience::FOREVER);
//! let weights = open()?;
//! assert_eq!(weights.tensor("w")?.nbytes(), 8);
//! assert!(weights.shares_with(&open()?));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod crew;
mod element;
mod entry;
mod error;
mod fingerprint;
mod flight;
mod gguf;
mod header;
mod loading;
mod memory;
mod placed;
mod prefetch;
mod private;
mod reaper;
mod region;
mod room;
mod safetensors;
mod shelf;
mod slab;
mod source;
mod spare;
mod store;
mod tensor;
mod worth;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

pub use element::ElementType;
pub use entry::{Given, Settings};
pub use error::WeightsError;
pub use header::Packing;
pub use memory::{Memory, MemoryKind};
pub use private::PrivateWeights;
pub use store::{Opening, WeightStore, WeightsStatus};
pub use tensor::Tensor;
pub(crate) use worth::{GreedyDual, Uses};

use crate::wait::Patience;
use entry::Entry;

/// A model's weights. Clones share them.
#[derive(Clone)]
pub struct Weights(Arc<Entry>);

impl Weights {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// Which version of the key: every load has another one.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// Whether the key has been invalidated since.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.0.is_retired()
    }

    /// The file or folder; `None` for tensors that were shared from memory.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The names of the tensors, in the order in which they lie in the file.
    #[must_use]
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.names()
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text that the file says of itself, by name.
    #[must_use]
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.0.metadata
    }

    /// Bytes of memory that the tensors take, each counted once.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.0.nbytes
    }

    /// Bytes by what holds them.
    #[must_use]
    pub fn kinds(&self) -> &[(MemoryKind, u64)] {
        self.0.kinds()
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.find(name).is_some()
    }

    /// One tensor; it keeps the weights by itself.
    ///
    /// # Errors
    /// [`WeightsError::NoTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor, WeightsError> {
        let at = self.0.find(name).ok_or_else(|| self.no_tensor(name))?;
        Ok(Tensor::new(self.0.clone(), at))
    }

    /// All tensors, in the order of [`Weights::names`].
    #[must_use]
    pub fn tensors(&self) -> Vec<Tensor> {
        (0..self.len()).map(|at| Tensor::new(self.0.clone(), at)).collect()
    }

    /// Reads all of what is mapped, by several threads, so that later use does not wait for the disk.
    /// `progress` is told from time to time how many bytes are there, and how many there will be.
    ///
    /// # Errors
    /// [`WeightsError::Cut`] and [`WeightsError::Wait`].
    pub fn prefetch(
        &self,
        threads: usize,
        patience: &Patience<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), WeightsError> {
        prefetch::prefetch(&self.0, threads, patience, progress)
    }

    /// A map of the same bytes of its own, which may be written: what is written stays there.
    ///
    /// # Errors
    /// [`WeightsError::NotPrivate`] for what lies in somebody else's memory, and
    /// [`WeightsError::NoMemory`].
    pub fn private(&self) -> Result<PrivateWeights, WeightsError> {
        PrivateWeights::of(&self.0)
    }

    /// A number that no other load of any key has for as long as somebody has these.
    #[must_use]
    pub fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Whether both are the same load of the same key.
    #[must_use]
    pub fn shares_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn no_tensor(&self, name: &str) -> WeightsError {
        let alike =
            |known: &&str| known.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let mut near: Vec<&str> = self.names().collect();
        near.sort_by_key(|known| std::cmp::Reverse(alike(known)));
        let near = near.into_iter().take(3).map(str::to_owned).collect();
        let (name, key) = (name.to_owned(), self.key().to_owned());
        WeightsError::NoTensor { name, key, near, count: self.len() }
    }
}
