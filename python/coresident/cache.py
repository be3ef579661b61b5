"""A small cache for what takes long to make: decoded images, prompt embeddings."""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from coresident import _core
from coresident.errors import CancelledError, DeadlockError, InvalidValueError, WaitTimeoutError

V = TypeVar("V")
# How long a waiter sleeps before it looks at its token again.
_SLICE = 0.05


class _Flight:
    """Something that is being made."""

    def __init__(self) -> None:
        self.maker = threading.get_ident()
        self.over = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.stale = False


class Cache(Generic[V]):
    """Values by key, made once however many threads ask, and bounded in bytes.

    Who asks for what is being made waits for it, and shares the outcome, error included; who asks
    after an error makes it anew. The least recently used values go first.

    Args:
        max_bytes: How many bytes all values may have together: a number, or a text such as
            ``"512MiB"``.
        nbytes: Tells the bytes of a value. By default those of arrays, tensors, images of PIL,
            bytes, and of what is in lists, tuples and dicts.

    Raises:
        InvalidValueError: ``max_bytes`` is no number of bytes.
    """

    def __init__(self, max_bytes: int | str, *, nbytes: Callable[[V], int] | None = None) -> None:
        # As budgets read it.
        self._limit = _core.Budget("ram", max_bytes, probe=False).limit
        self._nbytes = nbytes or nbytes_of
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes of all values together."""
        return self._used

    def get(
        self,
        key: Hashable,
        make: Callable[[], V],
        *,
        timeout: float | None = None,
        cancel: _core.CancelToken | None = None,
    ) -> V:
        """The value of a key; made if it is not there.

        Args:
            key: The key.
            make: Makes the value. Runs without any lock.
            timeout: Seconds to wait for another thread that makes it; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Raises:
            WaitTimeoutError: another thread still makes it.
            CancelledError: the token was raised.
            DeadlockError: this thread is making it.
            BaseException: whatever ``make`` raises, here or in the thread that is waited for.
        """
        if timeout is not None and not timeout >= 0:
            raise InvalidValueError(f"timeout is a number of seconds, not {timeout}")
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            flight = self._wait(key, make, until, timeout, cancel)
            if flight.error is None:
                value: V = flight.value
                return value
            # That the other one was interrupted or cancelled is no concern of ours.
            if isinstance(flight.error, Exception) and not isinstance(flight.error, CancelledError):
                raise flight.error

    def _wait(
        self,
        key: Hashable,
        make: Callable[[], V],
        until: float | None,
        timeout: float | None,
        cancel: _core.CancelToken | None,
    ) -> _Flight:
        """What came of a key: there, made here, or made by another thread."""
        ours = _Flight()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                ours.value = self._values[key][0]
                return ours
            flight = self._flights.setdefault(key, ours)
        if flight is ours:
            self._make(key, make, flight)
            return flight
        if flight.maker == threading.get_ident():
            raise DeadlockError(f"this thread is making {key!r} already, and asks for it meanwhile")
        while not flight.over.wait(_left(until)):
            if cancel is not None and cancel.cancelled:
                raise CancelledError(f"cancelled while {key!r} is made by another thread")
            if until is not None and time.monotonic() >= until:
                raise WaitTimeoutError(f"timed out after {timeout} s waiting for {key!r}")
        return flight

    def _make(self, key: Hashable, make: Callable[[], V], flight: _Flight) -> None:
        gone: list[tuple[V, int]] = []
        try:
            value = flight.value = make()
            size = self._nbytes(value)
            if size < 0:
                raise InvalidValueError(f"nbytes says {size} of {key!r}: there are no such bytes")
            with self._lock:
                if not flight.stale and size <= self._limit:
                    self._values[key] = (value, size)
                    self._used += size
                    while self._used > self._limit:
                        gone.append(self._values.popitem(last=False)[1])
                        self._used -= gone[-1][1]
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.over.set()
            # What goes may run code of its own: not under the lock.
            gone.clear()

    def invalidate(self, key: Hashable) -> bool:
        """Forgets a key, also if it is being made. Returns whether there was one."""
        with self._lock:
            value = self._values.pop(key, None)
            if value is not None:
                self._used -= value[1]
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.stale = True
        return value is not None or flight is not None

    def clear(self) -> int:
        """Forgets everything. Returns the bytes."""
        with self._lock:
            values, self._values = self._values, OrderedDict()
            used, self._used = self._used, 0
            for flight in self._flights.values():
                flight.stale = True
            self._flights.clear()
        values.clear()
        return used

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"<Cache {len(self)} values, {self._used} of {self._limit} bytes>"


def _left(until: float | None) -> float:
    return _SLICE if until is None else max(0.0, min(_SLICE, until - time.monotonic()))


def nbytes_of(value: Any) -> int:
    """Bytes of arrays, tensors, images of PIL, bytes, and of what is in lists, tuples and dicts."""
    if isinstance(value, dict):
        return sum(nbytes_of(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(nbytes_of(item) for item in value)
    if isinstance(size := getattr(value, "nbytes", None), int):
        return size
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if isinstance(value, str):
        return len(value.encode())
    if hasattr(value, "getbands") and hasattr(value, "size"):
        width, height = value.size
        return int(width * height * len(value.getbands()))
    return 0 if value is None or isinstance(value, (int, float)) else sys.getsizeof(value)


_DECODING = threading.Lock()


def decoded(image: Any) -> Any:
    """An image of PIL with its pixels there, so that threads may share it.

    ``Image.open`` reads them only when somebody uses the image, and threads that do so at once
    break the decoder. Decodes an image once, whoever asks; one at a time.

    Args:
        image: An image of PIL.

    Returns:
        The same image.
    """
    # PIL forgets the file when the pixels are there.
    if getattr(image, "fp", None) is not None:
        with _DECODING:
            image.load()
    return image
