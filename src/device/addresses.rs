//! Addresses of this process, with memory and without: what a virtual device's memory is made of.

use std::io;

/// What the system may give memory in at once, if addresses are a multiple of it.
#[cfg(unix)]
const LARGE: usize = 2 << 20;

/// So many bytes of addresses that have no memory: touching one ends the process.
#[cfg(unix)]
pub(super) fn reserve(bytes: usize) -> io::Result<usize> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let more = bytes.checked_add(LARGE).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: the system chooses addresses that nobody has.
    #[expect(unsafe_code, reason = "a map without a type")]
    let found = unsafe { mmap_anonymous(std::ptr::null_mut(), more, ProtFlags::empty(), flags) }?;
    let found = found.expose_provenance();
    let start = found.next_multiple_of(LARGE);
    for (from, to) in [(found, start), (start + bytes, found + more)] {
        if from < to {
            release(from, to - from);
        }
    }
    Ok(start)
}

/// Gives addresses back to the system.
#[cfg(unix)]
pub(super) fn release(start: usize, bytes: usize) {
    // SAFETY: these addresses are from `reserve`, and nobody uses them any more.
    #[expect(unsafe_code, reason = "a map without a type")]
    let released =
        unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(start), bytes) };
    debug_assert!(released.is_ok());
}

/// Gives addresses memory, all zero.
#[cfg(unix)]
pub(super) fn commit(start: usize, bytes: usize) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    map_over(start, bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::empty())?;
    #[cfg(target_os = "linux")]
    {
        let start = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: these addresses have just been given memory, of which nobody has a reference.
        #[expect(unsafe_code, reason = "a call of the system")]
        let wished =
            unsafe { rustix::mm::madvise(start, bytes, rustix::mm::Advice::LinuxHugepage) };
        // Without it, it comes in small pieces, which takes four times as long.
        let _ = wished;
    }
    Ok(())
}

/// Takes the memory of addresses away. To drop only the content would leave zeros to be read.
#[cfg(unix)]
pub(super) fn decommit(start: usize, bytes: usize) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    map_over(start, bytes, ProtFlags::empty(), MapFlags::NORESERVE)
}

#[cfg(unix)]
fn map_over(
    start: usize,
    bytes: usize,
    access: rustix::mm::ProtFlags,
    flags: rustix::mm::MapFlags,
) -> io::Result<()> {
    use rustix::mm::{MapFlags, mmap_anonymous};
    let flags = flags | MapFlags::PRIVATE | MapFlags::FIXED;
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: these addresses are from `reserve`, so that no reference points there.
    #[expect(unsafe_code, reason = "a map without a type")]
    unsafe { mmap_anonymous(start, bytes, access, flags) }?;
    Ok(())
}

/// So many bytes of addresses that have no memory: touching one ends the process.
#[cfg(windows)]
pub(super) fn reserve(bytes: usize) -> io::Result<usize> {
    use windows_sys::Win32::System::Memory::{MEM_RESERVE, PAGE_NOACCESS};
    allocate(0, bytes, MEM_RESERVE, PAGE_NOACCESS)
}

/// Gives addresses back to the system.
#[cfg(windows)]
pub(super) fn release(start: usize, _bytes: usize) {
    use windows_sys::Win32::System::Memory::{MEM_RELEASE, VirtualFree};
    // SAFETY: these addresses are from `reserve`, and nobody uses them any more.
    #[expect(unsafe_code, reason = "a call of the system")]
    let released =
        unsafe { VirtualFree(std::ptr::with_exposed_provenance_mut(start), 0, MEM_RELEASE) };
    debug_assert!(released != 0);
}

/// Gives addresses memory, all zero.
#[cfg(windows)]
pub(super) fn commit(start: usize, bytes: usize) -> io::Result<()> {
    use windows_sys::Win32::System::Memory::{MEM_COMMIT, PAGE_READWRITE};
    allocate(start, bytes, MEM_COMMIT, PAGE_READWRITE).map(drop)
}

/// Takes the memory of addresses away.
#[cfg(windows)]
pub(super) fn decommit(start: usize, bytes: usize) -> io::Result<()> {
    use windows_sys::Win32::System::Memory::{MEM_DECOMMIT, VirtualFree};
    // SAFETY: these addresses are from `reserve`, so that no reference points there.
    #[expect(unsafe_code, reason = "a call of the system")]
    let done =
        unsafe { VirtualFree(std::ptr::with_exposed_provenance_mut(start), bytes, MEM_DECOMMIT) };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(windows)]
fn allocate(start: usize, bytes: usize, how: u32, access: u32) -> io::Result<usize> {
    use windows_sys::Win32::System::Memory::VirtualAlloc;
    let start: *const core::ffi::c_void = std::ptr::with_exposed_provenance(start);
    // SAFETY: nobody has the addresses, or they are from `reserve`.
    #[expect(unsafe_code, reason = "a call of the system")]
    let start = unsafe { VirtualAlloc(start, bytes, how, access) };
    if start.is_null() { Err(io::Error::last_os_error()) } else { Ok(start.expose_provenance()) }
}
