"""Stages of jobs on idle devices, and what they return."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, overload

from coresident import _core
from coresident.errors import ClosedError, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from coresident.serving.job import ServedJob

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# What this code has borrowed.
_BORROW: ContextVar[_core.Borrow | None] = ContextVar("coresident_borrow", default=None)


@contextlib.contextmanager
def stage(job: ServedJob, terms: Mapping[str, Any]) -> Iterator[_core.Device]:
    """An idle device for the block, or the job's own."""
    current, home = _BORROW.get(), job.device
    if current is not None and not current.released:
        # It runs on a borrowed device already.
        yield current.device
        return
    try:
        spare = job.pool.borrow(**terms)
    except ClosedError:
        # The runtime is being closed, while its last jobs end.
        yield home
        return
    with spare as borrow:
        if borrow is None:
            yield home
            return
        before, since = _BORROW.set(borrow), time.monotonic()
        try:
            with _current_for_torch(borrow.device):
                yield borrow.device
        finally:
            _BORROW.reset(before)
            job.borrowed_for(borrow.device, terms.get("affinity") or "a stage", since)


def wanted() -> bool:
    """Whether somebody waits for what this code has borrowed."""
    borrow = _BORROW.get()
    return borrow is not None and borrow.wanted


@contextlib.contextmanager
def _current_for_torch(device: _core.Device) -> Iterator[None]:
    """Makes a device torch's current one in this thread, if torch has it."""
    torch: Any = sys.modules.get("torch")
    module = getattr(torch, device.type, None) if device.type in ("cuda", "xpu") else None
    if module is None or not module.is_available():
        yield
        return
    with module.device(device.index):
        yield


def check_function(function: object) -> None:
    """Refuses what cannot run as a stage."""
    if not callable(function):
        raise InvalidTypeError(f"a stage is something to call, not {type(function).__name__}")
    if not runs_when_called(function):
        name = getattr(function, "__qualname__", repr(function))
        raise InvalidTypeError(
            f"{name} does not run when it is called, but later, when the device has been given "
            "back: a stage is a plain function"
        )


def runs_when_called(function: object) -> bool:
    """Whether it is neither a generator nor a coroutine function."""
    kinds = (
        inspect.isgeneratorfunction,
        inspect.iscoroutinefunction,
        inspect.isasyncgenfunction,
    )
    # What a partial function calls, and what an object does that is called.
    calls = (function, getattr(function, "func", None), vars(type(function)).get("__call__"))
    return not any(kind(call) for kind in kinds for call in calls)


def check_place(to: object) -> None:
    """Refuses a place that results cannot be moved to."""
    if to not in ("host", "job"):
        raise InvalidValueError(f"to is 'host' or 'job', not {to!r}")


@overload
def borrowable(function: F, /) -> F: ...
@overload
def borrowable(
    *,
    method: str | None = None,
    affinity: str | None = None,
    min_free: int | str | None = None,
    to: str = "host",
) -> Callable[[F], F]: ...
def borrowable(
    function: Any = None,
    /,
    *,
    method: str | None = None,
    affinity: str | None = None,
    min_free: int | str | None = None,
    to: str = "host",
) -> Any:
    """Marks a stage, such as a text encoder, that may run on an idle device.

    Called by the handler of a served job, the stage runs on a device that is idle right now, which
    is :func:`coresident.current_device` there and the current one of torch; if none is, in place.
    The tensors of what it returns are moved to the host either way. Outside of any job it is just
    the function. Nobody ever waits for a borrow, and the device goes back when the stage is over.

    Args:
        function: A function, a method in its class, or a class whose stage is a method.
        method: Of a class, the name of that method, such as ``'invoke'``; ``None`` is ``__call__``.
        affinity: A key, so that the stage goes back to the same device while that is idle; ``None``
            is its qualified name.
        min_free: Bytes that must be free on the idle device, or a text such as ``'6GiB'``.
        to: Where tensors are moved to that are in what it returns, in tuples, lists, dicts,
            dataclasses and outputs of models: ``'host'``, or ``'job'`` for the job's device.

    Returns:
        What was given, so marked; without ``function``, the decorator.

    Raises:
        InvalidTypeError: it cannot be called, or runs only later, as coroutines and generators do;
            the class has no such method; an argument is of a wrong type.
        InvalidValueError: ``to`` is something else.

    Example:
        >>> @co.borrowable
        ... def encode(prompt):
        ...     with encoder.on(co.current_device() or "cpu") as module:
        ...         return module(tokenize(prompt))
    """
    check_place(to)
    for name, value in (("method", method), ("affinity", affinity)):
        if value is not None and not isinstance(value, str):
            raise InvalidTypeError(f"{name} is a text or None, not {type(value).__name__}")
    terms = {"affinity": affinity, "min_free": min_free}
    if function is None:
        return functools.partial(_mark, method=method, terms=terms, to=to)
    return _mark(function, method=method, terms=terms, to=to)


