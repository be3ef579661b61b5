"""`Replica`: a module on one device over the weights of a model."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch

from coresident import _core
from coresident.errors import InvalidValueError, ReleasedError
from coresident.torch.residence import Residence
from coresident.torch.room import Place

if TYPE_CHECKING:
    from coresident.torch.model import Model


class StrayWriteWarning(UserWarning):
    """Parameters of a replica were written: nobody else sees it, and they are not used again."""


class Tensors:
    """The weights of a model for one replica after the other on a device.

    In host memory a private map of the weights, also where their pages come and go; elsewhere a
    copy of them.
    """

    def __init__(
        self,
        model: Model,
        state: dict[str, torch.Tensor],
        device: _core.Device,
        paged: bool,
        terms: dict[str, Any],
    ) -> None:
        self.device = device
        self._charged: _core.Reservation | None = None
        self._canonical = state
        self.target = torch.device(device.torch_name)
        self._model = model
        self._private: _core.PrivateWeights | None = None
        # Inference tensors could never be written, not even to make them what they were.
        with torch.inference_mode(False):
            if self.target.type == "cpu" or paged:
                self._private = model.weights.private()
                own = self._private.state_dict()
                self.all = [own[name] for name in model.order]
                counted = model.copies
            else:
                nbytes = model.weights.nbytes
                if model.room is not None:
                    self._charged = model.room.charge(model, device, nbytes, terms)
                began = time.perf_counter()
                self.all = [state[name].to(self.target) for name in model.order]
                if model.room is not None and self._charged is not None:
                    took = time.perf_counter() - began
                    model.room.copies.copied(device, model.key, nbytes, took)
                counted = list(range(len(self.all)))
        # Of what is no part of a map, only torch tells whether it was written.
        self._versions = {at: self.all[at]._version for at in counted}

    def written(self) -> list[str]:
        """The names of those that are no longer what the weights are."""
        changed = set(self._private.changed()) if self._private else set()
        written = {at for at, before in self._versions.items() if self.all[at]._version != before}
        if changed:
            written |= {at for at, name in enumerate(self._model.order) if name in changed}
        return [self._model.structure.names[at][0] for at in sorted(written)]

    def canonical(self, at: int) -> torch.Tensor:
        """One of the weights as all have it, not to be written."""
        return self._canonical[self._model.order[at]]

    @property
    def on_host(self) -> bool:
        """Whether they are in host memory, and no copy of it."""
        return self._private is not None

    def drop(self) -> int:
        """Lets go of what is charged for a copy. Returns its bytes."""
        charged, self._charged, self.all = self._charged, None, []
        if charged is None:
            return 0
        nbytes = charged.nbytes
        charged.release()
        if (room := self._model.room) is not None:
            room.copies.dropped(self.device, self._model.key, nbytes)
        return nbytes

    def __del__(self) -> None:
        if getattr(self, "_charged", None) is not None:
            self.drop()

    def place(self, arena: _core.Arena) -> Place:
        """Pages for these alone, filled from what has been written here."""
        assert self._private is not None
        return Place(arena.area(self._private, self._model.order), self._model.order)

    def restore(self) -> None:
        """Makes them what the weights are."""
        if self._private is not None:
            self._private.restore()
        for at, before in self._versions.items():
            tensor = self.all[at]
            if tensor._version != before:
                with torch.no_grad():
                    tensor.copy_(self.canonical(at))
                self._versions[at] = tensor._version


def _level_of_caller() -> int:
    """How far from the caller of this is who has called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OWN):
        level, frame = level + 1, frame.f_back
    return level


# Blocks end in the last one.
_OWN = ("coresident.", "contextlib")


