//! The store: which weights are there, under which key and in which version.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::entry::{Draft, Entry, Given, Settings};
use super::loading::Found;
use super::memory::MemoryKind;
use super::room::{Fate, Unreferenced};
use super::shelf::{Shared, Slot, Slots};
use super::source::{Identity, Source, files, is_remote};
use super::{Weights, WeightsError};
use crate::budget::Budget;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wait::{Birth, Owner, Patience};

/// Weights by key. Clones share them.
#[derive(Clone)]
pub struct WeightStore(Arc<Shared>);

/// How weights are opened.
#[derive(Clone, Default)]
pub struct Opening {
    /// What both must agree on who open the same key.
    pub settings: Settings,
    /// Whether to copy the tensors into sealed memory of the store's own, instead of mapping files or
    /// taking them where they are. `None` is content with what is there, and otherwise copies what lies
    /// on a network's file system, where a map ends the process when the network fails.
    pub private: Option<bool>,
    /// What it takes to make the tensors once more, beside what the store does itself: of weights that nobody
    /// uses, those go first that are cheap to bring back.
    pub cost: Duration,
}

/// Weights at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsStatus {
    /// The key.
    pub key: String,
    /// Which version of it.
    pub version: u64,
    /// The file or folder; `None` if they were shared from memory.
    pub path: Option<PathBuf>,
    /// Bytes of memory, each counted once.
    pub nbytes: u64,
    /// Bytes by what holds them.
    pub kinds: Vec<(MemoryKind, u64)>,
    /// Those of them that are page-locked for copies to devices.
    pub locked: u64,
    /// About how long it takes to bring them back once they are gone.
    pub cost: Duration,
    /// How many weights and tensors of them are in somebody's hands.
    pub holders: usize,
    /// Whether the key has been invalidated since.
    pub retired: bool,
}

impl Default for WeightStore {
    fn default() -> Self {
        Self::new(None)
    }
}

impl WeightStore {
    /// A store with nothing in it. With a budget every byte is reserved there, and weights that nobody
    /// uses any more are kept until the budget needs their bytes.
    #[must_use]
    pub fn new(budget: Option<Budget>) -> Self {
        let shared = Arc::new(Shared {
            birth: Birth::default(),
            budget,
            slots: Mutex::new(Slots::default()),
            versions: AtomicU64::new(0),
            spares: Arc::default(),
            evictor: AtomicU64::new(0),
        });
        if let Some(budget) = &shared.budget {
            let number = budget.add_evictor(0, Arc::new(Unreferenced(Arc::downgrade(&shared))));
            shared.evictor.store(number, Ordering::Relaxed);
        }
        Self(shared)
    }

