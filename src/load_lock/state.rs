//! The lock's state and its transitions; everything here happens under the lock's own mutex.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use super::{LockStatus, LockUser, Mode};
use crate::sync::{Mutant, planted};
use crate::wait::{Blockers, Description, Owner, WaitError, Wake, WakeList, seconds};

/// A holder's place; the ticket tells it from a later holder with the same key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    key: usize,
    ticket: u64,
}

#[derive(Default)]
pub(super) struct State {
    /// What it is called, if it is not the load lock.
    name: Option<String>,
    holders: Slab<Holder>,
    writing: bool,
    line: VecDeque<Waiter>,
    writers_in_line: usize,
    /// Holders let in from the line who have not come for their guard yet.
    uncollected: Vec<Place>,
    /// Those whose thread has ended while they waited.
    refused: Vec<(u64, WaitError)>,
    next_ticket: u64,
}

struct Holder {
    ticket: u64,
    mode: Mode,
    owner: Owner,
    handed_over: bool,
    since: Instant,
}

pub(super) struct Waiter {
    ticket: u64,
    mode: Mode,
    owner: Owner,
    since: Instant,
    waker: Arc<dyn Wake>,
}

impl State {
    pub(super) fn called(name: String) -> Self {
        Self { name: Some(name), ..Self::default() }
    }

    fn next_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Takes the lock if that needs no waiting.
    pub(super) fn take(&mut self, mode: Mode, owner: &Owner) -> Option<Place> {
        let open = match mode {
            Mode::Write => self.is_open_to_writer(),
            Mode::Read => self.is_open_to_readers() || self.is_inside(owner),
        };
        if !open {
            return None;
        }
        let ticket = self.next_ticket();
        Some(self.enter(ticket, mode, owner.clone()))
    }

    fn is_open_to_writer(&self) -> bool {
        self.holders.is_empty() || (planted(Mutant::WriterIgnoresReaders) && !self.writing)
    }

    fn is_open_to_readers(&self) -> bool {
        !self.writing && (self.writers_in_line == 0 || planted(Mutant::ReadersPassWriters))
    }

    /// Whether `owner` holds the lock already, itself or through the code below its event loop.
    fn is_inside(&self, owner: &Owner) -> bool {
        self.holders.iter().any(|(_, holder)| {
            !holder.handed_over && (holder.owner == *owner || owner.runs_above(&holder.owner))
        })
    }

    fn enter(&mut self, ticket: u64, mode: Mode, owner: Owner) -> Place {
        self.writing |= mode == Mode::Write;
        let since = Instant::now();
        let key = self.holders.insert(Holder { ticket, mode, owner, handed_over: false, since });
        Place { key, ticket }
    }

    pub(super) fn join(&mut self, mode: Mode, owner: &Owner, waker: Arc<dyn Wake>) -> u64 {
        let ticket = self.next_ticket();
        let owner = owner.clone();
        self.writers_in_line += usize::from(mode == Mode::Write);
        self.line.push_back(Waiter { ticket, mode, owner, since: Instant::now(), waker });
        ticket
    }

    /// Where a ticket stands in the line. Tickets only grow, so that the line is sorted.
    fn place(&self, ticket: u64) -> Option<usize> {
        self.line.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }

    fn holder(&self, place: Place) -> Option<&Holder> {
        self.holders.get(place.key).filter(|holder| holder.ticket == place.ticket)
    }

    pub(super) fn is_held(&self, place: Place) -> bool {
        self.holder(place).is_some()
    }

    pub(super) fn set_owner(&mut self, place: Place, owner: Option<&Owner>) {
        let holder = self.holders.get_mut(place.key).filter(|holder| holder.ticket == place.ticket);
        let Some(holder) = holder else { return };
        holder.handed_over = owner.is_none() && !planted(Mutant::HandOverForgotten);
        if let Some(owner) = owner {
            holder.owner = owner.clone();
        }
    }

