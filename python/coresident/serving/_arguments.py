"""What cannot be served, and what cannot be meant by it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from coresident import _core
from coresident.errors import InvalidDeviceError, InvalidTypeError, InvalidValueError
from coresident.serving.borrowing import runs_when_called

if TYPE_CHECKING:
    from coresident.runtime import Runtime

Mode: TypeAlias = Literal["drain", "finish", "cancel"]

#: How a server is stopped, the less urgent first.
MODES: tuple[Mode, ...] = ("drain", "finish", "cancel")


def check_mode(mode: object) -> Mode:
    """How a server is to be stopped.

    Raises:
        InvalidTypeError: it is no text.
        InvalidValueError: it is something else.
    """
    if not isinstance(mode, str):
        raise InvalidTypeError(f"mode is a text, not {type(mode).__name__}")
    for known in MODES:
        if mode == known:
            return known
    raise InvalidValueError(f"mode is 'drain', 'finish' or 'cancel', not {mode!r}")


def check_grace(grace: object) -> None:
    """Refuses what is no number of seconds."""
    _check_seconds("grace", grace)


def check_timeout(timeout: object) -> None:
    """Refuses what is neither a number of seconds nor ``None``."""
    if timeout is not None:
        _check_seconds("timeout", timeout)


def _check_seconds(name: str, seconds: object) -> None:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        given = type(seconds).__name__
        raise InvalidTypeError(f"{name} is a number of seconds, not {given}")
    if not 0 <= seconds < math.inf:
        raise InvalidValueError(f"{name} must be 0 or more seconds, not {seconds}")


def check_serving(
    runtime: Runtime, handler: object, queue: object, devices: Any, grad: object
) -> list[_core.Device]:
    """Refuses what cannot be served; returns the devices that run jobs."""
    if not callable(handler):
        given = type(handler).__name__
        raise InvalidTypeError(f"handler is a function of a job, not {given}")
    if not runs_when_called(handler):
        name = getattr(handler, "__qualname__", type(handler).__name__)
        raise InvalidTypeError(
            f"handler is a plain function, and {name} does not run when it is called, but later: "
            "call asyncio.run in a function, or return a list"
        )
    if not (queue is None or isinstance(queue, _core.JobQueue)):
        raise InvalidTypeError(f"queue is a JobQueue or None, not {type(queue).__name__}")
    if not isinstance(grad, bool):
        raise InvalidTypeError(f"grad is True or False, not {type(grad).__name__}")
    own = runtime.devices
    queued = own if queue is None else queue.devices
    known = [device for device in own if device in queued]
    if devices is None:
        if not known:
            names = [", ".join(map(str, some)) for some in (own, queued)]
            raise InvalidDeviceError(
                f"the runtime has {names[0]}, and the queue is for {names[1]}: they share no device"
            )
        return known
    chosen = _core.devices(devices)
    for device in chosen:
        if device not in known:
            whose = "the queue's" if device in own else "the runtime's"
            shared = ", ".join(map(str, known)) or "none"
            raise InvalidDeviceError(
                f"{device} is none of {whose} devices: those of both are {shared}"
            )
    return chosen
