"""`Residence`: a replica's module while its weights are on the device."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core
from coresident.errors import CoresidentError, InvalidValueError, ReleasedError
from coresident.torch.block_tensors import elsewhere, is_same_memory
from coresident.torch.calls import Calls
from coresident.torch.host_writes import same_bytes
from coresident.torch.room import Place
from coresident.torch.streamed import Streamed
from coresident.torch.streaming import Plan, checked, planned
from coresident.torch.subclasses import every_part, say_where

if TYPE_CHECKING:
    from coresident.torch.replica import Replica

# Seconds that whoever ends a use with a stray write waits for the copies that undo it.
_RENEWAL = 1.0


class Residence:
    """A module whose weights are on its device until this is released, with working memory beside
    them. Made by :meth:`Model.on` and :meth:`Replica.on`; to be used by one job at a time.

    Attributes:
        device: The device.
        module: The module.
    """

    def __init__(
        self,
        replica: Replica,
        working_memory: int | str | None,
        *,
        stream: bool | str,
        blocks: Iterable[str] | None,
        owned: bool,
        timeout: float | None,
        cancel: _core.CancelToken | None,
    ) -> None:
        self._released = True
        self.device = replica.device
        self.module = replica.module
        self._replica = replica
        self._owned = owned
        self._lock = threading.RLock()
        # Pages of the replica's own, for what was written on purpose.
        self._private = replica._writable
        self._place: Place | None = None
        self._pins: _core.Pins | None = None
        self._reserved: _core.Reservation | None = None
        self._calls: Calls | None = None
        self._streamed: Streamed | None = None
        # What is streamed, and whose pages they are afterwards.
        self._plan: Plan | None = None
        self._versions: list[int] = []
        # Places of weights instead of which the caller has put something else before.
        self._theirs: set[int] = set()
        # What has come to the module beside its weights, such as adapters, and where it was.
        self._moved: list[tuple[torch.Tensor, torch.Tensor]] = []
        # On a device without pages, where nobody else records it.
        self._recorded = False
        terms: dict[str, Any] = {"timeout": timeout, "cancel": cancel}
        try:
            stream, blocks = checked(stream, blocks)
            self._place = replica._place()
            if self._place is not None:
                self._plan = planned(replica, self._place, working_memory, stream, blocks)
            elif stream is True:
                raise InvalidValueError(
                    f"{self.device} has no memory of its own with pages, through which weights "
                    "could be streamed: leave stream out"
                )
            streaming = self._take(working_memory, terms)
            self._enter(streaming, terms)
            room = replica._model.room
            if self._place is not None and room is not None:
                fixed = working_memory is not None
                self._calls = Calls(
                    *(replica, self._place, self._pins, self._streamed),
                    *(room, self._reserved, fixed, terms),
                )
        except BaseException:
            try:
                self._leave()
            finally:
                self._give_back()
            raise
        self._released = False

    @property
    def released(self) -> bool:
        """Whether it has ended."""
        return self._released

    @property
    def working_memory(self) -> int:
        """The bytes that are reserved beside the weights now."""
        if self._calls is not None:
            return self._calls.reserved
        return 0 if self._reserved is None else self._reserved.nbytes

    @property
    def streaming(self) -> _core.StreamingStatus | None:
        """What stays on the device and what comes block by block; ``None`` if all of it stays."""
        return None if self._streamed is None else self._streamed.streaming.status()

    def hand_over(self) -> Residence:
        """Says that nobody in particular will release it: to be called before another thread does.
        Does not wait."""
        if self._pins is not None:
            self._pins.hand_over()
        if self._reserved is not None:
            self._reserved.hand_over()
        if self._calls is not None:
            self._calls.hand_over()
        return self

    def release(self) -> None:
        """Ends it. Nothing moves, but the pages may leave from now on, and the working memory is
        given back. The module's parameters are in host memory again. Again without effect.

        What torch has counted as written in the device's memory is named in a
        :class:`StrayWriteWarning`, and filled again; within ``writable`` all that differs is copied
        to the replica's own host memory instead. Of a model that is streamed, what was written in
        host memory without being counted is not seen by its calls, and is named when the replica is
        released; within ``writable`` it is seen.
        """
        if self._release() and (room := self._replica._model.room) is not None:
            room.used(self.device)

    def _release(self) -> bool:
        """Whether it had not ended before."""
        with self._lock:
            if self._released:
                return False
            self._released = True
        area = None if self._place is None else self._place.area
        try:
            written = self._leave()
        finally:
            self._give_back()
        if written and area is not None:
            # After the pins, whose stream may still be writing.
            area.renew()
            if self._plan is None:
                # Others may be using the model: for them at once, but for who waits for the device.
                with suppress(CoresidentError):
                    area.fault(timeout=_RENEWAL).release()
            self._replica._warn_of(
                written, "whoever has used the model there meanwhile has seen it, and nobody will"
            )
        return True

    def _take(
        self, working_memory: int | str | None, terms: dict[str, Any]
    ) -> _core.Streaming | None:
        """Makes the weights resident, or some of them, and reserves working memory with them."""
        if self._place is not None:
            if self._private:
                # What is written in host memory is not known to the pages.
                self._place.area.renew()
            stream = None
            if self.device.type == "cuda":
                stream = torch.cuda.current_stream(self.device.index).cuda_stream
            if self._plan is not None:
                self._place = self._plan.place()
                streaming = self._plan.open(self._place, working_memory, stream, terms)
                self._reserved = streaming.working_memory
                return streaming
            self._pins = self._place.area.fault(
                working_memory=working_memory, stream=stream, **terms
            )
            self._reserved = self._pins.working_memory
            self._place.look()
            return None
        budget, began = self._replica._budget(), time.perf_counter()
        if working_memory is not None and budget is not None:
            purpose = f"working memory of {self._replica._model.key}"
            self._reserved = budget.reserve(working_memory, purpose=purpose, **terms)
        if (room := self._replica._model.room) is not None:
            weights = self._replica._model.weights
            working = 0 if self._reserved is None else self._reserved.nbytes
            took = time.perf_counter() - began
            room.copies.requested(self.device, weights.key, weights.nbytes, working, took)
            self._recorded = True
        return None

    def _enter(self, streaming: _core.Streaming | None, terms: dict[str, Any]) -> None:
        """Points the parameters to the device, but for those that come when they are needed."""
        if self._place is None:
            return
        own, views, host = self._replica._made, self._place.views, self._replica._tensors.all
        self._theirs = elsewhere(own, host)
        if streaming is not None and self._plan is not None:
            self._streamed = self._plan.streamed(streaming, self._place, terms)
        later = set() if self._plan is None else self._plan.in_blocks
        self._versions = [tensor._version for tensor in own]
        with torch.inference_mode(False), torch.no_grad():
            if self._private:
                # What torch has as copies is no part of the map that the pages are filled from.
                for at in self._replica._model.copies:
                    views[at].copy_(host[at])
            stay = [at for at in range(len(own)) if at not in self._theirs]
            for at in stay:
                if at not in later:
                    own[at].data = views[at]
            target, known = views[0].device if views else None, {id(own[at]) for at in stay}
            wholes = (*self.module.parameters(), *self.module.buffers())
            for tensor in every_part(wholes):
                if target is not None and id(tensor) not in known and tensor.device != target:
                    self._moved.append((tensor, tensor.data))
                    tensor.data = tensor.data.to(target)
            if target is not None and target.type != "cpu":
                say_where(wholes, target)

    def _leave(self) -> list[str]:
        """Points them to host memory again. Returns the names of those that were written, if that
        is not what was meant."""
        if self._place is None or not self._versions:
            return []
        own, host = self._replica._made, self._replica._tensors.all
        before, self._versions = self._versions, []
        if self._streamed is not None:
            self._streamed.keep_writes()
        later = set() if self._plan is None else self._plan.in_blocks
        written = [at for at, tensor in enumerate(own) if tensor._version != before[at]]
        with torch.inference_mode(False), torch.no_grad():
            for at, (tensor, there) in enumerate(zip(own, host, strict=True)):
                if at in self._theirs:
                    continue
                view, streamed = self._place.views[at], at in later
                if self._private and not self._place.has(tensor):
                    if not (streamed and is_same_memory(tensor, there)):
                        # Put in its place on purpose.
                        continue
                # Writes through ``.data`` are not counted.
                elif self._private and not streamed and not same_bytes(view, there):
                    there.copy_(view)
                tensor.data = there
            if not self._private:
                # The streaming has kept them there for as long as it went on.
                canonical = self._replica._tensors.canonical
                for at in later.intersection(written):
                    host[at].copy_(canonical(at))
            for tensor, at_rest in self._moved:
                tensor.data = at_rest
            if self._place.views[0].device != host[0].device:
                say_where((*self.module.parameters(), *self.module.buffers()), host[0].device)
        if self._private:
            return []
        return [self._replica._model.structure.names[at][0] for at in written]

    def _give_back(self) -> None:
        if self._calls is not None:
            self._calls.close()
        if self._streamed is not None:
            self._streamed.close()
        if self._plan is not None:
            self._plan.give_back()
        if self._pins is not None:
            self._pins.release()
        if self._reserved is not None:
            self._reserved.release()
        if (room := self._replica._model.room) is not None and self._recorded:
            room.copies.ended(self.device, self._replica._model.key)
            self._recorded = False
        # A private place ends with this.
        self._place = self._calls = None
        self._replica._resident, self._replica._residing = None, False
        if self._owned:
            self._replica._release()

    def __enter__(self) -> torch.nn.Module:
        if self._released:
            raise ReleasedError(f"{self!r} has been released already")
        return self.module

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if not getattr(self, "_released", True):
            # Whoever still has the module must not use pages that may leave.
            told = f"{self!r} was never released: use it in a with block, or call release()"
            self._release()
            warnings.warn(told, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<Residence of {self._replica._model.key!r} on {self.device}{state}>"
