"""Waiting in asyncio for what the core grants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from coresident import _core


class _Releasable(Protocol):
    def release(self) -> object: ...


Guard = TypeVar("Guard", bound=_Releasable)
Begin = Callable[[asyncio.AbstractEventLoop, Callable[[], None]], _core.Request]


class Awaitable(Generic[Guard]):
    """A request that begins when it is awaited, in the task that awaits it.

    ``guard = await request`` or ``async with request as guard``.
    """

    __slots__ = ("_begin", "_guard", "_timeout")

    def __init__(self, begin: Begin, timeout: float | None) -> None:
        self._begin = begin
        self._timeout = timeout
        self._guard: Guard | None = None

    def __await__(self) -> Generator[Any, None, Guard]:
        return self._settle().__await__()

    async def __aenter__(self) -> Guard:
        guard: Guard = await self._settle()
        self._guard = guard
        return guard

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._guard is not None:
            self._guard.release()

    async def _settle(self) -> Any:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        _ensure_carrier()
        request = self._begin(loop, woken.set)
        if (guard := request.poll()) is not None:
            return guard
        late = False

        def time_is_over() -> None:
            nonlocal late
            late = True
            woken.set()

        timer = None if self._timeout is None else loop.call_later(self._timeout, time_is_over)
        try:
            while True:
                await woken.wait()
                woken.clear()
                guard = request.poll_late() if late else request.poll()
                if guard is not None:
                    return guard
        finally:
            request.abandon()
            if timer is not None:
                timer.cancel()


def _ensure_carrier() -> None:
    wakeups = _core.wakeups()
    if wakeups is not None:
        threading.Thread(
            target=_carry, args=(wakeups,), name="coresident event loops", daemon=True
        ).start()


def _carry(wakeups: _core.Wakeups) -> None:
    """Carries wakes to the event loops that wait for them, for the life of the process."""
    while (wake := wakeups.take()) is not None:
        loop, callback = wake
        try:
            loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # The loop was closed: nobody waits there any more.
        del wake, loop, callback
