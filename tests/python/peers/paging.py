"""Pages of device memory, counted for all devices together, twice at the boundary, and without a lock."""

from __future__ import annotations

import threading


class Paging:
    def __init__(self, capacity: int, devices: int) -> None:
        self._capacity = capacity
        self._resident = [0] * devices
        self._meeting: threading.Barrier | None = None
        self.evicted = 0

    def meet(self, parties: int) -> None:
        """Has so many threads come to the same point of their next fault."""
        self._meeting = threading.Barrier(parties)

    def fault(self, device: int, pages: int) -> None:
        # Of all devices, and asked for here although it is counted again below.
        used = sum(self._resident) + pages
        deficit = used + pages - self._capacity
        if deficit > 0:
            self.evicted += deficit
        before = self._resident[device]
        if self._meeting is not None:
            self._meeting.wait()
        self._resident[device] = before + pages

    def resident(self, device: int) -> int:
        return self._resident[device]
