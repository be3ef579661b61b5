"""The rules of earlier programs, made again as small as they can be, each with its defects.

They take the same calls as this library, so that one scenario can be played against both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class OpenedError(Exception):
    """Whoever waited is sent home: the test is over."""


class Line:
    """Where the waiters of an old rule sleep, and how a test gets them out again."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiting = 0
        self._opened = False

    def sleep_until(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Waits, by a caller that holds the condition."""
        if ready():
            return
        self.waiting += 1
        try:
            if not self.condition.wait_for(lambda: self._opened or ready(), timeout):
                raise TimeoutError
        finally:
            self.waiting -= 1
        if not ready():
            raise OpenedError

    def open(self) -> None:
        """Ends every wait that would last for ever."""
        with self.condition:
            self._opened = True
            self.condition.notify_all()


class Guard:
    """What was taken, for ``with``; it does not know whether it is still held."""

    def __init__(self, release: Callable[[], None]) -> None:
        self.release = release

    def hand_over(self) -> Guard:
        return self

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()