    /// The budget, if there is one.
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.0.budget.as_ref()
    }

    /// The weights under `key`, if they are there.
    ///
    /// # Errors
    /// [`WeightsError::NotOpen`] and [`WeightsError::Forked`].
    pub fn acquire(&self, key: &str) -> Result<Weights, WeightsError> {
        self.0.birth.check("weight store")?;
        let entry = self.0.slots.lock().used(key);
        entry.map(Weights).ok_or_else(|| WeightsError::NotOpen { key: key.to_owned() })
    }

    /// The weights at `path` under `key`: loaded, or those that are there already. Who comes while
    /// they are being loaded waits for that.
    ///
    /// # Errors
    /// [`WeightsError`]; nothing is there then that was not before.
    pub fn open(
        &self,
        key: &str,
        path: &Path,
        opening: &Opening,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Weights, WeightsError> {
        self.check(key)?;
        let identify = |file: PathBuf| Identity::of(&file).map(|identity| (file, identity));
        let files = files(path)?.into_iter().map(identify).collect::<Result<Vec<_>, _>>()?;
        let private = opening.private.unwrap_or_else(|| is_remote(path));
        let draft = Draft {
            key: key.to_owned(),
            path: Some(path.to_owned()),
            settings: opening.settings.clone(),
            private,
            either: opening.private.is_none(),
        };
        match self.0.find(key, owner, patience)? {
            Found::Live(entry) if entry.is_same_source(&files, &draft)? => Ok(Weights(entry)),
            Found::Live(entry) => Err(entry.is_other_source(path, &draft)),
            Found::Ours(landing, patience) => landing.load(|| {
                let (began, source) = (Instant::now(), Source::read(path)?);
                let bytes = draft.bytes_of_source(&source);
                let loaded = if private {
                    let room = self.0.room(key, bytes, owner, &patience)?;
                    let (started, version) = (Instant::now(), self.0.next_version());
                    let entry = draft.read(source, room, version, &patience.since(began))?;
                    (entry, started)
                } else {
                    let reserved = self.0.charge(key, (bytes, 0), owner, &patience)?;
                    let (started, version) = (Instant::now(), self.0.next_version());
                    (draft.mapped(source, reserved, version), started)
                };
                Ok(self.0.loaded(loaded, opening.cost))
            }),
        }
    }

    /// Tensors that somebody has in memory, under `key`; or those that are there already, if they are
    /// the same by name, type and shape. A private copy is of their elements, row-major.
    ///
    /// # Errors
    /// [`WeightsError`]; nothing is there then that was not before.
    pub fn share(
        &self,
        key: &str,
        tensors: Vec<Given>,
        opening: &Opening,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Weights, WeightsError> {
        self.check(key)?;
        let private = opening.private.unwrap_or(false);
        let (settings, either) = (opening.settings.clone(), opening.private.is_none());
        let draft = Draft { key: key.to_owned(), path: None, settings, private, either };
        match self.0.find(key, owner, patience)? {
            Found::Live(entry) => {
                let told = tensors
                    .iter()
                    .map(|tensor| (tensor.name.as_str(), tensor.element, tensor.shape.as_slice()));
                entry.has_same_tensors(&draft, told)?;
                Ok(Weights(entry))
            }
            Found::Ours(landing, patience) => landing.load(|| {
                let (began, bytes) = (Instant::now(), draft.bytes_of_given(&tensors));
                let loaded = if private {
                    let room = self.0.room(key, bytes, owner, &patience)?;
                    let (started, version) = (Instant::now(), self.0.next_version());
                    let entry = draft.copied(tensors, room, version, &patience.since(began))?;
                    (entry, started)
                } else {
                    // Somebody has them in memory already.
                    let reserved = self.0.charge(key, (bytes, bytes), owner, &patience)?;
                    let (started, version) = (Instant::now(), self.0.next_version());
                    (draft.given(tensors, reserved, version), started)
                };
                Ok(self.0.loaded(loaded, opening.cost))
            }),
        }
    }

    /// Retires `key` and everything below it: who has the weights keeps them, counted, and nobody
    /// gets them any more. Returns how many keys that were.
    ///
    /// # Errors
    /// [`WeightsError::InvalidKey`] and [`WeightsError::Forked`].
    pub fn invalidate(&self, key: &str) -> Result<usize, WeightsError> {
        self.check(key)?;
        let below = format!("{key}/");
        let mut slots = self.0.slots.lock();
        let retired: Vec<Slot> = {
            let of_key = |other: &String| other == key || other.starts_with(&below);
            let keys: Vec<String> =
                slots.by_key.keys().filter(|key| of_key(key)).cloned().collect();
            keys.iter().filter_map(|key| slots.by_key.remove(key)).collect()
        };
        let mut count = 0;
        let mut gone = Vec::new();
        for slot in &retired {
            match slot {
                Slot::Loading(flight) => {
                    flight.stale.store(true, Ordering::SeqCst);
                    count += 1;
                }
                Slot::Live { entry, .. } => {
                    let Some(live) = entry.upgrade() else { continue };
                    live.retired.store(true, Ordering::Relaxed);
                    slots.retired.push(entry.clone());
                    gone.push(live);
                    count += 1;
                }
            }
        }
        slots.retired.retain(|entry| entry.strong_count() > 0);
        drop(slots);
        drop((retired, gone));
        Ok(count)
    }

    /// Lets go of all weights that nobody uses. Returns their bytes.
    ///
    /// # Errors
    /// [`WeightsError::Forked`].
    pub fn clear(&self) -> Result<u64, WeightsError> {
        self.0.birth.check("weight store")?;
        Ok(self.0.spares.give_back(u64::MAX) + self.0.evict(u64::MAX, Fate::GivenBack))
    }

    /// Bytes of slabs that hold nothing now, and are kept for the next load until the budget wants
    /// them.
    ///
    /// # Errors
    /// [`WeightsError::Forked`].
    pub fn spare(&self) -> Result<u64, WeightsError> {
        self.0.birth.check("weight store")?;
        Ok(self.0.spares.nbytes())
    }

    /// Bytes that are page-locked for copies to devices, of weights and of spare slabs.
    ///
    /// # Errors
    /// [`WeightsError::Forked`].
    pub fn locked(&self) -> Result<u64, WeightsError> {
        let weights: u64 = self.status()?.iter().map(|status| status.locked).sum();
        Ok(weights + self.0.spares.locked())
    }

    /// All weights that are there, and those that are retired but still used, by key and version.
    ///
    /// # Errors
    /// [`WeightsError::Forked`].
    pub fn status(&self) -> Result<Vec<WeightsStatus>, WeightsError> {
        self.0.birth.check("weight store")?;
        let keeps = usize::from(self.0.budget.is_some());
        let slots = self.0.slots.lock();
        let live: Vec<Arc<Entry>> = slots.by_key.values().filter_map(Slot::live).collect();
        let retired: Vec<Arc<Entry>> = slots.retired.iter().filter_map(Weak::upgrade).collect();
        drop(slots);
        let told = |entry: Arc<Entry>| WeightsStatus {
            key: entry.key.clone(),
            version: entry.version,
            path: entry.path.clone(),
            nbytes: entry.nbytes,
            kinds: entry.kinds().to_vec(),
            locked: entry.locked(),
            cost: entry.cost(),
            // Not the one in our hands, nor the store's own.
            holders: Arc::strong_count(&entry)
                .saturating_sub(1 + if entry.is_retired() { 0 } else { keeps }),
            retired: entry.is_retired(),
        };
        let mut all: Vec<_> = live.into_iter().chain(retired).map(told).collect();
        all.sort_by(|a, b| (&a.key, a.version).cmp(&(&b.key, b.version)));
        Ok(all)
    }

    fn check(&self, key: &str) -> Result<(), WeightsError> {
        self.0.birth.check("weight store")?;
        if key.trim().is_empty() || key.starts_with('/') || key.ends_with('/') {
            return Err(WeightsError::InvalidKey { key: key.to_owned() });
        }
        Ok(())
    }
}
