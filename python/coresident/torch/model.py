"""`Model`: weights in the store, and a module on every device that shares them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal

from coresident import _core
from coresident.errors import InvalidDeviceError, ReleasedError
from coresident.torch.packing import Packing
from coresident.torch.replica import Replica, Tensors
from coresident.torch.residence import Residence
from coresident.torch.room import Place, Room
from coresident.torch.structure import Structure
from coresident.torch.working_memory import WorkingMemory

# Of a model that was loaded without a runtime.
_NO_ROOM = Room({}, {}, WorkingMemory())
_CLOCK = itertools.count()
Blocks = tuple[tuple[int, ...], ...]


class Model:
    """A model whose weights are in a store, once, and of which each device has a replica.

    Made by :func:`load`. All methods may be called from any thread.

    Attributes:
        weights: Its weights in the store.
    """

    def __init__(
        self, weights: _core.Weights, structure: Structure, loaded: object, room: Room | None
    ) -> None:
        self.weights = weights
        self.room = room
        self.structure = structure
        self._state = weights.state_dict()
        # Under which name the weights have each tensor of the structure.
        self.order = [
            next(name for name in names if name in self._state) for names in structure.names
        ]
        copies = set(weights.private().copies())
        self.copies = [at for at, name in enumerate(self.order) if name in copies]
        self._packing = Packing(self.key, structure, self.order)
        # Kept for those who load the same.
        self._loaded = loaded
        # A finaliser may release a replica in the middle of what is done under the lock.
        self._lock = threading.RLock()
        self._idle: dict[_core.Device, list[Tensors]] = {}
        self._places: dict[_core.Device, Place] = {}
        # Those that nobody streams through now, by the blocks that they are for.
        self._streamed: dict[tuple[_core.Device, Blocks], list[Place]] = {}
        self._closed = False
        # By the order of uses.
        self.used_at = 0

    @property
    def key(self) -> str:
        """The key under which the store has the weights."""
        return self.weights.key

    def replica(
        self,
        device: Any,
        *,
        timeout: float | None = None,
        cancel: _core.CancelToken | None = None,
    ) -> Replica:
        """A module on a device, with parameters over the weights of the store.

        Its parameters are a private map in host memory: the same memory, until somebody writes
        them. On a device whose memory has pages they come there with :meth:`Replica.on`. On another
        one with memory of its own they are copied there from the store, or are those of a replica
        that was released: that waits for bytes of the device's budget. Otherwise does not wait.

        Args:
            device: A device, or its name.
            timeout: Seconds to wait, where it has to be copied; ``None`` waits for ever.
            cancel: A token that ends the wait.

        Returns:
            The replica, to be used with ``with`` or released.

        Raises:
            InvalidDeviceError: there is no such device, or the weights are packed for others only.
            BudgetExceededError: the device can never have the copy.
            BudgetTimeoutError: the time was over.
            CancelledError: the token was raised.
            ReleasedError: the model has been closed.
        """
        device = self._device(device)
        with self._lock:
            self._check()
            self.used_at = next(_CLOCK)
            idle = self._idle.get(device)
            tensors, state = (idle.pop() if idle else None), self._state
        if tensors is None:
            self._packing.check(device, state)
        paged = device.paged
        if not paged and self.room is not None:
            self.room.note_use(self, device)
        if tensors is None:
            terms = {"timeout": timeout, "cancel": cancel}
            tensors = Tensors(self, state, device, paged, terms)
        return Replica(self, tensors)

    def on(
        self,
        device: Any,
        working_memory: int | str | None = None,
        *,
        stream: bool | Literal["auto"] = "auto",
        blocks: Iterable[str] | None = None,
        timeout: float | None = None,
        cancel: _core.CancelToken | None = None,
    ) -> Residence:
        """A module whose weights are on a device, with working memory beside them, until it is
        released::

            with model.on("cuda:0", working_memory="3GiB") as module:
                image = module(latents)

        What is there already stays, and is not copied again. For what is missing, those pages of
        others leave that nobody uses, in the order of the runtime's policy. When it ends nothing
        moves. On a device that uses host memory it is a replica there.

        A call of the module that meets a full device is made once more after everything has left
        that nobody uses. What each call takes is measured, and reserved before the next one like
        it; a VAE's first one is estimated. On a virtual device the activations count as its
        memory: an operation that does not fit fails there as on a GPU.

        The module's parameters are on the device within the block alone. What it returns can be
        used afterwards; tensors of ``state_dict()``, ``.data`` and graphs of autograd that were
        taken within must not be touched then: the process ends when their pages have left. A call
        that has changed objects it was given, such as the cache of a language model, is not made
        once more.

        A model that can never fit is streamed: what is in none of its blocks stays on the device,
        and of the blocks as much as there is room for, also while it runs. The rest comes while the
        block before it computes, and leaves after its call. A block that is called in another order
        than before has to be waited for. Outside its call a block's tensors are in host memory, but
        for those that stay; buffers of 64 KiB or less, as the statistics of norms, are in no block.
        What torch counts as written in the module is seen by the next call, as if all of it stayed;
        a parameter whose ``.data`` was replaced, as by ``module.to()``, is on the device beside the
        rest, and is not streamed any more. Gradients cannot be computed through it. Where a call of
        the model computes with them all the same, as by ``linear(x, block.weight)`` or a part of a
        block, the block comes for that one operation, whose result is no view of them; leave it out
        of ``blocks`` where that takes too long. What stays is given up when others need its room,
        so that what was taken of it, as by ``state_dict()``, must not be touched after that even
        within the block: clone it.

        Waits in line, for others to end theirs and for the copies.

        Args:
            device: A device, or its name.
            working_memory: Bytes for activations, or a text such as ``"3GiB"``; reserved together
                with the weights, and never more. ``None`` reserves what each call is known to need.
            stream: Whether only some of the weights are on the device at a time: ``"auto"`` if they
                and the working memory that is known can never fit, or not beside what is streamed
                there.
            blocks: Names of the parts of the module that are streamed, each as a whole, or of lists
                of such parts; everything else stays. ``None`` takes its repeated layers, in parts
                if they are large, and what stands outside of them if that is much.
            timeout: Seconds to wait, also for a block within a call; ``None`` waits for ever.
            cancel: A token that ends the wait, also for a block within a call.

        Returns:
            What holds it, to be used with ``with``, which gives the module, or released.

        Raises:
            InvalidDeviceError: there is no such device, it is none of the runtime's, it is one
                without virtual memory management, through which nothing can be streamed, or the
                weights are packed for other devices only.
            InvalidTypeError: ``blocks`` is no list of names.
            InvalidValueError: ``stream`` is something else, there are no such blocks, or the device
                has no pages to stream through.
            BudgetExceededError: they can never fit, or not even the largest block; from a call,
                with what it would need in tiles.
            BudgetTimeoutError: the time was over.
            WaitTimeoutError: it was over before the copies were done; also from a call.
            CancelledError: the token was raised.
            DeadlockError: the caller has what he waits for himself, or two have each other's.
            DeviceMemoryError: the device is full, whatever its budget says.
            ReleasedError: the model has been closed.
        """
        replica = self.replica(device, timeout=timeout, cancel=cancel)
        return replica._on(working_memory, stream, blocks, timeout, cancel, owned=True)

    def area(self, device: Any) -> _core.Area:
        """Where its weights are on a device: for its priority, its residency, and blocks of it.

        Raises:
            InvalidDeviceError: there is no such device, or its memory has no pages, or is none of
                the runtime's.
            ReleasedError: the model has been closed.
        """
        device = self._device(device)
        place = self.place(device)
        if place is None:
            raise InvalidDeviceError(f"{device} has no memory of its own with pages")
        return place.area

    def place(self, device: _core.Device, own: Tensors | None = None) -> Place | None:
        """Where the weights, or a replica's own, are on a device; ``None`` without pages there.

        Raises:
            InvalidDeviceError: the device has pages, but is none of the runtime's.
            ReleasedError: the model has been closed.
        """
        room = self.room or _NO_ROOM
        if (arena := room.arena(device)) is None:
            return None
        if own is not None:
            return own.place(arena)
        with self._lock:
            self._check()
            if device not in self._places:
                area = arena.area(self.weights, self.order)
                self._places[device] = Place(area, self.order)
            return self._places[device]

    def take_streamed(self, device: _core.Device, blocks: Blocks) -> Place | None:
        """A place through which the weights were streamed before; ``None`` if there is none."""
        with self._lock:
            self._check()
            known = self._streamed.get((device, blocks))
            return known.pop() if known else None

    def give_back_streamed(self, device: _core.Device, blocks: Blocks, place: Place) -> None:
        """Keeps such a place for the next one."""
        with self._lock:
            if not self._closed:
                self._streamed.setdefault((device, blocks), []).append(place)

    def drop_copies(self, device: _core.Device) -> int:
        """Lets go of copies on a device that no replica uses. Returns their bytes."""
        with self._lock:
            idle = self._idle.pop(device, [])
        dropped = sum(tensors.drop() for tensors in idle)
        if dropped and self.room is not None and device in self.room.planners:
            self.room.planners[device].left(self.key)
        return dropped

    def _device(self, device: Any) -> _core.Device:
        """A device by its name: of virtual ones of the same name, the runtime's."""
        [found] = _core.devices([device])
        known = () if self.room is None else self.room.vram
        return next((own for own in known if own == found), found)

    def _check(self) -> None:
        if self._closed:
            raise ReleasedError(f"the model {self.key!r} has been closed already")

    def give_back(self, tensors: Tensors) -> None:
        """Keeps the weights of a replica for the next one."""
        keeps = self.room is None or tensors.on_host or self.room.keeps_copies(tensors.device)
        with self._lock:
            if not self._closed and keeps:
                self._idle.setdefault(tensors.device, []).append(tensors)
                return
        tensors.drop()

    def close(self) -> None:
        """Lets go of the weights, and of those that no replica uses. Again without effect.

        Replicas in use stay whole.
        """
        with self._lock:
            self._closed = True
            (idle, self._idle), (state, self._state) = (self._idle, {}), (self._state, {})
            places, self._places = (self._places, self._streamed), {}
            self._streamed = {}
        for tensors in (tensors for all_of_them in idle.values() for tensors in all_of_them):
            tensors.drop()
        del idle, state, places
        self.weights.release()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.key!r}: {self.structure.class_name}>"
