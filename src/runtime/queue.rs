//! A queue that tells planners which jobs come, and that is told what devices hold.

use std::sync::Arc;

use crate::arena::Arena;
use crate::device::Name;
use crate::queue::{Holdings, JobQueue, Placement};
use crate::residency::{Forecast, Needs, Planner};
use crate::sync::{AtomicBool, Ordering};

/// The jobs of a queue as a planner's forecast.
struct Coming<V: Send + Sync + 'static>(JobQueue<V>);

impl<V: Send + Sync + 'static> Forecast for Coming<V> {
    fn coming(&self, device: Name, most: usize) -> Vec<Needs> {
        let next = self.0.forecast(device, most).unwrap_or_default();
        // A job that does not say what it needs tells nothing, and those after it still come.
        next.iter().map(|needs| needs.iter().map(|key| key.as_ref().to_owned()).collect()).collect()
    }
}

/// What is resident in arenas, as a queue places jobs by it.
struct Resident(Vec<Arena>);

impl Placement for Resident {
    fn holdings(&self, device: Name) -> Holdings {
        let arena = self.0.iter().find(|arena| arena.device() == device);
        let status = arena.and_then(|arena| arena.status().ok());
        let areas = status.into_iter().flat_map(|status| status.areas);
        let held = areas.filter(|area| area.resident > 0);
        held.map(|area| (area.key.into(), area.resident)).collect()
    }
}

/// A queue and the devices that run its jobs, until this is dropped.
///
/// Each planner asks the queue which jobs come next, unless somebody has told it already; and the
/// queue asks the arenas what devices hold, if there are any.
#[must_use]
pub struct Connection<V: Send + Sync + 'static> {
    queue: JobQueue<V>,
    planners: Vec<Planner>,
    places: bool,
    over: AtomicBool,
}

/// Connects a queue with the devices that run its jobs.
pub fn connect<V: Send + Sync + 'static>(
    queue: &JobQueue<V>,
    planners: Vec<Planner>,
    arenas: Vec<Arena>,
) -> Connection<V> {
    for planner in &planners {
        drop(planner.set_forecast(Some(Arc::new(Coming(queue.clone())))));
    }
    let places = !arenas.is_empty();
    if places {
        queue.set_placement(Some(Arc::new(Resident(arenas))));
    }
    Connection { queue: queue.clone(), planners, places, over: AtomicBool::new(false) }
}

impl<V: Send + Sync + 'static> Connection<V> {
    /// Ends it: planners know of no jobs any more, and the queue of no devices. Again without effect.
    pub fn end(&self) {
        if self.over.swap(true, Ordering::AcqRel) || self.queue.check().is_err() {
            return;
        }
        for planner in &self.planners {
            drop(planner.set_forecast(None));
        }
        if self.places {
            self.queue.set_placement(None);
        }
    }
}

impl<V: Send + Sync + 'static> Drop for Connection<V> {
    fn drop(&mut self) {
        self.end();
    }
}
