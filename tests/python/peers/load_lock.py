"""A readers-writer lock that prefers writers, and does not know who is inside."""

from __future__ import annotations

from peers import Guard, Line


class LoadLock(Line):
    def __init__(self) -> None:
        super().__init__()
        self._readers = 0
        self._writing = False
        self._writers_waiting = 0

    def read(self) -> Guard:
        with self.condition:
            self.sleep_until(lambda: not self._writing and not self._writers_waiting)
            self._readers += 1
        return Guard(self._end_read)

    def write(self, timeout: float | None = None) -> Guard:
        with self.condition:
            self._writers_waiting += 1
            self.sleep_until(lambda: not self._writing and not self._readers, timeout)
            self._writers_waiting -= 1  # not reached when the wait is interrupted
            self._writing = True
        return Guard(self._end_write)

    def _end_read(self) -> None:
        with self.condition:
            self._readers -= 1
            self.condition.notify_all()

    def _end_write(self) -> None:
        with self.condition:
            self._writing = False
            self.condition.notify_all()
