"""Devices of eight pages for the tests of arenas, and what is on them: virtual ones, or pretended GPUs.

``CORESIDENT_TEST_DEVICE=pretended`` has two cards of ``tests/pretend_cuda``, of which the second has no
virtual memory management; ``PRETEND_CUDA`` is :data:`CARDS` then. torch cannot touch their memory, so
that bytes are read through the library.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import coresident as co
import numpy as np
import pytest
from conftest import until

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

PAGE = 2 << 20
PAGES = 8
CARDS = "A 3090:16MiB,A 3090:16MiB:no-vmm,delay:300us"
PRETENDED = os.environ.get("CORESIDENT_TEST_DEVICE") == "pretended"

needs_torch = pytest.mark.skipif(
    PRETENDED, reason="torch is to touch the device's memory, and a pretended card has none for it"
)
needs_virtual = pytest.mark.skipif(
    PRETENDED, reason="is about virtual devices; what is like it on a card is in test_cuda.py"
)


def device_of(*, moving: bool) -> co.Device:
    """A device of which nobody has anything; whose memory moves or not."""
    if not PRETENDED:
        return co.virtual_devices(1, memory=PAGES * PAGE, jitter=5, moving=moving)[0]
    [device] = co.devices(f"cuda:{int(moving)}")
    with _entered(device) as driver:
        # The test before leaves nothing there.
        if driver.pretend_cuda_count(b"used_bytes", device.index):
            gc.collect()
            until(lambda: driver.pretend_cuda_count(b"used_bytes", device.index) == 0)
    return device


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@contextmanager
def _entered(device: co.Device) -> Iterator[ctypes.CDLL]:
    """Has a card's context current."""
    driver, context = _driver(), ctypes.c_void_p()
    assert driver.cuInit(0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device.index) == 0
    assert driver.cuCtxPushCurrent_v2(context) == 0
    yield driver
    assert driver.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0


def settle(device: co.Device) -> None:
    """Waits for what the default stream has to do, and so for the copies that it comes after. On a
    virtual device whoever has pages has waited for them."""
    if PRETENDED:
        with _entered(device) as driver:
            assert driver.cuStreamSynchronize(ctypes.c_void_p()) == 0


@contextmanager
def occupied(device: co.Device, nbytes: int) -> Iterator[None]:
    """Has others take bytes of a device's memory."""
    if not PRETENDED:
        with device.occupy(nbytes):
            yield
        return
    set_taken = _driver().pretend_cuda_set_taken
    assert set_taken(device.index, ctypes.c_uint64(nbytes)) == 0
    yield
    assert set_taken(device.index, ctypes.c_uint64(0)) == 0


def is_there(area: co.Area, expected: dict[str, Any]) -> bool:
    """Whether an area that is pinned has these tensors on its device, each with its bytes."""
    if PRETENDED:
        settle(area.arena.device)
        return all(_is_on_card(area, name, tensor) for name, tensor in expected.items())
    views = area.state_dict(area.block(expected))
    return all(torch.equal(views[name], tensor) for name, tensor in expected.items())


def address_of(area: co.Area, name: str) -> int:
    """Where a tensor is on its device, or comes to where memory does not move."""
    capsule = area.pinned(name).__dlpack__()
    # Where a consumer finds it.
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(ctypes.cast(pointer(capsule, b"dltensor"), ctypes.POINTER(ctypes.c_uint64))[0])


def bytes_at(address: int, size: int) -> Any:
    """What is there on a device, as an array; the caller has waited for it."""
    found = np.empty(size, np.uint8)
    to = found.ctypes.data_as(ctypes.c_void_p)
    if PRETENDED:
        assert _driver().pretend_cuda_peek(ctypes.c_uint64(address), to, ctypes.c_size_t(size)) == 0
    else:
        ctypes.memmove(to, address, size)
    return found


def _is_on_card(area: co.Area, name: str, expected: Any) -> bool:
    right = expected.contiguous().flatten().view(torch.uint8).numpy()
    return np.array_equal(bytes_at(address_of(area, name), right.size), right)
