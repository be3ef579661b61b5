"""A job as its handler has it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from coresident import _core
from coresident.errors import ForkedError, InvalidTypeError, ReleasedError
from coresident.serving import borrowing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from coresident.runtime import Runtime

T = TypeVar("T")
S = TypeVar("S")

_CURRENT: ContextVar[ServedJob | None] = ContextVar("coresident_served_job", default=None)


class ServedJob:
    """A job that a worker runs: what was submitted, and what its handler can do with it.

    Made by the workers of :meth:`coresident.Runtime.serve`, one for each attempt. It is over when
    the handler has returned. All calls are safe from any thread.

    Attributes:
        device: The device that is leased for it.
        token: Raised at once when the job is cancelled, or when the server is to stop at once.
        number: By which number the runtime's timeline has what is done for it, whoever records it;
            another one for each attempt.
    """

    def __init__(self, claim: _core.Claim, device: _core.Device, runtime: Runtime) -> None:
        self.device = device
        self.token = claim.token
        self.claim = claim
        self.pool = runtime.pool
        self._job = claim.job
        self._over = False
        self._timeline, self._planners = runtime.timeline, runtime.planners
        self.planned = runtime.job(self.needs or None, device=device)
        self.number = self.planned.number
        self._began = time.monotonic()
        # The stage that it is in, and since when.
        self._stage: tuple[str, float] | None = None
        self.record("job begins", device, f"job {self.id}")

    @property
    def id(self) -> int:
        """The job's number."""
        return self._job.id

    @property
    def user(self) -> str:
        """Whose it is."""
        return self._job.user

    @property
    def payload(self) -> Any:
        """What was submitted: bytes, or a new copy of what JSON said."""
        return self._job.payload

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of the weights that it uses."""
        return self._job.needs

    @property
    def batch(self) -> str | None:
        """Its batch, if it has one."""
        return self._job.batch

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""
        return self._job.tags

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.claim.attempt

    @property
    def cancelled(self) -> bool:
        """Whether it was told to stop."""
        return self.token.cancelled

    @property
    def over(self) -> bool:
        """Whether its handler has returned."""
        return self._over

    def raise_if_cancelled(self) -> None:
        """Raises an error once the job was told to stop: for loops. Does not wait.

        Raises:
            CancelledError: it was.
        """
        self.token.raise_if_cancelled()

    def stage(self, name: str) -> None:
        """Tells those who watch that another stage begins. Does not wait.

        Args:
            name: What it is called, such as ``'text encoder'``.

        Raises:
            InvalidTypeError: ``name`` is no text.
            InvalidValueError: it is empty, or longer than 1024 bytes.
            ReleasedError: the job is over.
        """
        self.claim.stage(name)
        self._end_stage()
        self._stage = name, time.monotonic()

    def step(self, step: int, steps: int, preview: object = None) -> None:
        """Tells those who watch how many steps are done. Does not wait; who watches too slowly
        misses steps, and nothing else.

        Args:
            step: How many are done, from 0.
            steps: Of how many.
            preview: What they can show, such as a small image. It is handed on as it is, so that it
                must not be changed any more, and had better be in host memory.

        Raises:
            InvalidTypeError: a number is none.
            InvalidValueError: one is negative, or ``step`` is more than ``steps``.
            ReleasedError: the job is over.
        """
        self.claim.step(step, steps, preview)
        self.record("step", self.device, self._stage_name())

    def on_step(self, pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> Any:
        """Tells of a step of a diffusers pipeline, and ends it when the job was told to stop::

            pipe(prompt, callback_on_step_end=job.on_step)

        Raises:
            CancelledError: the job was told to stop.
        """
        return self._step(pipe, step, tensors, None)

    def on_step_with(
        self, preview: Callable[[dict[str, Any]], object]
    ) -> Callable[[Any, int, Any, dict[str, Any]], Any]:
        """As :meth:`on_step`, with something to show for each step::

            pipe(prompt, callback_on_step_end=job.on_step_with(lambda it: draw(it["latents"])))

        Args:
            preview: Makes it of the tensors that the pipeline gives to its callback.

        Returns:
            The callback.

        Raises:
            InvalidTypeError: ``preview`` cannot be called.
        """
        if not callable(preview):
            given = type(preview).__name__
            raise InvalidTypeError(f"preview is a function of a step's tensors, not {given}")

        def on_step(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> Any:
            return self._step(pipe, step, tensors, preview)

        return on_step

    def _step(
        self,
        pipe: Any,
        step: int,
        tensors: dict[str, Any],
        preview: Callable[[dict[str, Any]], object] | None,
    ) -> dict[str, Any]:
        self.token.raise_if_cancelled()
        done = step + 1
        all_of_them = max(done, getattr(pipe, "num_timesteps", None) or done)
        self.step(done, all_of_them, None if preview is None else preview(tensors))
        return tensors

    # Borrows

    def borrowed(
        self,
        *,
        prefer: Iterable[Any] | None = None,
        affinity: str | None = None,
        min_free: int | str | None = None,
    ) -> AbstractContextManager[_core.Device]:
        """A device for one stage: an idle one if there is one, else the job's own::

            with job.borrowed(affinity="t5") as device, encoder.on(device) as module:
                embeddings = module(tokens).to("cpu")

        The device is current in the block, for this library and for torch. Nobody waits for it, and
        it goes back when the block ends; :attr:`wanted` tells a long stage that somebody waits for
        it now. What the block makes is where it was made: move it to the host, or have
        :meth:`run_borrowed` do it. Within a borrow it is the same device again. Does not wait.

        Args:
            prefer: Devices to try first.
            affinity: A key, so that the same stage goes back to the same device while it is idle.
            min_free: Bytes that must be free there, or a text such as ``'6GiB'``.

        Raises:
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``min_free`` cannot be meant.
            DeviceNotFoundError: a device of ``prefer`` is none of the pool's.
            ReleasedError: the job is over.
        """
        self._check()
        terms = {"prefer": prefer, "affinity": affinity, "min_free": min_free}
        return borrowing.stage(self, terms)

    def run_borrowed(
        self, function: Callable[..., T], /, *args: Any, to: str = "host", **kwargs: Any
    ) -> T:
        """Calls a function on an idle device if there is one, else on the job's own, as
        :func:`coresident.borrowable` does.

        Args:
            function: What to call. :func:`coresident.current_device` tells it the device.
            *args: For the function. Tensors among them stay where they are.
            to: Where the tensors of what it returns are moved to: ``'host'``, or ``'job'`` for the
                job's own device.
            **kwargs: For the function.

        Returns:
            What it returns, with its tensors moved.

        Raises:
            InvalidTypeError: ``function`` cannot be called.
            InvalidValueError: ``to`` is something else.
            BaseException: what the function raises.
            ReleasedError: the job is over.
        """
        borrowing.check_function(function)
        borrowing.check_place(to)
        self._check()
        name = getattr(function, "__qualname__", type(function).__name__)
        with self.borrowed(affinity=name):
            return borrowing.moved(function(*args, **kwargs), to, self.device)

    def map_borrowed(
        self, function: Callable[[S], T], items: Iterable[S], /, *, to: str = "host"
    ) -> list[T]:
        """Calls a function for one item after the other on an idle device, which goes back between
        two items as soon as somebody waits for it; the rest run where there is room then.

        Args:
            function: What to call with each item.
            items: The items.
            to: As for :meth:`run_borrowed`.

        Returns:
            What it returned, in order, with the tensors moved.

        Raises:
            InvalidTypeError: ``function`` cannot be called, or ``items`` cannot be gone through.
            InvalidValueError: ``to`` is something else.
            CancelledError: the job was told to stop, between two items.
            BaseException: what the function raises.
            ReleasedError: the job is over.
        """
        borrowing.check_function(function)
        borrowing.check_place(to)
        self._check()
        if not isinstance(items, Iterable):
            raise InvalidTypeError(
                f"items can be gone through, which {type(items).__name__} cannot"
            )
        rest, results = list(items), list[T]()
        name = getattr(function, "__qualname__", type(function).__name__)
        while rest:
            with self.borrowed(affinity=name):
                while rest:
                    self.token.raise_if_cancelled()
                    results.append(borrowing.moved(function(rest.pop(0)), to, self.device))
                    if self.wanted:
                        break
        return results

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the device that the caller has borrowed: a hint to end the
        stage soon. ``False`` where nothing is borrowed."""
        return borrowing.wanted()

    def end(self) -> None:
        """The handler has returned: from now on it can do nothing. Called by its worker."""
        if not self._over:
            self._over = True
            self._end_stage()
            self.planned.release()
            self.record("job ends", self.device, f"job {self.id}", self._began)

    def record(
        self,
        kind: str,
        device: _core.Device,
        name: str,
        since: float | None = None,
        of: int | None = None,
    ) -> None:
        """Has the runtime's timeline know. Called by workers and stages."""
        took = None if since is None else time.monotonic() - since
        # A forked child has none.
        with contextlib.suppress(ForkedError):
            self._timeline.record(
                kind, device, name, whom=self.user, seconds=took, job=self.number, of=of
            )

    def borrowed_for(self, device: _core.Device, stage: str, since: float) -> None:
        """Has the timeline know of a borrow, which ends, and where it has what was used there."""
        self.record("borrow", device, stage, since, self._planners[device].recorded_job())

    def _stage_name(self) -> str:
        return f"job {self.id}" if self._stage is None else self._stage[0]

    def _end_stage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is not None:
            self.record("stage", self.device, *stage)

    def _check(self) -> None:
        if self._over:
            raise ReleasedError(f"job {self.id} is over: its handler has returned")

    def __repr__(self) -> str:
        return f"<ServedJob {self.id} of {self.user} on {self.device}>"


def current_job() -> ServedJob | None:
    """The job that this code runs for: within a handler, and in the tasks and contexts that come
    from it, for as long as it runs. Does not wait.

    Returns:
        The job; ``None`` outside of any.

    Example:
        >>> def denoise(latents):
        ...     if (job := co.current_job()) is not None:
        ...         job.raise_if_cancelled()
    """
    job = _CURRENT.get()
    return None if job is None or job.over else job


@contextlib.contextmanager
def as_current(job: ServedJob) -> Iterator[None]:
    """Makes it the current job of this context."""
    before = _CURRENT.set(job)
    try:
        yield
    finally:
        _CURRENT.reset(before)
