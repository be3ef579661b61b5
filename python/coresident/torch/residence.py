"""`Residence`: a replica's module while its weights are on the device."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from coresident import _core
from coresident.errors import ReleasedError
from coresident.torch.calls import Calls
from coresident.torch.room import Place

if TYPE_CHECKING:
    from coresident.torch.replica import Replica


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
        self._place: Place | None = None
        self._pins: _core.Pins | None = None
        self._calls: Calls | None = None
        self._versions: list[int] = []
        terms: dict[str, Any] = {"timeout": timeout, "cancel": cancel}
        try:
            self._place = replica._place()
            reserved = self._take(working_memory, terms)
            self._enter()
            self._calls = Calls(replica, self._place, reserved, working_memory is not None, terms)
        except BaseException:
            self._leave()
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
        return 0 if self._calls is None else self._calls.reserved

    def release(self) -> None:
        """Ends it. Nothing moves, but the pages may leave from now on, and the working memory is
        given back. The module's parameters are in host memory again. Again without effect.

        What torch has counted as written in the device's memory is named in a
        :class:`StrayWriteWarning`, and filled again before anybody uses it; within ``writable`` it
        is copied to the replica's own host memory instead.
        """
        self._release()

    def _release(self) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
        try:
            written = self._leave()
        finally:
            self._give_back()
        if written:
            # Whoever has called release(), or ended the block.
            self._replica._warn_of(written, stacklevel=4)

    def _take(
        self, working_memory: int | str | None, terms: dict[str, Any]
    ) -> _core.Reservation | None:
        """Makes the weights resident, and reserves working memory with them."""
        if self._place is not None:
            self._pins = self._place.area.fault(working_memory=working_memory, **terms)
            return self._pins.working_memory
        budget = self._replica._budget()
        if working_memory is None or budget is None:
            return None
        purpose = f"working memory of {self._replica._model.key}"
        return budget.reserve(working_memory, purpose=purpose, **terms)

    def _enter(self) -> None:
        """Points the parameters to the device."""
        if self._place is None:
            return
        own, views = self._replica._made, self._place.views
        self._versions = [tensor._version for tensor in own]
        with torch.inference_mode(False), torch.no_grad():
            if self._replica._writable:
                # What torch has as copies is no part of the map that the pages are filled from.
                for at in self._replica._model.copies:
                    views[at].copy_(own[at])
            for tensor, view in zip(own, views, strict=True):
                tensor.data = view

    def _leave(self) -> list[str]:
        """Points them to host memory again. Returns the names of those that were written, if that
        is not what was meant."""
        if self._place is None or not self._versions:
            return []
        own, host = self._replica._made, self._replica._tensors.all
        now = [tensor._version for tensor in own]
        written = [at for at, (a, b) in enumerate(zip(now, self._versions, strict=True)) if a != b]
        with torch.inference_mode(False), torch.no_grad():
            if self._replica._writable:
                for at in written:
                    host[at].copy_(own[at])
                written = []
            for tensor, there in zip(own, host, strict=True):
                tensor.data = there
        if written:
            self._place.area.renew()
        return [self._replica._model.structure.names[at][0] for at in written]

    def _give_back(self) -> None:
        if self._calls is not None:
            self._calls.close()
        if self._pins is not None:
            self._pins.release()
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
        self._release()

    def __del__(self) -> None:
        # Whoever still has the module must not use pages that may leave.
        if not getattr(self, "_released", True):
            told = f"{self!r} was never released: use it in a with block, or call release()"
            self._release()
            warnings.warn(told, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<Residence of {self._replica._model.key!r} on {self.device}{state}>"
