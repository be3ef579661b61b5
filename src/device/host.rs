//! The host as a device: its processors and its memory.

use super::cgroup;
use super::{Description, Device, DeviceType, Driver, Name};
use std::sync::Arc;

/// Answers from the host's memory: for the CPU, and for devices that share its memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Driver for Host {
    fn free_memory(&self) -> Option<u64> {
        let container = cgroup::of_this_process().map(|memory| memory.free);
        container.into_iter().chain(meminfo("MemAvailable")).min()
    }
}

/// Bytes of memory that this process may use: all there is, or less in a container.
#[must_use]
pub fn host_memory() -> Option<u64> {
    let container = cgroup::of_this_process().map(|memory| memory.limit);
    container.into_iter().chain(meminfo("MemTotal")).min()
}

/// The CPU as a device.
pub(super) fn cpu() -> Option<Device> {
    Some(Device::new(Description {
        name: Name::new(DeviceType::Cpu, 0).ok()?,
        model: processor().unwrap_or_else(|| "CPU".to_owned()),
        number: None,
        memory: host_memory(),
        unified: true,
        bandwidth: None,
        driver: Arc::new(Host),
    }))
}

/// A figure of `/proc/meminfo` in bytes; Linux only.
fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The processor's name from `/proc/cpuinfo`; Linux only, and not on every architecture.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(name.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}
