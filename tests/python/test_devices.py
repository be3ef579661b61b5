"""Devices: names, choices, labels; and nothing is touched by asking."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import coresident as co
import pytest
from conftest import run_script


class Reported:
    """One accelerator, as a provider reports it."""

    def __init__(self, name: str, model: str, memory: int | None = None) -> None:
        self.name, self.model, self.memory, self.unified = name, model, memory, False
        self.free_memory = None if memory is None else lambda: memory // 2


MACHINE: list[Reported] = []


@pytest.fixture(scope="module", autouse=True)
def _register() -> None:
    co.register_provider(lambda: MACHINE)


@pytest.fixture
def machine() -> Iterator[list[Reported]]:
    """Three GPUs, two of them alike, as registered by a provider."""
    MACHINE[:] = [
        Reported("cuda:0", "NVIDIA GeForce RTX 3090", 24 << 30),
        Reported("cuda:1", "NVIDIA GeForce RTX 3090", 24 << 30),
        Reported("cuda:2", "NVIDIA RTX A6000", 48 << 30),
    ]
    yield MACHINE
    MACHINE.clear()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cpu", "cpu"),
        ("CPU", "cpu"),
        ("cpu:0", "cpu"),
        (" virtual ", "virtual:0"),
        ("Virtual:3", "virtual:3"),
        ("virtual : 3", "virtual:3"),
    ],
)
def test_a_device_is_named_in_one_normal_form(given: object, name: str) -> None:
    (device,) = co.devices([given])
    assert str(device) == device.name == name
    assert f"{device.type}:{device.index}".startswith(device.type)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("gpu", "unknown device type \"gpu\": a device is named 'cuda:N'"),
        ("", "unknown device type"),
        ("cuda:", "\"cuda:\" has no valid index: write 'cuda:0'"),
        ("cuda:-1", "no valid index"),
        ("cuda:+1", "no valid index"),
        ("cuda:01", "no valid index"),
        ("cuda:1.0", "no valid index"),
        ("cuda:٣", "no valid index"),
        ("cuda:0:1", "no valid index"),
        ("cuda:99999999999999999999", "no valid index"),
        ("cuda0", "unknown device type"),
        ("cpu:1", "there is only one 'cpu' device"),
        ("mps:1", "there is only one 'mps' device"),
    ],
)
def test_a_name_that_cannot_be_meant_is_refused(wrong: object, message: str) -> None:
    for ask in (lambda: co.devices([wrong]), lambda: co.devices(wrong)):
        with pytest.raises(co.InvalidDeviceError, match=message.replace("(", r"\(")):
            ask()


def test_each_kind_of_mistake_has_its_own_error() -> None:
    with pytest.raises(co.InvalidDeviceError, match="the list of devices is empty"):
        co.devices([])
    with pytest.raises(
        co.DeviceNotFoundError, match="there is no cuda:9 here: this machine has cpu"
    ):
        co.devices(["cuda:9"])
    with pytest.raises(co.InvalidTypeError, match="a device is given by its name"):
        co.devices([7])
    with pytest.raises(co.InvalidTypeError, match="takes a list of devices, not int"):
        co.devices(7)
    with pytest.raises(co.InvalidDeviceError, match="unknown device type"):
        co.devices("automatic")


def test_auto_takes_every_accelerator_else_the_cpu(machine: list[Reported]) -> None:
    assert list(map(str, co.devices("auto"))) == ["cuda:0", "cuda:1", "cuda:2"]
    machine[:] = [Reported("mps", "Apple M9"), Reported("xpu:0", "Intel(R) Arc(TM) B580")]
    assert list(map(str, co.devices())) == ["xpu:0"]
    del machine[1]
    assert list(map(str, co.devices(" Auto "))) == ["mps"]
    machine.clear()
    assert list(map(str, co.devices("auto"))) == ["cpu"]


def test_duplicates_are_removed_and_the_order_is_kept(machine: list[Reported]) -> None:
    chosen = co.devices(["cuda:2", "cuda", "CUDA:0", "cuda:2"])
    assert list(map(str, chosen)) == ["cuda:2", "cuda:0"]
    with pytest.raises(co.DeviceNotFoundError) as error:
        co.devices(["cuda:3"])
    assert error.value.device == "cuda:3"
    assert error.value.present == ["cuda:0", "cuda:1", "cuda:2", "cpu"]


def test_labels_are_numbered_only_when_models_repeat_and_stay_when_filtered(
    machine: list[Reported],
) -> None:
    labels = [device.label for device in co.devices("auto")]
    assert labels == ["RTX 3090 #1 (cuda:0)", "RTX 3090 #2 (cuda:1)", "RTX A6000 (cuda:2)"]
    (second,) = co.devices("cuda:1")
    assert second.label == "RTX 3090 #2 (cuda:1)"
    assert repr(second) == "Device('cuda:1', 'RTX 3090 #2', 24 GiB)"
    assert second.free_memory() == 12 << 30
    assert second.torch_name == "cuda:1"


def test_virtual_devices_without_memory_are_unified() -> None:
    first, second = co.virtual_devices(2)
    assert (str(first), first.unified, first.memory) == ("virtual:0", True, None)
    assert second.torch_name == "cpu"
    assert first.free_memory() is None or first.free_memory() > 0


def test_virtual_devices_with_memory_have_their_own() -> None:
    (device,) = co.virtual_devices(1, memory="1.5GiB", bandwidth="12GB")
    assert not device.unified
    assert device.memory == device.free_memory() == 3 << 29
    assert device.bandwidth == 12 * 10**9
    assert repr(device) == "Device('virtual:0', 'virtual GPU', 1.5 GiB)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, co.InvalidValueError, "from 1 to 1024, not 0"),
        ({"count": 5000}, co.InvalidValueError, "not 5000"),
        ({"count": -1}, co.InvalidValueError, "must be between 0 and"),
        ({"count": 2**70}, co.InvalidValueError, "must be between 0 and"),
        ({"count": True}, co.InvalidTypeError, "whole number, not bool"),
        ({"count": 1.0}, co.InvalidTypeError, "whole number, not float"),
        ({"count": "2"}, co.InvalidTypeError, "whole number, not str"),
        ({"count": 1, "memory": 0}, co.InvalidValueError, "more than 0 bytes"),
        ({"count": 1, "memory": -1}, co.InvalidValueError, "between 0 and"),
        ({"count": 1, "memory": 1.5}, co.InvalidTypeError, "number of bytes .* not float"),
        ({"count": 1, "memory": "lots"}, co.InvalidValueError, "'12GiB'"),
        ({"count": 1, "memory": "2G"}, co.InvalidValueError, "'12GiB'"),
        ({"count": 1, "memory": "99999999TiB"}, co.InvalidValueError, "'12GiB'"),
        ({"count": 1, "bandwidth": "1GiB"}, co.InvalidValueError, "bandwidth needs memory"),
    ],
)
def test_virtual_devices_that_cannot_be_meant(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        co.virtual_devices(**arguments)


def test_devices_are_equal_by_name_and_can_be_keys() -> None:
    first, second = co.virtual_devices(2)
    again = co.virtual_devices(1)[0]
    assert first == again
    assert first != second
    assert {first: 1}[again] == 1
    assert first != "virtual:0"


@pytest.mark.parametrize("memory", [None, "1GiB"])
def test_devices_are_copied_and_sent_to_other_processes(memory: str | None) -> None:
    for device in co.virtual_devices(2, memory=memory):
        for copied in (pickle.loads(pickle.dumps(device)), copy.deepcopy(device)):
            assert copied == device
            assert copied.memory == device.memory
            assert copied.unified == device.unified


def test_a_provider_that_is_none_is_refused() -> None:
    with pytest.raises(co.InvalidTypeError, match="function without arguments, not str"):
        co.register_provider("torch")


def test_asking_imports_no_torch_and_starts_no_thread() -> None:
    done = run_script("""
        import sys, threading
        import coresident as co
        co.devices("auto"), co.devices(["cpu"]), co.virtual_devices(2)
        assert "torch" not in sys.modules
        assert threading.active_count() == 1, threading.enumerate()
        print("ok")
        """)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_current_device_is_none_without_a_lease_and_per_thread() -> None:
    from conftest import spawn

    pool = co.DevicePool(co.virtual_devices(2))
    assert co.current_device() is None
    with pool.lease("virtual:1"):
        assert spawn(co.current_device).join() is None
        assert str(co.current_device()) == "virtual:1"


def test_leases_released_out_of_order_leave_the_right_device_current() -> None:
    pool = co.DevicePool(co.virtual_devices(3))
    first, second, third = (pool.lease() for _ in range(3))
    second.release()
    assert str(co.current_device()) == "virtual:2"
    third.release()
    assert str(co.current_device()) == "virtual:0"
    first.release()
    assert co.current_device() is None
