//! `Arena`: one device's memory in pages, and the models that have some of it.
//!
//! **What it is.** An [`Area`] has addresses for all tensors of a model, and memory for some: pages of
//! 2 MiB that come on [`Area::fault`], stay while they are pinned, and leave when somebody needs their
//! bytes. Leaving drops them; the host has the weights. A page that stayed is not copied again.
//!
//! **Order.** Whoever misses pages gets a turn, first come, first served, and in it reserves all their
//! bytes at once: nobody who is in line for bytes has pages that others wait for, and he lets others have
//! those that are there already; if they take some, he asks once more, for as many more. What leaves first is
//! what has the lowest priority, then what an [`EvictionOrder`] says, else what was not used for
//! longest; of one area the last pages.
//!
//! Where a device's memory comes to no address of one's choice ([`Places::Moving`](crate::device::Places)),
//! the pages of a block, which has whole tensors, come and leave together, and tensors have addresses
//! only while they are pinned. Everything else is the same.
//!
//! **Invariants.** A pinned page does not leave. A page leaves, or is written again, only after all
//! streams that have used it are done ([`Stream`], [`Event`]); its content is used only after its copy
//! is done. The bytes reserved for an area are those of its pages that have memory, within those that
//! are on their way. Pins, and what is given up half-way, are undone however it ends. Nothing is shared
//! between devices.
//!
//! **Order of locks.** The arena's mutex is held for nothing but its books: no driver, budget, waker or
//! order is called under it.
//!
//! **Errors.** [`ArenaError`].
//!
//! ```
//! use coresident::arena::{Arena, Beside, Content, HostSide, Identity};
//! use coresident::budget::{Budget, Spec};
//! use coresident::device::{HostBytes, Stream, VirtualSpec, virtual_devices};
//! use coresident::wait::{Owner, Patience};
//! use coresident::weights::ElementType;
//! # use std::sync::Arc;
//! struct Ones;
//! impl HostBytes for Ones {
//!     fn copy_to(&self, _from: usize, to: &mut [u8]) {
//!         to.fill(1);
//!     }
//! }
//!
//! let spec = VirtualSpec { memory: Some(64 << 20), ..VirtualSpec::default() };
//! let device = virtual_devices(1, spec)?.remove(0);
//! let budget = Budget::new(Spec { limit: 64 << 20, ..Spec::named("virtual:0") });
//! let (arena, me) = (Arena::new(&device, &budget, HostSide::default())?, Owner::thread(|| "main".into()));
//! let (element, nbytes, bytes) = (ElementType::UInt8, 5 << 20, Arc::new(Ones));
//! let content = Content { name: "w".into(), element, shape: vec![nbytes], nbytes, bytes };
//! let identity = Identity { of: 1, order: vec!["w".into()] };
//! let area = arena.area("model", identity, &me, || vec![content])?;
//! let block = area.block(&[area.find("w")?]);
//! let (pins, _) = area.fault(&block, Beside::default(), Stream::Host, &me, &Patience::FOREVER)?;
//! assert_eq!((budget.used(), area.residency()), (6 << 20, vec![2, 2, 2]));
//! drop(pins);
//! assert_eq!((arena.evict(1), area.residency()), (2 << 20, vec![1, 1, 0]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allowance;
mod area;
mod bring;
mod error;
mod evict;
mod fault;
mod held;
mod land;
mod layout;
mod mark;
mod order;
mod record;
mod state;
mod status;
mod tensor;

use std::any::Any;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub use allowance::{Allowance, Brought, Exclusive};
pub use area::{Area, Identity, Pins};
pub use error::ArenaError;
pub use fault::Beside;
pub use layout::{Content, PageSet};
pub use order::{About, Evictable, EvictionOrder};
pub use status::{AreaStatus, ArenaStatus};
pub use tensor::{PinnedTensor, RangeView};

#[cfg(doc)]
use crate::device::{Event, Stream};

use crate::budget::{Budget, BudgetError};
use crate::device::{Charge, Device, DeviceMemory, Name, Pinning, Places};
use crate::load_lock::LoadLock;
use crate::sync::{AtomicU64, Condvar, Mutex};
use crate::trace::Timeline;
use crate::wait::{Birth, Owner, Patience};
use held::Held;
use state::{State, Whose};

/// After what costs nothing to give back, before what is slow to come again.
const PRIORITY: i64 = 50;

/// One device's memory in pages. Clones share it.
#[derive(Clone)]
pub struct Arena(Arc<Held>);

