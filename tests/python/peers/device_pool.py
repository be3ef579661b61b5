"""A flag per device: sessions wait for it, borrowers only look, and it belongs to nobody."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from peers import Guard, Line


class DevicePool(Line):
    def __init__(self, devices: Iterable[str]) -> None:
        super().__init__()
        self.reconfigure(devices)

    def reconfigure(self, devices: Iterable[str]) -> None:
        with self.condition:
            self._devices = list(devices)
            self._taken: set[str] = set()  # fresh flags: who holds what is forgotten
            self.condition.notify_all()

    def lease(self, device: str) -> Guard:
        with self.condition:
            self.sleep_until(lambda: device not in self._taken)  # also when it is one's own
            return self._take(device)

    def borrow(self) -> AbstractContextManager[Guard | None]:
        with self.condition:
            for device in self._devices:
                if device not in self._taken:  # whoever waits for it is not asked
                    return self._take(device)
        return nullcontext()

    def release(self, device: str) -> None:
        with self.condition:
            self._taken.discard(device)  # whoever holds it
            self.condition.notify_all()

    def _take(self, device: str) -> Guard:
        self._taken.add(device)
        return Guard(partial(self.release, device))
