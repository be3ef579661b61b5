"""What a pipeline's weights take of the host's memory, in three ways."""

from __future__ import annotations

import copy
import ctypes
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

import coresident as co
from coresident.demo.pipeline import MODULES, SharedPipeline

ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Footprint:
    """Bytes of this process's memory, as Linux accounts for them.

    Resident set sizes are no measure: they count a page once for every map of it.

    Attributes:
        proportional: Each page once, shared among those who map it (``Pss``).
        anonymous: What no file backs, and so cannot be dropped and read again (``Anonymous``).
    """

    proportional: int
    anonymous: int

    @classmethod
    def now(cls) -> Footprint:
        """What the process takes now."""
        lines = (line.split() for line in ROLLUP.read_text().splitlines()[1:])
        figures = {words[0]: int(words[1]) * 1024 for words in lines}
        return cls(figures["Pss:"], figures["Anonymous:"])

    def since(self, before: Footprint) -> Footprint:
        """What has come on top."""
        return Footprint(self.proportional - before.proportional, self.anonymous - before.anonymous)


def compare(folder: Path, replicas: int) -> dict[str, Footprint | None]:
    """Loads a pipeline so many times in each of three ways, and measures; keeps nothing.

    Returns:
        What each way takes; ``None`` for one that this machine has no room for, or cannot measure.
    """
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    free = co.devices("cpu")[0].free_memory()
    room = free is None or 2 * replicas * size < free
    return {
        "one map for all (coresident)": _measure(lambda: _shared(folder, replicas)),
        "from_pretrained for each": _measure(lambda: _from_pretrained(folder, replicas)),
        "a copy for each (deepcopy)": _measure(lambda: _copies(folder, replicas)) if room else None,
    }


def _measure(load: Callable[[], list[Any]]) -> Footprint | None:
    """What the pipelines take that ``load`` returns, once all of it has been read."""
    if not ROLLUP.exists():
        return None
    _tidy()
    before = Footprint.now()
    modules = load()
    for tensor in _weights(modules):
        tensor.sum()
    taken = Footprint.now().since(before)
    del modules
    _tidy()
    return taken


def _weights(modules: list[Any]) -> Iterator[Tensor]:
    return (parameter for module in modules for parameter in module.parameters())


def _shared(folder: Path, replicas: int) -> list[Any]:
    devices = co.virtual_devices(replicas)
    with co.Runtime(devices) as runtime:
        pipeline = SharedPipeline(runtime, folder)
        return [pipeline.module(part, device) for device in devices for part in MODULES]


def _from_pretrained(folder: Path, replicas: int) -> list[Any]:
    pipes = [StableDiffusionPipeline.from_pretrained(folder) for _ in range(replicas)]
    return [getattr(pipe, part) for pipe in pipes for part in MODULES]


def _copies(folder: Path, replicas: int) -> list[Any]:
    modules = _from_pretrained(folder, 1)
    return [copy.deepcopy(module) for _ in range(replicas) for module in modules]


def _tidy() -> None:
    """Has the allocator give back what is free, so that the next measure starts from nothing."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
