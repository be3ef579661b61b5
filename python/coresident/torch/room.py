"""Where models find room on devices."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core, _torch_memory
from coresident.errors import InvalidDeviceError
from coresident.torch.copies import Copies
from coresident.torch.subclasses import every_part
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
        planners: What decides which weights leave each device first.
        pins_weights: Whether weights are to lie where they can be page-locked.
        timeline: Where what happens is recorded, if it is.
        copies: What is recorded of copies on devices without pages.
        used: Called when a model was used on a device.
    """

    def __init__(
        self,
        arenas: Mapping[_core.Device, _core.Arena],
        vram: Mapping[_core.Device, _core.Budget],
        working_memory: WorkingMemory,
        *,
        planners: Mapping[_core.Device, _core.Planner] | None = None,
        pins_weights: bool = False,
        timeline: _core.Timeline | None = None,
        used: Callable[[_core.Device], None] | None = None,
    ) -> None:
        self.pins_weights = pins_weights
        self.planners = planners or {}
        self.timeline = timeline
        self.copies = Copies(timeline, vram, self.planners)
        self.used = used or (lambda _device: None)
        self.arenas = arenas
        self.vram = vram
        self.working_memory = working_memory
        self._models: weakref.WeakSet[Model] = weakref.WeakSet()
        self._streamed: dict[_core.Device, weakref.WeakSet[Streamed]] = {}
        self._evicted: set[_core.Device] = set()
        self._turns: dict[_core.Device, _core.LoadLock] = {}
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
        return found

    def note_use(self, model: Model, device: _core.Device) -> None:
        """Says that a model is used on a device, before room is made for it there."""
        if (planner := self.planners.get(device)) is not None:
            planner.used(model.key, model.weights.nbytes)

    def keeps_copies(self, device: _core.Device) -> bool:
        """Whether copies stay on a device that nobody uses."""
        planner = self.planners.get(device)
        return planner is None or planner.policy != "always-evict"

    def add_streamed(self, device: _core.Device, streamed: Streamed) -> None:
        """Says that a model is streamed on a device, for as long as somebody has this."""
        with self._lock:
            self._streamed.setdefault(device, weakref.WeakSet()).add(streamed)

    def streams(self, device: _core.Device) -> bool:
        """Whether a model is streamed on a device now."""
        with self._lock:
            return any(not each.closed for each in self._streamed.get(device, ()))

    def least(self, device: _core.Device) -> int:
        """Bytes that those need at least that are streamed on a device now."""
        with self._lock:
            streamed = list(self._streamed.get(device, ()))
        return sum(each.least() for each in streamed if not each.closed)

    def turn(self, device: _core.Device) -> _core.LoadLock:
        """Whoever takes all that can be had on a device has it: of two, each would miss what the
        other one has."""
        with self._lock:
            return self._turns.setdefault(device, _core.LoadLock())

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

    def drop_copies(self, device: _core.Device) -> int:
        """Lets go of all copies on a device that no replica uses. Returns their bytes."""
        with self._lock:
            models = list(self._models)
        return sum(model.drop_copies(device) for model in models)

    def _drop_copies(self, device: _core.Device, missing: int) -> None:
        with self._lock:
            models = sorted(self._models, key=lambda model: model.used_at)
        if (planner := self.planners.get(device)) is not None:
            order = planner.order([model.key for model in models])
            models.sort(key=lambda model: order.index(model.key))
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
            Where these move, they are those of the last :meth:`look`.
    """

    def __init__(self, area: _core.Area, order: list[str]) -> None:
        self.area = area
        self.nbytes = area.pages * area.arena.status().page
        self._order = order
        self.views: list[torch.Tensor] = []
        self._starts: set[int] = set()
        if not area.arena.moving:
            self._find()

    def look(self) -> None:
        """Finds the tensors where they are now, if they move: to be called once all are pinned.
        Others who have them pinned have the same."""
        if self.area.arena.moving:
            self._find()

    def _find(self) -> None:
        views = self.area.state_dict()
        self.views = [views[name] for name in self._order]
        self._starts = {view.untyped_storage().data_ptr() for view in self.views}

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in these pages, or one of those that it consists of."""
        return any(map(self._has, every_part([tensor])))

    def _has(self, tensor: torch.Tensor) -> bool:
        if tensor.layout != torch.strided or tensor.is_meta:
            return False
        try:
            return tensor.untyped_storage().data_ptr() in self._starts
        except (RuntimeError, NotImplementedError):
            # Within torch.func's transforms, tensors are around those that have memory.
            functorch = torch._C._functorch
            if functorch.is_functorch_wrapped_tensor(tensor):
                return self.has(functorch.get_unwrapped(tensor))
            return False