/// What an arena's copies have of the host's memory.
#[derive(Clone, Default)]
pub struct HostSide {
    /// What of it is page-locked.
    pub pinning: Pinning,
    /// What page-locked buffers are charged to. Weights that are locked where they lie are charged
    /// already.
    pub budget: Option<Budget>,
}

/// What an arena and its areas share.
pub(crate) struct Shared {
    birth: Birth,
    device: Name,
    memory: Arc<dyn DeviceMemory>,
    budget: Budget,
    host: HostSide,
    /// Says what leaves first, if anybody does.
    order: Option<Arc<dyn EvictionOrder>>,
    /// Keeps the buffers for copies, once there have been some.
    staged: Mutex<Option<Box<dyn Any + Send>>>,
    /// By which number the budget knows it.
    evictor: u64,
    /// Whoever brings pages has it.
    turn: LoadLock,
    /// Whether what leaves now makes room for whoever has it.
    sets_aside: AtomicBool,
    state: Mutex<State>,
    records: record::Records,
    /// Grows with every mark in a stream, before it is made and after.
    marks: AtomicU64,
    /// Pages have left.
    left: Condvar,
}

impl Arena {
    /// An arena of a device, whose pages are charged to `budget`. The budget asks it for bytes.
    ///
    /// # Errors
    /// [`ArenaError::NoPages`] if there can be none on the device.
    pub fn new(device: &Device, budget: &Budget, host: HostSide) -> Result<Self, ArenaError> {
        let memory = memory_of(device)?;
        Ok(Self::over(device.name(), memory, budget, host))
    }

