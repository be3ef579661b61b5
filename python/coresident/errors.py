"""What can go wrong. Every error is a :class:`CoresidentError` and the built-in that fits.

The text of an error is a sentence; its figures are fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class CoresidentError(Exception):
    """The base of every error of this library."""


class InvalidValueError(CoresidentError, ValueError):
    """An argument of the right type whose value cannot be meant."""


class InvalidTypeError(CoresidentError, TypeError):
    """An argument of a type that cannot be meant."""


class InvalidDeviceError(InvalidValueError):
    """A text that names no device, or an empty list of devices."""


class DeviceNotFoundError(InvalidDeviceError, LookupError):
    """A well-formed device that this machine, or this pool, does not have.

    Attributes:
        device: Its name.
        present: The names of those that are there.
    """

    def __init__(self, message: str, device: str = "", present: list[str] | None = None) -> None:
        super().__init__(message)
        self.device = device
        self.present = present or []


class DeviceRemovedError(CoresidentError, RuntimeError):
    """The device was taken out of the pool while somebody waited for it.

    Attributes:
        device: Its name.
    """

    def __init__(self, message: str, device: str = "") -> None:
        super().__init__(message)
        self.device = device


class WaitTimeoutError(CoresidentError, TimeoutError):
    """The time given by ``timeout=`` was over.

    Attributes:
        timeout: The time, in seconds.
        running: For ``WorkerPool.close``: what still runs, one sentence per device.
    """

    def __init__(
        self, message: str, timeout: float = 0.0, running: list[str] | None = None
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.running = running or []


class CancelledError(CoresidentError, RuntimeError):
    """A cancel token or the end of the waiting thread ended a wait, or a task was cancelled unrun.

    Attributes:
        reason: What was given to ``cancel()``.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class DeadlockError(CoresidentError, RuntimeError):
    """The wait could never have ended. Nothing was waited for.

    Attributes:
        cycle: The waits that keep each other from ending, the refused one first, each as
            ``(who waits, for what, held by whom)``.
    """

    def __init__(self, message: str, cycle: list[tuple[str, str, list[str]]] | None = None) -> None:
        super().__init__(message)
        self.cycle = cycle or []


class ReleasedError(CoresidentError, RuntimeError):
    """A guard was used after its release."""


class ClosedError(CoresidentError, RuntimeError):
    """A pool was used after ``close()``."""


class BudgetExceededError(CoresidentError, MemoryError):
    """More bytes than a budget could give if everybody else gave back everything.

    Attributes:
        budget: Its name.
        asked: The bytes asked for.
        free: The bytes that could be reserved then.
        limit: Its limit in bytes.
    """

    def __init__(
        self, message: str, budget: str = "", asked: int = 0, free: int = 0, limit: int = 0
    ) -> None:
        super().__init__(message)
        self.budget = budget
        self.asked = asked
        self.free = free
        self.limit = limit


class BudgetTimeoutError(BudgetExceededError, WaitTimeoutError):
    """The time given by ``timeout=`` was over before a budget had the bytes.

    Attributes:
        timeout: The time, in seconds.
    """

    def __init__(
        self,
        message: str,
        budget: str = "",
        asked: int = 0,
        free: int = 0,
        limit: int = 0,
        timeout: float = 0.0,
    ) -> None:
        BudgetExceededError.__init__(self, message, budget, asked, free, limit)
        self.timeout = timeout
        self.running: list[str] = []


class DeviceMemoryError(CoresidentError, MemoryError):
    """A device has not the memory, also after everything that nobody uses there was evicted.

    Attributes:
        device: The device.
        asked: The bytes asked for; 0 if it is not known.
        free: The bytes that nobody had then.
    """

    def __init__(self, message: str, device: str = "", asked: int = 0, free: int = 0) -> None:
        super().__init__(message)
        self.device = device
        self.asked = asked
        self.free = free


class DeviceLostError(CoresidentError, RuntimeError):
    """A device does not answer, or was made to use memory that is not there: nothing of what it was
    doing can be trusted.

    Attributes:
        device: The device.
    """

    def __init__(self, message: str, device: str = "") -> None:
        super().__init__(message)
        self.device = device


