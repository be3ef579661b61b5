//! What people are told about a pool.

use std::time::{Duration, Instant};

use super::state::{Held, State, Waiter};
use crate::device::{Device, Name};
use crate::wait::{Description, seconds};

/// One device of a pool: who holds it, who waits for it.
#[derive(Debug, Clone)]
pub struct DeviceStatus {
    /// The device.
    pub device: Device,
    /// Who holds it; `None` when it is idle.
    pub holder: Option<HolderStatus>,
    /// Who would take it when it comes free, in order.
    pub waiting: Vec<WaiterStatus>,
    /// Whether it leaves the pool once released.
    pub draining: bool,
}

/// Who holds something, and for how long already.
#[derive(Debug, Clone)]
pub struct HolderStatus {
    /// `thread 'MainThread'`, `task 'Task-1'`.
    pub owner: String,
    /// How long already.
    pub held_for: Duration,
    /// Taken by `borrow`.
    pub borrowed: bool,
    /// Given to somebody else by `hand_over`.
    pub handed_over: bool,
}

/// Who waits, and for how long already.
#[derive(Debug, Clone)]
pub struct WaiterStatus {
    /// `thread 'MainThread'`, `task 'Task-1'`.
    pub owner: String,
    /// The device it waits for; `None` takes any.
    pub device: Option<Name>,
    /// How long already.
    pub waited_for: Duration,
}

pub(super) fn of(state: &State) -> Vec<DeviceStatus> {
    let now = Instant::now();
    let status = state.slots.iter().map(|slot| {
        let takes = |waiter: &&Waiter| !slot.draining && waiter.takes(slot.device.name());
        DeviceStatus {
            device: slot.device.clone(),
            holder: slot.held.as_ref().map(|held| holder(held, now)),
            waiting: state.line.iter().filter(takes).map(|one| waiter(one, now)).collect(),
            draining: slot.draining,
        }
    });
    status.collect()
}

fn holder(held: &Held, now: Instant) -> HolderStatus {
    HolderStatus {
        owner: held.owner.to_string(),
        held_for: now - held.since,
        borrowed: held.borrowed,
        handed_over: held.handed_over,
    }
}

fn waiter(waiter: &Waiter, now: Instant) -> WaiterStatus {
    WaiterStatus {
        owner: waiter.owner.to_string(),
        device: waiter.device,
        waited_for: now - waiter.since,
    }
}

/// What a waiter wants, and who has it.
pub(super) fn describe(state: &State, ticket: u64) -> Description {
    let Some(place) = state.place(ticket) else {
        return Description { wants: "a device".to_owned(), held: String::new() };
    };
    let me = &state.line[place];
    let now = Instant::now();
    let holders: Vec<String> = state
        .slots
        .iter()
        .filter(|slot| !slot.draining && me.takes(slot.device.name()))
        .filter_map(|slot| {
            let held = slot.held.as_ref()?;
            let since = seconds(now - held.since);
            Some(match me.device {
                Some(_) => format!("held by {} for {since}", held.owner),
                None => format!("{} held by {} for {since}", slot.device, held.owner),
            })
        })
        .collect();
    let wants = state.wanted(me.device);
    let ahead = state.line.range(..place).filter(|other| match me.device {
        Some(name) => other.takes(name),
        None => true,
    });
    let before = match ahead.count() {
        0 => String::new(),
        count => format!("; {count} waiting before"),
    };
    let held = if holders.is_empty() { String::new() } else { format!(", {}", holders.join(", ")) };
    Description { wants, held: held + &before }
}