    /// The same, whose weights leave in an order of somebody's choice.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn with_order(
        device: &Device,
        budget: &Budget,
        host: HostSide,
        order: Arc<dyn EvictionOrder>,
    ) -> Result<Self, ArenaError> {
        let memory = memory_of(device)?;
        Ok(Self::made(device.name(), memory, budget, host, Some(order)))
    }

    /// The same of any memory.
    #[must_use]
    pub fn over(
        device: Name,
        memory: Arc<dyn DeviceMemory>,
        budget: &Budget,
        host: HostSide,
    ) -> Self {
        Self::made(device, memory, budget, host, None)
    }

    /// As [`Arena::with_order`], of any memory.
    #[must_use]
    pub fn over_with_order(
        device: Name,
        memory: Arc<dyn DeviceMemory>,
        budget: &Budget,
        host: HostSide,
        order: Arc<dyn EvictionOrder>,
    ) -> Self {
        Self::made(device, memory, budget, host, Some(order))
    }

    fn made(
        device: Name,
        memory: Arc<dyn DeviceMemory>,
        budget: &Budget,
        host: HostSide,
        order: Option<Arc<dyn EvictionOrder>>,
    ) -> Self {
        let shared = Arc::new_cyclic(|arena: &Weak<Shared>| {
            let evictor = Arc::new(evict::Pages(arena.clone()));
            Shared {
                birth: Birth::default(),
                device,
                memory,
                budget: budget.clone(),
                host,
                order,
                staged: Mutex::new(None),
                evictor: budget.add_evictor(PRIORITY, evictor),
                turn: LoadLock::called(format!("a turn to place weights on {device}")),
                sets_aside: AtomicBool::new(false),
                state: Mutex::new(State::default()),
                records: record::Records::default(),
                marks: AtomicU64::new(0),
                left: Condvar::new(),
            }
        });
        Self(Arc::new(Held::new(shared)))
    }

    /// Records in a timeline from now on what happens to areas that are made from now on. Whatever
    /// timeline it records in already, it stays with.
    pub fn record_in(&self, timeline: &Timeline) {
        self.0.records.begin(timeline);
        if let Some(order) = &self.0.order {
            order.record_in(timeline);
        }
    }

    /// The area of what has this identity: the one that somebody has, or a new one with these contents.
    ///
    /// # Errors
    /// [`ArenaError::Memory`] if there are no addresses for it, and [`ArenaError::Forked`].
    pub fn area(
        &self,
        key: &str,
        identity: Identity,
        owner: &Owner,
        contents: impl FnOnce() -> Vec<Content>,
    ) -> Result<Area, ArenaError> {
        self.area_in_groups(key, identity, owner, &[], contents)
    }

    /// The same of tensors that lie in groups, which share no page. Of each it says where in the
    /// contents it begins.
    ///
    /// # Errors
    /// As [`Arena::area`].
    pub fn area_in_groups(
        &self,
        key: &str,
        identity: Identity,
        owner: &Owner,
        groups: &[usize],
        contents: impl FnOnce() -> Vec<Content>,
    ) -> Result<Area, ArenaError> {
        self.0.birth.check("arena")?;
        let known = |state: &State| state.known.get(&identity).and_then(Weak::upgrade).map(Area);
        let found = known(&self.0.state.lock());
        if let Some(found) = found {
            return Ok(found);
        }
        let made = Area::new(&self.0, key, identity.clone(), contents(), groups, owner)?;
        let mut state = self.0.state.lock();
        // Somebody may have made it meanwhile.
        let found = known(&state);
        if found.is_none() {
            state.known.insert(identity, Arc::downgrade(&made.0));
        }
        drop(state);
        Ok(found.unwrap_or(made))
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> Name {
        self.0.device
    }

    /// Whether tensors come to other addresses each time they come, so that these are true only while
    /// they are pinned.
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn moves(&self) -> Result<bool, ArenaError> {
        Ok(self.0.memory.places()? != Places::Fixed)
    }

    /// What its copies have of the host's memory.
    #[must_use]
    pub fn host(&self) -> &HostSide {
        &self.0.host
    }

    /// What its pages are charged to.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Refuses to go on in a forked child.
    ///
    /// # Errors
    /// [`ArenaError::Forked`].
    pub fn check(&self) -> Result<(), ArenaError> {
        Ok(self.0.birth.check("arena")?)
    }

    /// Evicts unpinned pages of so many bytes, or all that there are, also those that somebody has who
    /// waits for more. Those that a stream still uses are not waited for. Returns the bytes.
    pub fn evict(&self, bytes: u64) -> u64 {
        if !self.0.birth.is_here() {
            return 0;
        }
        let page = self.0.memory.page();
        let pages = usize::try_from(bytes.div_ceil(page as u64)).unwrap_or(usize::MAX);
        (self.0.evict_some(pages, Whose::Waiters, Some(Instant::now())) * page) as u64
    }

    /// When pages are unpinned and more than `high` bytes of the device are pages with memory, they are
    /// evicted until `low` are left. `None` never does so. With 0 and 0 nothing stays that is not used.
    ///
    /// # Errors
    /// [`ArenaError::Watermarks`] and [`ArenaError::Forked`].
    pub fn set_watermarks(&self, low: u64, high: Option<u64>) -> Result<(), ArenaError> {
        self.0.birth.check("arena")?;
        if let Some(high) = high.filter(|high| low > *high) {
            return Err(ArenaError::Watermarks { device: self.0.device, low, high });
        }
        let mut state = self.0.state.lock();
        (state.low, state.high) = (low, high);
        let above = state.above_watermark(self.0.memory.page());
        drop(state);
        self.0.evict_pages(above, Some(Instant::now()));
        Ok(())
    }

    /// Whether both are the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Shared {
    /// How copies leave the host's memory; for whoever has the turn. Page-locked buffers are reserved
    /// at the first of them. Nobody waits for that, with a turn and memory that others want: until the
    /// host has room, copies go without.
    fn pinning(&self, owner: &Owner) -> Result<Pinning, ArenaError> {
        let how = self.host.pinning;
        let bytes = self.memory.staging(how);
        if bytes == 0 || self.staged.lock().is_some() {
            return Ok(how);
        }
        let charge: Charge = match &self.host.budget {
            None => Box::new(()),
            Some(budget) => {
                let purpose = format!("page-locked buffers of {}", self.device);
                let at_once = Patience::at_most(Duration::ZERO);
                match budget.reserve(bytes, Some(&purpose), owner, &at_once) {
                    Ok(reserved) => {
                        reserved.disown();
                        Box::new(reserved)
                    }
                    Err(BudgetError::Timeout { .. } | BudgetError::Impossible(_)) => {
                        return Ok(Pinning::Nothing);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let staged = self.memory.stage(charge)?;
        *self.staged.lock() = Some(staged);
        Ok(how)
    }

    /// What to tell somebody for whom there is no room though the budget has the bytes.
    fn full(&self, key: &str, asked: u64) -> ArenaError {
        let pinned = (self.state.lock().pinned() * self.memory.page()) as u64;
        ArenaError::Full {
            device: self.device,
            key: key.to_owned(),
            asked,
            free: self.memory.free(),
            // Those that were to come are claimed already.
            pinned: pinned.saturating_sub(asked),
        }
    }
}

fn memory_of(device: &Device) -> Result<Arc<dyn DeviceMemory>, ArenaError> {
    device.driver().memory().ok_or(ArenaError::NoPages { device: device.name() })
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.records.settle();
        self.budget.remove_evictor(self.evictor);
    }
}
