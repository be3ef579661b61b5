//! Bytes of a device that one area keeps for itself: its pages come and go within them, and nobody waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ArenaError;
use super::area::{Area, Pins, Shared as AreaShared};
use super::layout::PageSet;
use super::state::By;
use crate::budget::{BudgetError, Reservation};
use crate::device::{Event, Places, Stream};
use crate::sync::{Mutant, planted};
use crate::trace::{Cause, Track};
use crate::wait::{Owner, Patience};

/// Bytes that were reserved for pages of one area and that they have not now. A page that comes takes
/// its bytes from here, and one that [retires](Allowance::retire) gives them back to it: nobody else gets
/// them meanwhile, so that whoever has an allowance needs no turn in the arena, and waits for nobody's
/// bytes while others wait for his.
///
/// One at a time brings pages, and whoever has it has the area for himself: [`Area::fault`] would not
/// know of those that are on their way.
pub struct Allowance {
    area: Exclusive,
    bytes: Reservation,
}

/// An area that somebody has alone, until it is dropped or ended.
pub struct Exclusive {
    area: Arc<AreaShared>,
    number: u64,
}

/// Pages that were brought.
pub struct Brought {
    /// What keeps them.
    pub pins: Pins,
    /// How many have got memory.
    pub fresh: usize,
    /// What passes when their content is there.
    pub filled: Vec<Event>,
}

impl Exclusive {
    /// Has an allowance of what was reserved of the arena's budget.
    #[must_use]
    pub fn allowance(self, bytes: Reservation) -> Allowance {
        bytes.disown();
        bytes.rename(&format!("pages of {:?} that come and go", self.area.key));
        Allowance { area: self, bytes }
    }

    /// Pins pages that are all there, whether their content is there already or still comes. Nothing
    /// once it has ended.
    #[must_use]
    pub fn pin_resident(
        &self,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
    ) -> Option<Brought> {
        let (area, by) = (&self.area, By::Alone(self.number));
        let pinned = area.arena.state.lock().pin(area.number, set, by);
        let filled = pinned.ok().flatten()?;
        Some(Brought { pins: Pins::new(area, set, stream, owner, by), fresh: 0, filled })
    }

    /// Lets others have it. Again without effect.
    fn end(&self) {
        if self.area.arena.birth.is_here() {
            self.area.arena.state.lock().end_alone(self.area.number, self.number);
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.end();
    }
}

impl Area {
    /// Has the area alone: nobody else can pin its pages meanwhile. What they have in them may still
    /// be said to be wrong.
    ///
    /// # Errors
    /// [`ArenaError::InUse`] if others have pinned some, [`ArenaError::Exclusive`] if somebody has it
    /// alone already, and [`ArenaError::Forked`].
    pub fn exclusively(&self) -> Result<Exclusive, ArenaError> {
        self.0.arena.birth.check("arena")?;
        let begun = self.0.arena.state.lock().begin_alone(self.0.number);
        let number = begun.map_err(|why| self.0.refused(why))?;
        Ok(Exclusive { area: self.0.clone(), number })
    }

    /// Has the stream of pins go on only when the content of their pages is there, as
    /// [`Area::fault`].
    ///
    /// # Errors
    /// [`ArenaError::Wait`], and [`ArenaError::Memory`] if it does not come.
    pub fn await_content(
        &self,
        pins: &Pins,
        filled: Vec<Event>,
        stream: Stream,
        patience: &Patience<'_>,
    ) -> Result<(), ArenaError> {
        self.0.content_is_there(pins, filled, stream, patience)
    }

    /// Unpins pages, if each is pinned by somebody else too. Else hands the pins back.
    #[must_use]
    pub fn unpin_shared(&self, pins: Pins) -> Option<Pins> {
        let marks = pins.marks();
        let shared = self.0.arena.state.lock().unpin_shared(self.0.number, pins.set(), &marks);
        if shared {
            pins.forget();
            return None;
        }
        Some(pins)
    }

    /// Whether its pages have addresses of their own, and can come and go each by itself.
    ///
    /// # Errors
    /// [`ArenaError::Memory`] of a lost device.
    pub fn is_paged(&self) -> Result<bool, ArenaError> {
        Ok(matches!(self.0.arena.memory.places()?, Places::Fixed))
    }

    /// Bytes of one of its pages.
    #[must_use]
    pub fn page(&self) -> usize {
        self.0.arena.memory.page()
    }

    /// Marks where a stream is now, as [`DeviceMemory::mark`](crate::device::DeviceMemory::mark).
    pub(crate) fn mark(&self, stream: Stream) -> Option<Event> {
        self.0.arena.memory.mark(stream).ok().flatten()
    }

    /// How long the device took, as
    /// [`DeviceMemory::between`](crate::device::DeviceMemory::between).
    pub(crate) fn between(&self, earlier: &Event, later: &Event) -> Option<Duration> {
        self.0.arena.memory.between(earlier, later)
    }

    /// Where what happens to it is recorded, if it is.
    pub(crate) fn track(&self) -> Option<&Track> {
        self.0.land.track.as_ref()
    }

