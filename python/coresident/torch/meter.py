"""`Meter`: how much of a device's memory calls take at their peak, beside the weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from coresident import _core
from coresident.torch.activations import Activations


class Measured:
    """What was measured.

    Attributes:
        peak: Bytes at the peak; ``None`` if that was not measured.
    """

    peak: int | None = None


class Meter:
    """Measures calls on one device.

    A virtual device's memory is taken by activations, so that it is full when a GPU would be. To
    count them is slow: for a call whose peak is known, so many bytes are taken as a whole.

    Args:
        device: The device.
        told: Called with the bytes that are live whenever they become more or fewer, on a virtual
            device. Must not wait, nor raise.
        give_up: Called with bytes that are missing on a virtual device. Gives up what can come
            again, and tells whether that was something.
    """

    def __init__(
        self,
        device: _core.Device,
        told: Callable[[int], None],
        give_up: Callable[[int], bool] = lambda _nbytes: False,
    ) -> None:
        self._device = device
        self._told = told
        self._give_up = give_up
        self._lock = threading.Lock()
        self._taken = 0
        # Each counts one thread's.
        self._threads = threading.local()
        self._activations: list[Activations] = []
        self._occupied = device.occupy(0) if device.type == "virtual" else None

    @property
    def live(self) -> int:
        """Bytes of activations that are counted and not freed."""
        return self._taken + sum(activations.live for activations in self._activations)

    @contextmanager
    def measure(self, module: torch.nn.Module, known: int | None) -> Iterator[Measured]:
        """Measures what the block takes.

        Args:
            module: Whose call it is.
            known: Its peak in bytes, if that is known.

        Raises:
            torch.OutOfMemoryError: the device has not so many.
        """
        measured = Measured()
        if self._occupied is None:
            allocator, index = getattr(torch, self._device.type), self._device.index
            before = allocator.memory_allocated(index)
            allocator.reset_peak_memory_stats(index)
            yield measured
            measured.peak = max(0, allocator.max_memory_allocated(index) - before)
        elif known is not None:
            with self._take(known):
                yield measured
        elif any(map(_is_compiled, module.modules())):
            # What is compiled here would be compiled for the counting mode.
            yield measured
        else:
            activations = self._of_this_thread()
            activations.peak = before = activations.live
            with activations:
                yield measured
            measured.peak = max(0, activations.peak - before)

    def _of_this_thread(self) -> Activations:
        activations: Activations | None = getattr(self._threads, "activations", None)
        if activations is None:
            activations = self._threads.activations = Activations(lambda _live: self._resize())
            self._activations.append(activations)
        return activations

    @contextmanager
    def _take(self, nbytes: int) -> Iterator[None]:
        with self._lock:
            self._taken += nbytes
        try:
            if not self._resize():
                raise torch.OutOfMemoryError(
                    f"out of memory: {nbytes} bytes of activations are needed: the virtual device "
                    "is full"
                )
            yield
        finally:
            with self._lock:
                self._taken -= nbytes
            self._resize()

    def _resize(self) -> bool:
        """Has the device's memory taken by what is live now; whether it has so much."""
        assert self._occupied is not None
        live = self.live
        while not self._occupied.resize(live):
            if not self._give_up(live - self._occupied.nbytes):
                return False
        self._told(live)
        return True


def _is_compiled(module: Any) -> bool:
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return compiled or type(module).__name__ == "OptimizedModule"
