"""Waiting in asyncio for what the core grants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from coresident import _core


class _Exit(Protocol):
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> object: ...


Guard = TypeVar("Guard", bound=_Exit)
Begin = Callable[[asyncio.AbstractEventLoop, "_Waiter"], _core.Request]


class Awaitable(Generic[Guard]):
    """A request that begins when it is awaited, in the task that awaits it.

    ``guard = await request`` or ``async with request as guard``.
    """

    __slots__ = ("_begin", "_entered", "_guard", "_timeout")

    def __init__(self, begin: Begin, timeout: float | None) -> None:
        self._begin = begin
        self._timeout = timeout
        self._entered = False
        self._guard: Guard | None = None

    def __await__(self) -> Generator[Any, None, Guard]:
        return self._settle().__await__()

    async def __aenter__(self) -> Guard:
        if self._entered:
            raise RuntimeError("this request is in use: make one for each `async with`")
        self._entered = True
        try:
            guard: Guard = await self._settle()
        except BaseException:
            self._entered = False
            raise
        self._guard = guard
        return guard

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        guard, self._guard, self._entered = self._guard, None, False
        if guard is not None:
            guard.__exit__(kind, error, traceback)

    async def _settle(self) -> Any:
        loop = asyncio.get_running_loop()
        waiter = _Waiter()
        _ensure_carrier()
        request = waiter.request = self._begin(loop, waiter)
        if (settled := request.poll()) is not None:
            return settled[0]
        late = False

        def time_is_over() -> None:
            nonlocal late
            late = True
            waiter.woken.set()

        timer = None if self._timeout is None else loop.call_later(self._timeout, time_is_over)
        try:
            while True:
                await waiter.woken.wait()
                waiter.woken.clear()
                settled = request.poll_late() if late else request.poll()
                if settled is not None:
                    return settled[0]
        finally:
            request.abandon()
            if timer is not None:
                timer.cancel()


class _Waiter:
    """A task that waits, as the carrier of wakes knows it."""

    __slots__ = ("request", "woken")

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.request: _core.Request | None = None

    def give_up(self) -> None:
        """Leaves the line for a task that nobody can wake."""
        if self.request is not None:
            self.request.abandon()


def _ensure_carrier() -> None:
    wakeups = _core.Wakeups.claim()
    if wakeups is None:
        return
    thread = threading.Thread(
        target=_carry, args=(wakeups,), name="coresident event loops", daemon=True
    )
    try:
        thread.start()
    except BaseException:
        # Ctrl-C may come when the thread runs already.
        if thread.ident is None:
            wakeups.leave()
        raise


def _carry(wakeups: _core.Wakeups) -> None:
    """Carries wakes to the event loops that wait for them, for the life of the process."""
    try:
        while (wake := wakeups.take()) is not None:
            loop, waiter = wake
            try:
                loop.call_soon_threadsafe(waiter.woken.set)
            except Exception:  # closed, or half collected: nobody waits there any more
                waiter.give_up()
            del wake, loop, waiter
    finally:
        wakeups.leave()
        _ensure_carrier()
