"""What can go wrong. Every error is a :class:`CoresidentError` and the built-in that fits.

The text of an error is a sentence; its figures are fields.
"""

from __future__ import annotations


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
    """A cancel token ended a wait, or a task was cancelled before it ran.

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


class ForkedError(CoresidentError, RuntimeError):
    """Something made before ``fork`` was used in the child process."""
