"""`Calls`: working memory for the calls of a module, while it is on a device."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core, _torch_memory
from coresident.errors import (
    BudgetExceededError,
    CoresidentError,
    DeadlockError,
    DeviceMemoryError,
    WaitTimeoutError,
)
from coresident.torch.meter import Meter
from coresident.torch.repeatable import Arguments, owned
from coresident.torch.room import Place, Room
from coresident.torch.untraced import untraced
from coresident.torch.vae_memory import estimate, tiled
from coresident.torch.working_memory import signature

if TYPE_CHECKING:
    from coresident.torch.replica import Replica
    from coresident.torch.streamed import Streamed

# Seconds until streams are done with what nobody uses any more, and until it is looked again.
_SETTLES, _SLICE = 1.0, 0.02

# An estimate may be so many times of what is really needed.
_AT_MOST = 4


def unknown(most: int) -> int:
    """Bytes that are left for working memory of which nothing is known, of so many in all."""
    return most // 8


class _Inside(threading.local):
    """The devices on which this thread is inside a call."""

    def __init__(self) -> None:
        self.devices: set[_core.Device] = set()


_INSIDE = _Inside()


@untraced
def is_inside(device: _core.Device) -> bool:
    """Whether this thread is inside a call on a device."""
    return device in _INSIDE.devices


class Calls:
    """Reserves what a call is known to need, measures what it takes, and calls once more if the
    device was full. It stands around the module's ``forward`` and those of its parts, of which only
    the outermost counts: pipelines call the decoder of a VAE, not the VAE.

    Args:
        replica: Whose module is called.
        place: Where its weights are.
        pins: What keeps them there, if all of them stay.
        streamed: What has them come, if not.
        room: Where it finds more.
        reserved: What was reserved beside the weights.
        fixed: Whether that is what the caller has asked for, so that nothing more is reserved.
        terms: How long to wait for more.
    """

    def __init__(
        self,
        replica: Replica,
        place: Place,
        pins: _core.Pins | None,
        streamed: Streamed | None,
        room: Room,
        reserved: _core.Reservation | None,
        fixed: bool,
        terms: dict[str, Any],
    ) -> None:
        self._device = replica.device
        self._module = replica.module
        self._key = replica._model.key
        self._purpose = f"working memory of {self._key}"
        self._place = place
        self._pins = pins
        self._streamed = streamed
        self._room = room
        self._budget = room.vram[self._device]
        self._held: list[_core.Reservation] = []
        if reserved is not None:
            self._hold(reserved)
        self._fixed = fixed
        self._terms = terms
        self._closed = False
        # The most that was seen to be needed; None once that was not measured.
        self._peak: int | None = 0
        self._meter = Meter(self._device, self._fill, self._make_room)
        self._wrapped: list[tuple[torch.nn.Module, Any, Any]] = []
        for part, module in (("", self._module), *self._module.named_children()):
            if type(module).forward is not torch.nn.Module.forward:
                before = vars(module).get("forward")
                around = _Around(self, part, module.forward)
                module.forward = around
                self._wrapped.append((module, around, before))

    @property
    def reserved(self) -> int:
        """Bytes of working memory."""
        return sum(reservation.nbytes for reservation in self._held)

    def hand_over(self) -> None:
        """Says that nobody in particular will give them back."""
        for reservation in self._held:
            reservation.hand_over()

    def close(self) -> None:
        """Leaves the module as it was, and gives the working memory back."""
        self._closed = True
        for module, around, before in self._wrapped:
            if vars(module).get("forward") is around:
                del module.forward
                if before is not None:
                    module.forward = before
        self._wrapped = []
        if self._peak:
            self._record("peak", beside=self._peak)
        for reservation in self._held:
            reservation.release()

    def call(self, part: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a part, or the whole."""
        inside = _INSIDE.devices
        # Who has kept the way in may come later; and who is inside is counted by whoever is around.
        if torch.compiler.is_compiling() or self._closed or self._device in inside:
            return forward(*args, **kwargs)
        inside.add(self._device)
        try:
            return self._outermost(part, forward, args, kwargs)
        finally:
            inside.discard(self._device)

    def _outermost(self, part: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        alike = signature(self._module, args, kwargs)
        measured = self._room.working_memory.peak(self._key, part, alike)
        need = estimate(self._module, part, args, kwargs) if measured is None else measured
        if need and not self._fixed:
            least = need if measured is not None else need // _AT_MOST
            self._reserve(need, least, part, args, kwargs)
        if self._streamed is not None:
            self._streamed.adapt(0 if need or self._fixed else unknown(self._most()))
        before = Arguments(args, kwargs)
        try:
            return self._once(part, alike, measured, forward, args, kwargs)
        except torch.OutOfMemoryError as error:
            if not before.repeatable:
                raise self._full(str(error), need, part, args, kwargs) from error
        # What failed was freed with its traceback.
        before.restore()
        self._record("retry", nbytes=need or 0)
        with self._all_that_can_be():
            try:
                return self._once(part, alike, measured, forward, args, kwargs)
            except torch.OutOfMemoryError as error:
                raise self._full(str(error), need, part, args, kwargs) from error

    def _once(
        self,
        part: str,
        alike: str,
        known: int | None,
        forward: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> Any:
        if self._device.type == "cuda":
            # Whichever it is now: pages leave after all that have used them.
            used = self._pins if self._streamed is None else self._streamed.streaming
            if used is not None:
                used.also_on(torch.cuda.current_stream(self._device.index).cuda_stream)
        live = self._meter.live
        with self._meter.measure(self._module, known) as measured:
            output = owned(forward(*args, **kwargs), self._place)
        peak = known if measured.peak is None else measured.peak
        if peak is None or self._peak is None:
            self._peak = None
        else:
            self._peak = max(self._peak, live + peak)
        if measured.peak is not None:
            self._room.working_memory.learn(self._key, part, alike, measured.peak)
        return output

    def _reserve(self, need: int, least: int, part: str, args: Any, kwargs: Any) -> None:
        """Reserves what is missing; of an estimate as much as there can be."""
        most = max(0, self._most() - self._least())
        if least > most:
            weights = _core.size(self._least())
            raise BudgetExceededError(
                f"{self._called(part)} needs {_core.size(need)} of working memory on "
                f"{self._device} beside {weights} of weights, and there can be {_core.size(most)} "
                "at most" + self._alternative(part, args, kwargs),
                self._budget.name,
                need,
                self._budget.free,
                self._budget.limit,
            )
        # What is live of earlier calls stays.
        missing = min(need + self._meter.live, most) - self.reserved
        if missing <= 0:
            return
        # Those who wait for bytes wait for this to end, so that it goes before them.
        more = self._budget.try_reserve(missing, purpose=self._purpose)
        if more is None:
            self._place.area.arena.evict(missing)
            more = self._budget.try_reserve(missing, purpose=self._purpose)
        # What is live beyond what is reserved has its bytes, and would be waited for in vain.
        missing -= max(0, self._meter.live - self.reserved)
        if more is None and missing > 0:
            # Two who have each other's: there may be enough all the same, and the device tells.
            with suppress(DeadlockError):
                more = self._budget.reserve(missing, purpose=self._purpose, **self._terms)
        if more is not None:
            self._hold(more)
            self._record("working memory", beside=self.reserved)

    def _record(self, kind: str, **figures: Any) -> None:
        if (timeline := self._room.timeline) is not None and timeline.enabled:
            timeline.record(kind, self._device, self._key, **figures)

    def _hold(self, reservation: _core.Reservation) -> None:
        self._held.append(reservation)
        _torch_memory.cover(self._device, reservation)

    def _fill(self, live: int) -> None:
        """Says that so many bytes are in memory: they are not to be had once more."""
        for reservation in self._held:
            filled = min(live, reservation.nbytes)
            live -= filled
            # It may be given back meanwhile.
            with suppress(CoresidentError):
                reservation.fill(filled)

    @contextmanager
    def _all_that_can_be(self) -> Iterator[None]:
        """Frees everything that nobody uses, and keeps it for the block: others would take it."""
        turn: Any = nullcontext()
        # Whoever has it may wait for this call: then both take what they get.
        with suppress(DeadlockError, WaitTimeoutError):
            turn = self._room.turn(self._device).write(**self._terms)
        before = len(self._held)
        with turn:
            try:
                self._take_all()
                yield
            finally:
                extra, self._held[before:] = self._held[before:], []
                for reservation in extra:
                    reservation.release()

    def _take_all(self) -> None:
        gc.collect()
        self._give_up(self._place.nbytes)
        _torch_memory.empty_cache(self._device)
        arena, until = self._place.area.arena, time.monotonic() + _SETTLES
        while True:
            gone = arena.evict()
            self._budget.look()
            free = self._budget.free
            more = self._budget.try_reserve(free, purpose=self._purpose) if free else None
            if more is not None:
                self._hold(more)
            unused = arena.status().evictable
            if (not gone and more is None and not unused) or time.monotonic() > until:
                return
            if not gone and more is None:
                # A stream still uses it, or somebody was faster: the line is not overtaken.
                with suppress(BudgetExceededError, DeadlockError):
                    self._hold(self._budget.reserve(unused, purpose=self._purpose, timeout=_SLICE))

    def _full(
        self, told: str, need: int | None, part: str, args: Any, kwargs: Any
    ) -> DeviceMemoryError:
        free = self._device.free_memory() or 0
        about = (
            f" needs about {_core.size(need)} of working memory" if need else " ran out of memory"
        )
        weights = f"{_core.size(self._least())} of its own weights{self._others()}"
        return DeviceMemoryError(
            f"{self._called(part)}{about} on {self._device}, where {_core.size(free)} is free "
            f"after everything unpinned was evicted, beside {weights}: {told}"
            + self._alternative(part, args, kwargs),
            str(self._device),
            need or 0,
            free,
        )

    def _called(self, part: str) -> str:
        return f"{part} of {self._key!r}" if part else repr(self._key)

    def _others(self) -> str:
        pinned = [
            f", {area.key!r} has {_core.size(area.pinned)} pinned"
            for area in self._place.area.arena.status().areas
            if area.pinned and area.key != self._key
        ]
        return "".join(pinned)

    def _alternative(self, part: str, args: Any, kwargs: Any) -> str:
        need = tiled(self._module, part, args, kwargs)
        return "" if need is None else f"; in tiles, with enable_tiling(), about {_core.size(need)}"

    def _give_up(self, nbytes: int) -> bool:
        """Gives up weights that need not stay. Returns whether there were some."""
        return self._room.give_up(self._device, nbytes)

    def _make_room(self, nbytes: int) -> bool:
        """The same for activations, where a model is streamed: what nobody uses leaves before what
        stays of it."""
        if not self._room.streams(self._device):
            return False
        return self._place.area.arena.evict(nbytes) > 0 or self._give_up(nbytes)

    def _least(self) -> int:
        """Bytes that its weights need at least."""
        return self._place.nbytes if self._streamed is None else self._streamed.least()

    def _most(self) -> int:
        total, limit = self._budget.total, self._budget.limit
        return limit if total is None else min(limit, total - self._budget.headroom)


class _Around:
    """A module's ``forward`` with what is done around it. Copies of the module have their own
    ``forward``, without that."""

    def __init__(self, calls: Calls, part: str, forward: Callable[..., Any]) -> None:
        # Others look at its parameters.
        functools.update_wrapper(self, forward)
        self._calls = calls
        self._part = part
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._calls.call(self._part, self._forward, args, kwargs)

    @property
    def __code__(self) -> CodeType:
        # What is exported has one, as functions have.
        return type(self).__call__.__code__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._forward, memo)

    def __reduce__(self) -> Any:
        return self._forward.__reduce__()
