//! Making a queue, in memory or of what its file has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::alarm::Alarm;
use super::job::Home;
use super::journal::{Durability, Journal};
use super::line::Line;
use super::order::{Holdings, Order, Rules};
use super::state::State;
use super::{Clock, Inner, JobQueue, Micros, Placement, QueueError, SystemClock, event, recover};
use crate::device::{Device, Name};
use crate::sync::Mutex;
use crate::wait::{self, Birth};

/// The most devices that a queue tells apart.
pub const MOST_DEVICES: usize = 64;

/// How a queue goes about its jobs.
pub struct Settings {
    /// The order.
    pub rules: Rules,
    /// How fast devices are, as shares of the fastest; those that are missing are as fast.
    pub speeds: HashMap<Name, f64>,
    /// How often a job may be begun that does not say so itself.
    pub max_attempts: u32,
    /// The most bytes of a payload.
    pub max_payload: u64,
    /// How many jobs that are over are remembered.
    pub history: usize,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who knows what devices hold; without one a device is taken to hold what it used last.
    pub placement: Option<Arc<dyn Placement>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            speeds: HashMap::new(),
            max_attempts: 3,
            max_payload: 1 << 20,
            history: 10_000,
            clock: Arc::new(SystemClock::default()),
            placement: None,
        }
    }
}

impl<V: Send + Sync + 'static> JobQueue<V> {
    /// A queue in memory.
    ///
    /// # Errors
    /// [`QueueError::TooManyDevices`].
    pub fn new(devices: Vec<Device>, settings: Settings) -> Result<Self, QueueError> {
        check(&devices)?;
        Ok(Self::with_journal(devices, settings, None, 0))
    }

    /// A queue in a file, which is made if it is not there. What ran when its last owner ended is queued
    /// again, or has failed if it had its attempts.
    ///
    /// # Errors
    /// [`QueueError::Journal`] and [`QueueError::TooManyDevices`].
    pub fn open(
        path: &Path,
        durability: Durability,
        devices: Vec<Device>,
        settings: Settings,
    ) -> Result<Self, QueueError> {
        check(&devices)?;
        let journal = Journal::open(path, durability)?;
        let left = journal.read()?;
        let skew = recover::latest(&left.jobs).saturating_sub(settings.clock.now()).max(0);
        let queue = Self::with_journal(devices, settings, Some(journal), skew);
        queue.recover(left)?;
        Ok(queue)
    }

    fn with_journal(
        devices: Vec<Device>,
        settings: Settings,
        journal: Option<Journal>,
        skew: Micros,
    ) -> Self {
        let speed = |device: &Device| settings.speeds.get(&device.name()).copied().unwrap_or(1.0);
        let speeds = devices.iter().map(speed).collect();
        let state = State {
            jobs: BTreeMap::new(),
            order: Order::new(settings.rules, speeds),
            line: Line::default(),
            active: HashMap::new(),
            history: BTreeSet::new(),
            coming: HashMap::new(),
            holdings: vec![Holdings::new(); devices.len()],
            remembers: settings.placement.is_none(),
            devices: devices.clone().into(),
            counts: [0; 5],
            keep: settings.history,
            next_id: 1,
            next_number: 0,
            closed: false,
        };
        let birth = Birth::default();
        let movers = Mutex::new(HashMap::new());
        let home = Arc::new(Home { birth, movers, subscribers: event::Subscribers::default() });
        let inner = Arc::new(Inner {
            birth,
            devices: devices.into(),
            max_attempts: settings.max_attempts,
            max_payload: settings.max_payload,
            clock: settings.clock,
            skew,
            placement: Mutex::new(settings.placement),
            home,
            state: Mutex::new(state),
            journal,
            alarm: Alarm::default(),
        });
        wait::register(&inner);
        Self(inner)
    }
}

fn check(devices: &[Device]) -> Result<(), QueueError> {
    if devices.len() > MOST_DEVICES {
        return Err(QueueError::TooManyDevices { given: devices.len(), most: MOST_DEVICES });
    }
    Ok(())
}
