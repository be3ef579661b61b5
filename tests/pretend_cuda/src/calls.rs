//! Every call: counted, and refused where a test asks for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::code::{Answer, Code};

/// The calls so far, and the failures to come. It is there before `cuInit` is, and after a failed one.
static CALLS: Mutex<Option<Calls>> = Mutex::new(None);

#[derive(Default)]
pub struct Calls {
    counts: HashMap<(String, Option<usize>), u64>,
    failures: HashMap<String, Vec<Failure>>,
    /// Whether the failures that are described have been added.
    described: bool,
}

/// Some calls of one function, which fail without doing anything.
#[derive(Debug, Clone)]
pub struct Failure {
    code: Code,
    times: u64,
    after: u64,
    device: Option<usize>,
}

impl Failure {
    pub fn new(code: u32, times: u64, after: u64, device: Option<usize>) -> Self {
        Self { code: Code(code), times, after, device }
    }
}

/// Runs something on the calls.
pub fn with<T>(look: impl FnOnce(&mut Calls) -> T) -> T {
    let mut calls: MutexGuard<'_, _> = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    look(calls.get_or_insert_default())
}

/// The name without the version that some symbols carry at their end.
pub fn base_name(name: &str) -> &str {
    name.strip_suffix("_v2").unwrap_or(name)
}

impl Calls {
    /// Counts a call, and says how it must fail, if it must.
    pub fn admit(&mut self, name: &str, device: Option<usize>) -> Answer {
        let name = base_name(name);
        *self.counts.entry((name.to_owned(), device)).or_default() += 1;
        for failure in self.failures.get_mut(name).into_iter().flatten() {
            if failure.device.is_some() && failure.device != device {
                continue;
            }
            if failure.after > 0 {
                failure.after -= 1;
            } else if failure.times > 0 {
                failure.times =
                    if failure.times == u64::MAX { u64::MAX } else { failure.times - 1 };
                return Err(failure.code);
            }
        }
        Ok(())
    }

    /// Adds a failure; one that is none takes those of before on its device back.
    pub fn fail(&mut self, name: &str, failure: Failure) {
        let failures = self.failures.entry(base_name(name).to_owned()).or_default();
        if failure.code == Code(0) {
            failures.retain(|other| other.device != failure.device);
        } else {
            failures.push(failure);
        }
    }

    /// Adds the failures that are described, once.
    pub fn describe(&mut self, failures: &[(String, Failure)]) {
        if !self.described {
            self.described = true;
            for (name, failure) in failures {
                self.fail(name, failure.clone());
            }
        }
    }

    /// Takes all failures back.
    pub fn forgive(&mut self) {
        self.failures.clear();
    }

    /// How often a function was called, on one device or on all and none.
    pub fn count(&self, name: &str, device: Option<usize>) -> u64 {
        let name = base_name(name);
        let of_it = self.counts.iter().filter(|((called, _), _)| called == name);
        of_it.filter(|((_, on), _)| device.is_none() || *on == device).map(|(_, count)| count).sum()
    }

    /// Begins counting anew.
    pub fn reset(&mut self) {
        self.counts.clear();
    }
}
