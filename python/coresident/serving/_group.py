"""The workers of a server together: which jobs they are given, and how they are told to end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from coresident import _core
from coresident.errors import CancelledError, WaitTimeoutError
from coresident.serving._arguments import MODES, Mode
from coresident.serving._draining import Draining
from coresident.serving._worker import Worker, log
from coresident.serving.idle import Idleness, IdlePolicy, IdleTimer, policies
from coresident.serving.job import ServedJob

if TYPE_CHECKING:
    from coresident.runtime import Runtime

Handler: TypeAlias = Callable[[ServedJob], object]

_NOTED = 100
_STOPPED = "the server is stopped"
_GROUPS: weakref.WeakSet[WorkerGroup] = weakref.WeakSet()


class WorkerGroup:
    """One worker for each device of a server, and what they know of each other.

    Attributes:
        queue: The queue whose jobs they run.
        runtime: The runtime.
        pool: The pool of the devices.
        handler: What runs a job.
        grad: Whether torch records gradients there.
        errors: What went wrong beside handlers, in words; the latest 100.
        workers: The workers, in the order of the devices.
        mode: How they have been told to end; ``None`` while they have not.
        stopping: Raised when no more jobs are to begin.
        hurry: Raised when nothing is worth a pause any more.
        ended: Raised when all have ended.
        abandoned: Whether nobody waits for them any more, nor does the exit.
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
        self.mode: Mode | None = None
        self.abandoned = False
        self.stopping = _core.CancelToken()
        self.hurry = _core.CancelToken()
        self.ended = _core.CancelToken()
        # Raised when they are to end in any way.
        self._stirred = _core.CancelToken()
        self._pid = os.getpid()
        self._owns_queue = queue is None
        self._lock = threading.Lock()
        self._at_end: list[Callable[[], object]] = []
        wanted = policies(idle, devices)
        self._idleness = self._timer = None
        if wanted:
            self._idleness = Idleness(
                wanted, devices, self._free_vram, runtime.weights.clear, time.monotonic()
            )
            self._timer = IdleTimer(self._idleness, lambda error: self.note(repr(error)))
        self.workers = [Worker(self, device) for device in devices]
        self._draining = Draining(self.workers)
        # A forecast of the user's own stays.
        asking = [] if runtime.forecast is not None else [runtime.planners[one] for one in devices]
        arenas = [runtime.arenas[one] for one in devices if one in runtime.arenas]
        self._connection = _core.connect(self.queue, asking, arenas)

    def start(self) -> None:
        """Starts their threads; where one cannot be started, those that run end, and it raises."""
        _GROUPS.add(self)
        try:
            for thread in (*self.workers, *([self._timer] if self._timer else ())):
                thread.start()
        except BaseException:  # no more threads, or Ctrl-C
            self.stop("cancel")
            for worker in self.workers:
                if worker.ident is None:
                    self.left(worker)
            raise

    @property
    def running(self) -> list[ServedJob]:
        """The jobs in hand."""
        jobs = (worker.running for worker in self.workers)
        return [job for job in jobs if job is not None]

    @property
    def is_here(self) -> bool:
        """Whether this is the process that has made it."""
        return os.getpid() == self._pid

    def note(self, text: str) -> None:
        """Notes an error that is no job's."""
        self.errors.append(text)
        log("%s", text)

    # Work

    def offer(self, worker: Worker) -> _core.Offer | None:
        """A job that is kept for the worker's device, waited for; ``None`` if none will come."""
        while True:
            with self._lock:
                mode, look = self.mode, self._draining.looks(worker)
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
            stops = self.mode == "cancel"
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
        return self.mode == "cancel" and job.token.reason == _STOPPED

    def _free_vram(self, device: _core.Device) -> int:
        """Lets go of a device's weights; returns the bytes of those that are still in use there."""
        self.runtime.free(device)
        arena = self.runtime.arenas.get(device)
        return 0 if arena is None else arena.status().evictable

    @property
    def gave_up(self) -> bool:
        """Whether nothing is worth a wait any more."""
        return self.mode == "cancel"

    # The end

    @property
    def usual_end(self) -> Mode:
        """A queue that was given to them can be served by others later; their own cannot."""
        return "drain" if self._owns_queue else "finish"

    def stop(self, mode: Mode) -> None:
        """Tells them to end. It may be more urgent than before, never less."""
        with self._lock:
            if self.mode is None or MODES.index(mode) > MODES.index(self.mode):
                self.mode = mode
            mode = self.mode
            running = [worker.running for worker in self.workers]
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

    def abandon(self) -> None:
        """Leaves them to themselves, told to end at once."""
        self.abandoned = True
        self.stop("cancel")

    def when_ended(self, call: Callable[[], object]) -> None:
        """Calls something once all have ended; now, if they have."""
        with self._lock:
            if not self.ended.cancelled:
                self._at_end.append(call)
                return
        call()

    def _end(self) -> None:
        """All workers have ended."""
        if self._timer is not None:
            self._timer.stop()
        try:
            self._connection.end()
            if self._owns_queue:
                self.queue.close()
        finally:
            self.ended.cancel()
            with self._lock:
                calls, self._at_end = self._at_end, []
            for call in calls:
                call()


def finish_all() -> None:
    """Stops every server, and waits for it: the interpreter exits."""
    groups = [one for one in _all() if one.is_here and not one.ended.cancelled]
    groups = [one for one in groups if not one.abandoned]
    for group in groups:
        group.stop(group.usual_end)
    try:
        for group in groups:
            group.ended.wait()
    except KeyboardInterrupt:
        for group in groups:
            group.stop("cancel")
        for group in groups:
            group.ended.wait()


def _all() -> list[WorkerGroup]:
    while True:
        try:
            return list(_GROUPS)
        except RuntimeError:  # another thread has just made one
            continue
