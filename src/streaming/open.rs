//! How a streaming begins, and gets more bytes later.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::state::State;
use super::status::Figures;
use super::{Shared, Streaming, StreamingError};
use crate::arena::{Area, ArenaError, Brought, Exclusive, PageSet, Pins};
use crate::budget::{BudgetError, Reservation};
use crate::device::Stream;
use crate::load_lock::LoadLock;
use crate::sync::{Condvar, Mutex};
use crate::wait::{Birth, Owner, Patience, WaitError};

/// What is streamed.
pub struct Spec {
    /// Pages that are in no block: they stay.
    pub resident: Arc<PageSet>,
    /// The pages of each block, of which no two have the same ones.
    pub blocks: Vec<Arc<PageSet>>,
    /// Bytes of working memory that are reserved together with what it needs at least.
    pub working_memory: u64,
    /// Bytes that are left to others beside.
    pub leave: u64,
}

impl Streaming {
    /// Begins to stream an area, which is nobody else's until it ends: waits in line for what it needs at least, which is
    /// room for the largest block beside what stays and the working memory; and takes more, if nobody
    /// needs to be waited for.
    ///
    /// # Errors
    /// [`StreamingError::TooLarge`] if there can never be so much, and [`StreamingError::Arena`], also if
    /// others have pinned pages of the area or stream it.
    pub fn open(
        area: &Area,
        spec: Spec,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(Self, Option<Reservation>), StreamingError> {
        let (streaming, working) = Self::quiet(area, spec, stream, owner, patience)?;
        let shared = streaming.0.clone();
        let builder = thread::Builder::new().name(format!("streaming {}", area.key()));
        // Without a thread each visit brings its block itself.
        let thread = builder.spawn(move || {
            let owner = Owner::thread(|| format!("the streaming of {}", shared.area.key()));
            shared.serve(&owner);
        });
        *streaming.0.thread.lock() = thread.ok();
        Ok((streaming, working))
    }

    /// The same without its thread: whoever has it calls [`Streaming::serve`] in one.
    ///
    /// # Errors
    /// As [`Streaming::open`].
    pub fn quiet(
        area: &Area,
        spec: Spec,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<(Self, Option<Reservation>), StreamingError> {
        let began = Instant::now();
        let Spec { resident, blocks, working_memory, leave } = spec;
        let page = area.page() as u64;
        if !area.is_paged()? {
            let (device, key) = (area.arena().device(), area.key().to_owned());
            return Err(StreamingError::Moves { device, key });
        }
        let largest = blocks.iter().map(|block| block.len()).max().unwrap_or(0);
        let least = ((resident.len() + largest) as u64 * page).saturating_add(working_memory);
        let budget = area.arena().budget().clone();
        if least > budget.most() {
            return Err(StreamingError::TooLarge {
                device: area.arena().device(),
                key: area.key().to_owned(),
                resident: resident.len() as u64 * page,
                largest: largest as u64 * page,
                beside: working_memory,
                most: budget.most(),
                free: budget.free(),
            });
        }
        let alone = area.exclusively()?;
        // What is there from before is pinned while this looks whether the rest can be had at once.
        let kept: Vec<Option<Pins>> =
            blocks.iter().map(|block| pin_first(area, &alone, block, owner)).collect();
        let pinned: usize = kept.iter().flatten().map(Pins::len).sum();
        let found = alone.pin_resident(&resident, stream, owner);
        let there = if found.is_some() { resident.len() } else { 0 };
        let missing = (resident.len() - there + largest.saturating_sub(pinned)) as u64 * page;
        let purpose = format!("the streaming of {:?}", area.key());
        let reserve = |bytes: u64, patience: &Patience<'_>| {
            budget.reserve(bytes, Some(&purpose), owner, patience)
        };
        let at_once = Patience::at_most(Duration::ZERO);
        let (hand, kept) = match reserve(missing + working_memory, &at_once) {
            Ok(hand) => (hand, kept),
            Err(BudgetError::Timeout { .. } | BudgetError::Wait(WaitError::Deadlock(_))) => {
                // Who waits has nothing that others may wait for.
                drop((kept, found));
                let none = blocks.iter().map(|_| None).collect();
                (reserve(least, &patience.since(began))?, none)
            }
            Err(error) => return Err(error.into()),
        };
        let working = (working_memory > 0).then(|| hand.split(working_memory)).transpose()?;
        let allowance = alone.allowance(hand);
        let (_, unused) = area.absent_and_unused(&resident);
        let brought = allowance.bring(&resident, stream, owner)?;
        let Some(mut brought) = brought else {
            return Err(full(area, resident.len() as u64 * page));
        };
        allowance.give_back(unused);
        brought.pins.disown();
        let kept_pages: usize = kept.iter().flatten().map(Pins::len).sum();
        let allotted = allowance.pages() + kept_pages;
        let mut state = State::new(blocks, allotted);
        for (kept, pins) in state.kept.iter_mut().zip(kept) {
            (kept.pages, kept.pins) = (pins.as_ref().map_or(0, Pins::len), pins);
        }
        let Brought { pins, fresh, filled } = brought;
        let mut figures = Figures::new(state.blocks.len());
        figures.moved = fresh;
        let shared = Arc::new(Shared {
            birth: Birth::default(),
            area: area.clone(),
            allowance,
            resident: Mutex::new(None),
            turn: LoadLock::called(format!("a turn to stream {:?}", area.key())),
            state: Mutex::new(state),
            figures: Mutex::new(figures),
            pending: Mutex::default(),
            told: Condvar::new(),
            thread: Mutex::new(None),
        });
        shared.tell();
        let streaming = Self(shared);
        streaming.grow(leave, owner)?;
        let content = area.await_content(&pins, filled, stream, &patience.since(began));
        *streaming.0.resident.lock() = Some(pins);
        content?;
        area.is_streamed(working_memory, began);
        Ok((streaming, working))
    }

    /// Takes as many bytes more as there are, or could be if what nobody uses left, but for so many to
    /// be left; never more than all blocks need. Waits for nobody. Returns how many pages.
    ///
    /// # Errors
    /// [`StreamingError::Arena`].
    pub fn grow(&self, leave: u64, owner: &Owner) -> Result<usize, StreamingError> {
        let shared = &self.0;
        shared.birth.check("streaming")?;
        let (arena, page) = (shared.area.arena(), shared.area.page() as u64);
        let state = shared.state.lock();
        let all: usize = state.blocks.iter().map(|block| block.len()).sum();
        let wanted = if state.closed { 0 } else { all.saturating_sub(state.allotted) as u64 };
        drop(state);
        let status = arena.status()?;
        let evictable = status.resident - status.pinned;
        let budget = arena.budget().clone();
        budget.look()?;
        let (free, purpose) = (budget.free(), format!("the streaming of {:?}", shared.area.key()));
        let at_once = Patience::at_most(Duration::ZERO);
        let mut taken = None;
        // What could leave may be leaving already, or still be used by a stream.
        for most in [free + evictable, free] {
            let bytes = wanted.min(most.saturating_sub(leave) / page) * page;
            if bytes == 0 {
                return Ok(0);
            }
            match budget.reserve(bytes, Some(&purpose), owner, &at_once) {
                Ok(more) => {
                    taken = Some((bytes, more));
                    break;
                }
                Err(BudgetError::Forked(error)) => return Err(error.into()),
                // Others were faster, or stand in line.
                Err(_) => {}
            }
        }
        let Some((bytes, more)) = taken else { return Ok(0) };
        shared.allowance.add(&more)?;
        let pages = usize::try_from(bytes / page).unwrap_or(0);
        let mut state = shared.state.lock();
        if state.closed {
            // Meanwhile, and what it had has been given back.
            drop(state);
            shared.allowance.give_back(pages);
            return Ok(0);
        }
        state.allotted += pages;
        state.news += 1;
        drop(state);
        shared.told.notify_all();
        Ok(pages)
    }
}

/// Pins as many of the first pages of a block as are there.
fn pin_first(area: &Area, alone: &Exclusive, block: &PageSet, owner: &Owner) -> Option<Pins> {
    let mut count = block.len();
    while count > 0 {
        let set = Arc::new(block.part(0, count));
        let (absent, _) = area.absent_and_unused(&set);
        if absent == 0 {
            let mut found = alone.pin_resident(&set, Stream::Host, owner)?.pins;
            found.disown();
            return Some(found);
        }
        count = count.saturating_sub(absent);
    }
    None
}

fn full(area: &Area, asked: u64) -> StreamingError {
    let (device, key) = (area.arena().device(), area.key().to_owned());
    ArenaError::Full { device, key, asked, free: 0, pinned: 0 }.into()
}
