"""Where models find room on devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from coresident import _core
from coresident.errors import InvalidDeviceError
from coresident.torch.working_memory import WorkingMemory


class Room(NamedTuple):
    """What a runtime has of its devices' memory.

    Attributes:
        arenas: The arena of each device that has one.
        vram: The budget of each device that has memory of its own.
        working_memory: What is known of how much calls need beside the weights.
    """

    arenas: Mapping[_core.Device, _core.Arena]
    vram: Mapping[_core.Device, _core.Budget]
    working_memory: WorkingMemory

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
