"""`Streamed`: the blocks of a module that come to a device one after the other."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core
from coresident.errors import CoresidentError, DeviceMemoryError, InvalidValueError
from coresident.torch import away
from coresident.torch.around import Around, without_gradients
from coresident.torch.block_tensors import BlockTensor, BlockTensors
from coresident.torch.calls import is_inside
from coresident.torch.repeatable import owned
from coresident.torch.untraced import untraced
from coresident.torch.visits import Entry, Visit, Visits, entered, is_over

if TYPE_CHECKING:
    from coresident.torch.blocks import Block
    from coresident.torch.room import Place

# After pages that nobody uses, and before torch's cache.
_PRIORITY = 55


class Streamed:
    """Has each block on the device while it is called, and its tensors in host memory otherwise,
    but for those that stay.

    Args:
        blocks: The blocks, in the order of ``streaming``.
        streaming: What brings their pages.
        place: Where they are on the device.
        own: The module's tensors, in the order of the structure.
        host: The same in host memory.
        device: The device.
        budget: What gets back what others need.
        writable: Whether what is written on the device is to be kept.
        terms: How long to wait for a block.
        others: Has others that are streamed there give up so many bytes of what stays of them.
    """

    def __init__(
        self,
        blocks: list[Block],
        streaming: _core.Streaming,
        place: Place,
        own: list[torch.Tensor],
        host: list[torch.Tensor],
        device: _core.Device,
        budget: _core.Budget,
        writable: bool,
        terms: dict[str, Any],
        others: Callable[[int], object],
    ) -> None:
        self.streaming = streaming
        self._place = place
        self._device = device
        self._budget = budget
        self.writable = writable
        self._terms = terms
        self._others = others
        self._lock = threading.RLock()
        self._closed = False
        self._calls = 0
        self._page = place.area.arena.status().page
        self._pages = streaming.pages_of_blocks()
        count = len(blocks)
        self._visits = Visits(streaming.leave)
        self._enter_on: dict[int | None, Callable[[int], None]] = {}
        # What each keeps after its visits.
        self._keep = self._plan() or [0] * count
        self._tensors: list[BlockTensors] = []
        for block, ends in zip(blocks, streaming.ends(), strict=True):
            in_order = sorted(zip(ends, block.tensors, strict=True))
            tensors = [BlockTensor(own[at], place.views[at], host[at], end) for end, at in in_order]
            self._tensors.append(BlockTensors(tensors, writable))
        self._own = [tensors.own for tensors in self._tensors]
        self._block_of = {id(tensor): at for at, own in enumerate(self._own) for tensor in own}
        # What stayed from before is used once more, also where the plan has other pages stay.
        self._wrapped: list[tuple[torch.nn.Module, str, Around, Any]] = []
        for at, block in enumerate(blocks):
            # Around the hooks of a call, and around what is called without them.
            for name in ("_call_impl", "forward"):
                before = vars(block.module).get(name)
                around = Around(self, at, getattr(block.module, name))
                vars(block.module)[name] = around
                self._wrapped.append((block.module, name, around, before))
        self._evict = _evictor(weakref.ref(self))
        budget.add_evictor(self._evict, priority=_PRIORITY)
        away.begin(self, list(itertools.chain(*self._own)))

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    @untraced
    def enter(self, block: int, visit: Visit) -> bool:
        """Has a block on the device until a visit is left; waits for it. Returns whether it is none
        within another visit of it."""
        stream = None
        if self._device.type == "cuda":
            current = torch.cuda.current_stream(self._device.index)
            if torch.cuda.is_current_stream_capturing():
                raise InvalidValueError(
                    "the weights of a streamed model come and go while it runs, which a CUDA graph "
                    "of all of it cannot do: capture within the blocks, or use stream=False"
                )
            stream = current.cuda_stream
        own = self._visits.own()
        if own:
            inner = own[-1]
            if inner[0] == block and inner[1] == stream and not is_over(inner):
                return False
            if any(map(is_over, own)):
                self._end_what_is_over(own)
        visit.among = own
        if (enter := self._enter_on.get(stream)) is None:
            enter = functools.partial(self.streaming.enter, stream=stream, **self._terms)
            self._enter_on[stream] = enter
        try:
            own.extend(entered(visit, block, stream, enter))
        except DeviceMemoryError:
            self._make_room(lambda: own.extend(entered(visit, block, stream, enter)), block)
        with self._lock:
            if not self._closed:
                self._tensors[block].come()
        return True

    @untraced
    def _make_room(self, enter: Callable[[], None], block: int) -> None:
        # What stays is more than is planned, or an interrupt has left something behind.
        with self._lock:
            self._lower(self._keep)
        for visits in self._visits.all():
            self._end_what_is_over(visits)
        # Others outside have the memory: what nobody uses leaves before what stays.
        for give_up in (self._place.area.arena.evict, self.give_up, self._others):
            try:
                return enter()
            except DeviceMemoryError as error:
                give_up(max(error.asked, self._pages[block] * self._page))
        return enter()

    @untraced
    def leave(self, visit: Visit) -> None:
        """Ends a visit, and what is over of this thread; without effect if none has begun."""
        visit.over = True
        # A visit within another one of its block is none of its own.
        if visit.among:
            self._end_what_is_over(visit.among)

    @untraced
    def _end_what_is_over(self, visits: list[Entry]) -> None:
        with self._lock:
            for at in range(len(visits) - 1, -1, -1):
                entry = visits[at]
                if is_over(entry):
                    block = entry[0]
                    keep = self._keep[block]
                    if not self._closed and self._visits.is_last(entry):
                        self._tensors[block].go(keep)
                    self._visits.end(visits, at, keep)

    @untraced
    def computes(self, tensors: list[torch.Tensor]) -> bool:
        """Whether an operation is part of what the model computes, rather than somebody's look at
        its weights in host memory."""
        if self._closed:
            return False
        if self._visits.own() or is_inside(self._device):
            return True
        target = self._place.views[0].device
        return target.type != "cpu" and any(tensor.device == target for tensor in tensors)

    @untraced
    def compute(self, tensor: torch.Tensor, operation: Callable[[], Any]) -> Any:
        """Does an operation with a tensor that is away, in a visit of its block."""
        visit = Visit()
        try:
            self.enter(self._block_of[id(tensor)], visit)
            output = operation()
            if self._closed or id(output) in self._block_of:
                return output
            return without_gradients(owned(output, self._place))
        finally:
            visit.over = True
            self.leave(visit)

    def adapt(self, leave: int) -> None:
        """Has as much stay as there is room for now, but for so many bytes. Does not wait."""
        with self._lock:
            if self._closed:
                return
            self._calls += 1
            grown = self.streaming.grow(leave) > 0
            # Times are known after some calls, and do not change for ever.
            if (grown or self._calls & (self._calls - 1) == 0) and (keep := self._plan()):
                self._lower(keep)

    def give_up(self, nbytes: int) -> bool:
        """Gives up so many bytes of what stays, or all. Returns whether that was something."""
        with self._lock:
            return not self._closed and self._shrink(nbytes) > 0

    def least(self) -> int:
        """Bytes that it needs at least."""
        return self.streaming.status().resident + max(self._pages) * self._page

    def keep_writes(self) -> None:
        """Copies what was written on the device to host memory, if that is meant."""
        with self._lock:
            for tensors in self._tensors:
                tensors.keep_writes()

    def close(self) -> None:
        """Leaves the module as it was. Its tensors are pointed to host memory by the residence."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._budget.remove_evictor(self._evict)
        for module, name, around, before in reversed(self._wrapped):
            if vars(module).get(name) is around:
                del vars(module)[name]
                if before is not None:
                    vars(module)[name] = before
        self._wrapped = []
        away.end(list(itertools.chain(*self._own)))
        self.streaming.close()

    def _plan(self, nbytes: int | None = None) -> list[int] | None:
        return self.streaming.plan(nbytes)

    @untraced
    def _lower(self, keep: list[int]) -> None:
        """Has blocks keep so many pages: less at once, more from their next visits on."""
        self._keep = keep
        for block, pages in enumerate(keep):
            if self._visits.count(block) == 0:
                self._tensors[block].go(pages)
                self.streaming.keep_at_most(block, pages)

    def _shrink(self, nbytes: int) -> int:
        allotted = self.streaming.status().allotted
        nbytes = min(nbytes, allotted - max(self._pages) * self._page)
        if nbytes <= 0:
            return 0
        self._lower(self._plan(allotted - nbytes) or [0] * len(self._pages))
        return self.streaming.shrink(nbytes)


def _evictor(streamed: weakref.ref[Streamed]) -> Callable[[int], None]:
    def evict(missing: int) -> None:
        # Of a lost device nothing leaves.
        with suppress(CoresidentError):
            if (here := streamed()) is not None:
                here.give_up(missing)

    return evict
