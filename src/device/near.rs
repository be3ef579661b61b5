//! Which processors are near a card, where others are further away: a machine with several NUMA nodes.
//!
//! Follows the kernel's `sysfs-bus-pci` and `sysfs-devices-node`.

use std::path::Path;

/// Processors near a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near(Vec<usize>);

/// Those near the card with this address on the PCI bus (`0000:3b:00.0`), by the files below `sys`, of
/// which there is one in `/`; `None` where all are equally near, or nobody knows.
#[must_use]
pub fn near_card(sys: &Path, address: &str) -> Option<Near> {
    let read = |path: String| std::fs::read_to_string(sys.join(path)).ok();
    let nodes = numbers(&read("devices/system/node/online".to_owned())?)?;
    let node: usize = read(format!("bus/pci/devices/{address}/numa_node"))?.trim().parse().ok()?;
    if nodes.len() < 2 || !nodes.contains(&node) {
        return None;
    }
    let processors = numbers(&read(format!("devices/system/node/node{node}/cpulist"))?)?;
    (!processors.is_empty()).then_some(Near(processors))
}

/// As the kernel lists numbers: `0-3,8`.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        all.extend(from.parse::<usize>().ok()?..=to.parse().ok()?);
    }
    Some(all)
}

impl Near {
    /// Has the calling thread, and those that it begins, run there alone, as far as the process's
    /// first thread may; memory that they touch first is near too. Returns whether it does so now.
    #[cfg(target_os = "linux")]
    pub fn stay(&self) -> bool {
        use rustix::process::getpid;
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        // Not as this one may: whoever began it may have to stay near another card.
        let Ok(allowed) = sched_getaffinity(Some(getpid())) else { return false };
        let mut wanted = CpuSet::new();
        let there = |at: &&usize| **at < CpuSet::MAX_CPU && allowed.is_set(**at);
        self.0.iter().filter(there).for_each(|at| wanted.set(*at));
        wanted.count() > 0 && sched_setaffinity(None, &wanted).is_ok()
    }

    /// Here threads run where they like.
    #[cfg(not(target_os = "linux"))]
    pub fn stay(&self) -> bool {
        false
    }
}
