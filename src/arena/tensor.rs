//! Tensors in an arena, for other libraries: views of addresses, and pinned ones.

use std::sync::Arc;

use super::ArenaError;
use super::area::{Area, Pins, Shared};
use super::fault::Beside;
use super::land::Land;
use crate::device::{Address, Name, Stream};
use crate::wait::{Owner, Patience};
use crate::weights::ElementType;

/// A tensor where it is when its pages have memory. Keeps the addresses, and pins nothing: whoever has
/// it pins the pages while it is used, or else it cannot be touched. Where memory
/// [moves](crate::device::Places) it must have been taken within that.
#[derive(Clone)]
pub struct RangeView {
    _land: Arc<Land>,
    device: Name,
    address: Address,
    element: ElementType,
    shape: Vec<usize>,
    nbytes: usize,
}

/// A tensor whose pages stay for as long as somebody has it.
pub struct PinnedTensor {
    view: RangeView,
    tensor: usize,
    // Dropped after `drop` has run.
    pins: Pins,
}

impl Area {
    /// A view of a tensor's addresses, by its place in [`Area::contents`].
    ///
    /// # Errors
    /// [`ArenaError::Nowhere`] where memory moves, if it has none now.
    pub fn view(&self, tensor: usize) -> Result<RangeView, ArenaError> {
        let Shared { arena, land, layout, key, .. } = &*self.0;
        let content = &layout.contents[tensor];
        let address = self.address(tensor).ok_or_else(|| ArenaError::Nowhere {
            name: content.name.clone(),
            key: key.clone(),
            device: arena.device,
        })?;
        Ok(RangeView {
            _land: land.clone(),
            device: arena.device,
            address,
            element: content.element,
            shape: content.shape.clone(),
            nbytes: content.nbytes,
        })
    }

    /// A tensor that is there, and stays; waits as [`Area::fault`].
    ///
    /// # Errors
    /// As [`Area::fault`].
    pub fn pinned(
        &self,
        tensor: usize,
        stream: Stream,
        owner: &Owner,
        patience: &Patience<'_>,
    ) -> Result<PinnedTensor, ArenaError> {
        let set = self.block(&[tensor]);
        let (mut pins, _) = self.fault(&set, Beside::default(), stream, owner, patience)?;
        // It goes wherever other libraries take it.
        pins.disown();
        let view = self.view(tensor)?;
        let mut state = self.0.arena.state.lock();
        *state.areas[self.0.number].tensors.entry(tensor).or_default() += 1;
        drop(state);
        Ok(PinnedTensor { view, tensor, pins })
    }
}

impl RangeView {
    /// The device.
    #[must_use]
    pub fn device(&self) -> Name {
        self.device
    }

    /// Where it is there.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// The type of its elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        self.element
    }

    /// Its dimensions, the slowest first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of its elements.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.nbytes
    }
}

impl PinnedTensor {
    /// Has another stream use it, as [`Pins::also_on`].
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn also_on(&self, stream: Stream) -> Result<(), ArenaError> {
        self.pins.also_on(stream)
    }

    /// The tensor.
    #[must_use]
    pub fn view(&self) -> &RangeView {
        &self.view
    }
}

impl Drop for PinnedTensor {
    fn drop(&mut self) {
        let area = self.pins.area();
        if !area.0.arena.birth.is_here() {
            return;
        }
        let mut state = area.0.arena.state.lock();
        let tensors = &mut state.areas[area.0.number].tensors;
        if let Some(count) = tensors.get_mut(&self.tensor) {
            *count -= 1;
            if *count == 0 {
                tensors.remove(&self.tensor);
            }
        }
    }
}
