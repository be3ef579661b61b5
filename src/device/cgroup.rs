//! What a container lets this process use: the memory controller of cgroup v1 or v2.

use std::path::{Path, PathBuf};

/// What a container lets its processes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerMemory {
    /// Most bytes that they may have.
    pub limit: u64,
    /// Bytes of these that are left, counting file pages that nobody has used lately as left.
    pub free: u64,
}

/// The tightest limit on this process; `None` without one.
pub(super) fn of_this_process() -> Option<ContainerMemory> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    container_memory(Path::new("/sys/fs/cgroup"), &groups)
}

/// The files of one version of the interface.
struct Files {
    limit: &'static str,
    usage: &'static str,
    inactive: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
};
const V2: Files = Files { limit: "memory.max", usage: "memory.current", inactive: "inactive_file" };

/// The tightest limit on a process whose groups are `groups`, as `/proc/PID/cgroup` lists them, where
/// the controllers are mounted below `mount`; `None` without one.
#[must_use]
pub fn container_memory(mount: &Path, groups: &str) -> Option<ContainerMemory> {
    let (files, root, group) = groups.lines().find_map(|line| controller(mount, line))?;
    // A limit of any ancestor holds too. In a container the group may be named as the host sees it,
    // while the mount shows the container's own as its root.
    let below = root.join(group.trim_start_matches('/'));
    let levels = below.ancestors().take_while(|level| level.starts_with(&root));
    levels.filter_map(|level| read(level, &files)).reduce(|one, other| ContainerMemory {
        limit: one.limit.min(other.limit),
        free: one.free.min(other.free),
    })
}

/// Of a line such as `0::/user.slice` or `9:memory:/docker/1a2b`, who governs memory, and where.
fn controller<'a>(mount: &Path, line: &'a str) -> Option<(Files, PathBuf, &'a str)> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    if controllers.split(',').any(|name| name == "memory") {
        Some((V1, mount.join("memory"), group))
    } else if controllers.is_empty() && mount.join("cgroup.controllers").exists() {
        Some((V2, mount.to_owned(), group))
    } else {
        None
    }
}

fn read(group: &Path, files: &Files) -> Option<ContainerMemory> {
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
    };
    let limit = number(files.limit)?;
    let usage = number(files.usage).unwrap_or(0);
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let inactive =
        stat.lines().find_map(|line| line.strip_prefix(files.inactive)?.strip_prefix(' '));
    let inactive = inactive.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    let used = usage.saturating_sub(inactive);
    Some(ContainerMemory { limit, free: limit.saturating_sub(used) })
}
