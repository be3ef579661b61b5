//! The store: which weights are there, under which key and in which version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::entry::{Draft, Entry, Given, Settings};
use super::flight::{Flight, Outcome};
use super::memory::MemoryKind;
use super::reaper::Remains;
use super::region::Region;
use super::source::{Identity, Source, files, is_remote};
use super::spare::Spares;
use super::{Weights, WeightsError};
use crate::budget::{Budget, Evictor, Reservation};
use crate::sync::{AtomicU64, Mutant, Mutex, Ordering, planted};
use crate::wait::{Birth, Owner, Patience};

/// Weights by key. Clones share them.
#[derive(Clone)]
pub struct WeightStore(Arc<Shared>);

struct Shared {
    birth: Birth,
    budget: Option<Budget>,
    slots: Mutex<Slots>,
    versions: AtomicU64,
    spares: Arc<Spares>,
    /// The number of this store's evictor with its budget.
    evictor: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // In a forked child the budget does nothing.
        if let Some(budget) = &self.budget {
            budget.remove_evictor(self.evictor.load(Ordering::Relaxed));
        }
    }
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<String, Slot>,
    /// What is no longer to be had, but still in somebody's hands.
    retired: Vec<Weak<Entry>>,
}

enum Slot {
    Loading(Arc<Flight>),
    /// Kept by the store itself if there is a budget that can ask for it back.
    Live {
        entry: Weak<Entry>,
        kept: Option<Arc<Entry>>,
    },
}

impl Slot {
    fn live(&self) -> Option<Arc<Entry>> {
        match self {
            Self::Live { entry, .. } => entry.upgrade(),
            Self::Loading(_) => None,
        }
    }
}

