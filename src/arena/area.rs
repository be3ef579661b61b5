//! `Area`: the addresses of one model on one device, and the pages that have memory there.

use std::sync::Arc;

use super::held::Held;
use super::land::Land;
use super::layout::{Content, Layout, PageSet};
use super::mark::Mark;
use super::state::By;
use super::{Arena, ArenaError};
use crate::device::{Address, Stream};
use crate::sync::Mutex;
use crate::trace::Acting;
use crate::wait::{Owner, exiting};

/// What an area is made of, so that there is one for all who mean the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// A number that nothing else has for as long as somebody has the contents.
    pub of: usize,
    /// The names of the tensors, in the order in which they lie.
    pub order: Vec<String>,
}

/// What those who have an area share.
pub(super) struct Shared {
    pub(super) arena: Arc<Held>,
    pub(super) key: String,
    pub(super) identity: Identity,
    /// By which number the arena's state knows it.
    pub(super) number: usize,
    /// By which number whoever says what leaves first knows the weights.
    pub(super) weights: u32,
    pub(super) layout: Layout,
    pub(super) land: Arc<Land>,
}

/// A model's place in a device's memory. Clones share it; when the last one goes, and the last
/// [pinned tensor](super::PinnedTensor), its pages leave.
#[derive(Clone)]
pub struct Area(pub(super) Arc<Shared>);

impl Area {
    pub(super) fn new(
        arena: &Arc<Held>,
        key: &str,
        identity: Identity,
        contents: Vec<Content>,
        groups: &[usize],
        owner: &Owner,
    ) -> Result<Self, ArenaError> {
        // Also tells whether the device can be used at all.
        let places = arena.memory.places()?;
        let layout = Layout::new(contents, groups, arena.memory.page(), places);
        let reserved = arena.budget.try_reserve(0, Some(key), owner)?;
        let Some(reservation) = reserved else { return Err(arena.full(key, 0)) };
        reservation.disown();
        let track = arena.records.track(&arena.device.to_string(), key);
        let land = Arc::new(Land::new(&arena.memory, &layout, reservation, track)?);
        let weights = arena.number_of(key);
        let number = arena.state.lock().add(land.clone(), weights, layout.pages());
        let (arena, key) = (arena.clone(), key.to_owned());
        Ok(Self(Arc::new(Shared { arena, key, identity, number, weights, layout, land })))
    }

    /// The key of the weights.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// The arena that it is in.
    #[must_use]
    pub fn arena(&self) -> Arena {
        Arena(self.0.arena.clone())
    }

    /// What it has, in the order in which it lies there.
    #[must_use]
    pub fn contents(&self) -> &[Content] {
        &self.0.layout.contents
    }

    /// Bytes of its tensors, with what lies between them.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.0.layout.nbytes() as u64
    }

    /// How many pages it has addresses for.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.0.layout.pages()
    }

    /// All of its pages.
    #[must_use]
    pub fn all(&self) -> Arc<PageSet> {
        Arc::new(self.0.layout.set(0..self.0.layout.contents.len()))
    }

    /// The place of a tensor in [`Area::contents`].
    ///
    /// # Errors
    /// [`ArenaError::NoTensor`].
    pub fn find(&self, name: &str) -> Result<usize, ArenaError> {
        self.0.layout.find(name).ok_or_else(|| ArenaError::NoTensor {
            name: name.to_owned(),
            key: self.0.key.clone(),
            device: self.0.arena.device,
        })
    }

    /// The pages of some tensors, by their place in [`Area::contents`]: a block.
    #[must_use]
    pub fn block(&self, tensors: &[usize]) -> Arc<PageSet> {
        Arc::new(self.0.layout.set(tensors.iter().copied()))
    }

    /// How many pages of a set, which has all of its own, have to be there so that a tensor is.
    #[must_use]
    pub fn end_in(&self, set: &PageSet, tensor: usize) -> usize {
        let end = self.0.layout.set([tensor]).iter().max();
        end.map_or(0, |end| set.iter().take_while(|page| *page <= end).count())
    }

    /// Where a tensor is on the device, whether it has memory now or not. Where memory
    /// [moves](crate::device::Places), `None` if it has none, and true for as long as it is pinned.
    #[must_use]
    pub fn address(&self, tensor: usize) -> Option<Address> {
        let layout = &self.0.layout;
        let nothing = (layout.contents[tensor].nbytes == 0).then_some(0);
        self.0.land.address(layout.places[tensor]).or(nothing)
    }

    /// Areas of a lower priority are evicted first; of equal ones the one that was not used for
    /// longest.
    #[must_use]
    pub fn priority(&self) -> i64 {
        self.0.arena.state.lock().areas[self.0.number].priority
    }

    /// Sets the priority.
    pub fn set_priority(&self, priority: i64) {
        self.0.arena.state.lock().areas[self.0.number].priority = priority;
    }

    /// Says that what its pages have in them may be wrong: each is filled again before it is used.
    pub fn renew(&self) {
        self.0.arena.state.lock().areas[self.0.number].generation += 1;
    }

    /// Of each page: 0 if it has no memory, 1 if it has and could leave, 2 if it is pinned, and 3 if
    /// it is on its way.
    #[must_use]
    pub fn residency(&self) -> Vec<u8> {
        self.0.arena.state.lock().areas[self.0.number].residency()
    }

    /// Whether both are the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.arena.birth.is_here() {
            return;
        }
        let mut state = self.arena.state.lock();
        if state.known.get(&self.identity).is_some_and(|known| known.strong_count() == 0) {
            state.known.remove(&self.identity);
        }
        state.areas[self.number].orphan = true;
        let done = state.take_if_done(self.number);
        drop(state);
        if let Some(track) = &self.land.track {
            track.gone();
        }
        if done.is_none() && !exiting() {
            // Those that a stream still uses leave later.
            self.arena.evict_orphans();
        }
    }
}

