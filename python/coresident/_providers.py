"""Accelerators that torch knows and NVML does not: ROCm, XPU and MPS.

Importing torch takes seconds, so it is only asked where the machine shows signs of such a device.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Accelerator:
    """What a provider reports of one device.

    Attributes:
        name: ``'cuda:0'``, ``'xpu:1'``, ``'mps'``.
        model: The product's name.
        memory: Bytes; ``None`` if it is not known.
        unified: Whether it shares the host's memory.
        free_memory: Tells the bytes that are free now; ``None`` if it cannot be known.
    """

    name: str
    model: str
    memory: int | None = None
    unified: bool = False
    free_memory: Callable[[], int] | None = None


def torch_accelerators() -> list[Accelerator]:
    """The ROCm, XPU and MPS devices of this machine, through torch if it is installed."""
    if not _has_sign_of_one() or importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [*_rocm(torch), *_xpu(torch), *_mps(torch)]


def _has_sign_of_one() -> bool:
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "linux":
        return os.path.exists("/dev/kfd") or _has_intel_gpu()
    # Windows shows nothing cheap: only a process that uses torch anyway is asked.
    return "torch" in sys.modules


def _has_intel_gpu() -> bool:
    vendors = Path("/sys/class/drm").glob("card*/device/vendor")
    return any(_read(vendor) == "0x8086" for vendor in vendors)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _rocm(torch: Any) -> list[Accelerator]:
    if getattr(torch.version, "hip", None) is None or not torch.cuda.is_available():
        return []
    return [_one(torch.cuda, "cuda", index) for index in range(torch.cuda.device_count())]


def _xpu(torch: Any) -> list[Accelerator]:
    xpu = getattr(torch, "xpu", None)
    if xpu is None or not xpu.is_available():
        return []
    return [_one(xpu, "xpu", index) for index in range(xpu.device_count())]


def _one(module: Any, kind: str, index: int) -> Accelerator:
    properties = module.get_device_properties(index)

    def free_memory() -> int:
        return int(module.mem_get_info(index)[0])

    return Accelerator(
        name=f"{kind}:{index}",
        model=properties.name,
        memory=properties.total_memory,
        free_memory=free_memory,
    )


def _mps(torch: Any) -> list[Accelerator]:
    if not torch.backends.mps.is_available():
        return []
    return [Accelerator(name="mps", model=f"Apple {platform.processor() or 'GPU'}", unified=True)]
