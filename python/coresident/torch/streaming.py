"""Whether a model is streamed, and in which blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from coresident import _core
from coresident.errors import (
    BudgetExceededError,
    BudgetTimeoutError,
    InvalidTypeError,
    InvalidValueError,
)
from coresident.torch.blocks import Block, find, hint
from coresident.torch.calls import unknown
from coresident.torch.room import Place
from coresident.torch.streamed import Streamed

# What goes on after that goes on for ever.
_MOST_BLOCKS = 1 << 16
# Calls write their buffers, which torch does not always count: those that are no more bytes stay,
# as the statistics of norms. Larger ones are quantised weights, and tables that nobody writes.
_SMALL_BUFFER = 64 << 10

if TYPE_CHECKING:
    from coresident.torch.replica import Replica


class Plan:
    """A replica's weights in blocks, and the place through which they are streamed.

    Attributes:
        in_blocks: Places of the tensors in blocks in the list of all weights.
    """

    def __init__(self, replica: Replica, blocks: list[Block], budget: _core.Budget) -> None:
        model = replica._model
        self._replica = replica
        self._blocks = blocks
        self._budget = budget
        self.in_blocks = {at for block in blocks for at in block.tensors}
        # What torch has as copies is no part of what pages are filled from.
        stays = [at for at in range(len(model.order)) if at not in self.in_blocks]
        self._order = [model.order[at] for at in stays]
        self._groups: list[int] = []
        for block in blocks:
            self._groups.append(len(self._order))
            self._order += [model.order[at] for at in block.tensors]
        self._key = tuple(tuple(block.tensors) for block in blocks)
        self._place: Place | None = None

    def place(self) -> Place:
        """Pages for a streaming alone: those of an earlier one that has ended, or new ones."""
        replica, model = self._replica, self._replica._model
        if not replica._writable:
            self._place = model.take_streamed(replica.device, self._key)
        if self._place is None:
            source: _core.PrivateWeights | _core.Weights = model.weights
            if replica._writable and replica._tensors._private is not None:
                source = replica._tensors._private
            area = self._arena().area(source, self._order, groups=self._groups)
            self._place = Place(area, model.order)
        return self._place

    def give_back(self) -> None:
        """Keeps the place, with what is there, for the next streaming."""
        if self._place is not None and not self._replica._writable:
            self._replica._model.give_back_streamed(self._replica.device, self._key, self._place)
        self._place = None

    def _arena(self) -> _core.Arena:
        room = self._replica._model.room
        assert room is not None
        return room.arenas[self._replica.device]

    def open(
        self,
        place: Place,
        working_memory: int | str | None,
        stream: int | None,
        terms: dict[str, Any],
    ) -> _core.Streaming:
        """Begins to stream; waits for what that needs at least.

        Raises:
            BudgetExceededError: it can never have so much.
            CoresidentError: as :meth:`Model.on`.
        """
        order = self._replica._model.order
        names = [[order[at] for at in block.tensors] for block in self._blocks]
        leave = None
        if working_memory is None:
            leave = self._known_peak() or unknown(self._budget.limit)
        try:
            return place.area.stream_blocks(
                names, working_memory=working_memory, leave=leave, stream=stream, **terms
            )
        except BudgetTimeoutError:
            raise
        except BudgetExceededError as error:
            # That is right for those who name blocks themselves; here more is known.
            told = str(error).removesuffix("; name smaller blocks")
            raise BudgetExceededError(
                f"{told}; {hint(self._blocks, self._stay(), error.limit)}",
                *(error.budget, error.asked, error.free, error.limit),
            ) from None

    def _stay(self) -> dict[str, int]:
        """The bytes of what is in no block."""
        names, made = self._replica._model.structure.names, self._replica._made
        return {
            names[at][0]: tensor.nbytes
            for at, tensor in enumerate(made)
            if at not in self.in_blocks
        }

    def _known_peak(self) -> int:
        room, key = self._replica._model.room, self._replica._model.key
        return 0 if room is None else room.working_memory.largest(key)

    def streamed(self, streaming: _core.Streaming, place: Place, terms: dict[str, Any]) -> Streamed:
        """What has the blocks come and go."""
        replica, room = self._replica, self._replica._model.room

        def others(nbytes: int) -> bool:
            return room is not None and room.give_up(replica.device, nbytes)

        made = Streamed(
            *(self._blocks, streaming, place, replica._made, replica._tensors.all),
            *(replica.device, self._budget, replica._writable, terms, others),
        )
        if room is not None:
            room.add_streamed(replica.device, made)
        return made


def checked(
    stream: bool | str, blocks: Iterable[str] | None
) -> tuple[bool | str, list[str] | None]:
    """What callers may say of streaming, once.

    Raises:
        InvalidTypeError: ``stream`` is neither a bool nor a text, or ``blocks`` no list of names.
        InvalidValueError: ``stream`` is another text, or ``blocks`` never ends.
    """
    if not isinstance(stream, (bool, str)):
        raise InvalidTypeError(f"stream is True, False or 'auto', not {type(stream).__name__}")
    if isinstance(stream, str) and stream != "auto":
        raise InvalidValueError(f"stream is True, False or 'auto', not {stream!r}")
    if blocks is None:
        return stream, None
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        given = repr(blocks) if isinstance(blocks, str) else type(blocks).__name__
        raise InvalidTypeError(f"blocks is a list of names of parts, not {given}")
    names = list(itertools.islice(blocks, _MOST_BLOCKS + 1))
    if len(names) > _MOST_BLOCKS:
        raise InvalidValueError(f"blocks has {_MOST_BLOCKS} names at most")
    for name in names:
        if not isinstance(name, str):
            raise InvalidTypeError(f"blocks has names of parts, not {type(name).__name__}")
    return stream, names


def planned(
    replica: Replica,
    place: Place,
    working_memory: int | str | None,
    stream: bool | str,
    blocks: list[str] | None,
) -> Plan | None:
    """How a replica's weights are streamed; ``None`` if all of them are to stay.

    Raises:
        InvalidTypeError: ``working_memory`` is neither bytes nor a text.
        InvalidValueError: ``blocks`` has what is no part, or there are no blocks.
    """
    if stream is False:
        if blocks is not None:
            raise InvalidValueError("blocks is for what is streamed, and stream is False")
        return None
    budget = place.area.arena.budget
    total = budget.total
    most = budget.limit if total is None else min(budget.limit, total - budget.headroom)
    limit = most
    room, beside = replica._model.room, 0
    if working_memory is not None:
        beside = _bytes(working_memory)
    elif room is not None:
        beside = room.working_memory.largest(replica._model.key)
    if room is not None and (least := room.least(replica.device)):
        # Others that are streamed there go on for as long as their users do.
        most -= least
        beside = beside or unknown(budget.limit)
    if stream == "auto" and (place.area.arena.moving or place.nbytes + beside <= most):
        return None
    made, model = replica._made, replica._model
    places = {id(tensor): at for at, tensor in enumerate(made)}
    small = {id(b) for b in replica.module.buffers() if b.nbytes <= _SMALL_BUFFER}
    for at in {*model.copies, *(places[one] for one in small & places.keys())}:
        places.pop(id(made[at]), None)
    nbytes = [tensor.nbytes for tensor in made]
    found = find(replica.module, blocks, places, nbytes, max(0, most - beside))
    if not found:
        if stream == "auto" and blocks is None:
            if place.nbytes > limit:
                raise BudgetExceededError(
                    f'"{model.key}" needs {_core.size(place.nbytes)} of weights on '
                    f"{replica.device}, which can never have more than {_core.size(limit)}, and "
                    f"{type(replica.module).__name__} has no parts that could come one by one",
                    *(budget.name, place.nbytes, budget.free, limit),
                )
            return None
        raise InvalidValueError(f"{type(replica.module).__name__} has no blocks with weights")
    return Plan(replica, found, budget)


def _bytes(working_memory: int | str) -> int:
    if isinstance(working_memory, (int, str)) and not isinstance(working_memory, bool):
        return _core.parse_size(working_memory)
    raise InvalidTypeError(
        f"working_memory is bytes or a text such as '3GiB', not {type(working_memory).__name__}"
    )