/// How weights are opened.
#[derive(Clone, Default)]
pub struct Opening {
    /// What both must agree on who open the same key.
    pub settings: Settings,
    /// Whether to copy the tensors into sealed memory of the store's own, instead of mapping files or
    /// taking them where they are. `None` copies what lies on a network's file system, where a map
    /// ends the process when the network fails.
    pub private: Option<bool>,
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
        let entry = self.0.slots.lock().by_key.get(key).and_then(Slot::live);
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
        };
        match self.0.find(key, owner, patience)? {
            Found::Live(entry) if entry.is_same_source(&files, &draft)? => Ok(Weights(entry)),
            Found::Live(entry) => Err(entry.is_other_source(path, &draft)),
            Found::Ours(landing, patience) => landing.load(|| {
                let source = Source::read(path)?;
                let bytes = draft.bytes_of_source(&source);
                let (slab, reserved) = self.0.room(&draft, (bytes, 0), owner, &patience)?;
                let started = Instant::now();
                let entry = draft.read(source, slab, self.0.next_version())?;
                Ok(entry.charged(reserved, started.elapsed(), &self.0.spares))
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
        let draft =
            Draft { key: key.to_owned(), path: None, settings: opening.settings.clone(), private };
        match self.0.find(key, owner, patience)? {
            Found::Live(entry) => {
                let told = tensors
                    .iter()
                    .map(|tensor| (tensor.name.as_str(), tensor.element, tensor.shape.as_slice()));
                entry.has_same_tensors(&draft, told)?;
                Ok(Weights(entry))
            }
            Found::Ours(landing, patience) => landing.load(|| {
                let bytes = draft.bytes_of_given(&tensors);
                // Somebody has them in memory already, if they are not to be copied.
                let filled = if private { 0 } else { bytes };
                let (slab, reserved) = self.0.room(&draft, (bytes, filled), owner, &patience)?;
                let (started, version) = (Instant::now(), self.0.next_version());
                let entry = match slab {
                    Some(slab) => draft.copied(tensors, slab, version)?,
                    None => draft.given(tensors, version),
                };
                Ok(entry.charged(reserved, started.elapsed(), &self.0.spares))
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

/// What one who wants a key finds there at once.
enum Boarding {
    Live(Arc<Entry>),
    Waiting(Arc<Flight>),
    /// Nothing: it is on the caller to load it.
    Ours(Arc<Flight>),
}

/// What he finds in the end.
enum Found<'a> {
    Live(Arc<Entry>),
    /// Nothing: it is on the caller to load it, with what is left of his patience.
    Ours(Landing<'a>, Patience<'a>),
}

impl Shared {
    fn board(&self, key: &str, owner: &Owner) -> Boarding {
        let mut slots = self.slots.lock();
        match slots.by_key.get(key) {
            Some(Slot::Loading(flight)) if !planted(Mutant::EveryOneLoads) => {
                return Boarding::Waiting(flight.clone());
            }
            Some(slot) => {
                if let Some(entry) = slot.live() {
                    return Boarding::Live(entry);
                }
            }
            None => {}
        }
        if slots.by_key.len() == slots.by_key.capacity() {
            // Dead entries hold nothing: only their keys are left.
            slots.by_key.retain(
                |_, slot| !matches!(slot, Slot::Live { entry, .. } if entry.strong_count() == 0),
            );
        }
        let flight = Flight::new(key, owner);
        let dead = slots.by_key.insert(key.to_owned(), Slot::Loading(flight.clone()));
        drop(slots);
        drop(dead);
        Boarding::Ours(flight)
    }

    /// As [`Shared::board`], after waiting for whoever loads the key.
    fn find<'a>(
        &'a self,
        key: &'a str,
        owner: &Owner,
        patience: &Patience<'a>,
    ) -> Result<Found<'a>, WeightsError> {
        let began = Instant::now();
        loop {
            let patience = patience.since(began);
            match self.board(key, owner) {
                Boarding::Live(entry) => return Ok(Found::Live(entry)),
                Boarding::Ours(flight) => {
                    let outcome = Outcome::Abandoned;
                    return Ok(Found::Ours(
                        Landing { shared: self, key, flight, outcome },
                        patience,
                    ));
                }
                Boarding::Waiting(flight) => match flight.wait(owner, &patience)? {
                    Outcome::Failed(error) => return Err(error),
                    // The next look at the slot tells.
                    Outcome::Loaded(_) | Outcome::Abandoned => {}
                },
            }
        }
    }

    fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reserves bytes, of which some are in memory already, for the weights to have.
    fn charge(
        &self,
        key: &str,
        (bytes, filled): (u64, u64),
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<Option<Reservation>, WeightsError> {
        let Some(budget) = &self.budget else { return Ok(None) };
        let reservation = budget.reserve_filled(bytes, filled, Some(key), owner, patience)?;
        reservation.disown();
        Ok(Some(reservation))
    }

    /// Reserves bytes; and has memory for them, if the weights are to lie in the store's own.
    fn room(
        &self,
        draft: &Draft,
        bytes: (u64, u64),
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(Option<Region>, Option<Reservation>), WeightsError> {
        let Draft { key, private, .. } = draft;
        if !private {
            return Ok((None, self.charge(key, bytes, owner, patience)?));
        }
        if let Some((region, reserved)) = self.recycled(key, bytes.0, owner) {
            return Ok((Some(region), Some(reserved)));
        }
        let reserved = self.charge(key, bytes, owner, patience)?;
        let length = usize::try_from(bytes.0).unwrap_or(usize::MAX);
        let region = Region::fresh(length).map_err(|why| WeightsError::no_memory(key, why))?;
        Ok((Some(region), reserved))
    }

    /// A slab that nobody uses, and its bytes: one that is spare, or that of weights which would have
    /// to go anyway. Nobody who waits for bytes is overtaken.
    fn recycled(&self, key: &str, bytes: u64, owner: &Owner) -> Option<(Region, Reservation)> {
        let budget = self.budget.as_ref().filter(|budget| !budget.is_wanted())?;
        if bytes > budget.limit() {
            return None;
        }
        let missing = bytes.saturating_sub(budget.free() + self.spares.nbytes());
        if missing > 0 {
            self.evict(missing, Fate::Spare);
        }
        let (region, reserved) = self.spares.take(bytes)?.reopen().ok()?;
        let has = reserved.bytes();
        if bytes > has {
            // At once, or else in line without it: it might be what those wait for who come before.
            let more = || budget.reserve_at_once(bytes - has, Some(key), owner).ok().flatten();
            let extra = more().or_else(|| {
                self.spares.give_back(u64::MAX);
                more()
            })?;
            reserved.absorb(&extra).ok()?;
        }
        let region = region.resized(usize::try_from(bytes).ok()?).ok()?;
        reserved.shrink(has.saturating_sub(bytes)).ok()?;
        reserved.rename(key);
        Some((region, reserved))
    }

    /// Lets go of weights that nobody uses, the cheapest to bring back first, until so many bytes are
    /// free. Returns how many.
    fn evict(&self, wanted: u64, slabs: Fate) -> u64 {
        let mut slots = self.slots.lock();
        // Under this lock nobody gets hold of weights that only the store has.
        let mut unused: Vec<(f64, String)> = slots
            .by_key
            .iter()
            .filter_map(|(key, slot)| match slot {
                Slot::Live { kept: Some(entry), .. }
                    if Arc::strong_count(entry) == 1 || planted(Mutant::EvictsWhatIsUsed) =>
                {
                    Some((entry.seconds_per_byte, key.clone()))
                }
                _ => None,
            })
            .collect();
        unused.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut freed, mut gone) = (0_u64, Vec::new());
        for (_, key) in unused {
            if freed >= wanted {
                break;
            }
            if let Some(slot) = slots.by_key.remove(&key) {
                freed += slot.live().map_or(0, |entry| entry.nbytes);
                gone.push(slot);
            }
        }
        drop(slots);
        for slot in gone {
            if let Slot::Live { kept: Some(entry), .. } = slot
                && let Some(mut entry) = Arc::into_inner(entry)
            {
                let remains = entry.remains();
                let left = match slabs {
                    Fate::Spare => remains.leave_to(&self.spares, entry.forks),
                    Fate::GivenBack => Some(remains),
                };
                left.into_iter().for_each(Remains::give_back);
            }
        }
        freed
    }
}

/// What becomes of the slabs of weights that the store lets go of.
#[derive(Clone, Copy)]
enum Fate {
    GivenBack,
    Spare,
}

/// Gives the budget what nobody uses.
struct Unreferenced(Weak<Shared>);

impl Evictor for Unreferenced {
    fn evict(&self, bytes: u64) {
        if let Some(shared) = self.0.upgrade() {
            let spare = shared.spares.give_back(bytes);
            shared.evict(bytes - spare.min(bytes), Fate::GivenBack);
        }
    }
}

/// The end of a load, whatever it is: the flight lands, and the slot is what came of it.
struct Landing<'a> {
    shared: &'a Shared,
    key: &'a str,
    flight: Arc<Flight>,
    outcome: Outcome,
}

impl Landing<'_> {
    fn load(
        mut self,
        load: impl FnOnce() -> Result<Entry, WeightsError>,
    ) -> Result<Weights, WeightsError> {
        match load() {
            Ok(entry) => {
                let entry = Arc::new(entry);
                self.outcome = Outcome::Loaded(entry.clone());
                Ok(Weights(entry))
            }
            Err(error) => {
                if !error.is_of_the_caller() {
                    self.outcome = Outcome::Failed(error.clone());
                }
                Err(error)
            }
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut slots = self.shared.slots.lock();
        let own = |slot: &Slot| matches!(slot, Slot::Loading(flight) if Arc::ptr_eq(flight, &self.flight));
        let ours =
            slots.by_key.get(self.key).is_some_and(own) || planted(Mutant::StaleLoadIsAdopted);
        let replaced = match &self.outcome {
            Outcome::Loaded(entry) if ours => {
                let kept = self.shared.budget.is_some().then(|| entry.clone());
                let live = Slot::Live { entry: Arc::downgrade(entry), kept };
                slots.by_key.insert(self.key.to_owned(), live)
            }
            Outcome::Loaded(entry) => {
                // Invalidated while it was being loaded.
                entry.retired.store(self.flight.is_stale(), Ordering::Relaxed);
                slots.retired.push(Arc::downgrade(entry));
                None
            }
            _ if ours => slots.by_key.remove(self.key),
            _ => None,
        };
        drop(slots);
        drop(replaced);
        self.flight.land(self.outcome.clone());
    }
}
