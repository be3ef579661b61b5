"""The compiled core of ``coresident``: the reference of everything that is public in it.

Use the names of the package itself: ``import coresident as co``, ``co.DevicePool``. The errors are
in ``coresident.errors``. What holds for every call:

- **Devices.** Where a device is wanted, a name (``'cuda:0'``, ``'xpu:1'``, ``'mps'``, ``'cpu'``,
  ``'virtual:0'``; a missing index means 0), a :class:`Device` or a ``torch.device`` is taken.
- **Waiting.** ``timeout=`` is in seconds: ``None`` waits for ever, 0 only looks. A ``cancel=``
  token ends the wait when it is raised. Waiters are served in order of arrival. Ctrl-C in the main
  thread ends every wait with ``KeyboardInterrupt``.
- **Guards.** A call that takes something takes it at once, or waits, and returns the guard;
  ``with`` only releases it. Releasing again has no effect. A guard that is forgotten is released
  when it is collected, with a ``ResourceWarning``; one that was not handed over, when its thread
  ends.
- **Owners.** What is taken belongs to the asyncio task that takes it, else to the thread. A wait
  that could never end raises ``DeadlockError`` instead.
- **fork.** A child process cannot use what its parent made: pools and locks raise ``ForkedError``
  there, and releasing a guard has no effect.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Awaitable as _Awaitable
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context
from os import PathLike
from pathlib import Path
from types import GenericAlias, TracebackType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    final,
    overload,
)

from typing_extensions import Self

from coresident._aio import Awaitable

__all__ = [
    "Area",
    "AreaStatus",
    "Arena",
    "ArenaStatus",
    "Block",
    "Borrow",
    "Budget",
    "BudgetStatus",
    "BudgetUser",
    "CancelToken",
    "Claim",
    "Connection",
    "Device",
    "DevicePool",
    "DeviceStatus",
    "DeviceTensor",
    "Event",
    "Events",
    "Hint",
    "Holder",
    "Job",
    "JobQueue",
    "Lane",
    "LastMoment",
    "Lease",
    "LoadLock",
    "LockGuard",
    "LockStatus",
    "LockUser",
    "Occupied",
    "Offer",
    "Pins",
    "Planner",
    "PrivateWeights",
    "QueueStatus",
    "Recording",
    "Replayed",
    "Request",
    "Reservation",
    "RunningJob",
    "Streaming",
    "StreamingStatus",
    "Tensor",
    "Ticket",
    "Timeline",
    "UserStatus",
    "Waiter",
    "Wakeups",
    "WeightStore",
    "Weights",
    "WeightsStatus",
    "WorkerPool",
    "WorkerStatus",
    "__version__",
    "about_to_fork",
    "connect",
    "current_cancel_token",
    "current_device",
    "devices",
    "entered_child",
    "has_forked",
    "hint_kinds",
    "parse_size",
    "policies",
    "register_provider",
    "release_this_thread",
    "replay_trace",
    "restore_device",
    "shares",
    "size",
    "trace_hints",
    "virtual_devices",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_Key = TypeVar("_Key")
_DeviceKey = TypeVar("_DeviceKey", bound="_DeviceLike")

_DeviceType: TypeAlias = Literal["cuda", "xpu", "mps", "cpu", "virtual"]
_Mode: TypeAlias = Literal["read", "write"]

class _TorchDevice(Protocol):
    """A ``torch.device``, told by what it has, so that torch need not be installed."""

    @property
    def type(self) -> str: ...
    @property
    def index(self) -> int | None: ...

class _Accelerator(Protocol):
    """What a provider reports of one device; ``coresident._providers.Accelerator`` is one."""

    @property
    def name(self) -> _DeviceLike: ...
    @property
    def model(self) -> str: ...
    @property
    def memory(self) -> int | None: ...
    @property
    def unified(self) -> bool: ...
    @property
    def free_memory(self) -> Callable[[], int] | None: ...

__version__: str

# Devices

@final
class Device:
    """Something to run on: one accelerator, the CPU, or a virtual device.

    Devices come from :func:`devices` and :func:`virtual_devices`. Two are equal, and have the same
    hash, when their names are equal. ``str(device)`` is the name.

    Example:
        >>> device = co.devices("virtual:1")[0]
        >>> str(device), device.type, device.index
        ('virtual:1', 'virtual', 1)
    """

    @property
    def name(self) -> str:
        """The name in its one normal form: ``'cuda:0'``, ``'mps'``, ``'virtual:1'``."""

    @property
    def type(self) -> _DeviceType:
        """The part of the name before the colon. ROCm devices are ``'cuda'``, as torch has them."""

    @property
    def index(self) -> int:
        """The index among the devices of this type; 0 for ``'mps'`` and ``'cpu'``."""

    @property
    def model(self) -> str:
        """The product, numbered from 1 where several are alike: ``'RTX 3090 #2'``."""

    @property
    def label(self) -> str:
        """The product and the name, for people: ``'RTX 3090 #2 (cuda:1)'``."""

    @property
    def memory(self) -> int | None:
        """The device's memory in bytes; ``None`` if it is not known, or is not its own."""

    @property
    def unified(self) -> bool:
        """Whether weights are used where they lie in host memory, without a copy."""

    @property
    def paged(self) -> bool:
        """Whether an :class:`Arena` can place pages in its memory."""

    @property
    def bandwidth(self) -> int | None:
        """Bytes per second of the imitated bus of a virtual device; ``None`` without one."""

    @property
    def torch_name(self) -> str:
        """What torch calls the device; ``'cpu'`` for a virtual one."""

    def free_memory(self) -> int | None:
        """The bytes that nobody uses now, in this process or another, by the driver.

        Does not wait for anybody, but may take a system call.

        Returns:
            Bytes; ``None`` where it cannot be known. For the CPU and unified virtual devices, what
            the host has available.
        """

    def occupy(self, nbytes: int | str) -> Occupied:
        """Takes bytes of a virtual device's memory, as another process would: they are in nobody's
        budget, and budgets see them by looking. For tests. Does not wait.

        Args:
            nbytes: Bytes, or a text such as ``'1GiB'``; 0 to begin with nothing.

        Raises:
            InvalidTypeError: ``nbytes`` is neither a number nor a text.
            InvalidDeviceError: the device is no virtual one with memory of its own.
            DeviceMemoryError: it has not so many free.
        """

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

_DeviceLike: TypeAlias = str | Device | _TorchDevice

def devices(wanted: _DeviceLike | Iterable[_DeviceLike] | None = None) -> list[Device]:
    """The devices of this machine, all or those that are wanted.

    Creates no CUDA context. Does not wait, but a look at the machine takes milliseconds. It is left
    out where only virtual devices, the CPU or ``Device`` objects are wanted.

    Args:
        wanted: ``None`` or ``'auto'`` for every CUDA, ROCm and XPU device, else MPS, else the CPU;
            or one device; or an iterable of devices. One that is named twice counts once.

    Returns:
        At least one device, in the order wanted.

    Raises:
        InvalidTypeError: ``wanted``, or one of its items, is no device.
        InvalidDeviceError: a text names no device, or the iterable is empty.
        DeviceNotFoundError: this machine does not have the device.
        Exception: whatever a registered provider raised.

    Example:
        >>> co.devices("auto")
        [Device('cuda:0', 'RTX 3090 #1', 24 GiB), Device('cuda:1', 'RTX 3090 #2', 24 GiB)]
    """

@final
class Occupied:
    """Bytes of a virtual device's memory that somebody outside has. Gives them back when it is
    released or collected."""

    @property
    def nbytes(self) -> int:
        """How many; 0 once they are released."""

    def resize(self, nbytes: int | str) -> bool:
        """Has other bytes from now on. Does not wait.

        Returns:
            Whether the device has so many; if not, nothing has changed.

        Raises:
            InvalidTypeError: ``nbytes`` is neither a number nor a text.
            InvalidValueError: it is less than 0.
            ReleasedError: they have been released.
        """

    def release(self) -> None:
        """Gives them back. Again without effect. Does not wait."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

def virtual_devices(
    count: int,
    *,
    memory: int | str | None = None,
    bandwidth: int | str | None = None,
    jitter: int | None = None,
    moving: bool = False,
) -> list[Device]:
    """CPU-backed devices, for machines without an accelerator and for test suites.

    Does not wait.

    Args:
        count: How many, 1 to 1024. They are named ``virtual:0`` onwards.
        memory: Bytes that each has of its own, as a number or a text such as ``'2GiB'``. Without
            it the devices are unified: they use host memory, and nothing is copied.
        bandwidth: Bytes per second of an imitated bus, as a number or a text; only with ``memory``.
        jitter: A number that random delays of everything that the device's streams do are drawn
            from, for tests; only with ``memory``. Fresh memory has garbage in it then.
        moving: Whether memory comes to other addresses each time, as on GPUs without virtual memory
            management; only with ``memory``. Weights come and leave in blocks there.

    Returns:
        ``count`` devices.

    Raises:
        InvalidTypeError: ``count`` is no whole number, or a size is neither a number nor a text.
        InvalidValueError: ``count`` is out of range, a size is 0 or cannot be read, or
            ``bandwidth``, ``jitter`` or ``moving`` is given without ``memory``.

    Example:
        >>> co.virtual_devices(2, memory="2GiB")
        [Device('virtual:0', 'virtual GPU #1', 2 GiB), Device('virtual:1', 'virtual GPU #2', 2 GiB)]
    """

def register_provider(provider: Callable[[], Iterable[_Accelerator]]) -> None:
    """Has ``provider`` asked whenever this machine is looked at for devices.

    For accelerators that NVML does not know. Does not wait.

    Args:
        provider: A function without arguments. It returns objects with the attributes ``name``,
            ``model``, ``memory`` (bytes or ``None``), ``unified``, and ``free_memory`` (a function
            that returns bytes, or ``None``). It must not create a context on any device. Of two
            reports of one name, the first is believed; NVML comes before every provider.

    Raises:
        InvalidTypeError: ``provider`` cannot be called.
    """

def current_device() -> Device | None:
    """The device that the running code has leased or works for.

    That is the device of the innermost lease that is still held, else that of the worker whose task
    this is. asyncio tasks and copied contexts inherit it. Does not wait.

    Returns:
        The device; ``None`` without one, and where the lease has been released.
    """

# Waiting

@final
class CancelToken:
    """A flag that is raised once, and at once wakes everyone who waits with it.

    A token is given as ``cancel=`` to any number of calls. It is true once it is raised.

    Example:
        >>> token = co.CancelToken()
        >>> token.cancel("the user left")
        True
        >>> pool.lease("cuda:0", cancel=token)
        Traceback (most recent call last):
        coresident.errors.CancelledError: cancelled while waiting for a device: the user left
    """

    def __new__(cls) -> Self: ...
    def cancel(self, reason: str | None = None) -> bool:
        """Raises the flag, and wakes everyone who waits with this token. Does not wait.

        Args:
            reason: What the waiters' errors say. The first reason stays.

        Returns:
            Whether this call did it; ``False`` if the flag was raised already.

        Raises:
            TypeError: ``reason`` is not a text.
        """

    @property
    def cancelled(self) -> bool:
        """Whether the flag is raised."""

    @property
    def reason(self) -> str | None:
        """What was given to :meth:`cancel`; ``None`` without a reason."""

    def raise_if_cancelled(self) -> None:
        """Raises an error once the flag is raised: for the loops of a task. Does not wait.

        Raises:
            CancelledError: the flag is raised.
        """

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the flag is raised.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever.

        Returns:
            ``True`` once the flag is raised, ``False`` when the time is over.

        Raises:
            InvalidTypeError: ``timeout`` is not a number.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the token was made before a fork.
        """

def current_cancel_token() -> CancelToken | None:
    """The token of the task that runs here, which ``cancel()`` of its ticket or future raises.

    Does not wait.

    Returns:
        The token; ``None`` outside a worker's task.

    Example:
        >>> def denoise(steps):
        ...     token = co.current_cancel_token()
        ...     for step in steps:
        ...         token.raise_if_cancelled()
        ...         step()
    """

# The device pool

