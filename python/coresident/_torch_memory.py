"""Budgets of devices whose memory torch's allocator shares with us.

What torch has cached but does not use counts as free, and torch can be made to give it back. torch
is only asked where somebody has imported it and begun to use the device: asking would begin it.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from typing import Any

from coresident import _core

_COVERS: dict[_core.Device, weakref.WeakSet[_core.Reservation]] = {}


def budget(device: _core.Device, limit: int | str | None = None) -> _core.Budget:
    """A budget of a device's own memory that counts torch's unused cache as free.

    Args:
        device: A device whose memory is known.
        limit: As for ``Budget``.
    """

    def free() -> int | None:
        unused = device.free_memory()
        return None if unused is None else unused + cached(device) + covered(device)

    made = _core.Budget(device, limit, probe=free)
    made.add_evictor(lambda _missing: empty_cache(device), priority=100)
    return made


def cached(device: _core.Device) -> int:
    """Bytes of the device that torch has reserved and does not use."""
    allocator = _allocator(device)
    if allocator is None:
        return 0
    reserved, used = (
        getattr(allocator, name)(device.index) for name in ("memory_reserved", "memory_allocated")
    )
    return max(0, int(reserved) - int(used))


def cover(device: _core.Device, reservation: _core.Reservation) -> None:
    """Says that a reservation is for what torch will allocate on the device."""
    if device.type in ("cuda", "xpu"):
        _COVERS.setdefault(device, weakref.WeakSet()).add(reservation)


def covered(device: _core.Device) -> int:
    """Bytes that torch uses on the device and that are reserved for it: they are charged already,
    and not somebody else's."""
    allocator = _allocator(device)
    if allocator is None:
        return 0
    reserved = sum(reservation.nbytes for reservation in list(_COVERS.get(device, ())))
    return min(reserved, int(allocator.memory_allocated(device.index)))


def empty_cache(device: _core.Device) -> None:
    """Has torch give back to the device what it does not use there."""
    allocator = _allocator(device)
    if allocator is not None and cached(device) > 0:
        with allocator.device(device.index):
            allocator.empty_cache()


def _allocator(device: _core.Device) -> Any:
    """``torch.cuda`` or ``torch.xpu``, if it has been used already."""
    torch = sys.modules.get("torch")
    allocator = getattr(torch, device.type, None) if device.type in ("cuda", "xpu") else None
    with contextlib.suppress(AttributeError):
        return allocator if allocator is not None and allocator.is_initialized() else None
    return None