    /// Records that it is to be streamed, which was wanted then.
    pub(crate) fn is_streamed(&self, beside: u64, began: Instant) {
        self.0.wanted_in_parts(self.0.layout.pages(), beside, began);
    }

    /// How many of some pages have no memory now, and how many have some and are used by nobody.
    #[must_use]
    pub fn absent_and_unused(&self, set: &PageSet) -> (usize, usize) {
        self.0.arena.state.lock().absent_and_unused(self.0.number, set)
    }
}

impl Allowance {
    /// How many pages could come.
    #[must_use]
    pub fn pages(&self) -> usize {
        let pages = self.bytes.bytes() / self.area.area.arena.memory.page() as u64;
        usize::try_from(pages).unwrap_or(usize::MAX)
    }

    /// The area.
    #[must_use]
    pub fn exclusive(&self) -> &Exclusive {
        &self.area
    }

    /// Gives all bytes back, and lets others have the area.
    pub fn end(&self) {
        self.give_back(usize::MAX);
        self.area.end();
    }

    fn bytes_of(&self, pages: usize) -> u64 {
        (pages * self.area.area.arena.memory.page()) as u64
    }

    /// Takes over more bytes of the budget.
    ///
    /// # Errors
    /// [`ArenaError::Budget`].
    pub fn add(&self, more: &Reservation) -> Result<(), ArenaError> {
        Ok(self.bytes.absorb(more)?)
    }

    /// Gives up to so many pages' bytes back to the budget. Returns how many.
    pub fn give_back(&self, pages: usize) -> usize {
        let pages = pages.min(self.pages());
        if pages == 0 {
            return 0;
        }
        // What retired pages have left is somebody else's now.
        self.area.area.arena.memory.clear_aside();
        let given = self.bytes.shrink(self.bytes_of(pages)).is_ok();
        if given { pages } else { 0 }
    }

    /// Pins pages. Those that have no memory get some, and are filled; nobody is waited for or asked.
    /// Nothing if there are too few bytes in the allowance.
    ///
    /// # Errors
    /// [`ArenaError::Memory`], also if the device is full whatever the budget says.
    pub fn bring(
        &self,
        set: &Arc<PageSet>,
        stream: Stream,
        owner: &Owner,
    ) -> Result<Option<Brought>, ArenaError> {
        let Exclusive { area, number } = &self.area;
        area.arena.birth.check("arena")?;
        let (pins, mut coming) = area.claim(set, stream, owner, By::Alone(*number))?;
        // Also if it has no content in the end.
        coming.of = Some(&self.bytes);
        let fresh = coming.missing.len();
        let bytes = self.bytes_of(fresh);
        let taken = match self.bytes.split(bytes) {
            Ok(taken) => taken,
            Err(BudgetError::TooMuch { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Err(error) = area.commit(&coming.missing, false) {
            self.bytes.absorb(&taken)?;
            return Err(error.into());
        }
        area.land.reservation.absorb(&taken)?;
        area.land.reservation.fill_more(bytes);
        coming.given = true;
        let filled = area.fill(pins.set(), &mut coming, owner, Cause::Streamed)?;
        Ok(Some(Brought { pins, fresh, filled }))
    }

    /// Unpins pages, and takes the memory of those away that nobody else uses, when all streams are done
    /// with them: waits for that. Returns how many have left.
    ///
    /// # Errors
    /// [`ArenaError::Wait`], and what a device says that does not tell what its streams have done; with
    /// the pins, which may leave later.
    pub fn retire(
        &self,
        mut pins: Pins,
        patience: &Patience<'_>,
    ) -> Result<usize, Box<(Pins, ArenaError)>> {
        let began = Instant::now();
        let Exclusive { area, .. } = &self.area;
        let (arena, number, set) = (&area.arena, area.number, pins.set().clone());
        pins.end();
        let mut passed: Vec<Event> = Vec::new();
        let mut to_come: Vec<Event> = pins.marks().into_iter().map(|mark| mark.event).collect();
        let runs = loop {
            to_come.extend(arena.state.lock().fences_of(number, &set));
            for event in to_come.drain(..) {
                if !planted(Mutant::RetiredWhileUsed)
                    && let Err(error) = arena.until_over(&event, &area.key, began, patience)
                {
                    return Err(Box::new((pins, error)));
                }
                passed.push(event);
            }
            if let Some(runs) = arena.state.lock().retire(number, &set, &passed) {
                break runs;
            }
        };
        pins.forget();
        let mut left = 0;
        for run in runs {
            let length = self.bytes_of(run.pages.len());
            left += run.pages.len();
            run.land.reservation.fill_less(length);
            run.land.set_aside(&run.pages);
            // It has at least the bytes of these pages, and neither is released before this ends.
            let bytes = run.land.reservation.split(length);
            let _ = bytes.and_then(|bytes| {
                if planted(Mutant::RetiredBytesAreLost) {
                    Ok(())
                } else {
                    self.bytes.absorb(&bytes)
                }
            });
            let gone = arena.state.lock().left(&run);
            if let Some(track) = &run.land.track {
                track.evicted(length);
            }
            arena.left.notify_all();
            drop(gone);
        }
        Ok(left)
    }
}
