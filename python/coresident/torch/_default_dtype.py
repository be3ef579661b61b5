"""The default dtype, for one thread.

torch has one default dtype for the process. A library that sets it while it builds a model in half
precision changes what every other thread makes meanwhile: the time steps of somebody else's
scheduler, for one, and so his image. Here a thread that builds has a default dtype of its own: a
mode of torch sees every function that this thread calls, and tells those that make tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_set_process_default = torch.set_default_dtype
_get_process_default = torch.get_default_dtype


class _Local(threading.local):
    mode: _DefaultDtype | None = None


_LOCAL = _Local()

# What these make is of the default dtype, unless they are told another one or given whole numbers.
_ALWAYS = {
    torch.empty,
    torch.zeros,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.eye,
    torch.linspace,
    torch.logspace,
    torch.empty_strided,
    torch.hann_window,
    torch.hamming_window,
    torch.blackman_window,
    torch.bartlett_window,
    torch.kaiser_window,
    torch.fft.fftfreq,
    torch.fft.rfftfreq,
}
_BY_VALUE = {
    torch.full,
    torch.arange,
    torch.range,
    torch.tensor,
    torch.as_tensor,
    torch.scalar_tensor,
    torch.asarray,
}

_OF_NUMBERS = {torch.where, torch.Tensor.where, torch.normal}

# What these make is what they say.
_CONVERSIONS = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "view"}


class _DefaultDtype(TorchFunctionMode):
    """Gives what is made in this thread its default dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.dtype == _get_process_default() or kwargs.get("dtype") is not None:
            return func(*args, **kwargs)
        if func in _ALWAYS and kwargs.get("out") is None:
            return func(*args, **{**kwargs, "dtype": self.dtype})
        made = func(*args, **kwargs)
        if not _is_of_process_default(made) or kwargs.get("out") is not None:
            return made
        if getattr(func, "__name__", "") in _CONVERSIONS or _names_dtype(args):
            return made
        if func in _BY_VALUE:
            if not _is_of_numbers((*args, *kwargs.values())):
                return made
            return func(*args, **{**kwargs, "dtype": self.dtype})
        tensors = list(_tensors((args, kwargs)))
        if any(t.is_floating_point() or t.is_complex() or t.is_quantized for t in tensors):
            return made
        if func in _OF_NUMBERS and all(t.dtype == torch.bool for t in tensors):
            # Of plain numbers alone, as where(mask, 1.0, 0.0) is.
            return made.to(self.dtype)
        if not tensors:
            return made
        # Whole numbers became fractions, as in arange(8) / 8: torch converts them first.
        return func(*_converted(args, self.dtype), **_converted(kwargs, self.dtype))


def _is_of_process_default(made: Any) -> bool:
    return isinstance(made, torch.Tensor) and made.dtype == _get_process_default()


def _is_of_numbers(value: Any) -> bool:
    """Whether there are only numbers of Python, which have no dtype of their own."""
    if isinstance(value, (list, tuple)):
        return all(_is_of_numbers(item) for item in value)
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point()
    return type(value).__module__ != "numpy"


def _names_dtype(args: tuple[Any, ...]) -> bool:
    return any(isinstance(value, torch.dtype) for value in args)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: _converted(item, dtype) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and next(_tensors(value), None) is not None:
        return type(value)(_converted(item, dtype) for item in value)
    return value


@contextmanager
def default_dtype(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Gives this thread a default dtype of its own until the block ends; `torch.set_default_dtype`
    changes that one meanwhile.

    Args:
        dtype: The default dtype; ``None`` for the one that is there.
    """
    before = _LOCAL.mode
    mode = _LOCAL.mode = _DefaultDtype(dtype or get_default_dtype())
    try:
        with mode:
            yield
    finally:
        if _LOCAL.mode is mode:
            _LOCAL.mode = before


def get_default_dtype() -> torch.dtype:
    """The default dtype of this thread. In the stead of `torch.get_default_dtype`."""
    mode = _LOCAL.mode
    return mode.dtype if mode else _get_process_default()


def set_default_dtype(d: torch.dtype, /) -> None:
    """Sets the default dtype: of this thread if it has one of its own, or else of the process.

    In the stead of `torch.set_default_dtype`.
    """
    mode = _LOCAL.mode
    if mode is not None and isinstance(d, torch.dtype) and d.is_floating_point:
        mode.dtype = d
    else:
        # Of what is no such dtype torch says what is wrong with it, and sets nothing.
        _set_process_default(d)
