"""The blocks of a module: what is streamed as a whole, one after the other."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from coresident import _core
from coresident.errors import InvalidValueError
from coresident.torch.subclasses import every_part

# Blocks of a larger share of the room are taken in parts.
_SMALL = 1 / 8
_PAGE = 2 << 20


class Block:
    """A part of a module that is called as a whole.

    Attributes:
        name: Its name in the module.
        module: The part.
        tensors: Places of its tensors in the list of all weights.
        nbytes: Their bytes.
    """

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        self.module = module
        self.tensors: list[int] = []
        self.nbytes = 0


def find(
    module: torch.nn.Module,
    named: list[str] | None,
    places: Mapping[int, int],
    nbytes: list[int],
    room: int,
) -> list[Block]:
    """The blocks of a module, in its order: its repeated layers, or what is named.

    Those that are more than an eighth of the room are taken in parts, where they have some. A
    tensor that two of them have is in none.

    Args:
        module: The module.
        named: Names of parts, or of lists of parts; ``None`` finds them.
        places: Where in the list of all weights a tensor is, by its ``id``.
        nbytes: The bytes of each of them.
        room: Bytes that there can be on the device.

    Raises:
        InvalidValueError: there is no part of a name, or one is within another.
    """
    if named is None:
        found = list(_repeated(module, ""))
        if not found:
            # Nothing is repeated: whatever it consists of.
            found = list(_parts("", module))
    else:
        found = list(_named(module, named))
    blocks: list[Block] = []
    seen: set[int] = set()
    for name, part in found:
        for block in _small_enough(name, part, places, nbytes, room if named is None else None):
            if id(block.module) not in seen:
                seen.add(id(block.module))
                blocks.append(block)
    blocks = _apart(blocks, nbytes)
    if named is None:
        # Each block has pages of its own: what has less than one stays, if that is not too much.
        small = [block for block in blocks if block.nbytes < _PAGE]
        if sum(block.nbytes for block in small) <= room * _SMALL:
            blocks = [block for block in blocks if block.nbytes >= _PAGE]
    return blocks


def _apart(blocks: list[Block], nbytes: list[int]) -> list[Block]:
    """Those that have something of their own, without what two of them have."""
    users: dict[int, int] = {}
    for block in blocks:
        for at in block.tensors:
            users[at] = users.get(at, 0) + 1
    for block in blocks:
        block.tensors = [at for at in block.tensors if users[at] == 1]
        block.nbytes = sum(nbytes[at] for at in block.tensors)
    return [block for block in blocks if block.nbytes > 0]


def _small_enough(
    name: str,
    part: torch.nn.Module,
    places: Mapping[int, int],
    nbytes: list[int],
    room: int | None,
) -> Iterator[Block]:
    block = Block(name, part)
    tensors = every_part((*part.parameters(), *part.buffers()))
    block.tensors = sorted({places[id(tensor)] for tensor in tensors if id(tensor) in places})
    block.nbytes = sum(nbytes[at] for at in block.tensors)
    if room is not None and block.nbytes > room * _SMALL:
        parts = list(_repeated(part, name)) or list(_parts(name, part))
        smaller = [
            block
            for inner, module in parts
            for block in _small_enough(inner, module, places, nbytes, room)
        ]
        # What is left would stay.
        if sum(one.nbytes for one in smaller) >= block.nbytes - room * _SMALL:
            yield from smaller
            return
    yield block


def _repeated(module: torch.nn.Module, name: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """Lists of parts of which at least two are of one class; the outermost ones."""
    for child, part in module.named_children():
        inner = f"{name}.{child}" if name else child
        if isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential)) and _is_repeated(part):
            yield from _parts(inner, part)
        else:
            yield from _repeated(part, inner)


def _is_repeated(parts: torch.nn.Module) -> bool:
    with_weights = [type(p) for p in parts.children() if next(p.parameters(), None) is not None]
    return len(set(with_weights)) < len(with_weights)


def _parts(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The parts of a module that can be called, and those of lists that cannot."""
    for child, part in module.named_children():
        inner = f"{name}.{child}" if name else child
        if _can_be_called(part):
            yield inner, part
        else:
            yield from _parts(inner, part)


def _can_be_called(module: torch.nn.Module) -> bool:
    kind: Any = type(module)
    return kind.forward is not torch.nn.Module.forward and not isinstance(
        module, (torch.nn.ModuleList, torch.nn.ModuleDict)
    )


def _named(module: torch.nn.Module, names: list[str]) -> Iterator[tuple[str, torch.nn.Module]]:
    parts = dict(module.named_modules())
    for name in names:
        if name not in parts or not name:
            close = difflib.get_close_matches(name, filter(None, parts), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidValueError(f"{type(module).__name__} has no part {name!r}{hint}")
        around = next((one for one in names if one != name and name.startswith(f"{one}.")), None)
        if around is not None or names.count(name) > 1:
            other = around or name
            raise InvalidValueError(f"{name!r} is a block, and so is {other!r}, which has it")
        if _can_be_called(parts[name]) and not isinstance(parts[name], torch.nn.Sequential):
            yield name, parts[name]
        else:
            yield from _parts(name, parts[name])


def told(blocks: list[Block]) -> str:
    """The largest block, in words."""
    largest = max(blocks, key=lambda block: block.nbytes)
    return f"{largest.name!r} has {_core.size(largest.nbytes)}"
