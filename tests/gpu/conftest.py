"""The device of this suite: the first CUDA GPU, or what CORESIDENT_TEST_DEVICE says.

``CORESIDENT_TEST_DEVICE=virtual`` has a virtual device of one GiB, to try the suite itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import coresident as co
import pytest

# Before torch is imported: threads that spin while they wait slow a busy machine down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")


@pytest.fixture(scope="session")
def device() -> co.Device:
    wanted = os.environ.get("CORESIDENT_TEST_DEVICE")
    if wanted == "virtual":
        return co.virtual_devices(1, memory="1GiB")[0]
    if wanted is None and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU on this machine")
    return co.devices(wanted or "cuda:0")[0]


@pytest.fixture
def runtime(device: co.Device) -> Iterator[co.Runtime]:
    """A runtime whose device may have 256 MiB more than others have of it."""
    with co.Runtime([device]) as runtime:
        budget = runtime.vram[device]
        budget.look()
        budget.limit = min(budget.limit, 256 << 20)
        yield runtime
