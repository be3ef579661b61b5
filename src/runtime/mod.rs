//! The wiring: who says what leaves first, who tells where jobs begin and which come next, and who
//! tells the queue what devices hold.
//!
//! Rooms know those above them only as small traits. Here they are put together.
//!
//! ```
//! use coresident::device::{VirtualSpec, virtual_devices};
//! use coresident::pool::DevicePool;
//! use coresident::residency::PolicyName;
//! use coresident::runtime::planner;
//! use coresident::wait::Owner;
//!
//! let device = virtual_devices(1, VirtualSpec::default())?.remove(0);
//! let pool = DevicePool::new(vec![device.clone()])?;
//! let planner = planner(device.name(), PolicyName::default(), Some(&pool));
//! let me = Owner::thread(|| "main".into());
//! let lease = pool.try_lease(None, &me)?;
//! planner.note_use("encoder", 4, None, &me);
//! planner.note_use("unet", 8, None, &me);
//! drop(lease);
//! let keys = ["unet".to_owned(), "encoder".to_owned()];
//! assert_eq!(planner.order(&keys).len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod queue;

use std::sync::Arc;

pub use queue::{Connection, connect};

use crate::arena::{Arena, ArenaError, HostSide};
use crate::budget::Budget;
use crate::device::{Device, Name};
use crate::pool::DevicePool;
use crate::residency::{Bounds, Planner, PolicyName};

/// A planner for a device. A job that nobody has declared is what is used under one lease of the pool.
#[must_use]
pub fn planner(device: Name, policy: PolicyName, pool: Option<&DevicePool>) -> Planner {
    let bounds = pool.map(|pool| Arc::new(Leases(pool.clone())) as Arc<dyn Bounds>);
    Planner::new(device, policy, bounds)
}

/// An arena whose weights leave in the order of a planner; with [`PolicyName::AlwaysEvict`] as soon as
/// nobody uses them.
///
/// # Errors
/// As [`Arena::new`].
pub fn arena(
    device: &Device,
    budget: &Budget,
    host: HostSide,
    planner: &Planner,
) -> Result<Arena, ArenaError> {
    let arena = Arena::with_order(device, budget, host, Arc::new(planner.clone()))?;
    if planner.policy() == PolicyName::AlwaysEvict {
        arena.set_watermarks(0, Some(0))?;
    }
    Ok(arena)
}

/// Jobs that are bounded by leases.
struct Leases(DevicePool);

impl Bounds for Leases {
    fn current(&self, device: Name) -> Option<u64> {
        self.0.lease_of(device)
    }
}
