"""Per device a thread between two queues: tasks go in at one, results come out at the other."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from peers import Line


class ThreadPool(Line):
    def __init__(self, devices: Iterable[str]) -> None:
        super().__init__()
        self._tasks: dict[str, queue.SimpleQueue[Any]] = {}
        self._results: dict[str, deque[tuple[object, Exception | None]]] = {}
        self._threads = []
        for device in devices:
            self._tasks[device] = queue.SimpleQueue()
            self._results[device] = deque()
            thread = threading.Thread(target=self._serve, args=(device,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def post(self, device: str, function: Callable[..., object], *args: object) -> Ticket:
        self._tasks[device].put((function, args))  # also when nobody will take it
        return Ticket(self, device)

    def next_result(self, device: str) -> object:
        results = self._results[device]
        with self.condition:
            self.sleep_until(lambda: bool(results))
            value, error = results.popleft()
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        for tasks in self._tasks.values():
            tasks.put(None)
        for thread in self._threads:
            thread.join()

    def open(self) -> None:
        super().open()
        self.close()

    def _serve(self, device: str) -> None:
        while (task := self._tasks[device].get()) is not None:
            function, args = task
            value, error = None, None
            try:
                value = function(*args)
            except Exception as raised:
                error = raised
            except SystemExit:  # not caught there: it ends a thread in silence, without a result
                return
            with self.condition:
                self._results[device].append((value, error))
                self.condition.notify_all()


class Ticket:
    """The next result of a device, whichever task it is of."""

    def __init__(self, pool: ThreadPool, device: str) -> None:
        self._pool = pool
        self._device = device

    def result(self) -> object:
        return self._pool.next_result(self._device)
