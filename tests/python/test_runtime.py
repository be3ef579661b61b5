"""One of each primitive, and how they are wired."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from coresident import _torch_memory
from test_weights import write

GIB = 2**30


def test_a_runtime_has_one_of_each_for_its_devices() -> None:
    devices = co.virtual_devices(2, memory="2GiB")
    with co.Runtime(devices) as runtime:
        assert runtime.devices == runtime.pool.devices == runtime.workers.devices == devices
        assert runtime.ram.name == "ram"
        assert runtime.weights.budget is runtime.ram
        assert {device: budget.limit for device, budget in runtime.vram.items()} == dict.fromkeys(
            devices, 2 * GIB
        )
        with runtime.vram[devices[0]].reserve("2GiB", timeout=0):
            assert runtime.vram[devices[0]].free == 0
            assert runtime.vram[devices[1]].free == 2 * GIB


def test_unified_devices_have_no_memory_of_their_own() -> None:
    with co.Runtime(co.virtual_devices(2)) as runtime:
        assert runtime.vram == {}


def test_what_a_runtime_opens_is_charged_to_host_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": ("U8", [1000], bytes(1000))})
    with co.Runtime(co.virtual_devices(1)) as runtime:
        runtime.weights.open("model", path).release()
        assert runtime.ram.used == 1000
        runtime.ram.limit = 500
        assert runtime.ram.used == 0


@pytest.mark.parametrize("pin", ["some", 3, None])
def test_what_is_page_locked_is_one_of_three(pin: Any) -> None:
    with pytest.raises(co.InvalidValueError, match="pin is 'staging', 'all' or 'none', not"):
        co.Runtime(co.virtual_devices(1), pin=pin)


def test_a_runtimes_arenas_charge_its_host_memory() -> None:
    with co.Runtime(co.virtual_devices(1, memory="64MiB"), pin="none") as runtime:
        [arena] = runtime.arenas.values()
        assert (arena.pin, arena.ram) == ("none", runtime.ram)


def test_all_runtimes_of_a_process_load_under_one_lock() -> None:
    with co.Runtime(co.virtual_devices(1)) as one, co.Runtime(co.virtual_devices(1)) as other:
        assert one.load_lock is other.load_lock


class Allocator:
    """What torch tells of its cache on a GPU, which no test machine has."""

    def __init__(self, reserved: int, allocated: int) -> None:
        self.reserved = reserved
        self.allocated = allocated
        self.initialized = True

    def is_initialized(self) -> bool:
        return self.initialized

    def memory_reserved(self, index: int) -> int:
        assert index == 1
        return self.reserved

    def memory_allocated(self, index: int) -> int:
        assert index == 1
        return self.allocated

    def device(self, index: int) -> Any:
        assert index == 1
        return nullcontext()

    def empty_cache(self) -> None:
        self.reserved = self.allocated


class Gpu:
    """A device of 100 bytes, of which torch and others have some."""

    name, model, memory, unified = "xpu:1", "a stand-in", 100, False

    def __init__(self, allocator: Allocator, others: int) -> None:
        self.allocator = allocator
        self.others = others

    def free_memory(self) -> int:
        return 100 - self.allocator.reserved - self.others


MACHINE: list[Gpu] = []


@pytest.fixture(scope="module", autouse=True)
def _register() -> None:
    co.register_provider(lambda: MACHINE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    for library in ("diffusers", "peft", "transformers"):
        # What looks at the real one when it is imported does so before there is a stand-in.
        pytest.importorskip(library, reason="comes with the test extra")
    importlib.import_module("coresident.torch").install()
    MACHINE[:] = [Gpu(Allocator(reserved=60, allocated=20), others=10)]
    monkeypatch.setattr(torch, "xpu", MACHINE[0].allocator)
    yield MACHINE[0]
    MACHINE.clear()


def test_what_torch_has_cached_counts_as_free_and_is_asked_back(gpu: Gpu) -> None:
    budget = _torch_memory.budget(co.devices("xpu:1")[0])
    budget.look()
    assert (budget.free, budget.status().outside) == (70, 30)
    # Others grow: what torch has cached must go before anybody waits.
    gpu.others = 30
    budget.look()
    assert budget.free == 50
    with budget.reserve(50, timeout=20):
        assert gpu.allocator.reserved == 60
        with pytest.raises(co.BudgetTimeoutError):
            budget.reserve(10, timeout=0.01)
        assert gpu.allocator.reserved == 20


def test_torch_is_not_asked_before_it_has_begun(gpu: Gpu) -> None:
    gpu.allocator.initialized = False
    device = co.devices("xpu:1")[0]
    assert _torch_memory.cached(device) == 0
    _torch_memory.empty_cache(device)
    assert gpu.allocator.reserved == 60
    budget = _torch_memory.budget(device)
    budget.look()
    assert budget.free == 30


def test_a_runtime_knows_torchs_cache(gpu: Gpu) -> None:
    with co.Runtime("xpu:1") as runtime:
        (budget,) = runtime.vram.values()
        budget.look()
        assert (budget.name, budget.limit, budget.free) == ("xpu:1", 100, 70)


@pytest.fixture
def moves(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has torch move to the stand-in, where its tensors are copies in host memory."""
    import torch

    moved: list[str] = []
    to = torch.Tensor.to

    def moves_to(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.device) and args[0].type == "xpu":
            moved.append("tensor")
            gpu.allocator.allocated += tensor.nbytes
            return tensor.clone()
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", moves_to)
    gpu.others, gpu.allocator.reserved, gpu.allocator.allocated = 0, 0, 0
    return moved


def test_copies_on_a_device_without_pages_are_charged_and_leave_when_bytes_are_missing(
    gpu: Gpu, moves: list[str]
) -> None:
    import torch

    with co.Runtime("xpu:1") as runtime:
        [device] = runtime.devices
        assert not device.paged
        make = partial(torch.nn.Linear, 4, 4, bias=False)
        first, second = (runtime.load(key, make) for key in ("first", "second"))
        with first.on(device) as module:
            assert module.weight.shape == (4, 4)
            assert runtime.vram[device].used == 64
        first.on(device, working_memory=10).release()
        assert len(moves) == 1, "what is there is not copied again"
        with first.on(device), pytest.raises(co.BudgetTimeoutError):
            second.on(device, timeout=0.01)
        gpu.allocator.allocated = 0
        with second.on(device, working_memory=30):
            assert runtime.vram[device].used == 94
            assert [user.holder for user in runtime.vram[device].status().holders] == [
                '"second"',
                '"working memory of second"',
            ]
        second.close()
        assert runtime.vram[device].used == 0


def test_what_torch_uses_of_what_is_reserved_for_it_is_charged_once(gpu: Gpu) -> None:
    device = co.devices("xpu:1")[0]
    budget = _torch_memory.budget(device)
    gpu.allocator.reserved = gpu.allocator.allocated = 20
    with budget.reserve(50) as reserved:
        _torch_memory.cover(device, reserved)
        budget.look()
        # 90 that others leave, and 50 of them reserved: what torch has is within these.
        assert (budget.free, budget.status().outside) == (40, 10)
