"""One of each primitive, wired together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from coresident import _core, _torch_memory
from coresident._hints import Hints
from coresident.errors import InvalidDeviceError, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from coresident.serving import IdlePolicy, ServedJob, Server
    from coresident.torch import Model
    from coresident.torch.room import Room
    from coresident.trace import Explanation

_LOAD_LOCKS: dict[int, _core.LoadLock] = {}


def _load_lock() -> _core.LoadLock:
    """This process's load lock; a forked child has its own."""
    return _LOAD_LOCKS.setdefault(os.getpid(), _core.LoadLock())


#: Jobs that come next, or what tells them.
Forecast: TypeAlias = (
    Iterable[Iterable[Any]] | Callable[[_core.Device, int], Iterable[Iterable[Any]]]
)


def _keys(what: str, models: Any) -> list[str]:
    """The keys of models, or as they were given."""
    if isinstance(models, str) or not isinstance(models, Iterable):
        given = type(models).__name__
        raise InvalidTypeError(f"{what} is a list of models or keys, not {given}")
    keys = []
    for model in models:
        key = model if isinstance(model, str) else getattr(model, "key", None)
        if not isinstance(key, str):
            given = type(model).__name__
            raise InvalidTypeError(f"{what} is a list of models or keys, and has a {given}")
        keys.append(key)
    return keys


def _jobs(forecast: Any) -> list[list[str]]:
    if isinstance(forecast, str) or not isinstance(forecast, Iterable):
        given = type(forecast).__name__
        raise InvalidTypeError(f"a forecast is a list of jobs, or a function, not {given}")
    return [_keys("a job", job) for job in forecast]


def _coming(
    forecast: Callable[[_core.Device, int], Any], device: _core.Device, most: int
) -> list[list[str]]:
    return _jobs(forecast(device, most))


