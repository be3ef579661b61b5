"""A handler that runs the jobs of a queue, on all devices of a runtime."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from coresident import _core
from coresident.errors import CancelledError, DeadlockError, ForkedError, WaitTimeoutError
from coresident.serving import _arguments
from coresident.serving._arguments import MODES, Mode, check_grace, check_timeout
from coresident.serving._draining import Draining
from coresident.serving._signals import signals
from coresident.serving._worker import Worker, log
from coresident.serving.idle import Idleness, IdlePolicy, IdleTimer, policies
from coresident.serving.job import ServedJob

if TYPE_CHECKING:
    from coresident.runtime import Runtime

Handler: TypeAlias = Callable[[ServedJob], object]

_NOTED = 100
_STOPPED = "the server is stopped"
_SERVERS: weakref.WeakSet[Server] = weakref.WeakSet()


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

    def __init__(
        self,
        runtime: Runtime,
        handler: Handler,
        queue: _core.JobQueue | None,
        *,
        devices: list[_core.Device],
        grad: bool,
        idle: IdlePolicy | Mapping[Any, IdlePolicy] | None,
    ) -> None:
        self.queue = _core.JobQueue(devices=runtime.devices) if queue is None else queue
        self.runtime = runtime
        self.pool = runtime.pool
        self.handler = handler
        self.grad = grad
        self.errors: deque[str] = deque(maxlen=_NOTED)
        # Raised when it is to stop in any way; when no more jobs are to begin; when nothing is
        # worth a pause; and when all workers have ended.
        self._stirred = _core.CancelToken()
        self.stopping = _core.CancelToken()
        self.hurry = _core.CancelToken()
        self._ended = _core.CancelToken()
        self._pid = os.getpid()
        self._owns_queue = queue is None
        self._lock = threading.Lock()
        self._mode: Mode | None = None
        self._abandoned = False
        self._at_end: list[Callable[[], object]] = []
        wanted = policies(idle, devices)
        self._idleness = self._timer = None
        if wanted:
            self._idleness = Idleness(
                wanted, devices, self._free_vram, runtime.weights.clear, time.monotonic()
            )
            self._timer = IdleTimer(self._idleness, lambda error: self.note(repr(error)))
        self._workers = [Worker(self, device) for device in devices]
        self._draining = Draining(self._workers)
        # A forecast of the user's own stays.
        asking = [] if runtime.forecast is not None else [runtime.planners[one] for one in devices]
        arenas = [runtime.arenas[one] for one in devices if one in runtime.arenas]
        self._connection = _core.connect(self.queue, asking, arenas)
        _SERVERS.add(self)
        try:
            for thread in (*self._workers, *([self._timer] if self._timer else ())):
                thread.start()
        except BaseException:  # no more threads, or Ctrl-C: those that run end
            self._begin_stop("cancel")
            for worker in self._workers:
                if worker.ident is None:
                    self.left(worker)
            raise

    # What users call

    @property
    def devices(self) -> list[_core.Device]:
        """The devices that it serves, in order."""
        return [worker.device for worker in self._workers]

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def running(self) -> list[ServedJob]:
        """The jobs that run now, in the order of their devices. Does not wait."""
        jobs = (worker.running for worker in self._workers)
        return [job for job in jobs if job is not None]

    @property
    def abandoned(self) -> bool:
        """Whether a second Ctrl-C has left its jobs to themselves: nobody waits for it any more."""
        return self._abandoned

    @property
    def ended(self) -> bool:
        """Whether all workers have ended."""
        return self._ended.cancelled

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
        chosen = self._chosen(mode)
        self._refuse_own_workers()
        check_timeout(timeout)
        self._begin_stop(chosen)
        self._wait(timeout)

    async def stop_async(self, mode: Mode | None = None, *, timeout: float | None = None) -> None:
        """As :meth:`stop`, for asyncio: the task waits, its thread does not. Raises as it does."""
        self._check()
        chosen = self._chosen(mode)
        self._refuse_own_workers()
        check_timeout(timeout)
        self._begin_stop(chosen)
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

        self._when_ended(tell)
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
        self._when_ended(lambda: wake.cancel())
        try:
            wake.wait()
            if not self.ended:
                self._stop_gracefully(grace)
        except KeyboardInterrupt:
            # Whoever presses twice does not want to wait at the exit either.
            self._abandon()
            raise

    def _stop_gracefully(self, grace: float) -> None:
        self._begin_stop("finish")
        with contextlib.suppress(WaitTimeoutError):
            self._wait(grace)
            return
        self._begin_stop("cancel")
        with contextlib.suppress(WaitTimeoutError):
            self._wait(grace)
            return
        self.note(self._late(grace).args[0])
        self._abandon()

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
            self._begin_stop("cancel")
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._abandon()
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
        state = "ended" if self.ended else "serves" if self._mode is None else "stops"
        devices = ", ".join(map(str, self.devices))
        return f"<Server on {devices}: {state}, {len(self.running)} running>"

    # What its workers call

    def offer(self, worker: Worker) -> _core.Offer | None:
        """A job that is kept for the worker's device, waited for; ``None`` if none will come."""
        while True:
            with self._lock:
                mode, look = self._mode, self._draining.looks(worker)
            if mode in ("finish", "cancel"):
                return None
            offer = self._waited_for(worker) if mode is None else self._found_at_once(worker)
            if offer is not None:
                self._draining.has_job(worker)
                return offer
            if mode == "drain":
                if self._draining.finds_nothing(worker, look):
                    return None
                # Not in the queue's line: who is given a job there has one unseen until he says so,
                # and others would find that nothing is left.
                look.again.wait()

    def _waited_for(self, worker: Worker) -> _core.Offer | None:
        """The next job; ``None`` if the server is to stop meanwhile."""
        with contextlib.suppress(CancelledError):
            return self.queue.offer(worker.device, cancel=self._stirred)
        return None

    def _found_at_once(self, worker: Worker) -> _core.Offer | None:
        """The next job, if there is one now."""
        with contextlib.suppress(WaitTimeoutError):
            return self.queue.offer(worker.device, timeout=0)
        return None

    def waits_for_its_device(self, worker: Worker) -> _core.CancelToken:
        """A worker has no job in hand, and waits for its device, at most until this is raised."""
        self._draining.goes_away(worker)
        over = self._draining.over
        # Once nothing else is left to drain, only a job that no other device may run is waited for.
        return self.stopping if over.cancelled else over

    def begins(self, worker: Worker, job: ServedJob) -> None:
        """A worker has a job."""
        self._draining.runs(worker)
        with self._lock:
            worker.running = job
            stops = self._mode == "cancel"
        if stops:
            job.token.cancel(_STOPPED)
        if self._idleness is not None:
            self._idleness.begins(worker.device)

    def ends(self, worker: Worker, job: ServedJob) -> None:
        """It is over."""
        if not self.is_here:
            return
        with self._lock:
            worker.running = None
        if self._idleness is not None and self._timer is not None:
            self._idleness.ends(worker.device, time.monotonic(), cancelled=job.cancelled)
            self._timer.look_again()

    def rests(self, worker: Worker) -> None:
        """A worker has neither a job nor an offer."""
        if self.is_here:
            self._draining.rests(worker)

    def left(self, worker: Worker) -> None:
        """A worker has ended."""
        if not self.is_here:
            return
        if self._draining.ends(worker):
            self._end()

    def gives_back(self, job: ServedJob) -> bool:
        """Whether a job that has raised is to be queued again, because it was the server that has
        told it to stop."""
        return self._mode == "cancel" and job.token.reason == _STOPPED

    def _free_vram(self, device: _core.Device) -> int:
        """Lets go of a device's weights; returns the bytes of those that are still in use there."""
        self.runtime.free(device)
        arena = self.runtime.arenas.get(device)
        return 0 if arena is None else arena.status().evictable

    def note(self, text: str) -> None:
        """Notes an error that is no job's."""
        self.errors.append(text)
        log("%s", text)

    @property
    def gave_up(self) -> bool:
        """Whether nothing is worth a wait any more."""
        return self._mode == "cancel"

    @property
    def is_here(self) -> bool:
        """Whether this is the process that has made it."""
        return os.getpid() == self._pid

    # How it ends

    def _chosen(self, mode: object) -> Mode:
        if mode is None:
            return "drain" if self._owns_queue else "finish"
        return _arguments.mode(mode)

    def _begin_stop(self, mode: Mode) -> None:
        with self._lock:
            if self._mode is None or MODES.index(mode) > MODES.index(self._mode):
                self._mode = mode
            mode = self._mode
            running = [worker.running for worker in self._workers]
            self._draining.begin()
        self._stirred.cancel()
        if mode != "drain":
            self.stopping.cancel()
            self._draining.over.cancel()
        if mode == "cancel":
            self.hurry.cancel()
            for job in running:
                if job is not None:
                    job.token.cancel(_STOPPED)

    def _end(self) -> None:
        """All workers have ended."""
        if self._timer is not None:
            self._timer.stop()
        try:
            self._connection.end()
            if self._owns_queue:
                self.queue.close()
        finally:
            self._ended.cancel()
            with self._lock:
                calls, self._at_end = self._at_end, []
            for call in calls:
                call()

    def _when_ended(self, call: Callable[[], object]) -> None:
        with self._lock:
            if not self.ended:
                self._at_end.append(call)
                return
        call()

    def _wait(self, timeout: float | None) -> None:
        if not self._ended.wait(timeout):
            raise self._late(timeout)

    def _late(self, timeout: float | None) -> WaitTimeoutError:
        running = [f"job {job.id} of {job.user} on {job.device}" for job in self.running]
        queued = len(self.queue)
        what = ", ".join(running) or "none of its jobs"
        message = f"the server has not ended after {timeout or 0:g} s: {what} runs, {queued} queued"
        return WaitTimeoutError(message, timeout or 0.0, running)

    def _abandon(self) -> None:
        """Nobody waits for it any more, nor does the exit."""
        self._abandoned = True
        self._begin_stop("cancel")

    def _check(self) -> None:
        if not self.is_here:
            raise ForkedError("this server was made before a fork: make a new one in the child")

    def _refuse_own_workers(self) -> None:
        if threading.current_thread() in self._workers:
            raise DeadlockError(
                "a job waits for the end of the server that runs it, which waits for the job: "
                "have somebody else stop it"
            )


def finish_all() -> None:
    """Stops every server, and waits for it: the interpreter exits."""
    servers = [one for one in _all() if one.is_here and not one.ended and not one.abandoned]
    for server in servers:
        server._begin_stop(server._chosen(None))
    try:
        for server in servers:
            server._ended.wait()
    except KeyboardInterrupt:
        for server in servers:
            server._begin_stop("cancel")
        for server in servers:
            server._ended.wait()


def _all() -> list[Server]:
    while True:
        try:
            return list(_SERVERS)
        except RuntimeError:  # another thread has just made one
            continue
