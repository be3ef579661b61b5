"""`Calls`: working memory for the calls of a module, while it is on a device."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core, _torch_memory
from coresident.errors import BudgetExceededError, CoresidentError, DeviceMemoryError
from coresident.torch.activations import Activations
from coresident.torch.room import Place
from coresident.torch.working_memory import estimate, signature, tiled

if TYPE_CHECKING:
    from coresident.torch.replica import Replica

# An estimate may be so many times of what is really needed.
_AT_MOST = 4


class Calls:
    """Reserves what a call is known to need, measures what it takes, and calls once more if the
    device was full. It stands around the module's ``forward`` and those of its parts, of which only
    the outermost counts: pipelines call the decoder of a VAE, not the VAE.

    Args:
        replica: Whose module is called.
        place: Where its weights are; without one, on a device without pages, nothing is done.
        reserved: What was reserved beside the weights.
        fixed: Whether that is what the caller has asked for, so that nothing more is reserved.
        terms: How long to wait for more.
    """

    def __init__(
        self,
        replica: Replica,
        place: Place | None,
        reserved: _core.Reservation | None,
        fixed: bool,
        terms: dict[str, Any],
    ) -> None:
        self._device = replica.device
        self._module = replica.module
        self._key = replica._model.key
        self._purpose = f"working memory of {self._key}"
        self._place = place
        self._held = [] if reserved is None else [reserved]
        self._fixed = fixed
        self._terms = terms
        self._room = replica._model.room
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._imitated = 0
        self._wrapped: list[tuple[torch.nn.Module, Any, Any]] = []
        if place is None or self._room is None:
            return
        self._budget = self._room.vram[self._device]
        # A virtual device's memory is full when it is full, as a GPU's.
        self._occupied = self._device.occupy(0) if self._device.type == "virtual" else None
        self._activations = Activations(self._resize) if self._occupied else None
        for part, module in (("", self._module), *self._module.named_children()):
            if type(module).forward is not torch.nn.Module.forward:
                before = vars(module).get("forward")
                around = partial(self._call, part, module.forward)
                module.forward = around
                self._wrapped.append((module, around, before))

    @property
    def reserved(self) -> int:
        """Bytes of working memory."""
        return sum(reservation.nbytes for reservation in self._held)

    def close(self) -> None:
        """Leaves the module as it was, and gives the working memory back."""
        for module, around, before in self._wrapped:
            if vars(module).get("forward") is around:
                del module.forward
                if before is not None:
                    module.forward = before
        self._wrapped = []
        for reservation in self._held:
            reservation.release()

    def _call(self, part: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(self._thread, "inside", False):
            return forward(*args, **kwargs)
        self._thread.inside = True
        try:
            return self._outermost(part, forward, args, kwargs)
        finally:
            self._thread.inside = False

    def _outermost(self, part: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        assert self._room is not None
        alike = signature(self._module, args, kwargs)
        measured = self._room.working_memory.peak(self._key, part, alike)
        need = estimate(self._module, part, args, kwargs) if measured is None else measured
        if need and not self._fixed:
            least = need if measured is not None else need // _AT_MOST
            self._reserve(need, least, part, args, kwargs)
        try:
            with self._measured(part, alike, measured):
                return self._own(forward(*args, **kwargs))
        except torch.OutOfMemoryError:
            # What failed is freed with its traceback, before the next attempt.
            pass
        with self._all_that_can_be():
            try:
                with self._measured(part, alike, measured):
                    return self._own(forward(*args, **kwargs))
            except torch.OutOfMemoryError as error:
                raise self._full(str(error), need, part, args, kwargs) from error

    def _own(self, output: Any) -> Any:
        """An output without views of weights, whose pages may leave when this is over."""
        if isinstance(output, torch.Tensor):
            assert self._place is not None
            return output.clone() if self._place.has(output) else output
        if isinstance(output, MutableMapping):
            for name, value in output.items():
                if (own := self._own(value)) is not value:
                    output[name] = own
        elif type(output) in (tuple, list):
            return type(output)(map(self._own, output))
        return output

    def _reserve(self, need: int, least: int, part: str, args: Any, kwargs: Any) -> None:
        """Reserves what is missing; of an estimate as much as there can be."""
        most = max(0, self._most() - self._weights())
        if least > most:
            called = f"{part} of {self._key!r}" if part else repr(self._key)
            raise BudgetExceededError(
                f"{called} needs {_size(need)} of working memory on {self._device} beside "
                f"{_size(self._weights())} of weights, and there can be {_size(most)} at most"
                + self._alternative(part, args, kwargs),
                self._budget.name,
                need,
                self._budget.free,
                self._budget.limit,
            )
        missing = min(need, most) - self.reserved
        if missing > 0:
            more = self._budget.reserve(missing, purpose=self._purpose, **self._terms)
            self._held.append(more)

    @contextmanager
    def _measured(self, part: str, alike: str, known: int | None) -> Iterator[None]:
        """Learns how much memory the block takes at its peak. On a virtual device that is slow, and
        what is known already is only taken for so long."""
        assert self._room is not None
        if self._activations is None:
            allocator = getattr(torch, self._device.type)
            index = self._device.index
            before = allocator.memory_allocated(index)
            allocator.reset_peak_memory_stats(index)
            yield
            peak = allocator.max_memory_allocated(index) - before
        elif known is None:
            activations = self._activations
            activations.peak = before = activations.live
            with activations:
                yield
            peak = activations.peak - before
        else:
            with self._taken(known):
                yield
            return
        self._room.working_memory.learn(self._key, part, alike, max(0, peak))

    @contextmanager
    def _taken(self, nbytes: int) -> Iterator[None]:
        """Has a virtual device's memory taken by so many bytes, as activations would.

        Raises:
            torch.OutOfMemoryError: it has not so many.
        """
        assert self._activations is not None
        with self._lock:
            self._imitated += nbytes
        try:
            if not self._resize(self._activations.live):
                raise torch.OutOfMemoryError(
                    f"out of memory: {nbytes} bytes of activations are needed: the virtual device "
                    "is full"
                )
            yield
        finally:
            with self._lock:
                self._imitated -= nbytes
            self._resize(self._activations.live)

    def _resize(self, live: int) -> bool:
        """Has the virtual device's memory taken by so many bytes of activations."""
        assert self._occupied is not None
        live += self._imitated
        if not self._occupied.resize(live):
            return False
        for reservation in self._held:
            # Those are in memory now, and not to be had once more.
            filled = min(live, reservation.nbytes)
            live -= filled
            try:
                reservation.fill(filled)
            except CoresidentError:
                # Given back meanwhile.
                continue
        return True

    @contextmanager
    def _all_that_can_be(self) -> Iterator[None]:
        """Frees everything that nobody uses, and keeps it for the block: others would take it."""
        assert self._place is not None
        gc.collect()
        self._place.area.arena.evict()
        _torch_memory.empty_cache(self._device)
        self._budget.look()
        extra = self._budget.try_reserve(self._budget.free, purpose=self._purpose)
        if extra is None:
            # Somebody was faster: no more than what comes free is missing.
            yield
            return
        self._held.append(extra)
        try:
            yield
        finally:
            self._held.remove(extra)
            extra.release()

    def _full(
        self, told: str, need: int | None, part: str, args: Any, kwargs: Any
    ) -> DeviceMemoryError:
        free = self._device.free_memory() or 0
        called = f"{part} of {self._key!r}" if part else repr(self._key)
        about = f" needs about {_size(need)} of working memory" if need else " ran out of memory"
        weights = f"{_size(self._weights())} of its own weights{self._others()}"
        return DeviceMemoryError(
            f"{called}{about} on {self._device}, where {_size(free)} is free after everything "
            f"unpinned was evicted, beside {weights}: {told}"
            + self._alternative(part, args, kwargs),
            str(self._device),
            need or 0,
            free,
        )

    def _others(self) -> str:
        assert self._place is not None
        areas = self._place.area.arena.status().areas
        pinned = [
            f"{area.key!r} has {_size(area.pinned)} pinned"
            for area in areas
            if area.pinned and area.key != self._key
        ]
        return "".join(f", {other}" for other in pinned)

    def _alternative(self, part: str, args: Any, kwargs: Any) -> str:
        need = tiled(self._module, part, args, kwargs)
        return "" if need is None else f"; in tiles, with enable_tiling(), about {_size(need)}"

    def _weights(self) -> int:
        assert self._place is not None
        page = self._place.area.arena.status().page
        return self._place.area.pages * page

    def _most(self) -> int:
        total = self._budget.total
        limit = self._budget.limit
        return limit if total is None else min(limit, total - self._budget.headroom)


def _size(nbytes: int | None) -> str:
    return _core.size(nbytes or 0)