class Runtime:
    """One of each primitive, for the same devices.

    Attributes:
        pool: The device pool.
        workers: The worker pool.
        load_lock: The load lock, one for all runtimes of the process: what constructing a model
            changes, in torch and accelerate, is the process's too.
        ram: The budget of host memory, with its default limit.
        vram: The budget of each device that has memory of its own, by device. What torch has cached
            there and does not use counts as free, and is asked back before anybody waits.
        arenas: The arena of each device whose memory has pages, charged to its budget, by device.
        planners: What decides which weights leave each device first, by device.
        weights: The weight store, charged to ``ram``.
        timeline: What happens on the devices is recorded here.

    Args:
        devices: ``"auto"``, the name of one device, or an iterable of names, ``Device`` objects or
            ``torch.device`` objects.
        pin: What of the host's memory is page-locked for copies to GPUs: ``"staging"`` for buffers,
            32 MiB for each device; ``"all"`` also for the weights of models, whose files are copied
            to memory for that where ``ram`` has room; or ``"none"``. As :class:`~coresident.Arena`
            has it.
        policy: How that is decided where they do not all fit: one of
            :data:`coresident.trace.POLICIES`. ``"look-ahead"`` has what is needed last leave first,
            as far as it is known or likely; with ``"always-evict"`` nothing stays that is not used,
            whatever would fit.
        working_memory: A file of JSON that keeps how much memory calls of models were seen to need
            beside the weights, for the next time; ``None`` learns anew each time.
        timeline: Whether to record what happens, which takes a tenth of a microsecond for each copy
            and 4.5 MiB in all; or a timeline to record in. ``runtime.timeline.enabled`` switches it
            at any time.
        hints: Whether to look from time to time, in a thread that ends then, what would have spared
            copies, and to log it as a warning of ``coresident.hints``, each once.

    Raises:
        InvalidDeviceError: for a text that names no device, or an empty list.
        DeviceNotFoundError: for a device that this machine does not have.
        InvalidValueError: ``pin`` is something else, or there is no such policy.
        InvalidTypeError: an argument is of a wrong type.
    """

    def __init__(
        self,
        devices: str | _core.Device | Iterable[Any] = "auto",
        *,
        pin: str = "staging",
        policy: str = "look-ahead",
        working_memory: str | Path | None = None,
        timeline: bool | _core.Timeline = True,
        hints: bool = True,
    ) -> None:
        if working_memory is not None and not isinstance(working_memory, (str, Path)):
            given = type(working_memory).__name__
            raise InvalidTypeError(f"working_memory is the path of a file, not {given}")
        if pin not in ("staging", "all", "none"):
            raise InvalidValueError(f"pin is 'staging', 'all' or 'none', not {pin!r}")
        if not isinstance(timeline, (bool, _core.Timeline)):
            given = type(timeline).__name__
            raise InvalidTypeError(f"timeline is True, False or a Timeline, not {given}")
        if not isinstance(hints, bool):
            raise InvalidTypeError(f"hints is True or False, not {type(hints).__name__}")
        chosen = _core.devices(devices)
        self.timeline = _core.Timeline() if isinstance(timeline, bool) else timeline
        if timeline is False:
            self.timeline.enabled = False
        self._hints = Hints(self.timeline, on=hints)
        self.pool = _core.DevicePool(chosen)
        self.planners = {device: _core.Planner(device, policy, pool=self.pool) for device in chosen}
        self._forecast: Forecast | None = None
        self.load_lock = _load_lock()
        self.workers = _core.WorkerPool(chosen)
        self.ram = _core.Budget("ram")
        self.vram = {
            device: _torch_memory.budget(device)
            for device in chosen
            if device.memory is not None and not device.unified
        }
        self.arenas = {
            device: _core.Arena(
                device,
                budget,
                ram=self.ram,
                pin=pin,
                planner=self.planners[device],
                timeline=self.timeline,
            )
            for device, budget in self.vram.items()
            if device.paged
        }
        self.weights = _core.WeightStore(budget=self.ram)
        self._learned = working_memory
        self._pin = pin
        self._room: Room | None = None
        self._servers: list[Server] = []

    def load(
        self,
        key: str,
        source: str | Path | Callable[[], Any],
        *,
        dtype: Any = None,
    ) -> Model:
        """A model whose weights are in :attr:`weights`; as :func:`coresident.torch.load`.

        Args:
            key: What the weights are called.
            source: A folder as ``save_pretrained`` of diffusers or transformers writes it, or a
                function that makes a module.
            dtype: The dtype of the parameters, if it is not to be the file's.

        Returns:
            The model, to be closed. ``model.on(device)`` is a module with its weights on a device,
            for as long as it is used there.

        Raises:
            ImportError: torch is not installed.
            CoresidentError: as :func:`coresident.torch.load`.
        """
        from coresident.torch import load

        return load(self.weights, key, source, dtype=dtype, room=self._models_room())

    def job(self, stages: Iterable[Any] | None = None, *, device: Any = None) -> _core.RunningJob:
        """A job begins on a device: what the caller uses there until it is released is used by it,
        also in tasks and workers that he begins::

            with runtime.pool.lease("cuda:0"), runtime.job([clip, unet, vae, unet, vae]):
                ...

        What leaves first is decided by what jobs will use. Without this a job is what is used under
        one lease, or, without one, what is used until what came first comes again. Jobs may run
        beside each other and within each other. Does not wait.

        Args:
            stages: The models that it uses, or their keys, in order, again whenever they come
                again; ``None`` if that is not known: then what jobs used before that began like it.
                What it uses otherwise costs time, and nothing else.
            device: The device; ``None`` for the current one, or the only one of the runtime.

        Returns:
            What ends it, to be used with ``with`` or released.

        Raises:
            InvalidDeviceError: there is no such device, it is none of the runtime's, or none is
                named where there are several.
            InvalidTypeError: ``stages`` is no list of models or keys.
        """
        keys = None if stages is None else _keys("stages", stages)
        return self.planners[self._device(device)].job(keys)

    def _device(self, device: Any) -> _core.Device:
        if device is None:
            device = _core.current_device()
        if device is None:
            if len(self.planners) > 1:
                message = f"no device is leased here: name one of {self._names()}"
                raise InvalidDeviceError(message)
            return next(iter(self.planners))
        [found] = _core.devices([device])
        if found not in self.planners:
            raise InvalidDeviceError(f"{found} is none of this runtime's: it has {self._names()}")
        return found

    def _names(self) -> str:
        return ", ".join(map(str, self.planners))

    @property
    def forecast(self) -> Forecast | None:
        """Which jobs come next, without those that run: a list of jobs, in order, each a list of
        the models that it uses, or their keys, in order; or a function that returns one for
        ``(device, most)``, of ``most`` jobs at most; ``None`` if nobody knows.

        A list holds for all devices, until another one is set. A function is called from any
        thread, whenever a device comes to another model or lacks room, and must be quick; what it
        raises is shown as an unraisable exception, and nothing is known then.

        Raises:
            InvalidTypeError: when it is set to something else.
        """
        return self._forecast

    @forecast.setter
    def forecast(self, forecast: Forecast | None) -> None:
        told: Any = forecast
        if callable(forecast):
            told = partial(_coming, forecast)
        elif forecast is not None:
            told = _jobs(forecast)
        for planner in self.planners.values():
            planner.forecast = told
        self._forecast = forecast

    def serve(
        self,
        handler: Callable[[ServedJob], object],
        queue: _core.JobQueue | None = None,
        *,
        devices: str | _core.Device | Iterable[Any] | None = None,
        grad: bool = False,
        idle: IdlePolicy | Mapping[Any, IdlePolicy] | None = None,
    ) -> Server:
        """Runs the jobs of a queue, one at a time on each device, in threads of their own::

            def draw(job):
                with job.borrowed(affinity="t5") as device:
                    text = encode(job.payload["prompt"], device)
                return denoise(text, job.device, callback_on_step_end=job.on_step)

            with runtime.serve(draw) as server:
                images = [server.queue.submit({"prompt": text}, user="ann") for text in prompts]
                images[0].result()

        A job is finished with what the handler returns, and failed with what it raises, whatever
        that is. When a job needs weights that are on a device, that device is preferred for it, and
        what the next jobs need is the last to leave. Does not wait.

        Args:
            handler: A plain function of a :class:`~coresident.ServedJob`. Each call is in a
                worker's thread and a context of its own, with the job's device leased and current.
            queue: The queue; ``None`` makes one in memory for this server, which is its ``queue``.
            devices: Those that run jobs, all of the queue's and of this runtime's; ``None`` for
                those that both have.
            grad: Whether torch records gradients in handlers; its grad mode is each thread's own.
            idle: What devices let go of when they have no jobs, for all or by device.

        Returns:
            The server, which serves from now on.

        Raises:
            InvalidTypeError: ``handler`` cannot be called, or is a coroutine or a generator
                function, which would run only after it has returned: have it call ``asyncio.run``.
                Or another argument is of a wrong type.
            InvalidDeviceError: a device is not of this runtime, or not of the queue.
            ForkedError: the runtime or the queue was made before a fork.
        """
        from coresident.serving._arguments import check_serving
        from coresident.serving._group import WorkerGroup
        from coresident.serving.server import Server

        chosen = check_serving(self, handler, queue, devices, grad)
        group = WorkerGroup(self, handler, queue, devices=chosen, grad=grad, idle=idle)
        server = Server(group)
        self._servers = [*(one for one in self._servers if not one.ended), server]
        return server

    def serve_forever(
        self,
        handler: Callable[[ServedJob], object],
        queue: _core.JobQueue,
        *,
        grace: float = 30.0,
        **terms: Any,
    ) -> None:
        """As :meth:`serve`, and waits until the queue is closed or Ctrl-C or SIGTERM comes; as
        :meth:`Server.serve_forever <coresident.Server.serve_forever>`, which has the errors.

        Args:
            handler: As for :meth:`serve`.
            queue: The queue.
            grace: Seconds that jobs have to end after Ctrl-C, and then to stop.
            **terms: As for :meth:`serve`.
        """
        from coresident.serving._arguments import check_grace
        from coresident.serving._signals import signals

        check_grace(grace)
        wake = _core.CancelToken()
        # Before the first job begins.
        with signals(wake):
            self.serve(handler, queue, **terms).serve_until(wake, grace)

    def free(self, device: Any = None, *, ram: bool = False) -> int:
        """Lets go of weights that nobody uses right now: in the memory of a device, and on the
        host. They come again when they are needed. Does not wait.

        Args:
            device: The device; ``None`` for all.
            ram: Whether to let go of host memory too, of what no model has.

        Returns:
            The bytes of device memory that are free now and were not.

        Raises:
            InvalidDeviceError: the device is none of the runtime's.
            InvalidTypeError: an argument is of a wrong type.
        """
        if not isinstance(ram, bool):
            raise InvalidTypeError(f"ram is True or False, not {type(ram).__name__}")
        freed = 0
        for one in self.planners if device is None else [self._device(device)]:
            if one in self.arenas:
                freed += self.arenas[one].evict()
            if self._room is not None:
                freed += self._room.drop_copies(one)
            _torch_memory.empty_cache(one)
        if ram:
            self.weights.clear()
        return freed

    def analyze(self, device: Any) -> _core.ArenaStatus:
        """What is resident on one device, what of it is in use, and by whom. Does not wait.

        Raises:
            InvalidDeviceError: the device is none of the runtime's whose memory has pages.
        """
        [device] = _core.devices([device])
        if device not in self.arenas:
            known = ", ".join(map(str, self.arenas)) or "none"
            message = f"{device} has no pages in this runtime: those with pages are {known}"
            raise InvalidDeviceError(message)
        return self.arenas[device].status()

    def hints(self) -> list[_core.Hint]:
        """What would have spared copies so far, proved by replaying the timeline with it: as
        :func:`coresident.trace.hints`, without those that were silenced. Takes seconds for
        thousands of requests.

        Raises:
            ForkedError: the runtime is another process's.
        """
        return self._hints.found()

    def silence_hints(self, kind: str | None = None, component: str | None = None) -> None:
        """Gives no such hints any more.

        Args:
            kind: ``'budget'``, ``'always-evict'``, ``'watermarks'``, ``'working-memory'`` or
                ``'policy'``; ``None`` for all.
            component: Those about copies of one model, by its key; ``None`` for all.

        Raises:
            InvalidTypeError: an argument is no text.
            InvalidValueError: there is no such kind of hints.
        """
        self._hints.silence(kind, component)

    def explain(self) -> Explanation:
        """Where bytes and time went so far, by device and model: printed it is a table, and in a
        notebook a picture with it. Takes seconds for thousands of requests.

        Raises:
            ForkedError: the runtime is another process's.
        """
        from coresident.trace import explain

        return explain(self.timeline, hints=self.hints())

    def _models_room(self) -> Room:
        from coresident.torch.room import Room
        from coresident.torch.working_memory import WorkingMemory

        if self._room is None:
            needs = WorkingMemory(self._learned)
            self._room = Room(
                self.arenas,
                self.vram,
                needs,
                planners=self.planners,
                pins_weights=self._pin == "all",
                timeline=self.timeline,
                used=self._hints.used,
            )
        return self._room

    @property
    def devices(self) -> list[_core.Device]:
        """The devices of the pool, in order."""
        return self.pool.devices

    def close(self, *, timeout: float | None = None) -> None:
        """Stops what serves, refuses new leases and tasks, and waits for the tasks that are queued
        or run. Then logs hints, by the last 300 requests of each device.

        Args:
            timeout: Seconds to wait for servers and workers; ``None`` waits for ever.

        Raises:
            WaitTimeoutError: naming what still runs.
        """
        until = None if timeout is None else time.monotonic() + timeout
        for server in self._unended():
            server.stop(timeout=until and max(0.0, until - time.monotonic()))
        self.pool.close()
        self.workers.close(timeout=until and max(0.0, until - time.monotonic()))
        self._hints.give()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._unended():
            server.stop(None if kind is None else "cancel")
        self.pool.close()
        self.workers.close("drain" if kind is None else "cancel")
        if kind is None:
            self._hints.give()

    def _unended(self) -> list[Server]:
        return [one for one in self._servers if not (one.ended or one.abandoned)]

    def __repr__(self) -> str:
        return f"<Runtime {', '.join(map(str, self.devices))}>"