class WeightsFileError(CoresidentError, OSError):
    """A file of weights that cannot be opened or mapped.

    Attributes:
        path: The file.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class WeightsFileNotFoundError(WeightsFileError, FileNotFoundError):
    """A file of weights that is not there."""


class MalformedWeightsError(InvalidValueError):
    """A file that is not what it should be: something else, broken, or cut short.

    Attributes:
        path: The file.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class WeightsInUseError(CoresidentError, RuntimeError):
    """A key that stands for other weights, or for what a file was before it was replaced.

    Attributes:
        key: The key.
        path: The file that it stands for; ``None`` if it was shared from memory.
    """

    def __init__(self, message: str, key: str = "", path: Path | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.path = path


class WeightsNotOpenError(CoresidentError, KeyError):
    """A key under which nothing is open.

    Attributes:
        key: The key.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key

    def __str__(self) -> str:
        return str(self.args[0])


class WeightsMemoryError(CoresidentError, MemoryError):
    """The system has no memory for a private copy of some weights.

    Attributes:
        key: The key.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class UnshareableTensorError(CoresidentError, ValueError):
    """A tensor that cannot be shared: of an unknown type, on another device, or not exported.

    Attributes:
        name: Its name.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class WeightsNotMappedError(CoresidentError, ValueError):
    """Weights of which there can be no private map: they lie in memory of others.

    Attributes:
        key: Their key.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class TensorNotFoundError(CoresidentError, KeyError):
    """A name that no tensor of these weights has.

    Attributes:
        name: The name asked for.
        key: The key of the weights.
        near: Some names that are there, the most alike first.
    """

    def __init__(
        self, message: str, name: str = "", key: str = "", near: list[str] | None = None
    ) -> None:
        super().__init__(message)
        self.name = name
        self.key = key
        self.near = near or []

    def __str__(self) -> str:
        # KeyError shows its text as a string literal.
        return str(self.args[0])


class UnrunnableJobError(InvalidValueError):
    """A job that no device of its queue could ever run.

    Attributes:
        reason: Why.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class PayloadError(InvalidValueError):
    """A payload that is too large, or that JSON cannot say.

    Attributes:
        nbytes: Its bytes; 0 if JSON cannot say it.
        limit: The most bytes that it may have; 0 likewise.
    """

    def __init__(self, message: str, nbytes: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.nbytes = nbytes
        self.limit = limit


class QueueFullError(CoresidentError, RuntimeError):
    """A user would have more jobs queued than he may.

    Attributes:
        user: The user.
        queued: His jobs that are queued.
        limit: How many there may be.
    """

    def __init__(self, message: str, user: str = "", queued: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.user = user
        self.queued = queued
        self.limit = limit


class JobNotFoundError(CoresidentError, KeyError):
    """A number that no job of the queue has.

    Attributes:
        job: The number.
    """

    def __init__(self, message: str, job: int = 0) -> None:
        super().__init__(message)
        self.job = job

    def __str__(self) -> str:
        return str(self.args[0])


class JobFailedError(CoresidentError, RuntimeError):
    """A job failed, and there is no exception of its own to raise.

    Attributes:
        job: Its number.
        error: Why, in words.
    """

    def __init__(self, message: str, job: int = 0, error: str = "") -> None:
        super().__init__(message)
        self.job = job
        self.error = error


class ResultNotKeptError(CoresidentError, LookupError):
    """A job was done in an earlier process, and what it came to went with that.

    Attributes:
        job: Its number.
    """

    def __init__(self, message: str, job: int = 0) -> None:
        super().__init__(message)
        self.job = job


class JournalError(CoresidentError, OSError):
    """The file of a queue could not be read or written. What was to be written has not happened.

    Attributes:
        path: The file.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class QueueInUseError(JournalError):
    """The file of a queue has an owner already."""


class ForkedError(CoresidentError, RuntimeError):
    """Something made before ``fork`` was used in the child process."""
