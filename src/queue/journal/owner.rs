//! Who owns a file: one queue at a time, on this machine.
//!
//! The owner has a POSIX record lock on a file beside it, which the kernel takes back however the process
//! ends, and which a forked child does not have. Such a lock does not keep a process from itself,
//! and closing any descriptor of the file gives it up: so each process has a list of what it owns.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table;
use crate::queue::error::JournalError;
use crate::wait::PerProcess;

fn owned() -> MutexGuard<'static, HashSet<PathBuf>> {
    static OWNED: PerProcess<Mutex<HashSet<PathBuf>>> = PerProcess::new();
    OWNED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to a file. It ends with the value, or with the process.
pub(super) struct Ownership {
    place: PathBuf,
    lock: Option<File>,
}

impl Ownership {
    /// Takes it, if nobody has it.
    pub(super) fn of(path: &Path) -> Result<Self, JournalError> {
        let failed = |why: io::Error| table::unusable("opening", path, &why);
        // The folder's real path, so that no other spelling of it is another file.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().map_err(failed)?;
        let Some(name) = path.file_name() else {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it names no file")));
        };
        // A link to a file is that file.
        let file = folder.join(name);
        let mut place = file.canonicalize().unwrap_or(file).into_os_string();
        place.push(".lock");
        let place = PathBuf::from(place);
        let in_use = |owner: String| JournalError::InUse { path: path.to_owned(), owner };
        if !owned().insert(place.clone()) {
            return Err(in_use("another queue of this process".to_owned()));
        }
        let mut ownership = Self { place, lock: None };
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut lock = options.open(&ownership.place).map_err(failed)?;
        match try_lock(&lock) {
            Ok(true) => {}
            Ok(false) => {
                let mut pid = String::new();
                let known = lock.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                let owner = if known {
                    format!("process {}", pid.trim())
                } else {
                    "another process".into()
                };
                return Err(in_use(owner));
            }
            Err(why) => return Err(failed(why)),
        }
        // Only for people who are told who has it.
        let told = lock.set_len(0).and_then(|()| lock.rewind());
        drop(told.and_then(|()| writeln!(lock, "{}", std::process::id())));
        ownership.lock = Some(lock);
        Ok(ownership)
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        // Closing gives the lock up; after that somebody here may have it again.
        drop(self.lock.take());
        owned().remove(&self.place);
    }
}

#[cfg(unix)]
fn try_lock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, fcntl_lock};
    use rustix::io::Errno;

    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

#[cfg(not(unix))]
fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(why)) => Err(why),
    }
}
