"""diffusers' and accelerate's offloading of a model, on a bus that is as slow as is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Bus:
    """Carries so many bytes a second, one copy after the other.

    Short waits are put off until they are worth one, as a thread that sleeps wakes up late.
    """

    SHORT = 5e-4

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.moved = 0
        self.busy = 0.0
        self._free_at = 0.0

    def carry(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor, when it would have come."""
        began = time.perf_counter()
        copy = tensor.detach().clone()
        self.moved += copy.nbytes
        free_at = self._free_at if self._free_at + self.SHORT > began else began
        self._free_at = free_at + copy.nbytes / self.rate
        left = self._free_at - time.perf_counter()
        if left >= self.SHORT:
            time.sleep(left)
        self.busy += time.perf_counter() - began
        return copy


@contextmanager
def group_offload(module: Any, kind: str, bus: Bus) -> Iterator[None]:
    """diffusers' own hooks, with this bus."""
    from diffusers.hooks import apply_group_offloading
    from diffusers.hooks.group_offloading import ModuleGroup

    before = ModuleGroup._transfer_tensor_to_device

    def transfer(_: Any, tensor: Any, source: Any, __: Any) -> None:
        tensor.data = bus.carry(source)

    ModuleGroup._transfer_tensor_to_device = transfer
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    try:
        cpu = torch.device("cpu")
        apply_group_offloading(module, cpu, cpu, offload_type=kind, **options)
        yield
    finally:
        ModuleGroup._transfer_tensor_to_device = before


@contextmanager
def sequential_offload(module: Any, bus: Bus) -> Iterator[None]:
    """accelerate's own hooks, with this bus: weights of a module come from the CPU for its call."""
    from accelerate import cpu_offload, hooks

    before = hooks.set_module_tensor_to_device

    def place(module: Any, name: str, device: Any, value: Any = None, **options: Any) -> None:
        if value is not None and str(device) != "meta":
            value = bus.carry(value)
        before(module, name, device, value=value, **options)

    hooks.set_module_tensor_to_device = place
    try:
        cpu_offload(module, torch.device("cpu"), offload_buffers=False)
        yield
    finally:
        hooks.set_module_tensor_to_device = before


#: What each is called, and what puts it around a module.
PEERS = {
    "diffusers, group offload by block": lambda m, b: group_offload(m, "block_level", b),
    "diffusers, group offload by leaf": lambda m, b: group_offload(m, "leaf_level", b),
    "accelerate, sequential offload": sequential_offload,
}
