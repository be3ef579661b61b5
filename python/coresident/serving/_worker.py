"""The thread of one device: it waits for work, leases, claims, runs, reports.

=========  =================  ======================================================================
state      it holds           what ends it
=========  =================  ======================================================================
idle       nothing            an offer; the server's end
leasing    an offer           the device is free: claiming. It is in use: the offer goes back, so
                              that another device may have the job, and the worker waits for the
                              device. Then it asks for whatever job is next by then
claiming   the lease          the claim is made, and written if the queue is durable. The job has
                              been cancelled, or there is none any more: idle
running    lease and claim    the handler returns or raises, whatever that is
reporting  lease and claim    the queue has the outcome. It cannot be written: the lease goes, and
                              it is tried again until it can
=========  =================  ======================================================================

An error of the queue or the pool in any state is noted, gives back what is held, and is followed by
a pause that grows. A claim that is dropped by an error thrown into the thread queues its job again,
as an attempt that counts. So a claimed job is always run, reported, or queued again by its claim,
and one worker has a claim at a time.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from coresident import _core, _serve
from coresident.errors import (
    CancelledError,
    ClosedError,
    CoresidentError,
    ForkedError,
    WaitTimeoutError,
)
from coresident.serving.job import ServedJob, as_current

if TYPE_CHECKING:
    from coresident.serving._group import WorkerGroup

# Seconds after an error of the queue or the pool; each in a row doubles it.
_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
# Characters of an error that a queue keeps.
_LONGEST_TEXT = 10_000


def log(message: str, *args: object) -> None:
    """Logs an error. Logging is not imported before there is one."""
    import logging

    logging.getLogger("coresident.serving").error(message, *args)


class Worker(threading.Thread):
    """Serves one device until the server ends.

    Attributes:
        device: The device.
        running: The job in hand.
        finished: How many jobs it has brought to an end.
    """

    def __init__(self, group: WorkerGroup, device: _core.Device) -> None:
        # Nobody joins it but the server, which the exit of the interpreter stops first.
        super().__init__(name=f"serve {device}", daemon=True)
        self.device = device
        self.running: ServedJob | None = None
        self.finished = 0
        self._group = group
        self._errors = 0
        self._torch_is_ready = False

    def run(self) -> None:
        """Serves; survives whatever is raised."""
        try:
            while True:
                try:
                    if not self._turn():
                        return
                    self._errors = 0
                except (ClosedError, ForkedError):
                    # The queue, or the pool; or a handler has forked, and this is the child.
                    return
                except BaseException as error:  # thrown in from outside, or of the queue's file
                    self._pause(error)
        finally:
            self._group.left(self)

    def _turn(self) -> bool:
        """One job, if there is one. ``False`` if there will be none."""
        offer = self._group.offer(self)
        if offer is None:
            return False
        try:
            lease = self._lease(offer)
            if lease is not None:
                with lease:
                    self._claim_and_run(offer, lease)
        finally:
            offer.release()
            self._group.rests(self)
        return True

    def _lease(self, offer: _core.Offer) -> _core.Lease | None:
        """The device, waited for without a job; ``None`` if the server ends meanwhile."""
        pool = self._group.pool
        with contextlib.suppress(WaitTimeoutError):
            return pool.lease(self.device, timeout=0)
        offer.release()
        with contextlib.suppress(CancelledError):
            return pool.lease(self.device, cancel=self._group.waits_for_its_device(self))
        return None

    def _claim_and_run(self, offer: _core.Offer, lease: _core.Lease) -> None:
        if offer.released:
            with contextlib.suppress(WaitTimeoutError):
                self._run(self._group.queue.claim(self.device, timeout=0), lease)
            return
        claim = offer.accept()
        if claim is not None:
            self._run(claim, lease)

    def _run(self, claim: _core.Claim, lease: _core.Lease) -> None:
        """Runs a job and reports it."""
        with claim:
            job = ServedJob(claim, self.device, self._group.runtime)
            self._group.begins(self, job)
            try:
                value, error = self._outcome(job)
                job.end()
                self._report(job, lease, value, error)
            finally:
                job.end()
                self.finished += 1
                self._group.ends(self, job)

    def _outcome(self, job: ServedJob) -> tuple[Any, BaseException | None]:
        try:
            return contextvars.copy_context().run(self._handle, job), None
        except BaseException as error:  # whatever it is, it belongs to the job
            return None, error

    def _handle(self, job: ServedJob) -> Any:
        with job.planned, as_current(job):
            self._prepare_torch()
            return self._group.handler(job)

    def _prepare_torch(self) -> None:
        """What a job before may have changed of this thread's torch."""
        torch: Any = sys.modules.get("torch")
        if torch is None:
            return
        if not self._torch_is_ready:
            self._torch_is_ready = _serve._prepare_torch(
                self.device, None, len(self._group.workers)
            )
        elif self.device.type in ("cuda", "xpu"):
            getattr(torch, self.device.type).set_device(self.device.index)
        if self._torch_is_ready:
            torch.set_grad_enabled(self._group.grad)

    def _report(
        self, job: ServedJob, lease: _core.Lease, value: object, error: BaseException | None
    ) -> None:
        """Has the queue know the outcome, as often as that has to be tried."""
        if error is not None:
            self._log(job, error)
            forget_frames(error)
        while True:
            try:
                self._tell(job, value, error)
                return
            except ForkedError:
                raise
            except CoresidentError as refused:
                if job.claim.released:
                    return  # it has ended otherwise
                # The file of the queue. The device is free for others while it is tried again.
                lease.release()
                self._pause(refused)
                if self._group.gave_up:
                    return

    def _tell(self, job: ServedJob, value: object, error: BaseException | None) -> None:
        claim = job.claim
        if error is None:
            try:
                claim.finish(value)
                return
            except CoresidentError:
                raise
            except BaseException as odd:  # of the value, which is asked whether it is a path
                error = odd
                forget_frames(odd)
        if self._group.gives_back(job):
            claim.release()
            return
        try:
            claim.fail(error)
        except CoresidentError:
            raise
        except BaseException:  # of an error that cannot say what it is
            claim.fail(describe(error))

    def _log(self, job: ServedJob, error: BaseException) -> None:
        """Tells whoever runs the server where a handler failed: the queue keeps only why."""
        if job.cancelled:
            return
        with contextlib.suppress(BaseException):
            lines = traceback.format_tb(error.__traceback__)
            where = f"job {job.id} of {job.user} on {job.device} failed"
            log("%s: %s\n%s", where, describe(error), "".join(lines).rstrip())

    def _pause(self, error: BaseException) -> None:
        """Notes an error, and lets some time pass: a full disk is not to be written to for ever."""
        with contextlib.suppress(BaseException):
            self._group.note(f"{self.device}: {describe(error)}")
        self._errors += 1
        seconds = min(_PAUSE * 2 ** min(self._errors - 1, 10), _LONGEST_PAUSE)
        with contextlib.suppress(BaseException):
            if self._group.gave_up:
                time.sleep(_PAUSE)
            else:
                self._group.hurry.wait(seconds)


def describe(error: BaseException) -> str:
    """An error in words, also one that cannot say what it is."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException as failed:  # an error's own code
        text = f"(its text cannot be had: {type(failed).__name__})"
    return f"{name}: {text}"[:_LONGEST_TEXT] if text else name


def forget_frames(error: BaseException) -> None:
    """Lets go of what the frames of an error hold, such as tensors: the queue keeps the error."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        with contextlib.suppress(BaseException):
            traceback.clear_frames(one.__traceback__)
        rest += [one.__cause__, one.__context__]
        rest += getattr(one, "exceptions", ()) or ()