    /// Lets a holder out and the next in. Returns whom to wake once the mutex is free, or `None` if
    /// that place is empty already.
    pub(super) fn release(&mut self, place: Place) -> Option<WakeList> {
        if !planted(Mutant::ReleaseOfAnothers) || !self.holders.contains(place.key) {
            self.holder(place)?;
        }
        let writer_left = self.holders.remove(place.key).mode == Mode::Write;
        self.writing &= !writer_left;
        Some(self.advance(writer_left))
    }

    /// The phases: after a writer the readers that wait, after the last reader the first writer.
    fn advance(&mut self, writer_left: bool) -> WakeList {
        let mut wakers = WakeList::new();
        if self.line.is_empty() || self.writing {
            return wakers;
        }
        let readers_turn = writer_left && !planted(Mutant::WritersPassReaders);
        if readers_turn {
            let (readers, rest) = self.line.drain(..).partition(|waiter| waiter.mode == Mode::Read);
            self.line = rest;
            for reader in VecDeque::into_iter(readers) {
                wakers.push(self.admit(reader));
            }
        }
        // A writer that gave up may leave readers with no writer before them.
        while let Some(reader) = self.line.pop_front_if(|waiter| waiter.mode == Mode::Read) {
            wakers.push(self.admit(reader));
        }
        if self.is_open_to_writer()
            && let Some(writer) = self.line.pop_front()
        {
            self.writers_in_line -= 1;
            wakers.push(self.admit(writer));
        }
        wakers
    }

    fn admit(&mut self, waiter: Waiter) -> Arc<dyn Wake> {
        let Waiter { ticket, mode, owner, waker, .. } = waiter;
        let place = self.enter(ticket, mode, owner);
        self.uncollected.push(place);
        waker
    }

    fn take_uncollected(&mut self, ticket: u64) -> Option<Place> {
        let at = self.uncollected.iter().position(|place| place.ticket == ticket)?;
        Some(self.uncollected.swap_remove(at))
    }

    pub(super) fn collect(&mut self, ticket: u64) -> Option<Result<(Place, Mode), WaitError>> {
        if let Some(at) = self.refused.iter().position(|(refused, _)| *refused == ticket) {
            return Some(Err(self.refused.swap_remove(at).1));
        }
        let place = self.take_uncollected(ticket)?;
        let mode = self.holder(place)?.mode;
        Some(Ok((place, mode)))
    }

    /// Takes a ticket out of the line, as if it had never come.
    pub(super) fn abandon(&mut self, ticket: u64) -> (Option<Waiter>, WakeList) {
        self.refused.retain(|(refused, _)| *refused != ticket);
        if let Some(place) = self.take_uncollected(ticket) {
            return (None, self.release(place).unwrap_or_default());
        }
        let Some(at) = self.place(ticket) else {
            return (None, WakeList::new());
        };
        if planted(Mutant::AbandonLeavesTicket) {
            return (None, WakeList::new());
        }
        let waiter = self.line.remove(at);
        let wakers = match &waiter {
            Some(Waiter { mode: Mode::Write, .. }) => self.writer_gone(),
            _ => WakeList::new(),
        };
        (waiter, wakers)
    }

    /// A writer has left the line: readers may go on, and who still waits stands behind somebody
    /// else now, and must look again whether that one can move.
    fn writer_gone(&mut self) -> WakeList {
        self.writers_in_line -= 1;
        if planted(Mutant::AbandonedWriterBlocks) {
            return WakeList::new();
        }
        let mut wakers = self.advance(false);
        wakers.extend(self.line.iter().map(|waiter| waiter.waker.clone()));
        wakers
    }

