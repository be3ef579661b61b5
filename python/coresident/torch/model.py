"""`Model`: weights in the store, and a module on every device that shares them."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from coresident import _core
from coresident.errors import ReleasedError
from coresident.torch.replica import Replica, Tensors
from coresident.torch.structure import Structure


class Model:
    """A model whose weights are in a store, once, and of which each device has a replica.

    Made by :func:`load`. All methods may be called from any thread.

    Attributes:
        weights: Its weights in the store.
    """

    def __init__(self, weights: _core.Weights, structure: Structure, loaded: object) -> None:
        self.weights = weights
        self.structure = structure
        self._state = weights.state_dict()
        # Under which name the weights have each tensor of the structure.
        self.order = [
            next(name for name in names if name in self._state) for names in structure.names
        ]
        copies = set(weights.private().copies())
        self.copies = [at for at, name in enumerate(self.order) if name in copies]
        # Kept for those who load the same.
        self._loaded = loaded
        # A finaliser may release a replica in the middle of what is done under the lock.
        self._lock = threading.RLock()
        self._idle: dict[_core.Device, list[Tensors]] = {}
        self._closed = False

    @property
    def key(self) -> str:
        """The key under which the store has the weights."""
        return self.weights.key

    def replica(self, device: Any) -> Replica:
        """A module on a device, with parameters over the weights of the store.

        On the CPU and on virtual devices that use host memory its parameters are a private map: the
        same memory, until somebody writes them. On a device with memory of its own they are copied
        there from the store, or are those of a replica that was released. Does not wait for others.

        Args:
            device: A device, or its name.

        Returns:
            The replica, to be used with ``with`` or released.

        Raises:
            InvalidDeviceError: there is no such device.
            ReleasedError: the model has been closed.
        """
        [device] = _core.devices([device])
        with self._lock:
            if self._closed:
                raise ReleasedError(f"the model {self.key!r} has been closed already")
            idle = self._idle.get(device)
            tensors, state = (idle.pop() if idle else None), self._state
        return Replica(self, tensors or Tensors(self, state, device))

    def give_back(self, tensors: Tensors) -> None:
        """Keeps the weights of a replica for the next one."""
        with self._lock:
            if not self._closed:
                self._idle.setdefault(tensors.device, []).append(tensors)

    def close(self) -> None:
        """Lets go of the weights, and of those that no replica uses. Again without effect.

        Replicas in use stay whole.
        """
        with self._lock:
            self._closed = True
            (idle, self._idle), (state, self._state) = (self._idle, {}), (self._state, {})
        del idle, state
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
