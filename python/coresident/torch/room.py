"""Where models find room on devices."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core, _torch_memory
from coresident.errors import InvalidDeviceError
from coresident.torch.working_memory import WorkingMemory

if TYPE_CHECKING:
    from coresident.torch.model import Model
    from coresident.torch.streamed import Streamed

# After pages, which are as fast to bring again, and before nothing.
_PRIORITY = 60


class Room:
    """What a runtime has of its devices' memory.

    Attributes:
        arenas: The arena of each device that has one.
        vram: The budget of each device that has memory of its own.
        working_memory: What is known of how much calls need beside the weights.
        pins_weights: Whether weights are to lie where they can be page-locked.
    """

    def __init__(
        self,
        arenas: Mapping[_core.Device, _core.Arena],
        vram: Mapping[_core.Device, _core.Budget],
        working_memory: WorkingMemory,
        *,
        pins_weights: bool = False,
    ) -> None:
        self.pins_weights = pins_weights
        self.arenas = arenas
        self.vram = vram
        self.working_memory = working_memory
        # Devices that turned out to have no pages.
        self._without_pages: set[_core.Device] = set()
        self._models: weakref.WeakSet[Model] = weakref.WeakSet()
        self._streamed: dict[_core.Device, weakref.WeakSet[Streamed]] = {}
        self._evicted: set[_core.Device] = set()
        self._lock = threading.RLock()

    def arena(self, device: _core.Device) -> _core.Arena | None:
        """The device's arena; ``None`` if it is one without.

        Raises:
            InvalidDeviceError: the device has pages, but it is none of this runtime's.
        """
        found = self.arenas.get(device)
        if found is None and device.paged:
            known = ", ".join(map(str, self.arenas)) or "none"
            raise InvalidDeviceError(
                f"the memory of {device} is a runtime's, and this model's has that of {known}: "
                "load the model with Runtime.load, of a runtime that has the device"
            )
        return None if device in self._without_pages else found

    def has_no_pages(self, device: _core.Device) -> None:
        """Says so of a device that was taken to have some: weights are moved by torch there."""
        self._without_pages.add(device)

    def add_streamed(self, device: _core.Device, streamed: Streamed) -> None:
        """Says that a model is streamed on a device, for as long as somebody has this."""
        with self._lock:
            self._streamed.setdefault(device, weakref.WeakSet()).add(streamed)

    def give_up(self, device: _core.Device, nbytes: int) -> bool:
        """Has models that are streamed on a device give up bytes of what stays there. Returns
        whether that was something."""
        with self._lock:
            streamed = list(self._streamed.get(device, ()))
        return any(each.give_up(nbytes) for each in streamed)

    def charge(
        self, model: Model, device: _core.Device, nbytes: int, terms: dict[str, Any]
    ) -> _core.Reservation | None:
        """Reserves bytes for a copy of weights that torch will have on a device; waits for them.
        Copies that nobody uses go first. ``None`` where nothing is charged."""
        budget = self.vram.get(device)
        if budget is None:
            return None
        with self._lock:
            self._models.add(model)
            if device not in self._evicted:
                self._evicted.add(device)
                room = weakref.ref(self)

                def evict(missing: int) -> None:
                    if (here := room()) is not None:
                        here._drop_copies(device, missing)

                budget.add_evictor(evict, priority=_PRIORITY)
        reserved = budget.reserve(nbytes, purpose=model.key, **terms).hand_over()
        _torch_memory.cover(device, reserved)
        return reserved

    def _drop_copies(self, device: _core.Device, missing: int) -> None:
        with self._lock:
            models = sorted(self._models, key=lambda model: model.used_at)
        for model in models:
            if missing <= 0:
                break
            missing -= model.drop_copies(device)
        _torch_memory.empty_cache(device)


class Place:
    """The weights of a model in a device's arena, as torch's tensors.

    Args:
        area: Where they are.
        order: Their names, in the order of the structure.

    Attributes:
        area: The same.
        nbytes: Bytes of all its pages.
        views: The tensors, of addresses: they can be touched only while their pages are pinned.
    """

    def __init__(self, area: _core.Area, order: list[str]) -> None:
        self.area = area
        self.nbytes = area.pages * area.arena.status().page
        views = area.state_dict()
        self.views: list[torch.Tensor] = [views[name] for name in order]
        self._starts = {view.untyped_storage().data_ptr() for view in self.views}

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in these pages."""
        if tensor.layout != torch.strided or tensor.is_meta:
            return False
        return tensor.untyped_storage().data_ptr() in self._starts
