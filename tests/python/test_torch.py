"""What the library does for torch in its workers."""

from __future__ import annotations

import coresident as co
import pytest
from conftest import run_script, spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cpu", 0)])
def test_a_torch_device_is_taken_wherever_a_device_is(device: torch.device) -> None:
    assert list(map(str, co.devices(device))) == list(map(str, co.devices([device]))) == ["cpu"]
    with co.DevicePool(device) as pool, pool.lease(device) as lease:
        assert lease.device.name == "cpu"
        assert torch.ones(1, device=lease.device.torch_name).device.type == "cpu"
    with co.WorkerPool([device]) as workers:
        assert workers.run(device, int) == 0


def test_a_torch_device_that_cannot_be_meant_is_refused() -> None:
    for ask in (co.devices, co.DevicePool, co.WorkerPool, lambda one: co.devices([one])):
        with pytest.raises(co.InvalidDeviceError, match='unknown device type "meta"'):
            ask(torch.device("meta"))


def test_a_virtual_device_is_the_cpu_to_torch() -> None:
    (device,) = co.virtual_devices(1)
    assert torch.ones(1, device=device.torch_name).device.type == "cpu"


def test_each_worker_gets_its_share_of_intra_op_threads() -> None:
    done = run_script("""
        import coresident as co, torch
        torch.set_num_threads(8)
        with co.WorkerPool(co.virtual_devices(3)) as workers:
            print([workers.run(device, torch.get_num_threads) for device in workers.devices])
        with co.WorkerPool(co.virtual_devices(2), torch_threads=3) as workers:
            print([workers.run(device, torch.get_num_threads) for device in workers.devices])
        print(torch.get_num_threads())
        import threading
        seen = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        print(seen)
        """)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[2, 2, 2]", "[3, 3]", "8", "[8]"]


def test_torch_may_be_imported_after_the_worker_has_started() -> None:
    done = run_script("""
        import coresident as co
        with co.WorkerPool(co.virtual_devices(2)) as workers:
            workers.run("virtual:0", int)
            import torch
            torch.set_num_threads(4)
            print(workers.run("virtual:0", torch.get_num_threads))
        """)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_the_grad_mode_of_the_caller_travels(workers: co.WorkerPool) -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    calls = (
        lambda: workers.run("virtual:0", modes),
        lambda: workers.post("virtual:0", modes).result(20),
        lambda: workers.submit("virtual:0", modes).result(20),
        lambda: workers.scatter({"virtual:0": modes})["virtual:0"],
    )
    for call in calls:
        with torch.no_grad():
            assert call() == (False, False)
        with torch.inference_mode():
            assert call() == (False, True)
        assert call() == (True, False)


def test_a_start_hook_sets_the_grad_mode_of_a_worker_for_good() -> None:
    def without_gradients(_: co.Device) -> None:
        torch.set_grad_enabled(False)

    with co.WorkerPool(co.virtual_devices(1), on_start=without_gradients) as workers:
        assert [workers.run("virtual:0", torch.is_grad_enabled) for _ in range(2)] == [False, False]
    assert torch.is_grad_enabled()


def test_the_two_halves_of_a_step_run_on_two_workers_and_agree(workers: co.WorkerPool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    halves = torch.randn(2, 4, 64)

    def half(index: int) -> torch.Tensor:
        return layer(halves[index])

    with torch.no_grad():
        whole = [half(0), half(1)]
        split = workers.scatter({"virtual:0": lambda: half(0), "virtual:1": lambda: half(1)})
    assert all(torch.equal(a, b) for a, b in zip(whole, split.values(), strict=True))
    assert not any(part.requires_grad for part in split.values())


def test_threads_load_and_move_under_the_lock(lock: co.LoadLock) -> None:
    """The pattern that the lock is for: construct under write, move under read."""

    def construct() -> torch.nn.Module:
        with lock.write():
            return torch.nn.Linear(8, 8)

    def move(module: torch.nn.Module) -> torch.nn.Module:
        with lock.read():
            return module.to(torch.float64)

    modules = [thread.join() for thread in [spawn(construct) for _ in range(8)]]
    moved = [spawn(lambda module=module: move(module)) for module in modules]
    assert all(thread.join().weight.dtype is torch.float64 for thread in moved)
