"""When nothing is left of a queue that several workers drain."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from coresident import _core

W = TypeVar("W")


@dataclass(frozen=True)
class Look:
    """What has changed when a worker begins to look for a job.

    Attributes:
        changes: How often anything has.
        again: Raised when something does once more.
    """

    changes: int
    again: _core.CancelToken


class Draining(Generic[W]):
    """What the workers of a queue know of each other while they drain it.

    A queue that has no job now may have one later: what runs elsewhere may queue its job again, or
    let others of its user begin. So it is over once nobody has a job, and all who look for one have
    looked since anything has changed, and found none. Who waits for his device looks for none.

    Attributes:
        over: Raised when nothing is left.
    """

    def __init__(self, workers: Iterable[W]) -> None:
        self.over = _core.CancelToken()
        self._lock = threading.Lock()
        self._alive = set(workers)
        self._busy: set[W] = set()
        self._away: set[W] = set()
        # What had changed when each looked last and found nothing.
        self._looked: dict[W, int] = {}
        self._began = False
        self._now = Look(0, _core.CancelToken())

    def begin(self) -> None:
        """From now on they drain it, in another way than before if they do already. Before that
        nobody is told of changes."""
        with self._lock:
            self._began = True
            self._change()

    def looks(self, worker: W) -> Look:
        """A worker is about to look for a job."""
        with self._lock:
            self._away.discard(worker)
            return self._now

    def finds_nothing(self, worker: W, look: Look) -> bool:
        """It has found none. Returns whether there will be none."""
        with self._lock:
            self._looked[worker] = look.changes
            others = self._alive - self._away
            now = self._now.changes
            if not self._busy and all(self._looked.get(one) == now for one in others):
                self.over.cancel()
                self._change()
            return self.over.cancelled

    def has_job(self, worker: W) -> None:
        """It is kept one, and the others look whether that was the last."""
        with self._lock:
            self._busy.add(worker)
            self._change()

    def runs(self, worker: W) -> None:
        """It runs one, whether it was kept for it or not."""
        with self._lock:
            self._busy.add(worker)

    def goes_away(self, worker: W) -> None:
        """It has given its job back, and waits for its device."""
        with self._lock:
            self._busy.discard(worker)
            self._away.add(worker)
            self._change()

    def rests(self, worker: W) -> None:
        """It has none any more."""
        with self._lock:
            self._busy.discard(worker)
            self._change()

    def ends(self, worker: W) -> bool:
        """It looks for none any more. Returns whether it was the last."""
        with self._lock:
            self._alive.discard(worker)
            self._busy.discard(worker)
            self._change()
            return not self._alive

    def _change(self) -> None:
        """Has everybody look once more. Called with the lock held."""
        if self._began:
            before, self._now = self._now, Look(self._now.changes + 1, _core.CancelToken())
            before.again.cancel()