class Replica:
    """A module on one device. Made by :meth:`Model.replica`, and to be used by one job at a time.

    Attributes:
        device: The device.
        module: The module, in eval mode, its parameters without gradients.
    """

    def __init__(self, model: Model, tensors: Tensors) -> None:
        self.device = tensors.device
        self._model = model
        self._tensors = tensors
        self._lock = threading.RLock()
        self._writable = False
        self._residing = False
        self._released = False
        self._resident: Residence | None = None
        self._parts = model.structure.shells()
        self.module = self._parts[0]
        self._fill()

    def _fill(self) -> None:
        structure, tensors = self._model.structure, self._tensors
        # The objects that the module has of the weights, in the order of the structure.
        self._made = structure.fill(self._parts, tensors.all, tensors.target)

    @property
    def released(self) -> bool:
        """Whether it was given back."""
        return self._released

    def on(
        self,
        working_memory: int | str | None = None,
        *,
        stream: bool | Literal["auto"] = "auto",
        blocks: Iterable[str] | None = None,
        timeout: float | None = None,
        cancel: _core.CancelToken | None = None,
    ) -> Residence:
        """Has the weights on the device, and working memory beside them, until it is released: as
        :meth:`Model.on`, for a module that is kept, with what has been put into it.

        Within :func:`writable` the device has pages for this replica alone, with what was written.

        Raises:
            InvalidValueError: it is on the device already.
            CoresidentError: as :meth:`Model.on`.
        """
        return self._on(working_memory, stream, blocks, timeout, cancel)

    def _on(
        self,
        working_memory: int | str | None,
        stream: bool | str,
        blocks: Iterable[str] | None,
        timeout: float | None,
        cancel: _core.CancelToken | None,
        *,
        owned: bool = False,
    ) -> Residence:
        with self._lock:
            self._check()
            if self._residing:
                raise InvalidValueError(f"{self!r} is on its device already: end that first")
            self._residing = True
        if self._model.room is not None:
            self._model.room.note_use(self._model, self.device)
        resident = Residence(
            *(self, working_memory),
            stream=stream,
            blocks=blocks,
            owned=owned,
            timeout=timeout,
            cancel=cancel,
        )
        with self._lock:
            self._resident, released = resident, self._released
        if released:
            # By somebody else, while this has waited.
            resident.release()
            self._check()
        return resident

    def written(self) -> list[str]:
        """The names of parameters and buffers that are no longer what the weights are.

        Of a tensor that is not part of a map, which is all of them on a device with memory of its
        own, only what torch has counted is found: writes through ``.data`` or another library are
        not. Does not wait.

        Raises:
            ReleasedError: it has been released.
        """
        self._check()
        return self._tensors.written()

    def release(self) -> list[str]:
        """Gives the weights back for the next replica on the device; the module is not used again.
        Again without effect.

        If they were written, they are not used again either, and a :class:`StrayWriteWarning` names
        them: nobody else's weights have changed, but what this replica has computed since may be
        wrong.

        Returns:
            The names of what was written.
        """
        return self._release()

    def _release(self) -> list[str]:
        with self._lock:
            if self._released:
                return []
            self._released = True
            resident, residing = self._resident, self._residing
        if resident is not None:
            resident.release()
        elif residing:
            # Somebody waits to have them on the device: they are not for the next replica.
            return []
        written = self._tensors.written()
        if written:
            self._tensors.drop()
            self._warn_of(written, "nobody else's have changed")
        else:
            self._model.give_back(self._tensors)
        return written

    def _warn_of(self, written: list[str], so: str) -> None:
        shown = ", ".join(written[:5]) + (", ..." if len(written) > 5 else "")
        count = "1 parameter" if len(written) == 1 else f"{len(written)} parameters"
        warnings.warn(
            f"{count} of {self._model.key!r} on {self.device} written to: {shown}; {so}. "
            "Do it within writable() if it is meant",
            StrayWriteWarning,
            stacklevel=_level_of_caller(),
        )

    def _place(self) -> Place | None:
        """Where its weights are on the device; ``None`` where there are no pages."""
        return self._model.place(self.device, self._tensors if self._writable else None)

    def _budget(self) -> _core.Budget | None:
        room = self._model.room
        return None if room is None else room.vram.get(self.device)

    def _check(self) -> None:
        if self._released:
            raise ReleasedError(f"the replica of {self._model.key!r} has been released already")

    def _restore(self) -> None:
        """Makes the module and its weights what those of a new replica are."""
        if self._resident is not None:
            self._resident.release()
        self._tensors.restore()
        self._fill()

    def __enter__(self) -> Replica:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<Replica of {self._model.key!r} on {self.device}{state}>"
