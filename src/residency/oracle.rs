//! The fewest bytes that anybody could move.

use std::collections::HashMap;

use super::{Component, Trace};

/// What has to be copied for a trace by somebody who knows all of it: Belády's rule for bytes. When room
/// is missing, what is used next the latest gives as much as is missing.
#[must_use]
pub fn least_bytes(trace: &Trace) -> u64 {
    let (components, _) = trace.components();
    let mut next_use = vec![usize::MAX; components.len()];
    let mut upcoming: HashMap<Component, usize> = HashMap::new();
    for at in (0..components.len()).rev() {
        next_use[at] = upcoming.insert(components[at], at).unwrap_or(usize::MAX);
    }
    // Bytes that are resident, and when they are used next.
    let mut resident: HashMap<Component, (u64, usize)> = HashMap::new();
    let mut moved = 0;
    for (at, request) in trace.requests.iter().enumerate() {
        let component = components[at];
        let own = resident.remove(&component).map_or(0, |(bytes, _)| bytes);
        let others: u64 = resident.values().map(|(bytes, _)| bytes).sum();
        let room = trace.capacity_bytes - request.working_bytes;
        let mut missing = (others + request.bytes).saturating_sub(room);
        let mut victims: Vec<_> = resident.values_mut().collect();
        victims.sort_by_key(|(_, next)| std::cmp::Reverse(*next));
        for (bytes, _) in victims {
            let left = missing.min(*bytes);
            (*bytes, missing) = (*bytes - left, missing - left);
        }
        moved += request.bytes.saturating_sub(own);
        resident.insert(component, (request.bytes, next_use[at]));
    }
    moved
}
