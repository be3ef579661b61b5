"""Tensors of classes of their own, such as quantised weights: taken apart into plain ones, and put
together again around others.

Two kinds are known. A wrapper has no memory, but tensors that have some, and tells which by the
protocol of torch, ``__tensor_flatten__`` and ``__tensor_unflatten__``: those of torchao and
optimum-quanto do. The other kind has the bytes itself, and in its attributes how to read them: as
those of GGUF in diffusers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from coresident.errors import InvalidValueError
from coresident.torch.host_writes import same_bytes

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_WITHOUT_TENSORS = (type, FunctionType, ModuleType, torch.nn.Module)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is of torch's own class, and has bytes and nothing else."""
    return type(tensor) in _PLAIN


def parts(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensors with memory that a tensor consists of, itself if it has some: the objects, each
    with what is added to the name of the whole."""
    return [("", tensor)] if is_plain(tensor) else list(_parts(tensor, "", set()))


def every_part(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors with memory that tensors consist of."""
    for tensor in tensors:
        if is_plain(tensor):
            yield tensor
        else:
            yield from (part for _, part in parts(tensor))


def named_parts(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The memory of all parameters and buffers of a module, under all their names."""
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {
        name + suffix: plain(part) for name, tensor in tensors for suffix, part in parts(tensor)
    }


def _parts(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if id(value) in seen or isinstance(value, _WITHOUT_TENSORS):
        return
    seen.add(id(value))
    items: Iterable[tuple[Any, Any]] = ()
    if is_traceable_wrapper_subclass(value):
        items = [(name, getattr(value, name)) for name in value.__tensor_flatten__()[0]]
    elif isinstance(value, torch.Tensor):
        yield path, value
        if not is_plain(value):
            items = vars(value).items()
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif hasattr(value, "__dict__"):
        items = vars(value).items()
    for name, item in items:
        yield from _parts(item, f"{path}.{name}", seen)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor, without its class."""
    if type(tensor) is torch.Tensor:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor._make_subclass(torch.Tensor, tensor.detach())


class Frame:
    """A tensor of a class of its own, without the plain ones that it consists of.

    Args:
        tensor: The tensor.
        memo: What stands for the objects that it has: as that of ``copy.deepcopy``, with something
            for each of its parts.

    Attributes:
        parts: What stands for each of its parts, with what is added to the name of the whole.
    """

    def __init__(self, tensor: torch.Tensor, memo: dict[int, Any]) -> None:
        self._kind: Any = type(tensor)
        self.parts: list[tuple[str, Any]] = [(s, memo[id(part)]) for s, part in parts(tensor)]
        self._is_parameter = isinstance(tensor, torch.nn.Parameter)
        self._inner: list[tuple[str, Any]] | None = None
        if is_traceable_wrapper_subclass(tensor):
            names, self._context = tensor.__tensor_flatten__()
            inner = [(name, getattr(tensor, name)) for name in names]
            self._inner = [
                (name, memo[id(each)] if is_plain(each) else Frame(each, memo))
                for name, each in inner
            ]
            self._size, self._stride = tensor.size(), tensor.stride()
        else:
            self._attributes = copy.deepcopy(vars(tensor), memo)

    @property
    def of_bitsandbytes(self) -> bool:
        """Whether its class is one of bitsandbytes."""
        return of_bitsandbytes(self._kind)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Its class, and those of what it has."""
        inner = (each.kinds for _, each in self._inner or () if isinstance(each, Frame))
        return (self._kind, *inner)

    def around(self, memo: dict[int, Any]) -> torch.Tensor:
        """A tensor like it around other parts.

        Args:
            memo: What is to be in the stead of what stands for each part, and for other objects;
                gets the parts that it has then.
        """
        made = self._wrapper(memo) if self._inner is not None else self._of_memory(memo)
        for (_, stands), (_, part) in zip(self.parts, parts(made), strict=True):
            memo[id(stands)] = part
        return made

    def _wrapper(self, memo: dict[int, Any]) -> torch.Tensor:
        inner = {
            name: each.around(memo) if isinstance(each, Frame) else memo[id(each)]
            for name, each in self._inner or ()
        }
        made = self._kind.__tensor_unflatten__(inner, self._context, self._size, self._stride)
        if self._is_parameter:
            # As torch does it; to make a parameter of it would replace its parts.
            made._is_param = True
        return made

    def _of_memory(self, memo: dict[int, Any]) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            made = torch.Tensor._make_subclass(self._kind, memo[id(self.parts[0][1])], False)
        vars(made).update(copy.deepcopy(self._attributes, memo))
        return made


def check(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that cannot be shared.

    Raises:
        InvalidValueError: it has no values, or not in memory of which anything is known.
    """
    kind = type(tensor).__name__
    if tensor.is_meta:
        raise InvalidValueError(f"{name} has no values: it is on the meta device")
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        raise InvalidValueError(f"{name} has no values yet: call the module once before")
    if of_bitsandbytes(type(tensor)):
        _check_of_bitsandbytes(name, tensor)
    try:
        found, again = parts(tensor), parts(tensor)
    except (AttributeError, NotImplementedError) as why:
        raise InvalidValueError(f"{name} is a {kind} that cannot be taken apart: {why}") from why
    for suffix, part in found:
        if part.layout != torch.strided or part.is_quantized or not _has_memory(part):
            raise InvalidValueError(
                f"{name}{suffix} is a {type(part).__name__} ({part.dtype}, {part.layout}), which "
                "is no plain tensor, nor tells of which it consists by __tensor_flatten__: it "
                "cannot be shared"
            )
    if any(part is not other for (_, part), (_, other) in zip(found, again, strict=True)):
        raise InvalidValueError(f"{name} is a {kind} that tells of other tensors each time")
    names = [suffix for suffix, _ in found]
    if len(set(names)) < len(names):
        raise InvalidValueError(f"{name} is a {kind} of which two parts have one name: {names}")


def of_bitsandbytes(kind: type) -> bool:
    """Whether it is a class of bitsandbytes, whose layers change weights where they are."""
    return kind.__module__.startswith("bitsandbytes.")


def _check_of_bitsandbytes(name: str, tensor: Any) -> None:
    kind = type(tensor).__name__
    if kind != "Params4bit":
        raise InvalidValueError(
            f"{name} is a {kind}: such layers of bitsandbytes take the numbers out of their "
            "weights when they first compute, of which others that share them would know nothing. "
            "What it packs in 4 bits, and torchao, optimum-quanto and GGUF, can be shared"
        )
    if tensor.quant_state is None:
        raise InvalidValueError(
            f"{name} is a {kind} that is not packed yet: bitsandbytes does so when the module is "
            'moved to a device, as with .to("cpu")'
        )
    if getattr(tensor.quant_state, "packing_format_for_cpu", False):
        raise InvalidValueError(
            f"{name} is a {kind} that was packed anew when it computed on the CPU: load it before"
        )


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        return bool(tensor.numel() == 0 or tensor.data_ptr() != 0)
    except RuntimeError:
        return False


def is_same(made: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether a tensor is like another one, of its class and around the same memory."""
    mine, other = parts(made), parts(given)
    return (
        type(made) is type(given)
        and [s for s, _ in mine] == [s for s, _ in other]
        and all(
            a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype
            for (_, a), (_, b) in zip(mine, other, strict=True)
        )
    )


def moves_as_bytes(tensor: torch.Tensor, target: torch.device) -> bool:
    """Whether it is the same bytes on another device: its library may pack it in another way
    there."""
    try:
        moved = tensor.to(target)
        mine, there = parts(tensor), parts(moved)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return bool(
        type(moved) is type(tensor)
        and len(mine) == len(there)
        and all(
            name == other and _is_copy(plain(part), plain(copied))
            for (name, part), (other, copied) in zip(mine, there, strict=True)
        )
    )


def _is_copy(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if other.is_meta:
        return True
    return same_bytes(other, one)


def say_where(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Has wrappers tell that they are on a device, to which their parts were pointed."""
    for tensor in tensors:
        if is_plain(tensor) or not is_traceable_wrapper_subclass(tensor):
            continue
        say_where((getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]), device)
        if tensor.device == device:
            continue
        with torch._C.DisableTorchFunctionSubclass():
            tensor.data = torch.Tensor._make_wrapper_subclass(
                type(tensor),
                tensor.size(),
                strides=tensor.stride(),
                dtype=tensor.dtype,
                device=device,
            )
