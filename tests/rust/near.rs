//! Threads near a card, on machines whose processors are not all as near.

use std::fs;
use std::path::PathBuf;
use std::process;

use coresident::device::{Near, near_card};

/// A kernel's files, removed in the end.
struct Sys(PathBuf);

impl Sys {
    fn new(name: &str, online: &str, node: &str, processors: &str) -> Self {
        let sys = std::env::temp_dir().join(format!("coresident-{}-sys-{name}", process::id()));
        let write = |path: &str, text: &str| {
            let path = sys.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        };
        write("devices/system/node/online", online);
        write("devices/system/node/node1/cpulist", processors);
        write("bus/pci/devices/0000:3b:00.0/numa_node", node);
        Self(sys)
    }
}

impl Drop for Sys {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn where_all_processors_are_as_near_nobody_is_moved() {
    let one = Sys::new("one", "0", "0", "0-3");
    assert_eq!(near_card(&one.0, "0000:3b:00.0"), None);
    let unknown = Sys::new("unknown", "0-1", "-1", "0-3");
    assert_eq!(near_card(&unknown.0, "0000:3b:00.0"), None);
    assert_eq!(near_card(&unknown.0, "0000:99:00.0"), None);
    let broken = Sys::new("broken", "0-1", "1", "0-x");
    assert_eq!(near_card(&broken.0, "0000:3b:00.0"), None);
}

#[cfg(target_os = "linux")]
fn sys_near(sys: &Sys) -> Near {
    near_card(&sys.0, "0000:3b:00.0").unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_thread_stays_on_those_that_are_near_as_far_as_it_may() {
    use rustix::thread::sched_getaffinity;

    let allowed = sched_getaffinity(None).unwrap();
    let last = (0..1024).rev().find(|at| allowed.is_set(*at)).unwrap();
    let sys = Sys::new("two", "0-1", "1", &format!("{last},1000-1023"));
    let near = sys_near(&sys);
    let (moved, where_to) = std::thread::spawn(move || {
        let moved = near.stay();
        (moved, sched_getaffinity(None).unwrap())
    })
    .join()
    .unwrap();
    assert!(moved && where_to.is_set(last) && where_to.count() == 1);
    assert_eq!(sched_getaffinity(None).unwrap(), allowed);
    // Whoever was begun by a thread that stays somewhere may stay elsewhere.
    let first = (0..1024).find(|at| allowed.is_set(*at)).unwrap();
    let other = Sys::new("first", "0-1", "1", &first.to_string());
    let (one, other) = (sys_near(&sys), sys_near(&other));
    let begun = std::thread::spawn(move || {
        assert!(one.stay());
        let stay = move || other.stay() && sched_getaffinity(None).unwrap().is_set(first);
        std::thread::spawn(stay).join().unwrap()
    });
    assert!(begun.join().unwrap());
    // None that this process may use.
    let sys = Sys::new("other", "0-1", "1", "1020-1023");
    assert!(!near_card(&sys.0, "0000:3b:00.0").unwrap().stay());
    assert_eq!(sched_getaffinity(None).unwrap(), allowed);
}
