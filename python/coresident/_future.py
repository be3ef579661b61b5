"""The futures of ``WorkerPool.submit``."""

from __future__ import annotations

from concurrent import futures
from typing import TYPE_CHECKING, Any

from coresident.errors import WaitTimeoutError

if TYPE_CHECKING:
    from coresident._core import Ticket


class WorkerFuture(futures.Future):  # type: ignore[type-arg]
    """A ``concurrent.futures.Future`` whose task can be told to stop, and that finds deadlocks."""

    _ticket: Ticket[Any] | None = None

    def cancel(self) -> bool:
        """Keeps a queued task from running; tells a running one through its cancel token.

        Returns:
            Whether the task was still queued, as for every future.
        """
        ticket = self._ticket
        if ticket is None:
            return super().cancel()
        ticket.cancel()
        return self.cancelled() or super().cancel()

    def result(self, timeout: float | None = None) -> Any:
        """The value, once there is one; raises what the task raised.

        Raises:
            DeadlockError: the caller is what the task waits for.
            concurrent.futures.CancelledError: the task was cancelled before it ran.
            TimeoutError: after ``timeout`` seconds.
        """
        self._wait(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, once it is over; ``None`` if it returned. Raises as ``result``."""
        self._wait(timeout)
        return super().exception(timeout)

    def _wait(self, timeout: float | None) -> None:
        """Waits as the rest of the library does: known to the wait-for graph."""
        if self._ticket is None or self.done():
            return
        try:
            self._ticket.join(timeout)
        except WaitTimeoutError as error:
            if isinstance(error, futures.TimeoutError):
                raise
            raise futures.TimeoutError(str(error)) from None  # Python 3.10 has a class of its own

    def _cancel_unstarted(self) -> None:
        """Ends the future of a task that will never start, and tells whoever waits for it."""
        if super().cancel():
            self.set_running_or_notify_cancel()
