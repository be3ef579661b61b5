"""`Streamed`: the blocks of a module that come to a device one after the other."""

from __future__ import annotations

import bisect
import copy
import functools
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core
from coresident.errors import CoresidentError, DeviceMemoryError, InvalidValueError
from coresident.torch.repeatable import owned

if TYPE_CHECKING:
    from coresident.torch.blocks import Block
    from coresident.torch.room import Place

# After pages that nobody uses, and before torch's cache.
_PRIORITY = 55
_Tensors = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


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
        self._writable = writable
        self._terms = terms
        self._others = others
        self._lock = threading.RLock()
        self._closed = False
        self._calls = 0
        self._page = place.area.arena.status().page
        self._pages = streaming.pages_of_blocks()
        count = len(blocks)
        # By how many each is being visited, what it keeps after that, and how many of its tensors,
        # the first ones, are on the device now.
        self._inside = [0] * count
        self._keep = self._plan() or [0] * count
        self._there = [0] * count
        self._tensors: list[_Tensors] = []
        self._ends: list[list[int]] = []
        for block, ends in zip(blocks, streaming.ends(), strict=True):
            in_order = sorted(zip(ends, block.tensors, strict=True))
            self._ends.append([end for end, _ in in_order])
            self._tensors.append([(own[at], place.views[at], host[at]) for _, at in in_order])
        self._versions = [
            [tensor._version for tensor, _, _ in tensors] if writable else []
            for tensors in self._tensors
        ]
        # What stayed from before is used once more, also where the plan has other pages stay.
        self._wrapped: list[tuple[torch.nn.Module, str, _Around, Any]] = []
        for at, block in enumerate(blocks):
            # Around the hooks of a call, and around what is called without them.
            for name in ("_call_impl", "forward"):
                before = vars(block.module).get(name)
                around = _Around(self, at, getattr(block.module, name))
                vars(block.module)[name] = around
                self._wrapped.append((block.module, name, around, before))
        self._evict = _evictor(weakref.ref(self))
        budget.add_evictor(self._evict, priority=_PRIORITY)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def enter(self, block: int) -> None:
        """Has a block on the device; waits for it."""
        stream = None
        if self._device.type == "cuda":
            current = torch.cuda.current_stream(self._device.index)
            if torch.cuda.is_current_stream_capturing():
                raise InvalidValueError(
                    "the weights of a streamed model come and go while it runs, which a CUDA graph "
                    "of all of it cannot do: capture within the blocks, or use stream=False"
                )
            stream = current.cuda_stream
        self._bring(block, stream)
        with self._lock:
            if self._writable and not self._closed and self._inside[block] == 0:
                self._look_for_writes(block)
            self._inside[block] += 1
            if self._closed:
                return
            tensors, there = self._tensors[block], self._there[block]
            if there < len(tensors):
                for tensor, view, _ in tensors[there:]:
                    tensor.data = view
                self._there[block] = len(tensors)

    def _bring(self, block: int, stream: int | None) -> None:
        try:
            return self.streaming.enter(block, stream=stream, **self._terms)
        except DeviceMemoryError:
            # What stays is more than is planned.
            with self._lock:
                self._lower(self._keep)
        # Others outside have the memory: what nobody uses leaves before what stays.
        for give_up in (self._place.area.arena.evict, self.give_up, self._others):
            try:
                return self.streaming.enter(block, stream=stream, **self._terms)
            except DeviceMemoryError as error:
                give_up(max(error.asked, self._pages[block] * self._page))
        return self.streaming.enter(block, stream=stream, **self._terms)

    def leave(self, block: int) -> None:
        """Ends a visit of a block."""
        with self._lock:
            self._inside[block] -= 1
            if self._closed:
                return
            if self._inside[block] == 0:
                self._to_host(block, self._keep[block])
            self.streaming.leave(block, self._keep[block])

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
            for block in range(len(self._tensors) if self._writable else 0):
                self._keep_writes(block)

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
        self.streaming.close()

    def _plan(self, nbytes: int | None = None) -> list[int] | None:
        return self.streaming.plan(nbytes)

    def _lower(self, keep: list[int]) -> None:
        """Has blocks keep so many pages: less at once, more from their next visits on."""
        self._keep = keep
        for block, pages in enumerate(keep):
            if self._inside[block] == 0:
                self._to_host(block, pages)
                self.streaming.keep_at_most(block, pages)

    def _shrink(self, nbytes: int) -> int:
        allotted = self.streaming.status().allotted
        nbytes = min(nbytes, allotted - max(self._pages) * self._page)
        if nbytes <= 0:
            return 0
        self._lower(self._plan(allotted - nbytes) or [0] * len(self._pages))
        return self.streaming.shrink(nbytes)

    def _to_host(self, block: int, keep: int) -> None:
        """Points the tensors of a block to host memory, but for those in its first pages."""
        stays = bisect.bisect_right(self._ends[block], keep)
        if stays < self._there[block]:
            if self._writable:
                self._keep_writes(block)
            for tensor, _, host in self._tensors[block][stays : self._there[block]]:
                tensor.data = host
            self._there[block] = stays

    def _look_for_writes(self, block: int) -> None:
        """What was written in host memory has to come again."""
        known = self._versions[block]
        for at, (tensor, _, _) in enumerate(self._tensors[block]):
            if at >= self._there[block] and tensor._version != known[at]:
                self._place.area.renew()
                self._versions[block] = [tensor._version for tensor, _, _ in self._tensors[block]]
                self.streaming.leave(block, 0)
                self.streaming.enter(block, **self._terms)
                return

    def _keep_writes(self, block: int) -> None:
        """What torch has counted as written on the device is copied to host memory."""
        known = self._versions[block]
        with torch.inference_mode(False), torch.no_grad():
            for at, (tensor, view, host) in enumerate(self._tensors[block][: self._there[block]]):
                if tensor._version != known[at]:
                    host.copy_(view)
                    known[at] = tensor._version


def _evictor(streamed: weakref.ref[Streamed]) -> Callable[[int], None]:
    def evict(missing: int) -> None:
        # Of a lost device nothing leaves.
        with suppress(CoresidentError):
            if (here := streamed()) is not None:
                here.give_up(missing)

    return evict


_NOT_IN_A_GRAPH = (
    "the weights of this block are streamed: they come before it is called and leave after it, "
    "which no graph around it can do. Compile the blocks, or without fullgraph=True, or use "
    "stream=False"
)


class _Around:
    """A block's call with its coming and going around it. Copies of the module have their own call,
    without that."""

    def __init__(self, streamed: Streamed, block: int, call: Callable[..., Any]) -> None:
        # Others look at its parameters.
        functools.update_wrapper(self, call)
        self._streamed = streamed
        self._block = block
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg=_NOT_IN_A_GRAPH)
        streamed, block = self._streamed, self._block
        streamed.enter(block)
        try:
            output = owned(self._call(*args, **kwargs), streamed._place)
        finally:
            streamed.leave(block)
        if torch.is_grad_enabled() and _wants_gradients(output):
            raise InvalidValueError(
                "a streamed model cannot be differentiated: its weights are gone when gradients "
                "are computed. Call it within torch.no_grad(), or use stream=False"
            )
        return output

    @property
    def __code__(self) -> CodeType:
        # What is compiled has one, as functions have.
        return type(self).__call__.__code__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._call, memo)

    def __reduce__(self) -> Any:
        return self._call.__reduce__()


def _wants_gradients(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return bool(output.requires_grad)
    if isinstance(output, dict):
        return any(map(_wants_gradients, output.values()))
    return isinstance(output, (list, tuple)) and any(map(_wants_gradients, output))
