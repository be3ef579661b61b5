"""What people write today: the same things from the standard library, as simple as they can be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


class LockPool:
    """A device pool as a lock per device."""

    def __init__(self, names: Sequence[str]) -> None:
        self._locks = {name: threading.Lock() for name in names}

    @contextmanager
    def lease(self, name: str) -> Iterator[str]:
        with self._locks[name]:
            yield name

    @contextmanager
    def borrow(self) -> Iterator[str | None]:
        for name, lock in self._locks.items():
            if lock.acquire(blocking=False):
                try:
                    yield name
                finally:
                    lock.release()
                return
        yield None


class ConditionLock:
    """A readers-writer lock from one condition."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False

    @contextmanager
    def read(self) -> Iterator[None]:
        with self._changed:
            while self._writing:
                self._changed.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if self._readers == 0:
                    self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        with self._changed:
            while self._writing or self._readers:
                self._changed.wait()
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


class Executors:
    """One single-thread executor per device."""

    def __init__(self, names: Sequence[str]) -> None:
        self._executors = {name: ThreadPoolExecutor(1) for name in names}

    def scatter(self, calls: dict[str, Callable[[], object]]) -> dict[str, object]:
        futures = {name: self._executors[name].submit(call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}

    def close(self) -> None:
        for executor in self._executors.values():
            executor.shutdown()


def thread_per_step(calls: dict[str, Callable[[], object]]) -> dict[str, object]:
    values: dict[str, object] = {}

    def step(name: str, call: Callable[[], object]) -> None:
        values[name] = call()

    threads = [threading.Thread(target=step, args=item) for item in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return values


class ConditionLedger:
    """A budget from one condition, which sums up what everybody has."""

    def __init__(self, limit: int) -> None:
        self._changed = threading.Condition()
        self._limit = limit
        self._bytes: dict[object, int] = {}

    def used(self) -> int:
        with self._changed:
            return sum(self._bytes.values())

    def take(self, name: object, nbytes: int) -> None:
        with self._changed:
            while sum(self._bytes.values()) + nbytes > self._limit:
                self._changed.wait()
            self._bytes[name] = nbytes

    @contextmanager
    def reserve(self, name: object, nbytes: int) -> Iterator[None]:
        self.take(name, nbytes)
        try:
            yield
        finally:
            with self._changed:
                del self._bytes[name]
                self._changed.notify_all()


class CountedStore:
    """Weights by key, with a refcount under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, list[object]] = {}

    def put(self, key: str, weights: object) -> None:
        with self._lock:
            self._entries[key] = [weights, 1]

    @contextmanager
    def acquire(self, key: str) -> Iterator[object]:
        with self._lock:
            entry = self._entries[key]
            entry[1] += 1  # type: ignore[operator]
        try:
            yield entry[0]
        finally:
            with self._lock:
                entry[1] -= 1  # type: ignore[operator]
