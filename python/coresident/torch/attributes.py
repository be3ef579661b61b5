"""Whether a module computes with the weights of its parts, instead of calling them."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

# What is asked of a weight that need not be there.
_ASKED = {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "is_meta", "requires_grad"}


def computes_with_parts(module: torch.nn.Module) -> bool:
    """Whether what a module's call runs has something like ``self.part.weight``, and there is such
    a part with such a weight. What reaches them otherwise is not found."""
    # Classes can be hashed, whatever they have as ``__call__``.
    kind: Any = type(module)
    pairs = _attributes_of_attributes(kind)
    if not pairs:
        return False
    for name, part in module.named_modules():
        last = name.rpartition(".")[2]
        own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        if any((last, tensor) in pairs for tensor, _ in own):
            return True
    return False


@functools.lru_cache(maxsize=1024)
def _attributes_of_attributes(kind: Any) -> frozenset[tuple[str, str]]:
    """All ``a.b`` of which more is wanted than what is told of a tensor."""
    pairs: set[tuple[str, str]] = set()
    names, seen = ["forward", "__call__"], set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        for code in _codes(_function(kind, name)):
            names += code.co_names
            loads: list[str | None] = [
                each.argval if each.opname in ("LOAD_ATTR", "LOAD_METHOD") else None
                for each in dis.get_instructions(code)
                if each.opname != "CACHE"
            ]
            for one, other, then in zip(loads, loads[1:], [*loads[2:], None]):  # noqa: B905
                if one is not None and other is not None and then not in _ASKED:
                    pairs.add((one, other))
    return frozenset(pairs)


def _function(kind: Any, name: str) -> Any:
    """A method of a class, if it is not what all modules have."""
    for base in kind.__mro__:
        if base is torch.nn.Module:
            return None
        if name in vars(base):
            found = vars(base)[name]
            if isinstance(found, property):
                found = found.fget
            return inspect.unwrap(getattr(found, "__func__", found))
    return None


def _codes(function: Any) -> Iterator[CodeType]:
    """Its code, and that of functions within it."""
    if not isinstance(function, FunctionType):
        return
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield code
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