def _mark(stage: Any, *, method: str | None, terms: dict[str, Any], to: str) -> Any:
    if inspect.isclass(stage):
        name = method or "__call__"
        found = inspect.getattr_static(stage, name, None)
        if not inspect.isfunction(found):
            raise InvalidTypeError(
                f"{stage.__name__} has no method {name}: name the one that is the stage, as in "
                "@borrowable(method='invoke')"
            )
        setattr(stage, name, _wrapped(found, terms, to))
        return stage
    if method is not None:
        raise InvalidTypeError("method= is for classes: a function is the stage itself")
    if isinstance(stage, (staticmethod, classmethod)):
        return type(stage)(_wrapped(stage.__func__, terms, to))
    return _wrapped(stage, terms, to)


def _wrapped(function: Any, terms: dict[str, Any], to: str) -> Any:
    check_function(function)
    name = getattr(function, "__qualname__", type(function).__name__)
    terms = {**terms, "affinity": terms["affinity"] or name}

    @functools.wraps(function)
    def borrowed(*args: Any, **kwargs: Any) -> Any:
        from coresident.serving.job import current_job

        job = current_job()
        if job is None:
            return function(*args, **kwargs)
        with job.borrowed(**terms):
            return moved(function(*args, **kwargs), to, job.device)

    return borrowed


def moved(value: T, to: str, home: _core.Device) -> T:
    """The value with its tensors on the host or at home; the value itself if they all are there."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "Tensor"):
        return value
    place = torch.device("cpu" if to == "host" else home.torch_name)
    found: T = _moved(value, place, torch.Tensor, {})
    return found


def _moved(value: Any, place: Any, tensor: type, known: dict[int, Any]) -> Any:
    if isinstance(value, tensor):
        return value if value.device == place else value.to(place)  # type: ignore[attr-defined]
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if not (is_record or isinstance(value, (tuple, list, dict))):
        return value
    if id(value) in known:
        return known[id(value)]
    # What is part of itself stays as it is there.
    known[id(value)] = value
    made = _moved_parts(value, place, tensor, known, is_record)
    known[id(value)] = made
    return made


def _moved_parts(
    value: Any, place: Any, tensor: type, known: dict[int, Any], is_record: bool
) -> Any:
    def move(part: Any) -> Any:
        return _moved(part, place, tensor, known)

    if isinstance(value, dict):
        items = {key: move(part) for key, part in value.items()}
        if all(items[key] is part for key, part in value.items()):
            return value
        if type(value) is dict:
            return items
        if is_record:  # as outputs of models are
            return type(value)(**items)
        made = copy.copy(value)
        made.update(items)
        return made
    if is_record:
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if hasattr(value, field.name)
        }
        parts = {name: move(part) for name, part in fields.items()}
        if all(parts[name] is part for name, part in fields.items()):
            return value
        made = copy.copy(value)
        for name, part in parts.items():
            object.__setattr__(made, name, part)  # also of one that is frozen
        return made
    moved_parts = [move(part) for part in value]
    if all(new is old for new, old in zip(moved_parts, value, strict=True)):
        return value
    if hasattr(value, "_fields"):
        return type(value)(*moved_parts)
    return type(value)(moved_parts)