    /// Releases what the code of a thread that has ended still holds, and refuses what it waits for.
    pub(super) fn thread_ended(&mut self, thread: u64) -> WakeList {
        let ended = |owner: &Owner| owner.thread_number() == thread;
        let (gone, line): (VecDeque<_>, VecDeque<_>) =
            self.line.drain(..).partition(|waiter| ended(&waiter.owner));
        self.line = line;
        let mut wakers = WakeList::new();
        for Waiter { ticket, mode, waker, .. } in gone {
            self.refused.push((ticket, WaitError::thread_ended(self.wanted(mode))));
            wakers.push(waker);
            if mode == Mode::Write {
                wakers.extend(self.writer_gone());
            }
        }
        let held = self.holders.iter();
        let held = held.filter(|(_, holder)| !holder.handed_over && ended(&holder.owner));
        let held: Vec<Place> =
            held.map(|(key, holder)| Place { key, ticket: holder.ticket }).collect();
        wakers.extend(held.into_iter().filter_map(|place| self.release(place)).flatten());
        wakers
    }

    /// Those inside who are in the way of `mode`.
    fn in_the_way(&self, mode: Mode) -> impl Iterator<Item = &Holder> {
        let holders = self.holders.iter().map(|(_, holder)| holder);
        holders.filter(move |holder| mode == Mode::Write || holder.mode == Mode::Write)
    }

    /// Those inside who are in the way, and those in line who go before.
    pub(super) fn blockers(&self, ticket: u64) -> Option<Blockers> {
        let at = self.place(ticket)?;
        let mode = self.line[at].mode;
        let writers = |(_, waiter): &(usize, &Waiter)| waiter.mode == Mode::Write;
        let first = self.line.iter().enumerate().find(writers).map(|(place, _)| place);
        let previous = self.line.iter().enumerate().take(at).rfind(writers).map(|(place, _)| place);
        // The readers in line go after the writer inside; without one, after the first in line.
        let follows_readers = if self.writing { previous.is_none() } else { previous == first };
        let goes_before = |&(place, other): &(usize, &Waiter)| match (mode, other.mode) {
            (Mode::Read, Mode::Read) => false,
            (Mode::Read, Mode::Write) => !self.writing && first == Some(place),
            (Mode::Write, Mode::Read) => follows_readers,
            (Mode::Write, Mode::Write) => previous == Some(place),
        };
        let before =
            self.line.iter().enumerate().filter(goes_before).map(|(_, other)| &other.owner);
        let inside = self.in_the_way(mode).filter(|holder| !holder.handed_over);
        Some(vec![inside.map(|holder| &holder.owner).chain(before).cloned().collect()])
    }

    pub(super) fn describe(&self, ticket: u64) -> Description {
        let mode =
            self.line.iter().find(|waiter| waiter.ticket == ticket).map(|waiter| waiter.mode);
        let Some(mode) = mode else {
            let wants = self.name.clone().unwrap_or_else(|| "the load lock".to_owned());
            return Description { wants, held: String::new() };
        };
        let now = Instant::now();
        let holders: Vec<String> = self
            .in_the_way(mode)
            .map(|holder| {
                let Holder { owner, mode, since, .. } = holder;
                let to = if self.name.is_none() { format!(" to {mode}") } else { String::new() };
                format!("held by {owner}{to} for {}", seconds(now - *since))
            })
            .collect();
        let held = match (holders.is_empty(), mode) {
            (false, _) => format!(", {}", holders.join(", ")),
            (true, Mode::Read) if self.writers_in_line > 0 => {
                ", for which a writer waits already".to_owned()
            }
            (true, _) => String::new(),
        };
        Description { wants: self.wanted(mode), held }
    }

    fn wanted(&self, mode: Mode) -> String {
        self.name.clone().unwrap_or_else(|| format!("the load lock to {mode}"))
    }

    pub(super) fn status(&self) -> LockStatus {
        let now = Instant::now();
        let holders = self.holders.iter().map(|(_, holder)| LockUser {
            owner: holder.owner.to_string(),
            mode: holder.mode,
            lasted: now - holder.since,
            handed_over: holder.handed_over,
        });
        let waiting = self.line.iter().map(|waiter| LockUser {
            owner: waiter.owner.to_string(),
            mode: waiter.mode,
            lasted: now - waiter.since,
            handed_over: false,
        });
        LockStatus { holders: holders.collect(), waiting: waiting.collect() }
    }
}
