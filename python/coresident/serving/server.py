"""A handler that runs the jobs of a queue, on all devices of a runtime."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

from coresident import _core
from coresident.errors import DeadlockError, ForkedError, WaitTimeoutError
from coresident.serving._arguments import Mode, check_grace, check_mode, check_timeout
from coresident.serving._group import WorkerGroup
from coresident.serving._signals import signals
from coresident.serving.job import ServedJob


class Server:
    """One worker for each device, which runs a handler for one job of a queue after the other.

    Made by :meth:`coresident.Runtime.serve`; it serves until it is stopped, in threads of its own.
    A worker that has no job holds nothing, so that its device can be lent. When there is a job for
    it, it leases the device, then claims the job, and never the other way round. It sleeps until
    there is work, and survives whatever a handler raises.

    As a context manager it ends like :meth:`stop` at the end of the block, and as
    ``stop("cancel")`` if the block raises. An interpreter that exits stops it too.

    Attributes:
        queue: The queue.
        pool: The pool of the devices.
        runtime: The runtime.
        errors: What went wrong beside handlers, such as a queue's file that could not be written;
            the latest 100, in words. They are also logged, as ``coresident.serving``.
    """

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self.queue = group.queue
        self.pool = group.pool
        self.runtime = group.runtime
        self.errors = group.errors
        group.start()

    # What users call

    @property
    def devices(self) -> list[_core.Device]:
        """The devices that it serves, in order."""
        return [worker.device for worker in self._group.workers]

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._group.workers)

    @property
    def running(self) -> list[ServedJob]:
        """The jobs that run now, in the order of their devices. Does not wait."""
        return self._group.running

    @property
    def abandoned(self) -> bool:
        """Whether a second Ctrl-C has left its jobs to themselves: nobody waits for it any more."""
        return self._group.abandoned

    @property
    def ended(self) -> bool:
        """Whether all workers have ended."""
        return self._group.ended.cancelled

    def stop(self, mode: Mode | None = None, *, timeout: float | None = None) -> None:
        """Begins no more jobs, and waits for those that run.

        Called again it may be more urgent, never less: ``stop("cancel")`` after a ``stop("drain")``
        whose time was over.

        Args:
            mode: ``'drain'``: what is queued runs first, as far as it may now. ``'finish'``: what
                runs ends, what is queued stays. ``'cancel'``: the tokens of what runs are raised,
                and jobs that stop for that are queued again, as if they had not been begun.
                ``None`` is ``'finish'`` for a queue that was given to
                :meth:`~coresident.Runtime.serve`, which others can serve later, and ``'drain'`` for
                the server's own; that one is closed at the end, which cancels what is left.
            timeout: Seconds to wait; ``None`` waits for ever. When they are over what runs goes on,
                and nothing else begins.

        Raises:
            WaitTimeoutError: naming what still runs.
            DeadlockError: it is called by one of the jobs, which would wait for itself.
            InvalidValueError: ``mode`` is something else, or ``timeout`` cannot be meant.
            InvalidTypeError: an argument is of a wrong type.
            ForkedError: the server was made before a fork.
        """
        self._check()
        chosen = self._group.usual_end if mode is None else check_mode(mode)
        self._refuse_own_workers()
        check_timeout(timeout)
        self._group.stop(chosen)
        self._wait(timeout)

    async def stop_async(self, mode: Mode | None = None, *, timeout: float | None = None) -> None:
        """As :meth:`stop`, for asyncio: the task waits, its thread does not. Raises as it does."""
        self._check()
        chosen = self._group.usual_end if mode is None else check_mode(mode)
        self._refuse_own_workers()
        check_timeout(timeout)
        self._group.stop(chosen)
        await self.wait_async(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the server has ended, because somebody has stopped it or closed its queue.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever.

        Raises:
            WaitTimeoutError: naming what still runs.
            DeadlockError: it is called by one of the jobs.
            InvalidValueError: ``timeout`` is negative or not finite.
            InvalidTypeError: it is no number.
            ForkedError: the server was made before a fork.
        """
        self._check()
        self._refuse_own_workers()
        check_timeout(timeout)
        self._wait(timeout)

    async def wait_async(self, timeout: float | None = None) -> None:
        """As :meth:`wait`, for asyncio: the task waits, its thread does not. Raises as it does."""
        import asyncio

        self._check()
        check_timeout(timeout)
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(over.set)

        self._group.when_ended(tell)
        try:
            await asyncio.wait_for(over.wait(), timeout)
        except asyncio.TimeoutError:
            raise self._late(timeout) from None

    def serve_forever(self, *, grace: float = 30.0) -> None:
        """Waits until it has ended. In the main thread Ctrl-C and SIGTERM end it: no more jobs
        begin, those that run have ``grace`` seconds to end, and then are told to stop, with as much
        again. A second Ctrl-C stops at once.

        Raises:
            KeyboardInterrupt: Ctrl-C came again; jobs that run are left to themselves, and queued
                again by the next process if the queue is durable.
            InvalidValueError: ``grace`` is negative or not finite.
            InvalidTypeError: it is no number.
        """
        self._check()
        check_grace(grace)
        self._refuse_own_workers()
        wake = _core.CancelToken()
        with signals(wake):
            self.serve_until(wake, grace)

    def serve_until(self, wake: _core.CancelToken, grace: float) -> None:
        """Waits until it has ended, or until a token is raised, and ends it then."""
        self._group.when_ended(lambda: wake.cancel())
        try:
            wake.wait()
            if not self.ended:
                self._stop_gracefully(grace)
        except KeyboardInterrupt:
            # Whoever presses twice does not want to wait at the exit either.
            self._group.abandon()
            raise

    def _stop_gracefully(self, grace: float) -> None:
        self._group.stop("finish")
        with contextlib.suppress(WaitTimeoutError):
            self._wait(grace)
            return
        self._group.stop("cancel")
        with contextlib.suppress(WaitTimeoutError):
            self._wait(grace)
            return
        self._group.note(self._late(grace).args[0])
        self._group.abandon()

    def __enter__(self) -> Server:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.abandoned:
            return
        try:
            self.stop(None if kind is None else "cancel")
        except KeyboardInterrupt:
            self._group.stop("cancel")
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._group.abandon()
            raise

    async def __aenter__(self) -> Server:
        self._check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop_async(None if kind is None else "cancel")

    def __repr__(self) -> str:
        state = "ended" if self.ended else "serves" if self._group.mode is None else "stops"
        devices = ", ".join(map(str, self.devices))
        return f"<Server on {devices}: {state}, {len(self.running)} running>"

    def _wait(self, timeout: float | None) -> None:
        if not self._group.ended.wait(timeout):
            raise self._late(timeout)

    def _late(self, timeout: float | None) -> WaitTimeoutError:
        running = [f"job {job.id} of {job.user} on {job.device}" for job in self.running]
        queued = len(self.queue)
        what = ", ".join(running) or "none of its jobs"
        message = f"the server has not ended after {timeout or 0:g} s: {what} runs, {queued} queued"
        return WaitTimeoutError(message, timeout or 0.0, running)

    def _check(self) -> None:
        if not self._group.is_here:
            raise ForkedError("this server was made before a fork: make a new one in the child")

    def _refuse_own_workers(self) -> None:
        if threading.current_thread() in self._group.workers:
            raise DeadlockError(
                "a job waits for the end of the server that runs it, which waits for the job: "
                "have somebody else stop it"
            )
