"""`Copies`: what is recorded of weights that torch has on devices without pages."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from coresident import _core

# What others have of a device is told in steps of so small a part of it.
_STEPS = 64


class Copies:
    """Records requests, copies and evictions of whole models.

    Args:
        timeline: Where; ``None`` records nothing.
        vram: The budget of each device.
        planners: What decides what leaves each device first.
    """

    def __init__(
        self,
        timeline: _core.Timeline | None,
        vram: Mapping[_core.Device, _core.Budget],
        planners: Mapping[_core.Device, _core.Planner],
    ) -> None:
        self._timeline = timeline
        self._vram = vram
        self._planners = planners
        self._lock = threading.Lock()
        self._known: set[tuple[_core.Device, str]] = set()
        self._charged: dict[_core.Device, int] = {}
        self._outside: dict[_core.Device, int] = {}

    def copied(self, device: _core.Device, key: str, nbytes: int, seconds: float) -> None:
        """A model was copied to a device, which took so many seconds until now."""
        with self._lock:
            known = (device, key) in self._known
            self._known.add((device, key))
            self._charged[device] = self._charged.get(device, 0) + nbytes
        if self._timeline is not None:
            cause = "came back" if known else "first use"
            self._timeline.record("copy", device, key, nbytes=nbytes, seconds=seconds, cause=cause)

    def dropped(self, device: _core.Device, key: str, nbytes: int) -> None:
        """A copy has left."""
        with self._lock:
            self._charged[device] = self._charged.get(device, 0) - nbytes
        if self._timeline is not None:
            self._timeline.record("evict", device, key, nbytes=nbytes)

    def requested(
        self, device: _core.Device, key: str, nbytes: int, working: int, seconds: float
    ) -> None:
        """A model was wanted on a device, with working memory, so many seconds ago."""
        budget = self._vram.get(device)
        if self._timeline is None or budget is None or not self._timeline.enabled:
            return
        free, used, limit, headroom = budget.free, budget.used, budget.limit, budget.headroom
        total = budget.total or 0
        with self._lock:
            of = free + self._charged.get(device, 0) + working
            outside = max(0, total - headroom - free - used) if free + used < limit else 0
            step = max(1, total // _STEPS)
            coarse = max(-(-outside // step) * step, self._outside.get(device, 0))
            self._outside[device] = coarse
        planner = self._planners.get(device)
        policy = "lru" if planner is None else planner.policy
        self._timeline.set_device(device, total, limit, headroom, coarse, policy)
        self._timeline.record(
            "request", device, key, nbytes=nbytes, beside=working, of=of, seconds=seconds
        )

    def ended(self, device: _core.Device, key: str) -> None:
        """Whoever has wanted it does not use it any more."""
        if self._timeline is not None and device in self._vram:
            self._timeline.record("request ends", device, key)