/// Pages that stay where they are, until it is dropped.
pub struct Pins {
    area: Arc<Shared>,
    set: Arc<PageSet>,
    stream: Stream,
    /// Others that have used them.
    also: Mutex<Vec<Stream>>,
    user: Option<Owner>,
    by: By,
    /// For whom, if that is recorded.
    job: u64,
    /// Where their use has ended, if that was before they are dropped.
    ended: Option<Vec<Mark>>,
    /// Whether their pages were unpinned already.
    forgotten: bool,
}

impl Pins {
    /// Of pages that are pinned already.
    pub(super) fn new(
        area: &Arc<Shared>,
        set: &Arc<PageSet>,
        stream: Stream,
        user: &Owner,
        by: By,
    ) -> Self {
        area.land.reservation.add_user(user);
        let (area, set, user, (job, _)) =
            (area.clone(), set.clone(), Some(user.clone()), Acting::now());
        let (also, ended, forgotten) = (Mutex::new(Vec::new()), None, false);
        Self { area, set, stream, also, user, by, job, ended, forgotten }
    }

    /// The area.
    #[must_use]
    pub fn area(&self) -> Area {
        Area(self.area.clone())
    }

    /// Has another stream use them too: what comes there comes after what is on the first one now, and
    /// they leave after it.
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn also_on(&self, stream: Stream) -> Result<(), ArenaError> {
        if stream == self.stream || self.also.lock().contains(&stream) {
            return Ok(());
        }
        let memory = &self.area.arena.memory;
        let ready = memory.record(self.stream)?;
        memory.after(stream, &ready)?;
        self.also.lock().push(stream);
        Ok(())
    }

    /// Whose they are.
    pub(super) fn set(&self) -> &Arc<PageSet> {
        &self.set
    }

    /// How many pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Says that their use ends here: what comes on their streams from now on is not waited for when
    /// they leave.
    pub fn end(&mut self) {
        if self.ended.is_none() && self.area.arena.birth.is_here() {
            self.ended = Some(self.marks());
        }
    }

    /// Keeps so many of the pages, the first ones, and gives the rest away.
    #[must_use]
    pub(crate) fn split_off(&mut self, first: usize) -> Self {
        debug_assert!(self.by != By::Fault, "those of a fault are counted");
        let rest = Arc::new(self.set.part(first, usize::MAX));
        self.set = Arc::new(self.set.part(0, first));
        if let Some(user) = &self.user {
            self.area.land.reservation.add_user(user);
        }
        let also = Mutex::new(self.also.lock().clone());
        let (area, ended) = (self.area.clone(), self.ended.clone());
        let (user, job) = (self.user.clone(), self.job);
        let (stream, by, forgotten) = (self.stream, self.by, false);
        Self { area, set: rest, stream, also, user, by, job, ended, forgotten }
    }

    /// Where the streams are now that have used them.
    pub(super) fn marks(&self) -> Vec<Mark> {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        if exiting() {
            return Vec::new();
        }
        let also = self.also.lock().clone();
        let streams = std::iter::once(self.stream).chain(also);
        let on_device = streams.filter(|stream| *stream != Stream::Host);
        on_device.map(|stream| self.area.arena.mark(stream)).collect()
    }

    /// Makes nothing of them: their pages were unpinned already.
    pub(super) fn forget(mut self) {
        self.forgotten = true;
    }

    /// Takes them out of the wait-for graph: nobody in particular will unpin them.
    pub fn disown(&mut self) {
        if let Some(user) = self.user.take() {
            self.area.land.reservation.remove_user(&user);
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.disown();
        let arena = &self.area.arena;
        if !arena.birth.is_here() {
            return;
        }
        if self.forgotten {
            return;
        }
        let marks = self.marks();
        let mut state = arena.state.lock();
        state.unpin(self.area.number, &self.set, &marks);
        state.areas[self.area.number].uses -= usize::from(self.by == By::Fault);
        let above = state.above_watermark(arena.memory.page());
        let orphans = state.has_orphans();
        drop(state);
        if let Some(track) = self.area.land.track.as_ref().filter(|_| self.area.is_all(&self.set)) {
            track.request_ended(self.job);
        }
        if above > 0 && !exiting() {
            arena.evict_pages(above, Some(std::time::Instant::now()));
        }
        if orphans && !exiting() {
            arena.evict_orphans();
        }
        arena.budget.offer();
    }
}