@final
class DevicePool:
    """A set of devices, each with one holder or none.

    :meth:`lease` takes a device or waits in line for it; :meth:`borrow` takes an idle one or
    nothing. First come, first served per device: a device that comes free goes at once to the first
    in line who would take it, and nothing overtakes a waiter. ``with`` closes the pool at the end.

    Args:
        devices: ``'auto'``, one device, or an iterable of devices. One given twice counts once.

    Raises:
        InvalidTypeError: ``devices``, or one of its items, is no device.
        InvalidDeviceError: a text names no device, or the iterable is empty.
        DeviceNotFoundError: this machine does not have the device.

    Example:
        >>> pool = co.DevicePool(co.virtual_devices(2))
        >>> with pool.lease("virtual:0", timeout=30) as lease:
        ...     with pool.borrow() as spare:
        ...         print(lease.device, spare.device if spare else "nothing is idle")
        virtual:0 virtual:1
    """

    def __new__(cls, devices: _DeviceLike | Iterable[_DeviceLike]) -> Self: ...
    @property
    def devices(self) -> list[Device]:
        """The devices of the pool in order, without those that drain.

        Raises:
            ForkedError: the pool was made before a fork.
        """

    def lease(
        self,
        device: _DeviceLike | None = None,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Lease:
        """Takes a device for the caller alone; waits in line for it.

        The device becomes the current device of the caller's context. In an event loop use
        :meth:`lease_async`: this call would block the loop.

        Args:
            device: The device; ``None`` takes the first that is or comes free.
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The lease, to be used with ``with`` or released.

        Raises:
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised, before or while waiting.
            DeadlockError: the wait could never end: the caller holds the device already, or its
                holder waits, by however many steps, for something of the caller's.
            DeviceNotFoundError: the device is not in this pool.
            DeviceRemovedError: :meth:`reconfigure` took the device out while the caller waited.
            ClosedError: the pool is closed, or was closed while the caller waited.
            InvalidDeviceError: the text names no device.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the pool was made before a fork.

        Example:
            >>> with pool.lease("cuda:0", timeout=30):
            ...     image = pipe(prompt)
        """

    def lease_async(
        self,
        device: _DeviceLike | None = None,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Awaitable[Lease]:
        """As :meth:`lease`, for asyncio: the task waits, its thread does not.

        It joins the line when it is awaited. The lease belongs to the task that awaits it. A task
        that is cancelled while it waits leaves the line.

        Args:
            device: The device; ``None`` takes the first that is or comes free.
            timeout: Seconds to wait, from when it is awaited; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            Something to ``await``, which gives the lease, or to enter with ``async with``.

        Raises:
            InvalidDeviceError: the text names no device; at the call.
            InvalidTypeError: an argument is of a wrong type; at the call.
            InvalidValueError: ``timeout`` is negative or not finite; at the call.
            CoresidentError: when it is awaited, every other error of :meth:`lease`.

        Example:
            >>> async with pool.lease_async("cuda:0", timeout=30) as lease:
            ...     image = await generate(prompt)
        """

    def borrow(
        self,
        prefer: Iterable[_DeviceLike] | None = None,
        *,
        affinity: str | None = None,
        any_type: bool = False,
        min_free: int | str | None = None,
    ) -> Borrow:
        """Takes an idle device for one piece of work, or nothing. Never waits.

        The device that last served the ``affinity`` is tried first, then those of ``prefer``, then
        the rest of the pool in order. The device becomes the current one of the caller's context.

        Args:
            prefer: Devices to try first, in this order; an iterable, not a text.
            affinity: A key of the caller's choice, such as ``'t5'``, so that the same work goes
                back to the same device while it is idle.
            any_type: Whether a device of another type than the lender's, which is the current
                device, will do. Without a current device every type does.
            min_free: Bytes that the driver must report as free, as a number or a text such as
                ``'6GiB'``.

        Returns:
            The borrow. It is false, and ``with`` gives ``None``, when nothing suitable is idle.

        Raises:
            DeviceNotFoundError: a device of ``prefer`` is not in this pool.
            ClosedError: the pool is closed.
            InvalidDeviceError: a text in ``prefer`` names no device.
            InvalidTypeError: ``prefer``, ``affinity`` or ``min_free`` is of a wrong type.
            InvalidValueError: ``min_free`` is negative or cannot be read.
            TypeError: ``any_type`` is not a ``bool``.
            ForkedError: the pool was made before a fork.

        Example:
            >>> with pool.borrow(prefer=["cuda:1"], affinity="t5", min_free="6GiB") as spare:
            ...     where = co.current_device() if spare is None else spare.device
            ...     embeddings = encode(prompt, device=where.torch_name)
        """

    def reconfigure(self, devices: _DeviceLike | Iterable[_DeviceLike]) -> list[Device]:
        """Makes these the devices of the pool. Does not wait.

        A device that is taken out while it is held drains: its holder keeps it until released. One
        that is put back meanwhile keeps that holder.

        Args:
            devices: As for the constructor.

        Returns:
            The devices that drain.

        Raises:
            InvalidTypeError: ``devices``, or one of its items, is no device.
            InvalidDeviceError: a text names no device, or the iterable is empty.
            DeviceNotFoundError: this machine does not have the device.
            ClosedError: the pool is closed.
            ForkedError: the pool was made before a fork.
        """

    def status(self) -> list[DeviceStatus]:
        """Who holds what since when, and who waits. Does not wait.

        Returns:
            One entry per device in order; the devices that drain come last.

        Raises:
            ForkedError: the pool was made before a fork.
        """

    def close(self) -> None:
        """Refuses everybody from now on, and whoever waits, with ``ClosedError``.

        Leases that are held stay valid. Does not wait; closing again has no effect.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

@final
class Lease:
    """The exclusive right to run on a device: what :meth:`DevicePool.lease` returns.

    ``with`` releases it at the end. Whoever enters it holds it from then on, and has its device as
    the current one: so a lease that was handed over is entered by the thread or task that got it.
    Entering a lease that has been released raises ``ReleasedError``.
    """

    @property
    def device(self) -> Device:
        """The device, also once it is released."""

    @property
    def released(self) -> bool:
        """Whether the device is no longer held through this lease."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for this device right now: a hint to release it soon."""

    def release(self) -> None:
        """Gives the device to the next in line. From any thread; again without effect.

        Does not wait.
        """

    def hand_over(self) -> Lease:
        """Lets another thread or task have this lease. Does not wait.

        The lease leaves the wait-for graph, and the end of its thread does not release it. Whoever
        enters it next holds it.

        Returns:
            The lease itself.

        Raises:
            ReleasedError: it has been released.

        Example:
            >>> def work(lease):
            ...     with lease:
            ...         generate()
            >>> lease = pool.lease("cuda:0")
            >>> threading.Thread(target=work, args=(lease.hand_over(),)).start()
        """

    def __enter__(self) -> Lease: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

@final
class Borrow:
    """An idle device on loan, or nothing: what :meth:`DevicePool.borrow` returns.

    It is true while it holds a device. ``with`` gives the borrow itself, or ``None`` if it has
    never held a device, and releases it at the end. Entering a borrow that has been released raises
    ``ReleasedError``.
    """

    # As typeshed has it: who has asked whether the borrow is true need not ask again.
    @property
    def device(self) -> Device | Any:
        """The device, also once it is released; ``None`` when nothing was idle."""

    @property
    def released(self) -> bool:
        """Whether no device is held through this borrow; ``True`` when nothing was idle."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for this device right now: a hint to release it soon."""

    def release(self) -> None:
        """Gives the device to the next in line. From any thread; again without effect.

        Does not wait.
        """

    def hand_over(self) -> Borrow:
        """Lets another thread or task have this borrow, as :meth:`Lease.hand_over`. Does not wait.

        Returns:
            The borrow itself.

        Raises:
            ReleasedError: it has been released, or nothing was idle.
        """

    def __enter__(self) -> Borrow | None: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...
    def __bool__(self) -> bool: ...

@final
class DeviceStatus:
    """One device of a pool at a glance: an entry of :meth:`DevicePool.status`."""

    @property
    def device(self) -> Device:
        """The device."""

    @property
    def holder(self) -> Holder | None:
        """Who holds it; ``None`` when it is idle."""

    @property
    def waiting(self) -> list[Waiter]:
        """Who would take it when it comes free, in order."""

    @property
    def draining(self) -> bool:
        """Whether it has been taken out of the pool, and goes once released."""

@final
class Holder:
    """Who holds a device, and since when."""

    @property
    def owner(self) -> str:
        """``thread 'MainThread'``, ``task 'Task-1'``."""

    @property
    def since(self) -> float:
        """When the holder got it, in seconds since the epoch, as ``time.time()``."""

    @property
    def seconds(self) -> float:
        """For how many seconds it has been held."""

    @property
    def borrowed(self) -> bool:
        """Whether it was taken by :meth:`DevicePool.borrow`."""

    @property
    def handed_over(self) -> bool:
        """Whether it was handed over, and nobody has entered it since."""

@final
class Waiter:
    """Who waits for a device, and since when."""

    @property
    def owner(self) -> str:
        """``thread 'MainThread'``, ``task 'Task-1'``."""

    @property
    def device(self) -> str | None:
        """The name of the device that is waited for; ``None`` takes any."""

    @property
    def since(self) -> float:
        """When the wait began, in seconds since the epoch, as ``time.time()``."""

    @property
    def seconds(self) -> float:
        """For how many seconds it has lasted."""

# The load lock

@final
class LoadLock:
    """A readers-writer lock between constructing models (write) and moving weights (read).

    Phase-fair: a waiting writer stops new readers, and the readers already waiting go next after
    each writer. So a reader waits for one writer at most, and neither side starves. After
    Brandenburg and Anderson, *Spin-Based Reader-Writer Synchronization for Multiprocessor Real-Time
    Systems*, 2010, with sleeping instead of spinning.

    An owner that reads may read again, even while a writer waits, and an owner that writes may
    read. Asking to write while one reads or writes could never succeed and is a deadlock.

    Example:
        >>> lock = co.LoadLock()
        >>> with lock.write():
        ...     model = construct()
        >>> with lock.read():
        ...     move(model)
    """

    def __new__(cls) -> Self: ...
    def read(self, *, timeout: float | None = None, cancel: CancelToken | None = None) -> LockGuard:
        """Takes the lock together with other readers; waits in line.

        In an event loop use :meth:`read_async`: this call would block the loop.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The guard, to be used with ``with`` or released.

        Raises:
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised, before or while waiting.
            DeadlockError: the wait could never end: the writer waits, by however many steps, for
                something of the caller's.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the lock was made before a fork.
        """

    def write(
        self, *, timeout: float | None = None, cancel: CancelToken | None = None
    ) -> LockGuard:
        """Takes the lock alone; waits in line.

        In an event loop use :meth:`write_async`: this call would block the loop.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The guard, to be used with ``with`` or released.

        Raises:
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised, before or while waiting.
            DeadlockError: the wait could never end: the caller reads or writes already, or somebody
                inside waits, by however many steps, for something of the caller's.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the lock was made before a fork.
        """

    def read_async(
        self, *, timeout: float | None = None, cancel: CancelToken | None = None
    ) -> Awaitable[LockGuard]:
        """As :meth:`read`, for asyncio: the task waits, its thread does not.

        It joins the line when it is awaited. The guard belongs to the task that awaits it. A task
        that is cancelled while it waits leaves the line.

        Args:
            timeout: Seconds to wait, from when it is awaited; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            Something to ``await``, which gives the guard, or to enter with ``async with``.

        Raises:
            InvalidTypeError: an argument is of a wrong type; at the call.
            InvalidValueError: ``timeout`` is negative or not finite; at the call.
            CoresidentError: when it is awaited, every other error of :meth:`read`.

        Example:
            >>> async with lock.read_async(timeout=30):
            ...     await move(model)
        """

    def write_async(
        self, *, timeout: float | None = None, cancel: CancelToken | None = None
    ) -> Awaitable[LockGuard]:
        """As :meth:`write`, for asyncio: the task waits, its thread does not.

        It joins the line when it is awaited. The guard belongs to the task that awaits it. A task
        that is cancelled while it waits leaves the line.

        Args:
            timeout: Seconds to wait, from when it is awaited; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            Something to ``await``, which gives the guard, or to enter with ``async with``.

        Raises:
            InvalidTypeError: an argument is of a wrong type; at the call.
            InvalidValueError: ``timeout`` is negative or not finite; at the call.
            CoresidentError: when it is awaited, every other error of :meth:`write`.
        """

    def status(self) -> LockStatus:
        """Who holds the lock, and who waits for it. Does not wait.

        Raises:
            ForkedError: the lock was made before a fork.
        """

@final
class LockGuard:
    """The right to read or to write: what the calls of :class:`LoadLock` return.

    ``with`` releases it at the end. Whoever enters it holds it from then on. Entering a guard that
    has been released raises ``ReleasedError``.
    """

    @property
    def mode(self) -> _Mode:
        """What the lock is held for."""

    @property
    def released(self) -> bool:
        """Whether the lock is no longer held through this guard."""

    def release(self) -> None:
        """Lets the next in line go. From any thread; again without effect. Does not wait."""

    def hand_over(self) -> LockGuard:
        """Lets another thread or task have this guard, as :meth:`Lease.hand_over`. Does not wait.

        Returns:
            The guard itself.

        Raises:
            ReleasedError: it has been released.
        """

    def __enter__(self) -> LockGuard: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

@final
class LockStatus:
    """Everyone at a lock: what :meth:`LoadLock.status` returns."""

    @property
    def holders(self) -> list[LockUser]:
        """Those inside; one entry per guard."""

    @property
    def waiting(self) -> list[LockUser]:
        """Those who wait, in order of arrival."""

@final
class LockUser:
    """Who holds a lock or waits for it, and since when."""

    @property
    def owner(self) -> str:
        """``thread 'MainThread'``, ``task 'Task-1'``."""

    @property
    def mode(self) -> _Mode:
        """What the lock is held or wanted for."""

    @property
    def since(self) -> float:
        """When it was taken or the wait began, in seconds since the epoch, as ``time.time()``."""

    @property
    def seconds(self) -> float:
        """For how many seconds that has lasted."""

    @property
    def handed_over(self) -> bool:
        """Whether it was handed over, and nobody has entered it since; never of a waiter."""

# Workers

@final
class WorkerPool:
    """One persistent thread per device, which runs what it is given in order.

    A device's thread starts with its first task and lives until the pool is closed. A task sees a
    copy of the submitter's context, in which the worker's device is current, and the submitter's
    grad mode of torch. It can watch :func:`current_cancel_token`. ``with`` closes the pool at the
    end and waits: the tasks that are queued are run, or cancelled if the block raised. At the exit
    of the interpreter every task that was accepted is run.

    Args:
        devices: ``'auto'``, one device, or an iterable of devices. One given twice counts once.
        on_start: Called with the device, in the worker's thread, before its first task and again
            after :meth:`restart`. If it raises, its error is the outcome of every task until the
            next restart.
        torch_threads: Intra-op threads of torch for each worker; ``None`` divides torch's number by
            the number of devices.

    Raises:
        InvalidTypeError: ``devices`` or one of its items is no device, ``on_start`` cannot be
            called, or ``torch_threads`` is no whole number.
        InvalidValueError: ``torch_threads`` is less than 1.
        InvalidDeviceError: a text names no device, or the iterable is empty.
        DeviceNotFoundError: this machine does not have the device.

    Example:
        >>> with co.WorkerPool(co.virtual_devices(2)) as workers:
        ...     ticket = workers.post("virtual:0", pow, 2, 10)
        ...     print(workers.run("virtual:1", len, "abc"), ticket.result())
        3 1024
    """

    def __new__(
        cls,
        devices: _DeviceLike | Iterable[_DeviceLike],
        *,
        on_start: Callable[[Device], object] | None = None,
        torch_threads: int | None = None,
    ) -> Self: ...
    @property
    def devices(self) -> list[Device]:
        """The devices of the pool, in order."""

    def post(
        self,
        device: _DeviceLike,
        function: Callable[_P, _T],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Ticket[_T]:
        """Queues ``function(*args, **kwargs)`` on the device's worker. Does not wait.

        Args:
            device: The device.
            function: What to call there.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            A ticket for the outcome: cheaper than a future, and to be awaited as it is.

        Raises:
            DeviceNotFoundError: the device is not in this pool.
            InvalidDeviceError: the text names no device.
            InvalidTypeError: ``device`` is no device, or ``function`` cannot be called.
            ClosedError: the pool is closed.
            ForkedError: the pool was made before a fork.
            RuntimeError: the worker's thread could not be started.

        Example:
            >>> ticket = workers.post("cuda:0", decode, latents, tiled=True)
            >>> image = ticket.result(timeout=60)
        """

    def submit(
        self,
        device: _DeviceLike,
        function: Callable[_P, _T],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Future[_T]:
        """As :meth:`post`, with a real ``concurrent.futures.Future``. Does not wait.

        ``cancel()`` of the future also raises the cancel token of a running task, and ``result()``
        raises ``DeadlockError`` where it could never return.

        Args:
            device: The device.
            function: What to call there.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The future.

        Raises:
            CoresidentError: as :meth:`post`.

        Example:
            >>> futures = [workers.submit(device, render, device) for device in workers.devices]
            >>> for future in concurrent.futures.as_completed(futures):
            ...     show(future.result())
        """

    @overload
    def run(
        self,
        device: _DeviceLike,
        function: Callable[..., _T],
        /,
        *args: Any,
        timeout: float | None,
        cancel: CancelToken | None = None,
        **kwargs: Any,
    ) -> _T:
        """Calls ``function(*args, **kwargs)`` on the device's worker, and waits for its value.

        In the worker's own thread, and where the device is the current one, the function is called
        at once where it is, and neither ``timeout`` nor ``cancel`` ends it. When the wait ends
        first, the task is cancelled: it does not start, or its token is raised.

        Args:
            device: The device.
            function: What to call there.
            *args: Its arguments.
            timeout: Seconds to wait; ``None`` waits for ever. It is not passed on.
            cancel: A token that ends the wait. It is not passed on.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returns.

        Raises:
            BaseException: whatever the function, or the pool's ``on_start``, raised.
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised, before or while waiting; or the pool was closed
                with ``'cancel'`` before the task ran.
            DeadlockError: the worker waits, by however many steps, for something of the caller's.
            DeviceNotFoundError: the device is not in this pool.
            InvalidDeviceError: the text names no device.
            InvalidTypeError: an argument is of a wrong type, or ``function`` cannot be called.
            InvalidValueError: ``timeout`` is negative or not finite.
            ClosedError: the pool is closed.
            ForkedError: the pool was made before a fork.
            RuntimeError: the worker's thread could not be started.

        Example:
            >>> image = workers.run("cuda:0", decode, latents, timeout=60)
        """

    @overload
    def run(
        self,
        device: _DeviceLike,
        function: Callable[..., _T],
        /,
        *args: Any,
        timeout: float | None = None,
        cancel: CancelToken | None,
        **kwargs: Any,
    ) -> _T: ...
    @overload
    def run(
        self,
        device: _DeviceLike,
        function: Callable[_P, _T],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T: ...
    def scatter(
        self,
        calls: Mapping[_DeviceKey, Callable[[], _T]],
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> dict[_DeviceKey, _T]:
        """Calls one function per device at the same time, and waits for all of them.

        Where the caller is a device's worker, or the device is its current one, it makes that call
        itself, and neither ``timeout`` nor ``cancel`` ends it. When one call fails, the others are
        cancelled, and the error is raised once none of them runs or the time is over. When the wait
        ends first, they are cancelled and not waited for.

        Args:
            calls: What to call on which device, without arguments.
            timeout: Seconds to wait; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            The values by the keys of ``calls``, in their order.

        Raises:
            BaseException: what the first failing call, in the order of ``calls``, raised; that of
                the caller's own call before any other.
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised, before or while waiting; or the pool was closed
                with ``'cancel'`` before a task ran.
            DeadlockError: a worker waits, by however many steps, for something of the caller's.
            DeviceNotFoundError: a device is not in this pool; nothing is called then.
            InvalidDeviceError: a text names no device; nothing is called then.
            InvalidTypeError: an argument is of a wrong type; nothing is called then.
            InvalidValueError: a device is given twice, or ``timeout`` is negative or not finite;
                nothing is called then.
            ClosedError: the pool is closed.
            ForkedError: the pool was made before a fork.
            RuntimeError: a worker's thread could not be started.

        Example:
            >>> workers.scatter({"cuda:0": first_half, "cuda:1": second_half})
            {'cuda:0': ..., 'cuda:1': ...}
        """

    def restart(self, device: _DeviceLike) -> None:
        """Has ``on_start`` called again before the device's next task. Does not wait.

        The thread stays the same.

        Args:
            device: The device.

        Raises:
            DeviceNotFoundError: the device is not in this pool.
            InvalidDeviceError: the text names no device.
            InvalidTypeError: ``device`` is no device.
        """

    def close(
        self, how: Literal["drain", "cancel"] = "drain", *, timeout: float | None = None
    ) -> None:
        """Takes no more tasks, and waits until the workers are through. May be called again.

        Args:
            how: ``'drain'`` runs the tasks that are queued; ``'cancel'`` cancels them, and raises
                the tokens of those that run.
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks. When the time is over
                the pool stays closed, and the workers go on.

        Raises:
            WaitTimeoutError: the time was over; its ``running`` says what still runs.
            DeadlockError: a worker calls it, or waits for something of the caller's.
            InvalidTypeError: ``timeout`` is not a number.
            InvalidValueError: ``how`` is neither, or ``timeout`` is negative or not finite.
            TypeError: ``how`` is not a text.
        """

    def status(self) -> list[WorkerStatus]:
        """What every worker does. Does not wait.

        Returns:
            One entry per device, in order.

        Raises:
            ForkedError: the pool was made before a fork.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

@final
class Ticket(Generic[_T_co]):
    """One task on its way through a worker: what :meth:`WorkerPool.post` returns.

    ``await ticket`` gives the value without blocking the event loop, and raises as :meth:`result`.
    An asyncio task that is cancelled while it awaits a ticket leaves the worker's task alone.
    """

    def result(self, timeout: float | None = None, *, cancel: CancelToken | None = None) -> _T_co:
        """The value of the task; waits for it. The task goes on when the wait ends first.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            What the function returned.

        Raises:
            BaseException: whatever the function, or the pool's ``on_start``, raised.
            WaitTimeoutError: the time was over.
            CancelledError: the task was cancelled before it ran; or the token was raised before the
                task was over.
            DeadlockError: the worker waits, by however many steps, for something of the caller's.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the task was queued before a fork.
        """

    def join(self, timeout: float | None = None) -> None:
        """Waits until the task is over, however it ends.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.

        Raises:
            WaitTimeoutError: the time was over.
            DeadlockError: the worker waits, by however many steps, for something of the caller's.
            InvalidTypeError: ``timeout`` is not a number.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the task was queued before a fork.
        """

    def cancel(self, reason: str | None = None) -> bool:
        """Keeps a queued task from running; tells a running one through its cancel token.

        Does not wait.

        Args:
            reason: What the error of :meth:`result`, and the token, say.

        Returns:
            Whether the task was still queued; ``False`` if it runs or is over.

        Raises:
            TypeError: ``reason`` is not a text.
        """

    def done(self) -> bool:
        """Whether the task has returned, raised, or been cancelled. Does not wait.

        Raises:
            ForkedError: the pool was made before a fork.
        """

    def cancelled(self) -> bool:
        """Whether the task was cancelled before it ran. Does not wait.

        Raises:
            ForkedError: the pool was made before a fork.
        """

    def running(self) -> bool:
        """Whether the task runs now. Does not wait.

        Raises:
            ForkedError: the pool was made before a fork.
        """

    def __await__(self) -> Generator[Any, None, _T_co]: ...
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...

@final
class WorkerStatus:
    """A worker at a glance: an entry of :meth:`WorkerPool.status`."""

    @property
    def device(self) -> Device:
        """The device."""

    @property
    def state(self) -> Literal["not started", "idle", "running", "closed"]:
        """What the worker does; ``'closed'`` once it takes no more tasks and its thread left."""

    @property
    def queued(self) -> int:
        """Tasks that have not started."""

    @property
    def finished(self) -> int:
        """Tasks that the worker is through with."""

    @property
    def running_seconds(self) -> float | None:
        """For how many seconds the running task has run; ``None`` without one."""

@overload
def shares(  # type: ignore[overload-overlap] # a mapping is an iterable too, and goes first
    total: int, speeds: Mapping[_Key, float]
) -> dict[_Key, int]:
    """Splits ``total`` in proportion to ``speeds`` into whole numbers that add up to ``total``.

    By the largest remainder method (Hamilton's): everyone gets the whole part of an exact share,
    and what is left goes, one each, to the largest fractions, the earlier first. A speed of 0 gets
    0. Does not wait.

    Args:
        total: What is to be split, such as a number of images; 0 to 2**51.
        speeds: Finite numbers of 0 or more in any unit, at least one of them more than 0; an
            iterable, or a mapping of keys such as devices.

    Returns:
        A list in the order of ``speeds``; a ``dict`` with the same keys for a mapping.

    Raises:
        InvalidTypeError: ``total`` is no whole number, or ``speeds`` are not numbers.
        InvalidValueError: ``total`` or a speed is out of range, or there is no speed above 0.

    Example:
        >>> co.shares(10, {"cuda:0": 2.0, "cuda:1": 1.0})
        {'cuda:0': 7, 'cuda:1': 3}
    """

@overload
def shares(total: int, speeds: Iterable[float]) -> list[int]: ...

# Budgets

@final
class Budget:
    """A ledger of the bytes of one memory, with a limit.

    Reservations together never exceed the limit, nor what the memory really has to give: the budget
    looks at it at most every 50 ms, each budget for itself, and counts what others outside have
    taken. Waiters are served in order of arrival, however little a later one wants.

    Args:
        name: ``'ram'`` for host memory, or a device for its own.
        limit: The most that can be reserved: bytes, a text such as ``'12GiB'``, or a share such as
            ``'50%'`` of what this process may use, which in a container is the container's limit.
            ``None`` means all of a device; of host memory half less 2 GiB, at least 4 GiB and at
            most all, and 4 GiB where the system does not tell how much there is.
        headroom: Bytes of the memory that stay free, as a number or a text.
        probe: A function without arguments that returns the bytes that are free now, those included
            that an allocator of this process keeps without using them, or ``None`` if it does not
            know. ``None`` asks the device's driver, or the system; ``False`` asks nobody. One that
            raises, which is shown by ``sys.unraisablehook``, does not know.

    Raises:
        InvalidTypeError: an argument is of a wrong type.
        InvalidValueError: a limit or a size cannot be read, or ``limit`` is a share of a memory
            whose size is not known.
        InvalidDeviceError: ``name`` is a text that names no device.
        DeviceNotFoundError: this machine does not have the device.

    Example:
        >>> ram = co.Budget("ram", limit="50%")
        >>> with ram.reserve("3GiB", purpose="flux", timeout=10) as reservation:
        ...     print(reservation.nbytes, ram.used)
        3221225472 3221225472
    """

    def __new__(
        cls,
        name: _DeviceLike,
        limit: int | str | None = None,
        *,
        headroom: int | str | None = None,
        probe: Callable[[], int | None] | Literal[False] | None = None,
    ) -> Self: ...
    @property
    def name(self) -> str:
        """``'ram'``, or the name of the device."""

    @property
    def total(self) -> int | None:
        """The bytes of the memory that this process may use; ``None`` if they are not known."""

    @property
    def limit(self) -> int:
        """The most bytes that can be reserved.

        It can be set, to whatever the constructor takes. If it is lower than what is used, nothing
        is taken away: the evictors are called for the difference, and nothing more is granted until
        it fits. Who waits for more than the new limit is turned away.
        """

    @limit.setter
    def limit(self, limit: int | str) -> None: ...
    @property
    def headroom(self) -> int:
        """The bytes of the memory that stay free. It can be set, like :attr:`limit`."""

    @headroom.setter
    def headroom(self, headroom: int | str) -> None: ...
    @property
    def used(self) -> int:
        """The bytes that are reserved."""

    @property
    def free(self) -> int:
        """The bytes that can be reserved now, by the last look at the memory."""

    @property
    def peak(self) -> int:
        """The most bytes that were ever reserved."""

    def reserve(
        self,
        nbytes: int | str,
        *,
        purpose: str | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Reservation:
        """Reserves bytes; waits in line for them.

        Whoever comes first in line calls the evictors for what is missing, and looks at the memory
        again every 50 ms. In an event loop this call would block the loop: run it with
        ``asyncio.to_thread``.

        Args:
            nbytes: How many, as a number or a text such as ``'3GiB'``; 0 is granted at once.
            purpose: What they are for, which errors and :meth:`status` say instead of who has them.
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The reservation, to be used with ``with`` or released. It stays when its thread ends.

        Raises:
            BudgetExceededError: more than could ever be reserved.
            BudgetTimeoutError: the time was over; says who has the rest.
            CancelledError: the token was raised, before or while waiting.
            DeadlockError: the wait could never end, because nobody else has bytes, or those who
                have wait for something of the caller's.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``nbytes`` or ``timeout`` is out of range or cannot be read.
            ForkedError: the budget was made before a fork.
        """

    def try_reserve(self, nbytes: int | str, *, purpose: str | None = None) -> Reservation | None:
        """Reserves bytes if they are free now, even before those who wait. Does not wait.

        Calls no evictor.

        Args:
            nbytes: How many, as a number or a text.
            purpose: What they are for.

        Returns:
            The reservation, or ``None`` if they are not free.

        Raises:
            BudgetExceededError: more than could ever be reserved.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``nbytes`` is out of range or cannot be read.
            ForkedError: the budget was made before a fork.
        """

    def add_evictor(self, evictor: Callable[[int], object], *, priority: int = 0) -> None:
        """Has a function called when bytes are missing. Does not wait.

        Args:
            evictor: Called with the number of missing bytes, in the thread that wants them and with
                no lock held. It releases reservations, or frees memory that the probe sees, as much
                as it can, and returns; it must not wait for bytes of this budget. An exception of
                it is shown by ``sys.unraisablehook``, and the next one is called; Ctrl-C in it ends
                the wait. Reservations that are released later, by themselves, must have been handed
                over, or a wait for them may be taken for a deadlock.
            priority: Those with lower numbers are called first, equal ones in the order in which
                they were added.

        Raises:
            InvalidTypeError: ``evictor`` cannot be called.
            TypeError: ``priority`` is not a whole number.
        """

    def remove_evictor(self, evictor: Callable[[int], object]) -> bool:
        """Has the function called no more. Does not wait.

        Returns:
            Whether it was there.
        """

    def look(self) -> None:
        """Looks at the memory now, however long ago the last look was. Does not wait.

        Raises:
            ForkedError: the budget was made before a fork.
        """

    def status(self) -> BudgetStatus:
        """Who has bytes, and who waits for some. Does not wait.

        Raises:
            ForkedError: the budget was made before a fork.
        """

@final
class Reservation:
    """So many bytes of a memory, until they are released.

    Any thread may use and release it. Growing, shrinking, splitting and moving happen as one step,
    or not at all.
    """

    @property
    def nbytes(self) -> int:
        """The bytes; 0 once they are released."""

    @property
    def filled(self) -> int:
        """How many of the bytes are in memory already, as :meth:`fill` has said."""

    @property
    def budget(self) -> Budget:
        """The budget that they are of."""

    @property
    def released(self) -> bool:
        """Whether the bytes have been given back."""

    def release(self) -> None:
        """Gives the bytes back. From any thread; again without effect. Does not wait."""

    def fill(self, nbytes: int | str) -> None:
        """Says how many of the bytes are in memory now, where the probe sees them. Does not wait.

        What is not filled is a promise, and is kept free beside what the probe sees in use; what is
        filled is not charged a second time.

        Args:
            nbytes: How many of all, as a number or a text.

        Raises:
            InvalidValueError: more than it has.
            ReleasedError: it has been released.
            InvalidTypeError: ``nbytes`` is of a wrong type.
            ForkedError: the budget was made before a fork.
        """

    def grow(
        self,
        nbytes: int | str,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Reserves more and adds it; waits in line. Keeps what it has if that fails.

        Args:
            nbytes: How many more, as a number or a text.
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Raises:
            ReleasedError: it has been released, also meanwhile.
            CoresidentError: as :meth:`Budget.reserve`.
        """

    def shrink(self, nbytes: int | str) -> None:
        """Gives some of the bytes back, first those that are not filled. Does not wait.

        Args:
            nbytes: How many, as a number or a text.

        Raises:
            InvalidValueError: more than it has.
            ReleasedError: it has been released.
            InvalidTypeError: ``nbytes`` is of a wrong type.
            ForkedError: the budget was made before a fork.
        """

    def split(self, nbytes: int | str) -> Reservation:
        """Makes a reservation of its own of some of the bytes, first those that are not filled.

        Does not wait.

        Args:
            nbytes: How many, as a number or a text.

        Returns:
            The reservation of those.

        Raises:
            CoresidentError: as :meth:`shrink`.
        """

    def move_to(
        self,
        budget: Budget,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Moves the bytes to another budget; waits in its line. Stays where it is if that fails.

        They are charged there before they are given back here. Nothing of them is filled there.

        Args:
            budget: The other budget.
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Raises:
            ReleasedError: it has been released, also meanwhile.
            CoresidentError: as :meth:`Budget.reserve`.
            TypeError: ``budget`` is no budget.
        """

    def hand_over(self) -> Reservation:
        """Says that nobody in particular will release it, so that waiting for its bytes is never
        taken for a deadlock. Does not wait.

        Returns:
            The reservation itself.
        """

    def __enter__(self) -> Self:
        """Nothing more: it is reserved already. Raises ``ReleasedError`` after the release."""

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Releases it."""

@final
class BudgetStatus:
    """A budget at a glance: what :meth:`Budget.status` returns."""

    @property
    def name(self) -> str:
        """The budget's name."""

    @property
    def limit(self) -> int:
        """The most bytes that can be reserved."""

    @property
    def headroom(self) -> int:
        """The bytes of the memory that stay free."""

    @property
    def used(self) -> int:
        """The bytes that are reserved."""

    @property
    def peak(self) -> int:
        """The most bytes that were ever reserved."""

    @property
    def free(self) -> int:
        """The bytes that can be reserved now."""

    @property
    def outside(self) -> int:
        """The bytes of the memory that others have, by the last look at it."""

    @property
    def holders(self) -> list[BudgetUser]:
        """Who has bytes; those with most first."""

    @property
    def waiting(self) -> list[BudgetUser]:
        """Who waits for bytes, in order of arrival."""

@final
class BudgetUser:
    """Who has bytes of a budget or waits for some, and since when."""

    @property
    def holder(self) -> str:
        """The purpose in quotes, else ``thread 'MainThread'`` or ``task 'Task-1'``."""

    @property
    def nbytes(self) -> int:
        """How many bytes."""

    @property
    def since(self) -> float:
        """When that began, in seconds since the epoch, as ``time.time()``."""

    @property
    def seconds(self) -> float:
        """For how many seconds it has lasted."""

# Weights

@final
class WeightStore:
    """One host copy of each model's weights, whoever uses it.

    A key, such as ``'flux/transformer'``, stands for the weights of one model. Whoever opens a key
    that is there shares its memory, and whoever comes while it is being loaded waits for that one
    load and shares its outcome, or its error. Bytes are counted by memory, not by name: tied
    tensors and views once, however many devices use them; two keys on one file are two maps of it.
    Any thread may use the store.

    Without a budget, weights go when the last :class:`Weights` and the last tensor taken from them
    are gone. With one, every byte is reserved there, and weights that nobody uses are kept until
    the budget needs the bytes; then those go first that are the cheapest to bring back, by the
    byte (:attr:`WeightsStatus.cost`), and were used the least: Greedy-Dual-Size-Frequency
    (Cherkasova, HP Labs, 1998).

    A file that is replaced while it is open stays what it was for those who have it. One that is
    shortened in place takes the process with it when it is touched, as with every map: replace
    files by renaming, or open them with ``copy=True``.

    Args:
        budget: Where bytes are reserved.

    Example:
        >>> store = co.WeightStore(budget=co.Budget("ram", "50%"))
        >>> with store.open("flux/transformer", "model.safetensors") as weights:
        ...     tensor = torch.from_dlpack(weights["blocks.0.weight"])
    """

    def __new__(cls, *, budget: Budget | None = None) -> Self: ...
    @property
    def budget(self) -> Budget | None:
        """The budget in which every byte is reserved; ``None`` without one."""

    def open(
        self,
        key: str,
        path: str | PathLike[str],
        *,
        settings: Mapping[str, object] | None = None,
        copy: bool | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Weights:
        """The weights at a path, under a key: loaded, or those that are there already.

        Waits for somebody else who is loading the key, for the budget, and with ``copy`` for the
        disk. Files are mapped read-only: only their headers are read, and the system reads the rest
        when it is used.

        Args:
            key: What the weights are called. No slash at its beginning or end.
            path: A safetensors or GGUF file; an index of several safetensors files
                (``*.safetensors.index.json``); or a folder with one of these, as diffusers and
                transformers write it.
            settings: What else tells these weights from others under the key, compared as text,
                such as ``{'dtype': 'float16'}``.
            copy: Whether to copy the tensors into sealed memory of the store's own, read by several
                threads, instead of mapping the files. ``None`` is content with what is there; if
                nothing is, it copies what is on a network's file system, where a map would end the
                process when the network fails.
            timeout: Seconds to wait, also for the copy; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The weights, to be used with ``with``, released, or forgotten.

        Raises:
            WeightsFileNotFoundError: a file is not there.
            WeightsFileError: a file cannot be opened, mapped or read, or a folder has no weights,
                or several.
            MalformedWeightsError: a file is something else, broken, or cut short.
            WeightsInUseError: the key stands for something else; says the first difference.
            WeightsMemoryError: the system has no memory for a copy.
            BudgetExceededError: more bytes than the budget could ever have.
            BudgetTimeoutError: the time was over before the budget had the bytes; says who has
                them.
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised, before or while waiting.
            DeadlockError: whoever loads the key waits for something of the caller's.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: the key is empty or has a slash at an end, or ``timeout`` is
                negative.
            TypeError: ``copy`` is neither a ``bool`` nor ``None``.
            ForkedError: the store was made before a fork.
        """

    def share(
        self,
        key: str,
        tensors: Mapping[str, Any],
        *,
        settings: Mapping[str, object] | None = None,
        copy: bool | None = None,
        cost: float | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Weights:
        """Tensors that somebody has in memory, under a key; or those that are there already.

        Those that are there are taken if they have the same names, types and shapes; the values are
        not compared. Waits for somebody else who is loading the key, and for the budget.

        Args:
            key: What the weights are called.
            tensors: A mapping of names to anything with ``__dlpack__`` in host memory: tensors of
                torch, numpy or jax, contiguous or not. Gradients are left behind.
            settings: As for :meth:`open`.
            copy: Whether to copy the elements, row-major, into sealed memory of the store's own, so
                that nobody else can write them. ``None`` does not.
            cost: Seconds that it took to make the tensors, such as by reading, converting,
                dequantising or compiling, and would take again once they are gone; ``None`` if
                that is not known. Of weights that nobody uses any more those go first that are
                cheap to bring back. Finite, 0 or more. Weights that are there keep the cost that
                they have.
            timeout: Seconds to wait, also for the copy of more than a few megabytes; ``None`` waits
                for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The weights. They keep the tensors that they were made of.

        Raises:
            UnshareableTensorError: a tensor is on another device, of a type that is not known, or
                is not exported by its library.
            CoresidentError: as :meth:`open`.
        """

    def acquire(self, key: str) -> Weights:
        """The weights under a key that is there. Does not wait, and looks at no file.

        Raises:
            WeightsNotOpenError: nothing is there under the key.
            InvalidTypeError: ``key`` is no text.
            ForkedError: the store was made before a fork.
        """

    def invalidate(self, key: str) -> int:
        """Retires a key and everything below it, such as ``'flux/vae'`` below ``'flux'``.

        Whoever has the weights keeps them, whole and counted; nobody gets them any more, and the
        key can stand for something else at once. Does not wait.

        Returns:
            How many keys were retired.

        Raises:
            InvalidTypeError: ``key`` is no text.
            InvalidValueError: the key is empty or has a slash at an end.
            ForkedError: the store was made before a fork.
        """

    def clear(self) -> int:
        """Lets go of all weights that nobody uses, and of spare slabs.

        Returns:
            Their bytes.

        Raises:
            ForkedError: the store was made before a fork.
        """

    def status(self) -> list[WeightsStatus]:
        """What is there, and what is retired but still used, by key and version. Does not wait.

        Raises:
            ForkedError: the store was made before a fork.
        """

    def stats(self) -> dict[str, int]:
        """Bytes of all weights by what holds them. Does not wait.

        Returns:
            ``'mapped'`` files, ``'slab'`` for sealed memory of the store's own, ``'foreign'`` for
            memory of those who shared it, and ``'pinned'`` for such that is locked for a GPU.
            ``'spare'`` are slabs that hold nothing now and are filled again by the next load; their
            bytes stay reserved until somebody waits for bytes of the budget or :meth:`clear` is
            called, like those of weights that nobody uses. Without a budget there are none.

        Raises:
            ForkedError: the store was made before a fork.
        """

    @property
    def locked(self) -> int:
        """Bytes of weights and spare slabs that are page-locked for copies to GPUs: ``pin`` of
        :class:`Arena`.

        Raises:
            ForkedError: the store was made before a fork.
        """

@final
class WeightsStatus:
    """Weights at a glance: an entry of :meth:`WeightStore.status`."""

    @property
    def key(self) -> str:
        """The key."""

    @property
    def version(self) -> int:
        """Which version of the key: every load has another number."""

    @property
    def path(self) -> Path | None:
        """The file or folder; ``None`` for tensors that were shared from memory."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory, each counted once."""

    @property
    def kinds(self) -> dict[str, int]:
        """The bytes by what holds them, as :meth:`WeightStore.stats` has it."""

    @property
    def locked(self) -> int:
        """The bytes of them that are page-locked for copies to GPUs: ``pin`` of :class:`Arena`."""

    @property
    def cost(self) -> float:
        """Seconds that it takes to bring them back once they are gone, as far as is known.

        What was copied or read into memory of the store's own: as long as that took. What is
        mapped: as long as the slowest :meth:`Weights.prefetch` took, and at least a second for
        each GiB, because the system is told to forget a file that is evicted. Beside that, what
        :meth:`WeightStore.share` was told.
        """

    @property
    def holders(self) -> int:
        """How many weights and tensors of them are in somebody's hands."""

    @property
    def retired(self) -> bool:
        """Whether the key has been invalidated since."""

@final
class Weights:
    """The tensors of one key, by name: a read-only mapping.

    Tensors that were taken from it stay valid after its release: each keeps the weights.
    """

    @property
    def key(self) -> str:
        """The key under which they were opened."""

    @property
    def version(self) -> int:
        """Which version of the key: every load has another number."""

    @property
    def path(self) -> Path | None:
        """The file or folder; ``None`` for tensors that were shared from memory."""

    @property
    def nbytes(self) -> int:
        """The bytes of memory that the tensors take, each counted once.

        Raises:
            ReleasedError: they have been released.
        """

    @property
    def kinds(self) -> dict[str, int]:
        """The bytes by what holds them, as :meth:`WeightStore.stats` has it.

        Raises:
            ReleasedError: they have been released.
        """

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself, such as ``{'format': 'pt'}``; arrays of GGUF are left out.

        Raises:
            ReleasedError: they have been released.
        """

    @property
    def retired(self) -> bool:
        """Whether the key has been invalidated since.

        Raises:
            ReleasedError: they have been released.
        """

    @property
    def released(self) -> bool:
        """Whether they are no longer held through this object."""

    def prefetch(
        self,
        *,
        threads: int | None = None,
        progress: Callable[[int, int], object] | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Reads all of what is mapped, so that later use does not wait for the disk; waits for it.

        Several threads of Rust do it, without the interpreter: no other thread is held up. What has
        been read stays read when the wait ends early.

        Args:
            threads: How many, 1 to 256; ``None`` for one per core.
            progress: Called about every 50 ms in the calling thread with the bytes that are there
                and the bytes that there will be, and at the end with both equal. What it raises
                ends the wait.
            timeout: Seconds to wait; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Raises:
            WeightsFileError: the file has been cut short since it was opened.
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised.
            BaseException: what ``progress`` raised.
            ReleasedError: they have been released.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``threads`` or ``timeout`` is out of range.
        """

    def release(self) -> None:
        """Lets go of them. Again without effect.

        Does not wait: large ones are unmapped behind, and their bytes given back after that.
        """

    def keys(self) -> list[str]:
        """The names of the tensors, in the order in which they lie in the file.

        Raises:
            ReleasedError: they have been released.
        """

    def values(self) -> list[Tensor]:
        """The tensors, in the order of :meth:`keys`. Raises as it does."""

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and tensors, in the order of :meth:`keys`. Raises as it does."""

    def state_dict(self) -> dict[str, Any]:
        """torch's tensors by name, in the order of :meth:`keys`, for
        ``module.load_state_dict(weights.state_dict(), assign=True)``.

        Each is ``torch.from_dlpack`` of the tensor of that name: the weights' own memory, read-only
        although torch does not know it. They are made once: until all who have asked for them have
        released their weights, everybody gets the same tensors, each in a dict of its own. So
        change none of them in place, not their ``requires_grad`` either. A module that they are
        assigned to has parameters of its own. Each tensor keeps the weights.

        A tensor that is not aligned in its file, as in some old ones, is a copy that no budget
        knows; ``copy=True`` when the weights are opened avoids that. Imports torch, and waits for
        nothing else.

        Raises:
            ImportError: torch is not installed.
            BufferError: torch cannot take one of them; says which.
            MemoryError: there is no memory for a copy.
            ReleasedError: they have been released.
        """

    def private(self) -> PrivateWeights:
        """A map of the same bytes of the caller's own, which may be written.

        What is not written is the same memory, in host memory once; what is written is copied, a
        page at a time, and nobody else sees it. Does not wait.

        Raises:
            WeightsNotMappedError: they were shared from memory of others, without ``copy=True``.
            WeightsMemoryError: the system refuses another map.
            ReleasedError: they have been released.
        """

    @overload
    def get(self, name: str) -> Tensor | None:
        """The tensor of this name, or ``default``.

        Raises:
            ReleasedError: they have been released.
        """

    @overload
    def get(self, name: str, default: _T) -> Tensor | _T: ...
    def __getitem__(self, name: str, /) -> Tensor:
        """The tensor of this name.

        Raises:
            TensorNotFoundError: there is none; names those that are most alike.
            InvalidTypeError: ``name`` is no text.
            ReleasedError: they have been released.
        """

    def __contains__(self, name: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def __enter__(self) -> Self:
        """Nothing more: they are held already. Raises ``ReleasedError`` after the release."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Releases them."""

@final
class PrivateWeights:
    """The bytes of some weights, for one who may write them. Keeps the weights."""

    def state_dict(self) -> dict[str, Any]:
        """torch's tensors by name, new ones each time, over the same private memory. Does not wait.

        A tensor that is not aligned in its file, as in some old ones, is a copy: what is written to
        it is neither found nor undone. :meth:`copies` names them.

        Raises:
            ImportError: torch is not installed.
            BufferError: torch cannot take one of them.
        """

    def copies(self) -> list[str]:
        """The names of the tensors that are no part of the map, because they are not aligned."""

    def changed(self) -> list[str]:
        """The names of the tensors that are no longer what the weights are, whoever wrote them and
        however. Does not wait.

        On Linux it costs a look at the page tables, and a comparison of the pages written;
        elsewhere a comparison of everything.

        Raises:
            WeightsMemoryError: the system does not tell.
        """

    def restore(self) -> list[str]:
        """Makes all tensors what the weights are again, in place, and gives back the memory of what
        was written. Nobody should be writing meanwhile. Does not wait.

        Returns:
            The names of the tensors that had been changed.

        Raises:
            WeightsMemoryError: the system does not tell which.
        """

@final
class Tensor:
    """One tensor of some weights, where it lies: read-only. Keeps the weights.

    ``torch.from_dlpack(tensor)`` and ``numpy.from_dlpack(tensor)`` are views of the weights' own
    memory, without a copy. torch does not know read-only memory: writing into such a view ends the
    process.
    ``torch.from_dlpack(tensor, copy=True)`` is the caller's own. numpy has no ``bfloat16`` and no
    types of fewer than 8 bits or of 8-bit floats.
    """

    @property
    def dtype(self) -> str:
        """The type of the elements, as torch names it: ``'bfloat16'``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, the slowest first. Of ``'float4_e2m1fn_x2'`` it counts single numbers."""

    @property
    def nbytes(self) -> int:
        """The number of bytes of its elements."""

    @property
    def packing(self) -> tuple[str, int] | None:
        """How the numbers of a quantised tensor are packed: GGUF's name and number of it, such as
        ``('Q4_K', 12)``.

        Such a tensor is ``'uint8'``, and the last of its dimensions counts the bytes of a row's
        blocks, as dequantisers take them. ``None`` for plain tensors.
        """

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The tensor as a DLPack capsule, versioned and flagged read-only where the consumer can.

        As the `array API standard <https://data-apis.org/array-api/latest/>`_ has it. A tensor that
        is not aligned in its file, as in some old ones, is copied.

        Args:
            stream: Ignored: host memory needs none.
            max_version: The newest version of DLPack that the consumer understands.
            dl_device: Host memory, ``(1, 0)``, or ``None``.
            copy: ``True`` for memory of the caller's own, ``False`` to refuse a copy.

        Raises:
            BufferError: for another device, or where ``copy=False`` cannot be had.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """Host memory: ``(1, 0)``, or ``(3, 0)`` if it is pinned."""

# Device memory

@final
class Arena:
    """One device's memory in pages of 2 MiB, and the models that have some of it.

    A :class:`~coresident.Runtime` has one for each device whose memory has pages. Models use it by
    ``Model.on``; what follows is for those who place weights themselves.

    Whoever misses pages gets a turn, in order of arrival, and reserves all their bytes at once.
    What is evicted first has the lowest priority, then is what a planner says, or what was not used
    for longest; of one model the last pages go first. Evicting copies nothing: the host has the
    weights.

    A GPU without virtual memory management (of some virtual machines, and old ones) gives memory no
    address of one's choice. There the pages of a block come and leave together: whole tensors up to
    32 MiB, or one that is larger. Tensors have addresses only while they are pinned
    (:attr:`moving`). Everything else is the same; a block that makes room for one of as many bytes
    becomes that, and giving back any other waits until the device is idle.

    Args:
        device: A device that is :attr:`~Device.paged`.
        budget: What the pages are charged to. It asks the arena for bytes that somebody misses.
        ram: The budget of the host's memory to which page-locked buffers are charged, from the
            first copy until the arena is gone: 32 MiB for each CUDA device.
        pin: What of the host's memory is page-locked, so that a GPU can read it on its own.
            ``'staging'``: these buffers, through which all copies go. ``'all'``: the weights too,
            where they lie, if they are in the store's own memory (``copy=True``): large tensors go
            from there, small ones together through the buffers, and so does what the system refuses
            to lock. What is locked is let go with its memory. ``'none'``: nothing. Virtual devices
            copy from anywhere.
        planner: Who says what is evicted first, and learns what is used; of the same device. One
            with the policy ``'always-evict'`` sets both watermarks to 0.
        timeline: Where it records what happens; ``None`` for nowhere.

    Raises:
        InvalidDeviceError: there can be no pages on the device.
        InvalidValueError: ``pin`` is something else, or the planner is another device's.
        InvalidTypeError: a budget is none, or the planner or the timeline.
        DeviceNotFoundError: this machine does not have it.

    Example:
        >>> [device] = co.virtual_devices(1, memory="64MiB")
        >>> arena = co.Arena(device, co.Budget(device))
        >>> area = arena.area(weights)
        >>> with area.fault():
        ...     tensors = area.state_dict()
    """

    def __new__(
        cls,
        device: _DeviceLike,
        budget: Budget,
        *,
        ram: Budget | None = None,
        pin: str = "staging",
        planner: Planner | None = None,
        timeline: Timeline | None = None,
    ) -> Self: ...
    @property
    def device(self) -> Device:
        """The device."""

    @property
    def moving(self) -> bool:
        """Whether tensors come to other addresses each time they come. On CUDA it is the first use
        of the device's memory that tells.

        Raises:
            DeviceLostError: the device cannot be used.
            ForkedError: the arena is another process's.
        """

    @property
    def budget(self) -> Budget:
        """What the pages are charged to."""

    @property
    def ram(self) -> Budget | None:
        """The budget to which page-locked buffers are charged; ``None`` without one."""

    @property
    def timeline(self) -> Timeline | None:
        """Where it records what happens; ``None`` without one."""

    @property
    def pin(self) -> str:
        """What of the host's memory is page-locked: ``'staging'``, ``'all'`` or ``'none'``."""

    @property
    def planner(self) -> Planner | None:
        """Who says what is evicted first; ``None`` without one."""

    def area(
        self,
        weights: Weights | PrivateWeights,
        order: Iterable[str] | None = None,
        *,
        groups: Sequence[int] | None = None,
    ) -> Area:
        """The place of some weights on the device: the one that somebody has, or a new one,
        of which nothing is resident. Does not wait.

        Args:
            weights: What its pages are filled from.
            order: The names of the tensors that it has, in the order in which they are to lie;
                ``None`` for all, in the order of the file. Of no effect on one that is there.
            groups: Where in the order groups of tensors begin that share no page, as for
                :meth:`Area.stream_blocks`. The area is a new one then, that nobody else gets.

        Raises:
            InvalidTypeError: ``weights`` are no weights, or ``order`` is no list of names.
            TensorNotFoundError: the weights have no tensor of one of the names.
            DeviceMemoryError: there are no addresses for it.
            ReleasedError: the weights have been released.
            ForkedError: the arena is another process's.
        """

    def evict(self, nbytes: int | str | None = None) -> int:
        """Evicts pages that nobody uses, the least wanted first. Does not wait: what a stream still
        uses stays.

        Args:
            nbytes: How many bytes; ``None`` for all that there are.

        Returns:
            The bytes that are free now.

        Raises:
            InvalidTypeError: ``nbytes`` is neither a number nor a text.
            ForkedError: the arena is another process's.
        """

    def set_watermarks(self, low: int | str, high: int | str | None) -> None:
        """Sets when pages leave without anybody asking: when some are unpinned and more than
        ``high`` bytes are resident, until ``low`` are left. Holds at once. Does not wait.

        Args:
            low: Where it ends, in bytes. With 0 and 0 nothing stays that is not used.
            high: Where it begins; ``None``, as at first, is never.

        Raises:
            InvalidTypeError: one of them is no number of bytes.
            InvalidValueError: ``low`` is more than ``high``.
            ForkedError: the arena is another process's.
        """

    def status(self) -> ArenaStatus:
        """What is resident now, and who uses it. Does not wait.

        Raises:
            ForkedError: the arena is another process's.
        """

@final
class Planner:
    """Decides which weights leave a device first, so that the fewest bytes are copied there.

    A :class:`~coresident.Runtime` has one for each device. It runs the same policies on a live
    device that :func:`coresident.trace.replay` runs on traces. It knows what was used, which jobs
    run and what they will still use, and which jobs come next, if somebody tells. Whatever it takes
    to be so and is not costs time, and nothing else.

    Args:
        device: The device, or its name.
        policy: One of :data:`coresident.trace.POLICIES`.
        pool: Whose leases bound jobs that nobody has declared: what is used under one lease is one
            job. ``None``: a job begins when what began the last one comes again.

    Raises:
        InvalidValueError: there is no such policy.
        InvalidTypeError: an argument is of a wrong type.
        InvalidDeviceError: a text that names no device.
        DeviceNotFoundError: this machine does not have it.

    Example:
        >>> planner = co.Planner("virtual:0")
        >>> with planner.job(["clip", "unet", "vae"]):
        ...     planner.used("clip", 250 << 20)
        ...     planner.order(["unet", "clip"])
        ['clip', 'unet']
    """

    def __new__(
        cls,
        device: _DeviceLike,
        policy: str = "look-ahead",
        *,
        pool: DevicePool | None = None,
    ) -> Self: ...
    @property
    def device(self) -> Device:
        """The device."""

    @property
    def policy(self) -> str:
        """The name of its policy."""

    @property
    def forecast(self) -> Any:
        """Which jobs come next on the device, without those that run: a list of jobs, in order,
        each a list of the keys of the weights that it uses, in order; or a function that returns
        one for ``(device, most)``, of ``most`` jobs at most; ``None`` if nobody knows.

        The function is called from any thread, whenever the device comes to other weights or lacks
        room, and must be quick. What it raises is shown as an unraisable exception, and nothing is
        known then.

        Raises:
            InvalidTypeError: when it is set to something else.
        """

    @forecast.setter
    def forecast(self, forecast: Any) -> None: ...
    def job(self, stages: Iterable[str] | None = None) -> RunningJob:
        """A job begins on the device. What the caller uses there, and what is used in contexts that
        come from his, such as tasks and workers, is used by it, until it is released. Jobs may run
        beside each other and within each other. Does not wait.

        Args:
            stages: The keys of the weights that it uses, in order, again whenever they come again;
                ``None`` if that is not known: then what jobs used before that began like it.

        Raises:
            InvalidTypeError: ``stages`` is no list of keys.
            ForkedError: the planner is another process's.
        """

    def used(self, key: str, nbytes: int | str) -> None:
        """Says that weights are used now, by the job of this context or else of this thread; an
        arena that has the planner says so itself. Waits for nothing but the forecast.

        Args:
            key: What they are called.
            nbytes: How many bytes of the device they take.

        Raises:
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``nbytes`` is negative, or a text that is no size.
        """

    def left(self, key: str) -> None:
        """Says that nothing is left of weights on the device; an arena does that itself.

        Raises:
            InvalidTypeError: ``key`` is no text.
        """

    def recorded_job(self) -> int:
        """By which number a timeline has what the caller uses on the device now: that of a job
        that was declared, else of the lease; 0 for no job in particular. Does not wait."""

    def order(self, keys: Iterable[str]) -> list[str]:
        """Puts weights in the order in which they should leave if room was missing now. Waits for
        nothing but the forecast.

        Args:
            keys: What they are called. None of them is in use.

        Raises:
            InvalidTypeError: ``keys`` is no list of keys.
        """

@final
class RunningJob:
    """A job on a device, until it is released: what a planner attributes uses to. Made by
    :meth:`Planner.job` and :meth:`Runtime.job`, and to be used with ``with`` or released."""

    @property
    def device(self) -> str:
        """The name of the device."""

    @property
    def number(self) -> int:
        """By which number a timeline has what is done for it, which no other job of this process
        has."""

    @property
    def released(self) -> bool:
        """Whether it has ended."""

    def release(self) -> None:
        """Ends it. From any thread; again without effect. Does not wait."""

    def __enter__(self) -> Self:
        """Has this context carry it.

        Raises:
            ReleasedError: it has ended.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Ends it."""

@final
class ArenaStatus:
    """An arena at a glance."""

    @property
    def device(self) -> str:
        """The name of the device."""

    @property
    def page(self) -> int:
        """Bytes of a page."""

    @property
    def resident(self) -> int:
        """Bytes of pages that have memory, or are on their way."""

    @property
    def pinned(self) -> int:
        """Bytes of those that are in use."""

    @property
    def evictable(self) -> int:
        """Bytes of those that are not: what could be free, on this device alone."""

    @property
    def filled(self) -> int:
        """Bytes of all pages that have been filled since the arena was made."""

    @property
    def evicted(self) -> int:
        """Bytes of all pages that have left since then."""

    @property
    def low(self) -> int:
        """The low watermark, in bytes."""

    @property
    def high(self) -> int | None:
        """The high watermark, in bytes; ``None`` without one."""

    @property
    def areas(self) -> list[AreaStatus]:
        """The models; the least wanted first."""

@final
class AreaStatus:
    """What one model has of an arena."""

    @property
    def key(self) -> str:
        """The key of its weights."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its pages."""

    @property
    def resident(self) -> int:
        """Bytes of those that have memory, or are on their way."""

    @property
    def pinned(self) -> int:
        """Bytes of those that are in use."""

    @property
    def priority(self) -> int:
        """Those of a lower one are evicted first."""

    @property
    def pinned_tensors(self) -> list[str]:
        """The names of tensors of :meth:`Area.pinned` that somebody has: they keep their pages."""

@final
class Area:
    """A model's place in a device's memory: addresses for all of its tensors, memory for some.

    Everybody who asks for the same weights has the same. When nobody has it any more, its pages
    leave.
    """

    @property
    def key(self) -> str:
        """The key of the weights."""

    @property
    def arena(self) -> Arena:
        """The arena."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, with what lies between them; the pages have less than one more."""

    @property
    def pages(self) -> int:
        """How many pages there are addresses for."""

    @property
    def priority(self) -> int:
        """Areas of a lower priority are evicted first; 0 at first. May be set at any time.

        Raises:
            InvalidValueError: it is no whole number of 64 bits.
            ForkedError: the arena is another process's.
        """

    @priority.setter
    def priority(self, priority: int) -> None: ...
    def keys(self) -> list[str]:
        """The names of the tensors, in the order in which they lie there."""

    def block(self, names: Iterable[str]) -> Block:
        """The pages of some tensors, to be made resident in one call. Does not wait.

        Raises:
            InvalidTypeError: ``names`` is no list of names.
            TensorNotFoundError: there is no tensor of one of the names.
        """

    def fault(
        self,
        block: Block | None = None,
        *,
        working_memory: int | str | None = None,
        stream: int | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Pins:
        """Makes pages resident, with their content, and pins them. Pages that are there are not
        copied again. Waits in line for bytes, and for the copies.

        Args:
            block: Which pages; ``None`` for all.
            working_memory: Bytes to be reserved with them, or a text such as ``'3GiB'``.
            stream: On CUDA, the handle of the stream that uses them: what comes there comes after
                the copies, which are not waited for; and they leave after what is there when they
                are unpinned. ``None`` is the default stream. On a virtual device, ``None``.
            timeout: Seconds to wait; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            What keeps them, to be used with ``with`` or released.

        Raises:
            InvalidTypeError: ``block`` is none, or a size is neither a number nor a text.
            InvalidValueError: the block is of another area.
            BudgetExceededError: they can never fit.
            BudgetTimeoutError: the time was over before there were the bytes.
            WaitTimeoutError: it was over before it was the caller's turn, or the copies were done.
            CancelledError: the token was raised.
            DeadlockError: the caller has the bytes himself, or two have each other's.
            DeviceMemoryError: the device is full, whatever the budget says.
            DeviceLostError: a copy has failed.
            ForkedError: the arena is another process's.
        """

    def stream_blocks(
        self,
        blocks: list[list[str]],
        *,
        working_memory: int | str | None = None,
        leave: int | str | None = None,
        stream: int | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Streaming:
        """Streams the area, which has to be one of its own, made with ``groups``: tensors that are
        in no block stay resident. Waits in line for the bytes of these and of the largest block;
        takes more if there are some.

        Args:
            blocks: The names of each block's tensors; no two blocks have a page in common.
            working_memory: Bytes to be reserved beside, or a text such as ``'3GiB'``.
            leave: Bytes to be left to others.
            stream: As for :meth:`fault`.
            timeout: Seconds to wait; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Raises:
            InvalidTypeError: ``blocks`` is no list of lists of names.
            InvalidValueError: there are none, one has no bytes, or two share a page, or one shares
                one with what stays; or others have pages of the area, or stream it.
            TensorNotFoundError: there is no tensor of one of the names.
            BudgetExceededError: not even the largest block fits.
            CoresidentError: as :meth:`fault`.
        """

    def state_dict(self, block: Block | None = None) -> dict[str, Any]:
        """Views of the tensors' addresses, as torch's tensors by name; for modules whose pages
        somebody pins. They keep the addresses, and pin nothing: touching one whose pages are not
        resident ends the process. Does not wait.

        Where tensors move (:attr:`Arena.moving`) the views are of where they are now: take them
        once they are pinned, and let go of them before they are not. Afterwards the addresses are
        somebody else's.

        Args:
            block: Of which tensors; ``None`` for all.

        Raises:
            ImportError: torch is not installed.
            InvalidTypeError: ``block`` is none.
            InvalidValueError: the block is of another area; or one of the tensors is nowhere,
                because they move and it is not resident.
        """

    def pinned(
        self,
        name: str,
        *,
        stream: int | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> DeviceTensor:
        """A tensor that is resident, and stays for as long as somebody has it, or what
        ``torch.from_dlpack`` has made of it. Waits as :meth:`fault`, and raises as it does.

        Raises:
            TensorNotFoundError: there is no tensor of this name.
        """

    def renew(self) -> None:
        """Says that what the pages have in them may be wrong, because somebody has written there:
        each is filled again before it is used the next time. Does not wait.

        Raises:
            ForkedError: the arena is another process's.
        """

    def residency(self) -> Any:
        """What there is of each page, as a numpy array of ``uint8`` of shape ``(pages,)``: 0 has no
        memory, 1 is resident, 2 is pinned, 3 is on its way. Does not wait.

        Raises:
            RuntimeError: numpy is not installed.
            ForkedError: the arena is another process's.
        """

    def __len__(self) -> int: ...

@final
class Streaming:
    """A model that is larger than its device: of each block some pages stay, the others come before
    it is visited, by a thread of its own, and leave after that. Made by :meth:`Area.stream_blocks`.

    From the beginning it has the bytes for all it does, so that it never waits for anybody's.
    """

    @property
    def area(self) -> Area:
        """The area."""

    @property
    def working_memory(self) -> Reservation | None:
        """The working memory that was reserved with it; ``None`` without any."""

    def ends(self) -> list[list[int]]:
        """Of each block's tensors, as they were named, how many of the block's pages have to stay
        so that the tensor stays."""

    def pages_of_blocks(self) -> list[int]:
        """How many pages each block has."""

    def enter(
        self,
        block: int,
        *,
        stream: int | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Has a block's pages there until :meth:`leave`. Waits for what is still missing.

        Args:
            block: Its number, from 0.
            stream: On CUDA, the handle of the stream that uses them, as :meth:`Area.fault` has it.
            timeout: Seconds to wait; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Raises:
            InvalidTypeError: ``block`` is no whole number.
            InvalidValueError: there is no such block, or a graph is captured on the stream, which
                would use the pages when they have left.
            DeviceMemoryError: the device is full, or too much is visited at once.
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised.
            DeviceLostError: a copy has failed.
            ReleasedError: it has ended.
            ForkedError: it is another process's.
        """

    def leave(self, block: int, keep: int) -> None:
        """Ends a visit of a block, of which so many pages stay, the first ones. Does not wait.

        Raises:
            InvalidTypeError: ``block`` or ``keep`` is no whole number.
            InvalidValueError: there is no such block, or ``keep`` is negative.
        """

    def plan(self, nbytes: int | str | None = None) -> list[int] | None:
        """How many pages of each block should stay, by the times that were measured. Does not wait.

        Args:
            nbytes: Bytes that all blocks may have on the device; ``None`` for what they may now.

        Returns:
            The pages by block; ``None`` if not even the largest one fits.

        Raises:
            InvalidTypeError: ``nbytes`` is neither a number of bytes nor a text.
            InvalidValueError: it is negative, or too large.
        """

    def keep_at_most(self, block: int, keep: int) -> bool:
        """Has no more than so many pages of a block stay from now on. Does not wait.

        Returns:
            Whether that was less, and nobody uses the block or is about to.

        Raises:
            InvalidTypeError: as :meth:`leave`.
            InvalidValueError: as :meth:`leave`.
        """

    def grow(self, leave: int | str = 0) -> int:
        """Takes as many bytes more as nobody uses, but for so many, up to what all blocks have.
        Waits for nobody.

        Returns:
            The bytes.

        Raises:
            InvalidTypeError: ``leave`` is neither a number of bytes nor a text.
            InvalidValueError: it is negative, or too large.
            ForkedError: it is another process's.
        """

    def shrink(self, nbytes: int | str) -> int:
        """Gives bytes back to the budget that are neither visited nor stay; waits for the streams
        that have used them.

        Returns:
            The bytes.

        Raises:
            InvalidTypeError: ``nbytes`` is neither a number of bytes nor a text.
            InvalidValueError: it is negative, or too large.
            DeviceLostError: the device does not answer.
            ForkedError: it is another process's.
        """

    def also_on(self, stream: int) -> None:
        """Has another stream of CUDA's use what is in no block, as :meth:`Pins.also_on`.

        Raises:
            InvalidValueError: it is no handle of a stream.
            DeviceLostError: the device does not answer.
        """

    def status(self) -> StreamingStatus:
        """What it has and has done. Does not wait.

        Raises:
            ForkedError: it is another process's.
        """

    def close(self) -> None:
        """Ends it: nothing stays pinned. Waits for what its thread does. Again without effect."""

@final
class StreamingStatus:
    """A streaming at a glance."""

    @property
    def resident(self) -> int:
        """Bytes of what is in no block: it stays."""

    @property
    def blocks(self) -> int:
        """Bytes of all blocks."""

    @property
    def kept(self) -> int:
        """Bytes of the blocks that stay."""

    @property
    def streamed(self) -> int:
        """Bytes of the blocks that come anew at each visit."""

    @property
    def allotted(self) -> int:
        """Bytes that the blocks may have on the device in all."""

    @property
    def moved(self) -> int:
        """Bytes of pages that have been copied since it began."""

    @property
    def visits(self) -> int:
        """How often a block was visited."""

    @property
    def late(self) -> int:
        """How many of the visits have waited for a copy, by more than 0.1 ms."""

    @property
    def stalled(self) -> float:
        """Seconds in which visits have waited: on a device that computes by itself, those in which
        its stream did, once it has come to the visit's end."""

    @property
    def copying(self) -> float:
        """Seconds in which something was copied."""

    @property
    def hidden(self) -> float:
        """The share of ``copying`` in which nobody waited, from 0 to 1."""

@final
class Block:
    """The pages of some tensors of an area. Made by :meth:`Area.block`."""

    @property
    def pages(self) -> int:
        """How many there are."""

@final
class Pins:
    """Pages that stay resident until this is released, and working memory beside them."""

    @property
    def area(self) -> Area:
        """The area."""

    @property
    def working_memory(self) -> Reservation | None:
        """The working memory; ``None`` without any."""

    @property
    def released(self) -> bool:
        """Whether they have been released."""

    def release(self) -> None:
        """Lets the pages leave when somebody wants their bytes, and gives the working memory back.
        From any thread; again without effect. Does not wait."""

    def also_on(self, stream: int) -> None:
        """On CUDA, has another stream use the pages too.

        What comes there comes after what is now on the first one; and the pages leave after it.
        Does not wait.

        Args:
            stream: Its handle.

        Raises:
            InvalidTypeError: ``stream`` is no whole number.
            InvalidValueError: it is no handle that the driver knows, or the device has no streams.
        """

    def hand_over(self) -> Self:
        """Says that nobody in particular will release them, nor the working memory."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

@final
class DeviceTensor:
    """A tensor on a device, for ``torch.from_dlpack`` and its like: read-only, never a copy.

    It is resident for as long as somebody has it, or what was made of it.
    """

    @property
    def dtype(self) -> str:
        """The type of the elements, as torch names it: ``'bfloat16'``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, the slowest first."""

    @property
    def nbytes(self) -> int:
        """The number of bytes of its elements."""

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The tensor as a DLPack capsule, flagged read-only where the consumer can read that.

        Args:
            stream: On CUDA, the consumer's stream: a handle, 1 for the default stream, -1 for none.
                It waits for the content, and the pages leave after it. Ignored on a virtual device.
            max_version: The newest version of DLPack that the consumer understands.
            dl_device: Where it is, or ``None``.
            copy: Not ``True``.

        Raises:
            BufferError: for another device, or with ``copy=True``.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where it is, as DLPack numbers devices; ``(1, 0)`` on a virtual device."""

# Internal: what the Python files of this package use. Not for users, and changed without notice.

_JobState: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]
_EventKind: TypeAlias = Literal[
    "queued", "claimed", "started", "stage", "step", "finished", "cancelled", "failed"
]
_Json: TypeAlias = (
    bool | int | float | str | Mapping[str, "_Json"] | list["_Json"] | tuple["_Json", ...] | None
)
_Payload: TypeAlias = bytes | bytearray | memoryview | _Json
_Jobs: TypeAlias = "Job | int | Iterable[Job | int]"

@final
class JobQueue:
    """Jobs of many users, in an order that is fair by GPU time, for any number of devices.

    :meth:`submit` queues a job with a payload, the worker of a device takes it with :meth:`claim`,
    and what the claim says ends it. It is never claimed twice at once, and a cancel that was
    ordered before its end always ends it as cancelled.

    **Order.** The user who has had the least GPU time for his weight goes next; a claim is charged
    the job's estimate at once, and its end corrects it. Who was away has saved up nothing.
    Among a user's jobs the priority decides, and one level of it is worth ``ageing`` seconds of
    waiting, so that nothing waits for ever. With ``order="fifo"`` all jobs stand in one line.

    **Placement.** A device prefers a job whose ``needs`` it holds, as long as the user whose turn
    it is falls back by no more than ``slack`` seconds.

    **Durable.** With a ``path`` the queue is a SQLite file, and what a call has returned for has
    been written: after ``kill -9`` every job is there, those that ran are queued again. One process
    owns the file; others may read its tables ``jobs`` and ``users``. The owner itself must not open
    it with ``sqlite3``: closing it there takes the locks of the queue away.

    Args:
        path: The file of a durable queue, made if it is not there; ``None`` keeps all in memory.
        devices: The devices that jobs may run on, as for :class:`DevicePool`; 64 at most.
        order: ``"fair"``, or ``"fifo"``: by priority and arrival, whoever's they are.
        ageing: Seconds of waiting that one level of priority is worth; ``None`` lets the priority
            decide alone.
        slack: Seconds by which placement may bend the order; 0 never bends it.
        priority_lead: GPU seconds by which one level of priority puts a user ahead of other users;
            0 keeps the priorities of users apart.
        speeds: How fast devices are, as shares of the fastest: ``{"cuda:1": 0.5}``. A second on
            a slow one is charged less, and a job that several idle devices could have goes to
            the fastest. Devices that are not named count as 1.
        max_attempts: How often a job may be begun before it fails for good, unless it says so
            itself.
        max_payload: The most bytes of a payload, as a number or a text such as ``"1MiB"``.
        history: How many jobs that are over are remembered; the oldest are forgotten first.
        durability: What a written job survives: ``"process"``, the end of the process, or
            ``"power"``, also of the machine.

    Raises:
        InvalidTypeError: an argument is of a wrong type.
        InvalidValueError: an argument cannot be meant, or there are more than 64 devices.
        InvalidDeviceError: a text names no device, or there is none.
        DeviceNotFoundError: this machine does not have the device.
        QueueInUseError: another process, or another queue of this one, owns the file.
        JournalError: the file cannot be opened, is no queue, or is of a newer version.

    Waits for the disk, if there is a path. ``with`` closes the queue at the end.

    Example:
        >>> queue = co.JobQueue(devices=co.virtual_devices(2))
        >>> job = queue.submit({"prompt": "a cat"}, user="ann", needs=["sdxl/unet"])
        >>> with queue.claim("virtual:0") as claim:
        ...     claim.finish(claim.job.payload["prompt"].upper())
        'done'
        >>> job.result()
        'A CAT'
    """

    def __new__(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        devices: _DeviceLike | Iterable[_DeviceLike],
        order: Literal["fair", "fifo"] = "fair",
        ageing: float | None = 600.0,
        slack: float = 30.0,
        priority_lead: float = 0.0,
        speeds: Mapping[Any, float] | None = None,
        max_attempts: int = 3,
        max_payload: int | str = "1MiB",
        history: int = 10_000,
        durability: Literal["process", "power"] = "process",
    ) -> Self: ...
    @property
    def devices(self) -> list[Device]:
        """The devices, in order."""

    @property
    def path(self) -> Path | None:
        """The file; ``None`` in memory."""

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""

    def submit(
        self,
        payload: _Payload = None,
        *,
        user: str = "default",
        priority: int = 0,
        batch: str | None = None,
        tags: Iterable[str] = (),
        needs: Iterable[str] = (),
        devices: _DeviceLike | Iterable[_DeviceLike] | None = None,
        memory: int | str | None = None,
        estimate: float | None = None,
        max_attempts: int | None = None,
    ) -> Job:
        """Queues a job. When it returns, the job is there for good.

        Args:
            payload: What the job is, for whoever runs it: bytes, or what JSON can say. It is
                copied now.
            user: Whose it is.
            priority: -1000 to 1000; the higher goes first.
            batch: A name that it shares with others, to be cancelled with them.
            tags: Names by which it can be found and cancelled.
            needs: Keys of the weights that it uses, in the order in which it uses them.
            devices: The only devices that may run it; ``None`` for all of the queue.
            memory: Bytes that its device must have in all, as a number or a text such as
                ``"20GiB"``. A device whose memory is not known will do.
            estimate: The GPU seconds that it will take; without it the queue expects what jobs
                with the same ``needs``, or of the same user, took.
            max_attempts: How often it may be begun; ``None`` as the queue says.

        Returns:
            The job.

        Raises:
            PayloadError: the payload is too large, or JSON cannot say it.
            UnrunnableJobError: no device of the queue may run it, and why.
            QueueFullError: the user has as many jobs queued as he may.
            JournalError: it could not be written, because the disk is full or the file locked. The
                job is not queued, and nothing else is lost.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: an argument cannot be meant.
            ClosedError: the queue is closed.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def submit_many(
        self,
        payloads: Iterable[_Payload],
        *,
        user: str = "default",
        priority: int = 0,
        batch: str | None = None,
        tags: Iterable[str] = (),
        needs: Iterable[str] = (),
        devices: _DeviceLike | Iterable[_DeviceLike] | None = None,
        memory: int | str | None = None,
        estimate: float | None = None,
        max_attempts: int | None = None,
    ) -> list[Job]:
        """Queues jobs that differ in their payloads alone: all of them, or none.

        A durable queue writes them together, which takes little longer than one.

        Args:
            payloads: One for each job. A text or bytes are refused, for they would be taken item
                by item.
            user: As for :meth:`submit`, like everything that follows.
            priority: The priority of all.
            batch: The batch of all.
            tags: The tags of all.
            needs: The keys of the weights that each uses.
            devices: The only devices that may run them.
            memory: Bytes that a device must have in all.
            estimate: The GPU seconds that each will take.
            max_attempts: How often each may be begun.

        Returns:
            The jobs, in order.

        Raises:
            CoresidentError: as :meth:`submit`, and then none of them is queued.

        Waits for the disk, if the queue is durable.
        """

    def claim(
        self,
        device: _DeviceLike,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Claim:
        """Takes the job that this device is to run next; waits until there is one.

        A durable queue has written the claim when this returns. In an event loop use
        :meth:`claim_async`: this call would block the loop.

        Args:
            device: The device, one of the queue's.
            timeout: Seconds to wait for a job; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The claim, to be ended by :meth:`Claim.finish` or :meth:`Claim.fail`.

        Raises:
            WaitTimeoutError: the time was over, and there was no job for this device.
            CancelledError: the token was raised, before or while waiting.
            ClosedError: the queue is closed, or was closed while the caller waited.
            JournalError: the claim could not be written. The job is queued as before.
            DeviceNotFoundError: the device is not one of this queue.
            InvalidDeviceError: the text names no device.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the queue was made before a fork.
        """

    def claim_async(
        self,
        device: _DeviceLike,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Awaitable[Claim]:
        """As :meth:`claim`, for asyncio: the task waits for a job, its thread does not.

        A durable queue writes the claim in the event loop's thread, which takes tens of
        microseconds with ``durability="process"``.

        Args:
            device: The device, one of the queue's.
            timeout: Seconds to wait, from when it is awaited; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            Something to ``await``, which gives the claim, or to enter with ``async with``.

        Raises:
            CoresidentError: bad arguments at the call, everything else of :meth:`claim` when it is
                awaited.
        """

    def offer(
        self,
        device: _DeviceLike,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Offer:
        """Waits for a job for this device, and has it kept for the caller, who may still decline.

        This is for a worker that holds nothing while it is idle: it takes an offer, leases its
        device, and then accepts. If the device is not to be had, the offer is released, and goes
        to another device at once. Nothing is written before it is accepted, and no attempt counts.

        Args:
            device: The device, one of the queue's.
            timeout: Seconds to wait for a job; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The offer, to be accepted or released.

        Raises:
            CoresidentError: as :meth:`claim`, but for ``JournalError``.

        Example:
            >>> with queue.offer("cuda:0") as offer:
            ...     with pool.lease("cuda:0"):
            ...         claim = offer.accept()
            ...         if claim is not None:
            ...             claim.finish(run(claim.job.payload))
        """

    def offer_async(
        self,
        device: _DeviceLike,
        *,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Awaitable[Offer]:
        """As :meth:`offer`, for asyncio: the task waits, its thread does not.

        Args:
            device: The device, one of the queue's.
            timeout: Seconds to wait, from when it is awaited; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            Something to ``await``, which gives the offer, or to enter with ``async with``.

        Raises:
            CoresidentError: bad arguments at the call, everything else of :meth:`offer` when it is
                awaited.
        """

    def cancel(
        self,
        jobs: _Jobs | None = None,
        *,
        batch: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        everything: bool = False,
        reason: str | None = None,
    ) -> int:
        """Cancels jobs: those queued never start, those running see their token at once.

        A job that runs is ``'cancelled'`` once its claim ends, whatever that says. What is given
        narrows the choice: ``user="ann", batch="b1"`` are the jobs of ann in that batch.

        Args:
            jobs: A job, its number, or several.
            batch: Those of this batch.
            user: Those of this user.
            tag: Those with this tag.
            everything: All of them; for a call that narrows by nothing.
            reason: What the jobs' errors, and the tokens, say.

        Returns:
            How many this call has cancelled. Those that were over, or cancelled before, do not
            count, and a number that no job has is over.

        Raises:
            JournalError: it could not be written. Queued jobs are queued as before; the tokens of
                running ones are raised.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: nothing was said about which jobs are meant.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def retry(
        self,
        jobs: _Jobs | None = None,
        *,
        batch: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        everything: bool = False,
        front: bool = False,
    ) -> int:
        """Queues jobs again that failed or were cancelled, with all their attempts before them.

        Args:
            jobs: A job, its number, or several.
            batch: Those of this batch.
            user: Those of this user.
            tag: Those with this tag.
            everything: All of them; for a call that narrows by nothing.
            front: Whether they go before the user's other jobs, else after those of the same
                priority.

        Returns:
            How many are queued now that were over before.

        Raises:
            QueueFullError: a user would have more jobs queued than he may: none is queued again.
            JournalError: it could not be written, and nothing has changed.
            CoresidentError: as :meth:`cancel`.
            ClosedError: the queue is closed.

        Waits for the disk, if the queue is durable.
        """

    def move(
        self,
        jobs: _Jobs,
        to: Literal["front", "back"] | None = None,
        *,
        priority: int | None = None,
    ) -> int:
        """Gives queued jobs another place among those of their users.

        Args:
            jobs: A job, its number, or several, which keep their order.
            to: Before or after everything else of the same user; ``None`` where the priority puts
                them.
            priority: Their new priority; ``None`` leaves it.

        Returns:
            How many have been moved; those that are not queued do not count.

        Raises:
            JournalError: it could not be written, and nothing has changed.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``to`` or ``priority`` cannot be meant, or neither is given.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def delete(
        self,
        jobs: _Jobs | None = None,
        *,
        batch: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        state: _JobState | None = None,
        everything: bool = False,
    ) -> int:
        """Forgets jobs. Those that are not over are cancelled first, and running ones go when
        their claim ends.

        What a user has had of the devices stays charged: deleting history gains no turns.

        Args:
            jobs: A job, its number, or several.
            batch: Those of this batch.
            user: Those of this user.
            tag: Those with this tag.
            state: Those in this state.
            everything: All of them; for a call that narrows by nothing.

        Returns:
            How many are gone, or will be when their claims end.

        Raises:
            JournalError: it could not be written, and nothing is gone.
            CoresidentError: as :meth:`cancel`.

        Waits for the disk, if the queue is durable.
        """

    def pause(self, user: str | None = None) -> None:
        """Has no more jobs claimed, of one user or at all. Those that run go on.

        A pause of a durable queue ends with the process.

        Args:
            user: Whose jobs; ``None`` for all.

        Raises:
            InvalidTypeError: ``user`` is not a text.
            ForkedError: the queue was made before a fork.
        """

    def resume(self, user: str | None = None) -> None:
        """Ends a pause, of one user or of the whole queue. Each has to be ended for itself.

        Args:
            user: Whose pause; ``None`` for that of the queue.

        Raises:
            InvalidTypeError: ``user`` is not a text.
            ForkedError: the queue was made before a fork.
        """

    def set_user(
        self,
        name: str,
        *,
        weight: float = ...,
        running: int | None = ...,
        queued: int | None = ...,
        gpu_seconds_per_hour: float | None = ...,
    ) -> None:
        """Says what a user may have. What is not given stays as it is.

        Args:
            name: The user, whether or not he has jobs.
            weight: His share beside others: with 2 he gets twice the GPU time of one with 1, the
                default.
            running: The most jobs of his that run at once; ``None`` for any number.
            queued: The most jobs of his that are queued; ``None`` for any number. Those queued
                already stay.
            gpu_seconds_per_hour: The most GPU seconds of any sixty minutes; ``None`` for any
                number. A job that runs is not stopped; the next waits.

        Raises:
            JournalError: it could not be written, and nothing has changed.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: a number is negative, or the weight is not between 0.001 and 1000.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def job(self, id: int) -> Job:  # noqa: A002 # it is the job's id
        """The job with this number.

        Raises:
            JobNotFoundError: there is none, or it has been deleted or forgotten.
            InvalidTypeError: it is no number.
            ForkedError: the queue was made before a fork.
        """

    def jobs(
        self,
        *,
        batch: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        state: _JobState | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs in order of their numbers, which is the order in which they were submitted.

        Args:
            batch: Those of this batch.
            user: Those of this user.
            tag: Those with this tag.
            state: Those in this state.
            limit: The newest so many; ``None`` for all.

        Raises:
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``state`` is no state, or ``limit`` is negative.
            ForkedError: the queue was made before a fork.
        """

    def status(self) -> QueueStatus:
        """How many jobs are in which state, and what each user has had. Does not wait.

        Raises:
            ForkedError: the queue was made before a fork.
        """

    def forecast(self, device: _DeviceLike, jobs: int = 2) -> list[list[str]]:
        """What the jobs need that this device would claim next, as things stand.

        Args:
            device: The device, one of the queue's.
            jobs: How many jobs to look ahead, 1000 at most.

        Returns:
            The ``needs`` of each, the next job's first.

        Raises:
            DeviceNotFoundError: the device is not one of this queue.
            InvalidDeviceError: the text names no device.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``jobs`` is more than 1000.
            ForkedError: the queue was made before a fork.
        """

    def subscribe(self, *, user: str | None = None, buffer: int = 1024) -> Events:
        """What happens to jobs from now on.

        Args:
            user: Only the jobs of this user.
            buffer: How many stages and steps are kept for a subscriber that is slow. When there
                are more, the oldest go; of one job only the latest step is ever kept. Changes of
                state are always kept.

        Returns:
            The events, to be iterated over.

        Raises:
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``buffer`` is 0 or more than a million.
            ForkedError: the queue was made before a fork.
        """

    def close(self) -> None:
        """Takes no more jobs, and turns away whoever waits for one. May be called again.

        Claims that are under way can still be ended. In memory, what is queued is cancelled; a
        durable queue keeps it for the next process, and whoever waits for such a job is told that
        the queue was closed. The file is free for others once the last claim has ended.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,  # noqa: A002
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def __len__(self) -> int:
        """How many jobs are queued."""

    def __bool__(self) -> Literal[True]:
        """A queue is true, also when it is empty."""

@final
class Job:
    """One job: what :meth:`JobQueue.submit` returns.

    It tells what is now. ``await job`` gives the result without blocking the event loop, and raises
    as :meth:`result`. A task that is cancelled while it awaits a job leaves the job alone. Two are
    equal if they are the same job of the same queue.
    """

    @property
    def id(self) -> int:
        """Its number, which no other job of this queue, or of its file, ever has."""

    @property
    def user(self) -> str:
        """Whose it is."""

    @property
    def priority(self) -> int:
        """Its priority."""

    @property
    def batch(self) -> str | None:
        """Its batch."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the weights that it uses."""

    @property
    def payload(self) -> Any:
        """What was submitted: bytes, or a new copy of what JSON said."""

    @property
    def state(self) -> _JobState:
        """``'queued'``, ``'running'``, ``'done'``, ``'failed'`` or ``'cancelled'``."""

    @property
    def cancelling(self) -> bool:
        """Whether it runs, and was told to stop."""

    @property
    def attempts(self) -> int:
        """How often it was begun."""

    @property
    def max_attempts(self) -> int:
        """How often it may be begun."""

    @property
    def device(self) -> Device | None:
        """Where it runs or ran last."""

    @property
    def stage(self) -> str | None:
        """What its claim said last about where it is."""

    @property
    def progress(self) -> tuple[int, int] | None:
        """The step that its claim told last, and of how many."""

    @property
    def submitted(self) -> float:
        """When it was submitted, in seconds since the epoch."""

    @property
    def started(self) -> float | None:
        """When it was last claimed, in seconds since the epoch."""

    @property
    def finished(self) -> float | None:
        """When it was over, in seconds since the epoch."""

    @property
    def error(self) -> str | None:
        """Why it failed or was cancelled, in words."""

    def done(self) -> bool:
        """Whether it is over: done, failed or cancelled."""

    def running(self) -> bool:
        """Whether it runs now."""

    def cancelled(self) -> bool:
        """Whether it ended as cancelled."""

    def cancel(self, reason: str | None = None) -> bool:
        """Cancels it, as :meth:`JobQueue.cancel`.

        Args:
            reason: What its error, and its token, say.

        Returns:
            Whether this call did it; ``False`` if it is over, or was cancelled before.

        Raises:
            JournalError: it could not be written.
            TypeError: ``reason`` is not a text.
            ForkedError: the queue was made before a fork.
        """

    def wait(self, timeout: float | None = None, *, cancel: CancelToken | None = None) -> _JobState:
        """Waits until it is over, however it ends.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait; the job goes on.

        Returns:
            How it ended.

        Raises:
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised before.
            ClosedError: the queue was closed, and a later process will run it.
            DeadlockError: only workers could run it that wait, by however many steps, for
                something of the caller's: the caller himself, for one.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the queue was made before a fork.
        """

    def result(self, timeout: float | None = None, *, cancel: CancelToken | None = None) -> Any:
        """What its claim finished with, the same object; waits for it.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait; the job goes on.

        Raises:
            BaseException: what :meth:`Claim.fail` was given, if that was an exception.
            JobFailedError: it failed otherwise, or in an earlier process.
            CancelledError: it was cancelled; or the token was raised before it was over.
            ResultNotKeptError: it was done in an earlier process, and its result was not a path.
            CoresidentError: as :meth:`wait`.
        """

    def events(self) -> Events:
        """What happens to it: first what is so now, then every change, and nothing after its end.

        Raises:
            ForkedError: the queue was made before a fork.

        Example:
            >>> async for event in job.events():
            ...     print(event.kind, event.step, event.steps)
        """

    def __await__(self) -> Generator[Any, None, Any]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Offer:
    """A job that is kept for one device: what :meth:`JobQueue.offer` returns. A guard.

    If the job is cancelled meanwhile, accepting gives nothing.
    """

    @property
    def job(self) -> Job:
        """The job."""

    @property
    def device(self) -> Device:
        """The device that it is offered to."""

    @property
    def released(self) -> bool:
        """Whether it was accepted or released."""

    def accept(self) -> Claim | None:
        """Makes it a claim; ``None`` if the job has been cancelled or deleted meanwhile.

        Raises:
            JournalError: the claim could not be written. The job is queued as before.
            ReleasedError: it was accepted or released already.
            ClosedError: the queue is closed.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def release(self) -> None:
        """Gives the job back, to its old place. Another device gets it, if one waits. From any
        thread; again without effect.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,  # noqa: A002
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Claim:
    """A job that runs: what :meth:`JobQueue.claim` returns. A guard.

    ``with`` ends it: an exception fails the job with it, and goes on; Ctrl-C, and an end without
    :meth:`finish` or :meth:`fail`, queue it again.
    """

    @property
    def job(self) -> Job:
        """The job."""

    @property
    def device(self) -> Device:
        """The device that it runs on."""

    @property
    def token(self) -> CancelToken:
        """Raised at once when the job is cancelled."""

    @property
    def attempt(self) -> int:
        """Which attempt at the job this is, from 1."""

    @property
    def released(self) -> bool:
        """Whether it has been ended."""

    def start(self) -> None:
        """Says that the work begins now, for those who watch. Entering ``with``, a stage or a step
        say so too. Again without effect.

        Raises:
            ReleasedError: the claim has been ended.
        """

    def stage(self, name: str) -> None:
        """Says what the job does now, for those who watch.

        Args:
            name: Such as ``"text encoder"``.

        Raises:
            ReleasedError: the claim has been ended.
            InvalidTypeError: ``name`` is not a text.
        """

    def step(self, step: int, steps: int, preview: object = None) -> None:
        """Says how far the job is, for those who watch. Cheap enough for every step.

        Args:
            step: How many are done.
            steps: Of how many.
            preview: Anything that is to be shown, by reference.

        Raises:
            ReleasedError: the claim has been ended.
            InvalidTypeError: a number is no whole number.
            InvalidValueError: ``step`` is more than ``steps``, or more than 2**32 - 1.
        """

    def finish(self, result: object = None) -> _JobState:
        """Ends the job.

        Args:
            result: What :meth:`Job.result` gives, by reference. A durable queue writes it down if
                it is a path, and forgets it with the process otherwise.

        Returns:
            ``'done'``; ``'cancelled'`` if a cancel was ordered before.

        Raises:
            JournalError: it could not be written. The claim is held as before.
            ReleasedError: the claim has been ended.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def fail(self, error: BaseException | str, *, retry: bool = False) -> _JobState:
        """Ends the job as failed, or queues it for another attempt.

        Args:
            error: Why. An exception is what :meth:`Job.result` raises, without the frames that
                it came through.
            retry: Whether to queue it again if attempts are left.

        Returns:
            ``'failed'``; ``'queued'`` if it is queued again; ``'cancelled'`` if a cancel was
            ordered before.

        Raises:
            JournalError: it could not be written. The claim is held as before.
            ReleasedError: the claim has been ended.
            InvalidTypeError: ``error`` is neither an exception nor a text.
            ForkedError: the queue was made before a fork.

        Waits for the disk, if the queue is durable.
        """

    def release(self) -> None:
        """Queues the job again, at its old place, as if it had not been begun. From any thread;
        again, and after an end, without effect.

        A claim that is forgotten, or whose thread ends, is released too, but its attempt counts: a
        job that takes its worker with it fails after ``max_attempts``.
        """

    def hand_over(self) -> Self:
        """Lets another thread or task have this claim, as :meth:`Lease.hand_over`. Does not wait.

        Raises:
            ReleasedError: the claim has been ended.
            ForkedError: the queue was made before a fork.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,  # noqa: A002
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Events:
    """What happens to jobs, in order for each of them. An iterator, and an asynchronous one.

    One at a time may wait for the next. A subscriber that nobody holds any more is forgotten.
    """

    def next(
        self, timeout: float | None = None, *, cancel: CancelToken | None = None
    ) -> Event | None:
        """The next event; waits for it.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever, 0 only looks.
            cancel: A token that ends the wait.

        Returns:
            The event; ``None`` if there will be no more.

        Raises:
            WaitTimeoutError: the time was over.
            CancelledError: the token was raised before.
            DeadlockError: only workers could go on with the job that wait for the caller.
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: ``timeout`` is negative or not finite.
            ForkedError: the queue was made before a fork.
        """

    def close(self) -> None:
        """Ends them, after those that are there already. Again without effect."""

    @property
    def dropped(self) -> int:
        """How many stages and steps the subscriber was too slow for."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Event: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> _Awaitable[Event]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,  # noqa: A002
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Event:
    """One thing that happened to a job."""

    @property
    def kind(self) -> _EventKind:
        """What happened. ``'queued'`` is also said of a job that is queued again."""

    @property
    def job(self) -> Job:
        """The job, as it is now, which may be further than this event."""

    @property
    def id(self) -> int:
        """The number of the job."""

    @property
    def user(self) -> str:
        """Whose job it is."""

    @property
    def device(self) -> Device | None:
        """Where it runs; ``None`` if it was not running."""

    @property
    def label(self) -> str | None:
        """The device's label: ``'RTX 3090 #2 (cuda:1)'``."""

    @property
    def time(self) -> float:
        """When, in seconds since the epoch."""

    @property
    def attempt(self) -> int:
        """How often the job had been begun."""

    @property
    def stage(self) -> str | None:
        """The stage that the job was in."""

    @property
    def step(self) -> int | None:
        """Steps done; for ``'step'``."""

    @property
    def steps(self) -> int | None:
        """Of how many; for ``'step'``."""

    @property
    def preview(self) -> Any:
        """What the step shows, if anything; for ``'step'``."""

    @property
    def error(self) -> str | None:
        """Why: for ``'failed'``, ``'cancelled'``, and for ``'queued'`` after an attempt."""

@final
class QueueStatus:
    """A queue at a glance: what :meth:`JobQueue.status` returns."""

    @property
    def queued(self) -> int:
        """Jobs that wait."""

    @property
    def running(self) -> int:
        """Jobs that run."""

    @property
    def done(self) -> int:
        """Jobs of the history that are done."""

    @property
    def failed(self) -> int:
        """Jobs of the history that failed."""

    @property
    def cancelled(self) -> int:
        """Jobs of the history that were cancelled."""

    @property
    def paused(self) -> bool:
        """Whether the whole queue is paused."""

    @property
    def waiting(self) -> list[str]:
        """The devices for which somebody waits for a job."""

    @property
    def users(self) -> list[UserStatus]:
        """Every user who has jobs or settings here, by name, and the 10,000 who have had the most
        GPU time of those who have none any more."""

@final
class UserStatus:
    """A user of a queue: an entry of :attr:`QueueStatus.users`."""

    @property
    def name(self) -> str:
        """His name."""

    @property
    def weight(self) -> float:
        """His share beside others."""

    @property
    def queued(self) -> int:
        """His jobs that wait."""

    @property
    def running(self) -> int:
        """His jobs that run."""

    @property
    def gpu_seconds(self) -> float:
        """The GPU seconds that he has been charged, with the estimates of what runs."""

    @property
    def gpu_seconds_last_hour(self) -> float:
        """Those of the last sixty minutes."""

    @property
    def paused(self) -> bool:
        """Whether he is paused."""

    @property
    def blocked(self) -> str | None:
        """Why nothing of his can start now; ``None`` if it can."""

@final
class Request:
    """Internal: an asyncio task's place in a line, polled by ``_aio.Awaitable``."""

    def poll(self) -> tuple[Any] | None:
        """Internal: what was waited for, if the turn has come; raises the refusal if any."""

    def poll_late(self) -> tuple[Any] | None:
        """Internal: as ``poll``, but raises ``WaitTimeoutError`` if the turn has not come."""

    def abandon(self) -> None:
        """Internal: gives the place up, and gives back what was granted but not collected."""

@final
class Wakeups:
    """Internal: the duty to carry wakes to the event loops, which one thread has at a time."""

    @staticmethod
    def claim() -> Wakeups | None:
        """Internal: the duty, if nobody has it."""

    def take(self) -> tuple[AbstractEventLoop, Any] | None:
        """Internal: the next event loop and the waiter to wake there; waits for it."""

    def leave(self) -> None:
        """Internal: gives the duty up, with the wakes that are left. Again without effect."""

@final
class Lane:
    """Internal: the queue of one device, for the thread in ``_serve`` that serves it."""

    @property
    def device(self) -> Device:
        """Internal: the device."""

    @property
    def set_pin(self) -> Callable[[object], object]:
        """Internal: makes a pin current, to be run in a task's context."""

    def serve(self) -> bool:
        """Internal: makes the calling thread the lane's worker. ``False``: it came too late."""

    def stay_near(self) -> None:
        """Internal: has the calling thread run near the device from now on."""

    def take(
        self,
    ) -> (
        tuple[
            tuple[Callable[[Device], object] | None] | None,
            int,
            Context,
            object,
            Callable[..., Any],
            tuple[Any, ...],
            dict[str, Any] | None,
            Future[Any] | None,
        ]
        | None
    ):
        """Internal: the next task; waits for it. ``None`` ends the thread.

        Returns:
            ``on_start`` in a tuple if it has to run first, the grad mode of torch (0 records, 1 is
            ``no_grad``, 2 is ``inference_mode``), the context and the pin to set in it, the
            function, its arguments, and the future of ``submit``.
        """

    def succeed(self, value: object) -> None:
        """Internal: ends the task in hand with its value."""

    def fail(self, error: BaseException) -> None:
        """Internal: ends the task in hand with its error."""

    def put_down(self) -> None:
        """Internal: lets go of the future of the task in hand, which has its outcome by now."""

    def abort(self, error: BaseException) -> bool:
        """Internal: gives the task in hand an error that hit the thread between two tasks.

        Returns:
            Whether there was a task in hand.
        """

    def leave(self) -> Lane | None:
        """Internal: ends the thread's service. If tasks are left, the lane for another thread."""

    def drain(self) -> None:
        """Internal: takes no more tasks; those that are queued are run."""

def restore_device(name: str, memory: int | None, bandwidth: int | None) -> Device:
    """Internal: the device that was pickled."""

def parse_size(size: int | str) -> int:
    """Internal: the bytes of a number, or of a text such as ``'3GiB'``."""

def size(nbytes: int) -> str:
    """Internal: a number of bytes as people read it."""

def about_to_fork() -> None:
    """Internal: tells the core that the process forks."""

def has_forked() -> None:
    """Internal: tells the core that the fork is over, in the parent."""

def entered_child() -> None:
    """Internal: tells the core that this is a forked child."""

def release_this_thread() -> None:
    """Internal: releases what the code of this thread still holds."""

@final
class LastMoment:
    """Internal: keeps other threads out of the interpreter, which exits, from its own end on."""

# Traces: see :mod:`coresident.trace`

@final
class Timeline:
    """What happens on devices, recorded as it does: the last events, and sums that lose nothing.

    A :class:`~coresident.Runtime` has one, in which its devices record. Recording takes about a
    tenth of a microsecond, whichever thread does it, and waits for nothing.

    Args:
        events: How many events are kept; of earlier ones only the sums are. 72 bytes each, taken
            when they are first needed.

    Raises:
        InvalidTypeError: ``events`` is no whole number.
        InvalidValueError: ``events`` is 0, or more than 2**26.

    Example:
        >>> timeline = runtime.timeline
        >>> timeline.save("timeline.json")
        >>> events = timeline.recording().events
        >>> events["bytes"][events["kind"] == timeline.recording().kinds.index("copy")].sum()
        4802416640
    """

    def __new__(cls, events: int = 65536) -> Self: ...
    @property
    def enabled(self) -> bool:
        """Whether it records; to be switched at any time. False in a forked child."""

    @enabled.setter
    def enabled(self, enabled: bool) -> None: ...
    @property
    def capacity(self) -> int:
        """How many events it keeps."""

    def record(
        self,
        kind: str,
        device: _DeviceLike | None = None,
        component: str | None = None,
        *,
        whom: str | None = None,
        nbytes: int | str | None = None,
        beside: int | str | None = None,
        of: int | str | None = None,
        seconds: float | None = None,
        cause: str | None = None,
        job: int | None = None,
    ) -> None:
        """Records something that has just ended. Does not wait.

        Models record what is asked for, copied and evicted by themselves: this is for what they do
        not know, such as the stages of a job.

        Args:
            kind: One of :attr:`Recording.kinds`.
            device: Where; ``None`` for nowhere in particular.
            component: The key of a model, or what a job or a stage is called.
            whom: For whom: a user, or another model.
            nbytes: How many bytes.
            beside: How many bytes beside them, of working memory.
            of: How many bytes there could have been of both.
            seconds: How long it has taken until now; ``None`` for what takes no time.
            cause: Why, of a copy: one of :attr:`Recording.causes`.
            job: The number of the job; ``None`` for none in particular.

        Raises:
            InvalidTypeError: an argument is of a wrong type.
            InvalidValueError: an argument has a value that cannot be meant.
            InvalidDeviceError: ``device`` is the name of none.
            ForkedError: the timeline is another process's.
        """

    def set_device(
        self,
        device: _DeviceLike,
        total: int,
        limit: int,
        headroom: int,
        outside: int,
        policy: str,
    ) -> None:
        """Says how a device is set up whose memory has no pages. Models say so themselves.

        Args:
            device: The device.
            total: Bytes of its memory.
            limit: Bytes of its budget.
            headroom: Bytes that stay free.
            outside: Bytes that others have at most.
            policy: What decides what leaves first.

        Raises:
            InvalidDeviceError: it is the name of none.
            ForkedError: the timeline is another process's.
        """

    def recording(self) -> Recording:
        """All of it as it is now. Does not wait: copies that are still under way are not in it.

        Raises:
            ForkedError: the timeline is another process's.
        """

    def clear(self) -> None:
        """Forgets all events and sums so far. Does not wait.

        Raises:
            ForkedError: the timeline is another process's.
        """

    def save(self, path: str | PathLike[str]) -> None:
        """Writes :meth:`recording` to a file, as JSON, for :func:`coresident.trace.load`.

        Raises:
            InvalidTypeError: ``path`` is no path.
            OSError: the file cannot be written.
            ForkedError: the timeline is another process's.
        """

@final
class Recording:
    """A timeline as it was at one moment, or as a file has it.

    Its file is JSON of version 1: an object with ``format`` (``'coresident-timeline'``),
    ``version``, ``nanos`` (how long it lasted), ``lost``, ``names``, ``kinds``, ``causes``,
    ``settings``, ``counters``, and ``events``: columns of one length, with the fields of
    :attr:`events`, times in nanoseconds.
    """

    #: What kinds of events are called, by number.
    kinds: ClassVar[list[str]]
    #: What causes of copies are called, by number.
    causes: ClassVar[list[str]]

    @staticmethod
    def parse(text: str) -> Recording:
        """A recording from what is in a file of it.

        Raises:
            InvalidValueError: it is none, or one of a later version.
        """

    @staticmethod
    def is_meant_by(text: str) -> bool:
        """Whether a text looks as if it was to be one, rather than a trace."""

    def to_json(self) -> str:
        """What is in a file of it."""

    def save(self, path: str | PathLike[str]) -> None:
        """Writes it to a file.

        Raises:
            InvalidTypeError: ``path`` is no path.
            OSError: the file cannot be written.
        """

    @property
    def seconds(self) -> float:
        """How long the timeline had lasted."""

    @property
    def lost(self) -> int:
        """How many earlier events are not in it."""

    @property
    def names(self) -> list[str]:
        """The texts of the numbers of devices, components and users."""

    @property
    def devices(self) -> list[str]:
        """The names of the devices of which it has something."""

    def requested(self) -> list[str]:
        """Those on which something was wanted."""

    @property
    def events(self) -> Any:
        """The events as a structured array of numpy, in the order in which they were over.

        Its fields are ``at`` and ``took`` (seconds since the timeline began, and how long),
        ``bytes``, ``beside``, ``of``, ``job``, ``device``, ``component``, ``whom`` (numbers of
        :attr:`names`), ``kind`` and ``cause`` (numbers of :attr:`kinds` and :attr:`causes`).

        Raises:
            RuntimeError: numpy is not installed.
        """

    @property
    def counters(self) -> Any:
        """Sums that have lost nothing, as a structured array of numpy: for each ``device``,
        ``component``, ``kind`` and ``cause`` how many ``times``, ``bytes`` and ``seconds``.

        Raises:
            RuntimeError: numpy is not installed.
        """

    @property
    def settings(self) -> list[dict[str, Any]]:
        """How devices were set up, whenever that has changed: ``at`` (seconds), ``device``,
        ``total``, ``limit``, ``headroom``, ``outside`` (what others have had at most), ``page``,
        ``low`` and ``high`` (watermarks; all in bytes), ``policy`` and ``lookahead`` (jobs)."""

    def replay(
        self, policy: str | None = None, lookahead: int | None = None, device: str | None = None
    ) -> Replayed:
        """As :func:`coresident.trace.replay`."""

    def copied(self, device: str | None = None) -> int:
        """Bytes that were really copied to a device for requests.

        Raises:
            InvalidValueError: it has no requests of the device, or of several if none is named.
        """

    def job_seconds(self, device: str | None = None) -> float:
        """Seconds in which some job ran on a device.

        Raises:
            InvalidValueError: as :meth:`copied`.
        """

    def trace(self, device: str | None = None) -> str:
        """The requests of one device as a trace, as JSON.

        Raises:
            InvalidValueError: as :meth:`copied`.
        """

    def hints_on(self, device: str, requests: int | None = None) -> list[Hint]:
        """As :func:`coresident.trace.hints`, on one device, by so many of its last requests;
        ``None`` for 4000."""

@final
class Hint:
    """That copies could have been spared, and how. ``str()`` of it is a sentence."""

    @property
    def kind(self) -> str:
        """What stood in the way: ``'always-evict'``, ``'watermarks'``, ``'budget'``,
        ``'working-memory'`` or ``'policy'``."""

    @property
    def device(self) -> str:
        """The device."""

    @property
    def component(self) -> str:
        """The key of the model of which most bytes were copied again."""

    @property
    def components(self) -> list[str]:
        """The keys of all that were copied again, that one first."""

    @property
    def copies(self) -> int:
        """How often one of them was."""

    @property
    def bytes(self) -> int:
        """How many bytes that were."""

    @property
    def seconds(self) -> float:
        """How many seconds it took; 0 if that is not known."""

    @property
    def share(self) -> float | None:
        """What share of the time of jobs on the device that is, 0 to 1; ``None`` if unknown."""

    @property
    def spared(self) -> int:
        """How many of the bytes would not have been copied."""

    @property
    def advice(self) -> dict[str, Any]:
        """What to change: ``limit`` and ``headroom`` of the device's budget (bytes), ``watermarks``
        (``None`` for none), ``working_memory`` (bytes, by model) or ``policy``."""

def hint_kinds() -> list[str]:
    """What kinds of hints there are."""

def trace_hints(text: str, policy: str, lookahead: int, memory: int | str | None) -> list[Hint]:
    """As :func:`coresident.trace.hints`, of a text that is a trace."""

@final
class Replayed:
    """What came of a replay: see :func:`coresident.trace.replay`."""

    @property
    def name(self) -> str:
        """What the trace is called."""

    @property
    def policy(self) -> str:
        """Who decided."""

    @property
    def lookahead(self) -> int:
        """How many jobs he knew beside the running one."""

    @property
    def bytes_moved(self) -> int:
        """Bytes that were copied to the device."""

    @property
    def bound(self) -> int:
        """The fewest that anybody could have copied."""

    @property
    def multiple(self) -> float:
        """How many times that was copied; 1.0 for nothing of nothing."""

def replay_trace(text: str, policy: str, lookahead: int) -> Replayed:
    """As :func:`coresident.trace.replay`, of a text."""

def policies() -> list[str]:
    """The names of all policies, the default one first."""

# What a runtime puts together.

def connect(queue: JobQueue, planners: list[Planner], arenas: list[Arena]) -> Connection:
    """Internal: has planners ask a queue which jobs come, and it ask arenas what is where."""

@final
class Connection:
    """Internal: a queue and the devices that run its jobs."""

    def end(self) -> None:
        """Internal: ends it, again without effect."""
