"""The blocks of a module: what is streamed as a whole, one after the other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from coresident import _core
from coresident.errors import InvalidValueError
from coresident.torch.attributes import computes_with_parts
from coresident.torch.subclasses import every_part

# Blocks of a larger share of the room are taken in parts.
_SMALL = 1 / 8
# Of what stays nothing leaves, so that much has to be gained by it.
_WORTH_IT = 3 / 4
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

    What stands outside the layers stays, unless that is more than an eighth of the room: then it is
    blocks, too. Those that are more than an eighth are taken in parts, where they have some: in all
    of them, so that no more than an eighth is left that would stay. A module that computes with the
    weights of its parts, instead of calling them, is taken in parts only where half of the room is
    not enough for it. A tensor that two blocks have is in none.

    Args:
        module: The module.
        named: Names of parts, or of lists of parts; ``None`` finds them.
        places: Where in the list of all weights a tensor is, by its ``id``.
        nbytes: The bytes of each of them.
        room: Bytes that there can be on the device.

    Raises:
        InvalidValueError: there is no part of a name, or one is within another.
    """
    weights = _Weights(places, nbytes)
    if named is not None:
        found = [weights.block(name, part) for name, part in _named(module, named)]
        return _apart(_each_once(found), nbytes)
    eighth = int(room * _SMALL)
    parts = list(_cover("", module))
    layers = [(name, part) for name, part, repeated in parts if repeated]
    blocks, stay = weights.cut(weights.block("", module), layers, eighth, room)
    if stay > eighth or not blocks:
        every = [(name, part) for name, part, _ in parts]
        blocks, stay = weights.cut(weights.block("", module), every, eighth, room)
    blocks = _apart(_each_once(blocks), nbytes)
    # Each block has pages of its own: what has less than one stays, if that is not too much.
    left, small = eighth - stay, set()
    for block in sorted(blocks, key=lambda block: block.nbytes):
        left -= block.nbytes
        if block.nbytes >= _PAGE or left < 0:
            break
        small.add(block)
    return [block for block in blocks if block not in small]


class _Weights:
    def __init__(self, places: Mapping[int, int], nbytes: list[int]) -> None:
        self._places = places
        self._nbytes = nbytes

    def block(self, name: str, part: torch.nn.Module) -> Block:
        block = Block(name, part)
        tensors = map(id, every_part((*part.parameters(), *part.buffers())))
        block.tensors = sorted({self._places[own] for own in tensors if own in self._places})
        block.nbytes = self._bytes(block.tensors)
        return block

    def cut(
        self, block: Block, parts: list[tuple[str, torch.nn.Module]], most: int, room: int
    ) -> tuple[list[Block], int]:
        """The parts of a block, none too large, and the bytes of it that are in none of them: so
        many at most, if that can be."""
        inner = [self.block(name, part) for name, part in parts]
        inner = [part for part in inner if part.tensors]
        within = {at for part in inner for at in part.tensors}
        stay = block.nbytes - self._bytes(within)
        blocks: list[Block] = []
        for part in inner:
            smaller, left = self._small_enough(part, most - stay, room)
            blocks += smaller
            stay += left
        return blocks, stay

    def _small_enough(self, block: Block, most: int, room: int) -> tuple[list[Block], int]:
        whole = [block], 0
        if block.nbytes <= room * _SMALL:
            return whole
        parts = [(name, part) for name, part, _ in _cover(block.name, block.module)]
        smaller, stay = self.cut(block, parts, most, room)
        if not smaller:
            return whole
        if stay <= most and not computes_with_parts(block.module):
            return smaller, stay
        # Otherwise only if it is too large, and less is needed of it at a time then.
        needed = stay + max(part.nbytes for part in smaller)
        worth_it = needed < block.nbytes * _WORTH_IT and block.nbytes > room / 2
        return (smaller, stay) if worth_it else whole

    def _bytes(self, tensors: Iterable[int]) -> int:
        return sum(self._nbytes[at] for at in tensors)


def _each_once(blocks: list[Block]) -> list[Block]:
    return list({id(block.module): block for block in reversed(blocks)}.values())[::-1]


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


def _cover(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, bool]]:
    """The outermost parts of a module that have all that its parts have, and whether each is one of
    a list of parts of which at least two are of one class."""
    if _is_repeated(module):
        yield from ((name, part, True) for name, part in _parts(name, module))
        return
    for child, part in module.named_children():
        inner = f"{name}.{child}" if name else child
        if not _can_be_called(part) or any(map(_is_repeated, part.modules())):
            yield from _cover(inner, part)
        else:
            yield inner, part, False


def _is_repeated(parts: torch.nn.Module) -> bool:
    if not isinstance(parts, (torch.nn.ModuleList, torch.nn.Sequential)):
        return False
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
    has_call = kind.forward is not torch.nn.Module.forward
    has_call = has_call or kind.__call__ is not torch.nn.Module.__call__
    return has_call and not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict))


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


def hint(blocks: list[Block], stay: Mapping[str, int], room: int) -> str:
    """What to do about blocks that do not fit.

    Args:
        blocks: The blocks.
        stay: The bytes of what is in none of them, by name.
        room: Bytes that there can be on the device, without working memory.
    """
    largest = max(blocks, key=lambda block: block.nbytes)
    if (fits := room - _in_pages(sum(stay.values())) - _in_pages(largest.nbytes)) > 0:
        return f"there is room for about {_core.size(fits)} of working memory"
    if sum(stay.values()) > largest.nbytes:
        name = max(stay, key=lambda name: stay[name])
        part = name.rpartition(".")[0] or name
        return (
            f"what stays is in no block, such as {name!r}, which has {_core.size(stay[name])}: "
            f"blocks= can name {part!r}, too, if it is called by itself"
        )
    told = f"{largest.name!r} has {_core.size(largest.nbytes)}"
    parts = sum(1 for part in largest.module.modules() if any(True for _ in _own(part)))
    if parts > 1:
        return f"name smaller blocks: {told}"
    return f"{told}, and no parts that could come one by one"


def _in_pages(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE


def _own(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
