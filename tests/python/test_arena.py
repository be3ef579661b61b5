"""Pages of weights on a device: arenas and areas, as those use them who place weights themselves.

Everything is asked of devices whose memory has fixed addresses and of ones where it moves: of virtual
devices here, and of pretended GPUs by `test_cuda.py`.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import coresident as co
import numpy as np
import pytest
from conftest import measured, run_script, spawn, until
from placed import (
    PAGE,
    PAGES,
    device_of,
    is_there,
    needs_torch,
    needs_virtual,
    occupied,
    settle,
)

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

MIB = 1 << 20


@pytest.fixture(params=[False, True], ids=["fixed", "moving"])
def device(request: pytest.FixtureRequest) -> co.Device:
    return device_of(moving=request.param)


@pytest.fixture
def arena(device: co.Device) -> co.Arena:
    return co.Arena(device, co.Budget(device))


def tensors(seed: int, *sizes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"t{at}": torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for at, size in enumerate(sizes)
    }


def weights_of(seed: int, *sizes: int) -> co.Weights:
    return co.WeightStore().share(f"model {seed}", tensors(seed, *sizes))


def test_a_fault_makes_every_tensor_what_it_is_in_the_weights(arena: co.Arena) -> None:
    given = tensors(1, 100, 3 * MIB, 0, 7, 5 * MIB + 3)
    given["half"] = torch.randn(3, 5).half()
    given["strided"] = torch.randn(64, 48).T
    given["scalar"] = torch.tensor(3.5)
    area = arena.area(co.WeightStore().share("model", given))
    with area.fault():
        assert area.keys() == list(given)
        assert is_there(area, given)
    assert area.pages * PAGE - area.nbytes < PAGE


@needs_torch
def test_views_are_aligned_and_in_the_order_of_the_tensors(arena: co.Arena) -> None:
    given = tensors(1, 100, 3 * MIB, 0, 7)
    area = arena.area(co.WeightStore().share("model", given))
    with area.fault():
        views = area.state_dict()
        assert list(views) == list(given)
        assert all(view.data_ptr() % 256 == 0 for view in views.values() if view.numel())
        assert list(area.state_dict(area.block(["t3", "t0"]))) == ["t3", "t0"]


@needs_torch
def test_where_memory_moves_tensors_have_addresses_only_while_they_are_resident() -> None:
    device = device_of(moving=True)
    arena = co.Arena(device, co.Budget(device))
    assert arena.moving
    area, given = arena.area(weights_of(1, 3 * MIB, MIB)), tensors(1, 3 * MIB, MIB)
    places = set()
    for _ in range(4):
        with pytest.raises(
            co.InvalidValueError, match=r'"t0" of "model 1" is nowhere on virtual:0'
        ):
            area.state_dict()
        with area.fault():
            views = area.state_dict()
            assert all(torch.equal(views[name], given[name]) for name in given)
            places.add(views["t0"].data_ptr())
        arena.evict()
    assert len(places) == 4


def test_the_order_of_tensors_is_the_callers(arena: co.Arena) -> None:
    weights = weights_of(1, 10, 20, 30)
    area = arena.area(weights, order=["t2", "t0"])
    assert area.keys() == ["t2", "t0"]
    assert len(area) == 2
    assert arena.area(weights).keys() == ["t0", "t1", "t2"], "another order is another area"


def test_many_tensors_are_found_at_once(arena: co.Arena) -> None:
    area = arena.area(co.WeightStore().share("m", {f"t{n}": torch.ones(1) for n in range(5000)}))
    assert area.block(area.keys()).pages == area.pages == 1


def test_blocks_come_and_leave_by_pages(arena: co.Arena) -> None:
    area = arena.area(weights_of(1, 4 * MIB, 3 * MIB, 3 * MIB))
    block = area.block(["t1"])
    assert block.pages == 2
    with area.fault(block):
        assert area.residency().tolist()[:5] == [0, 0, 2, 2, 0]
        assert arena.evict() == 0
    settle(arena.device)
    # A tensor leaves as a whole where memory moves.
    left = 0 if arena.moving else PAGE
    until(lambda: arena.evict(1) == 2 * PAGE - left)
    residency = area.residency()
    assert residency.tolist()[:5] == [0, 0, left // PAGE, 0, 0]
    assert isinstance(residency, np.ndarray)
    assert residency.dtype == np.uint8
    status = arena.status()
    assert (status.resident, status.pinned, status.evictable) == (left, 0, left)
    assert arena.budget.used == left == PAGES * PAGE - area.arena.device.free_memory()


def test_working_memory_is_reserved_with_the_pages(arena: co.Arena) -> None:
    area = arena.area(weights_of(1, 4 * MIB))
    with area.fault(working_memory="3MiB") as pins:
        assert pins.working_memory is not None
        assert pins.working_memory.nbytes == 3 * MIB
        assert arena.budget.used == 2 * PAGE + 3 * MIB
    assert arena.budget.used == 2 * PAGE


def test_several_models_share_a_device_that_has_no_room_for_all(arena: co.Arena) -> None:
    areas = [arena.area(weights_of(seed, 5 * MIB, MIB, 4 * MIB)) for seed in range(3)]
    expected = [tensors(seed, 5 * MIB, MIB, 4 * MIB) for seed in range(3)]

    def switch(first: int) -> None:
        for turn in range(6):
            at = (first + turn) % 3
            with areas[at].fault():
                assert is_there(areas[at], expected[at])

    for thread in [spawn(lambda at=at: switch(at), name=f"job {at}") for at in range(3)]:
        thread.join()
    assert arena.status().pinned == 0
    assert arena.status().resident == arena.budget.used


@needs_torch
def test_pinned_tensors_stay_until_the_last_consumer_lets_go(arena: co.Arena) -> None:
    area = arena.area(weights_of(1, 4 * MIB, 4 * MIB))
    expected = tensors(1, 4 * MIB, 4 * MIB)["t1"]
    pinned = area.pinned("t1")
    tensor = torch.from_dlpack(pinned)
    array = np.from_dlpack(pinned)
    assert not array.flags.writeable
    assert arena.status().areas[0].pinned_tensors == ["t1"]
    assert "kept by tensors: t1" in repr(arena.status())
    del pinned, array
    part = tensor[5:10]
    del tensor, area
    gc.collect()
    assert arena.evict() == 0
    assert torch.equal(part, expected[5:10])
    assert arena.status().resident == 2 * PAGE
    del part
    assert arena.status().areas == []
    assert arena.device.free_memory() == 8 * PAGE


@needs_virtual
def test_a_tensor_whose_pages_have_left_cannot_be_touched() -> None:
    ended = run_script(
        """
        import coresident as co, torch
        [device] = co.virtual_devices(1, memory="8MiB")
        arena = co.Arena(device, co.Budget(device))
        area = arena.area(co.WeightStore().share("model", {"w": torch.ones(100)}))
        with area.fault():
            view = area.state_dict()["w"]
            print(view.sum().item(), flush=True)
        print(view.sum().item(), flush=True)
        arena.evict()
        print(view.sum().item(), flush=True)
        """
    )
    assert ended.stdout == "100.0\n100.0\n"
    assert ended.returncode == -11, "a segmentation fault, not garbage"


@needs_virtual
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory a process takes")
def test_what_leaves_is_given_back_to_the_system() -> None:
    measured(
        """
        import os
        from pathlib import Path
        import coresident as co
        import numpy as np

        def resident_set():
            words = Path("/proc/self/statm").read_text().split()
            return int(words[1]) * os.sysconf("SC_PAGESIZE")

        [device] = co.virtual_devices(1, memory="256MiB")
        arena = co.Arena(device, co.Budget(device))
        weights = co.WeightStore().share("model", {"w": np.ones(50 << 17)})
        area = arena.area(weights)
        before = resident_set()
        area.fault().release()
        inside = resident_set() - before
        arena.evict()
        after = resident_set() - before
        assert inside >= 50 << 20, inside
        assert after < 4 << 20, after
        """
    )


@needs_virtual
def test_who_lets_go_of_everything_does_not_keep_copies_from_ending() -> None:
    """The copy is the last to have the array, and needs the interpreter to let go of it."""
    [device] = co.virtual_devices(1, memory=PAGES * PAGE, bandwidth=20 * MIB)
    budget = co.Budget(device)
    arena = co.Arena(device, budget)
    array = np.ones(PAGES * PAGE // 2, np.uint8)
    watched = weakref.ref(array)
    area = arena.area(co.WeightStore().share("model", {"a": array}))
    with pytest.raises(co.WaitTimeoutError):
        area.fault(timeout=0.05)
    del array, area, arena
    assert watched() is not None, "it is still being copied"
    until(lambda: budget.used == 0 and watched() is None)
    # The device has it back, too.
    more = co.WeightStore().share("model", {"a": np.ones((PAGES // 2 + 1) * PAGE, np.uint8)})
    co.Arena(device, budget).area(more).fault(timeout=20).release()


@needs_torch
def test_addresses_of_a_view_are_nobody_elses_after_its_model_has_gone() -> None:
    device = device_of(moving=False)
    arena = co.Arena(device, co.Budget(device))
    area = arena.area(weights_of(1, 4 * MIB))
    view = area.state_dict()["t0"]
    begin = view.data_ptr()
    del area
    assert arena.status().areas == []
    others = [arena.area(weights_of(seed, 4 * MIB)) for seed in range(2, 10)]
    starts = [other.state_dict()["t0"].data_ptr() for other in others]
    assert all(start + 4 * MIB <= begin or begin + 4 * MIB <= start for start in starts)


def test_a_wait_for_pages_can_be_ended(arena: co.Arena) -> None:
    held = arena.area(weights_of(1, 12 * MIB)).fault()
    wanted = arena.area(weights_of(2, 6 * MIB))
    with pytest.raises(co.BudgetTimeoutError, match=f"6 MiB of {arena.device}"):
        spawn(lambda: wanted.fault(timeout=0.05)).join()
    token = co.CancelToken()
    waiter = spawn(lambda: wanted.fault(cancel=token))
    until(lambda: arena.budget.status().waiting)
    token.cancel("no more")
    with pytest.raises(co.CancelledError, match="no more"):
        waiter.join()
    with pytest.raises(co.DeadlockError):
        wanted.fault()
    waiter = spawn(lambda: wanted.fault())
    until(lambda: arena.budget.status().waiting)
    held.release()
    waiter.join().release()


def test_who_unpins_lets_others_in_at_once(arena: co.Arena) -> None:
    areas = [arena.area(weights_of(seed, 12 * MIB)) for seed in (1, 2)]
    done = threading.Barrier(2)

    def use(area: co.Area) -> None:
        done.wait()
        for _ in range(5):
            area.fault().release()

    for thread in [spawn(lambda area=area: use(area)) for area in areas]:
        thread.join()
    assert not arena.budget.status().waiting


def test_a_token_that_was_raised_begins_nothing(arena: co.Arena) -> None:
    token = co.CancelToken()
    token.cancel()
    area = arena.area(weights_of(1, 10))
    with pytest.raises(co.CancelledError):
        area.fault(cancel=token)
    with pytest.raises(co.CancelledError):
        area.pinned("t0", cancel=token)
    assert area.residency().tolist() == [0]


def test_memory_that_others_take_is_seen_and_comes_back(device: co.Device) -> None:
    arena = co.Arena(device, co.Budget(device))
    area = arena.area(weights_of(1, 12 * MIB))
    area.fault().release()
    settle(device)
    until(lambda: arena.evict() == 6 * PAGE)
    with occupied(device, 4 * PAGE):
        arena.budget.look()
        assert arena.budget.free == 4 * PAGE
        with pytest.raises(co.BudgetTimeoutError, match="others outside this budget have 8 MiB"):
            area.fault(timeout=0.05)
    with occupied(device, 2 * PAGE):
        area.fault().release()
    arena.budget.look()
    assert arena.budget.free == 2 * PAGE


@needs_virtual
def test_others_cannot_take_more_of_a_virtual_device_than_there_is(device: co.Device) -> None:
    arena = co.Arena(device, co.Budget(device))
    area = arena.area(weights_of(1, 12 * MIB))
    area.fault().release()
    with pytest.raises(co.DeviceMemoryError, match="virtual:0 is out of memory") as caught:
        device.occupy(PAGES * PAGE)
    assert (caught.value.device, caught.value.free) == ("virtual:0", 2 * PAGE)
    arena.evict()
    with device.occupy(4 * PAGE) as spike:
        assert not spike.resize(9 * PAGE)
        assert spike.resize(2 * PAGE)


def test_limits_and_watermarks_can_change_at_any_time(arena: co.Arena) -> None:
    area = arena.area(weights_of(1, 12 * MIB))
    # A tensor leaves as a whole where memory moves.
    part = 0 if arena.moving else PAGE
    area.fault().release()
    settle(arena.device)
    arena.budget.limit = 4 * PAGE
    until(lambda: arena.status().resident == 4 * part)
    arena.budget.limit = "100%"
    area.fault().release()
    settle(arena.device)
    arena.set_watermarks(PAGE, "8MiB")
    assert arena.status().resident == part
    arena.set_watermarks(0, 0)
    with area.fault():
        assert arena.status().resident == 6 * PAGE
    settle(arena.device)
    # Who comes next has those leave that a stream has still used.
    area.fault(area.block([])).release()
    assert arena.status().resident == 0
    arena.set_watermarks(0, None)
    area.fault().release()
    assert arena.status().resident == 6 * PAGE


def test_a_lower_priority_leaves_first(arena: co.Arena) -> None:
    first, second = (arena.area(weights_of(seed, 6 * MIB)) for seed in (1, 2))
    second.priority = -5
    second.fault().release()
    first.fault().release()
    second.fault().release()
    assert (first.priority, second.priority) == (0, -5)
    assert [area.key for area in arena.status().areas] == ["model 2", "model 1"]
    settle(arena.device)
    until(lambda: arena.evict(2 * PAGE))
    assert second.residency().tolist() == [0 if arena.moving else 1, 0, 0]
    assert first.residency().tolist() == [1, 1, 1]


@needs_torch
def test_what_was_written_on_the_device_is_filled_again(arena: co.Arena) -> None:
    area = arena.area(weights_of(1, 100))
    with area.fault():
        area.state_dict()["t0"].zero_()
    area.renew()
    with area.fault():
        assert torch.equal(area.state_dict()["t0"], tensors(1, 100)["t0"])


def test_private_weights_have_an_area_of_their_own(arena: co.Arena) -> None:
    weights = co.WeightStore().share("model", {"w": torch.zeros(1 << 19)}, copy=True)
    private = weights.private()
    private.state_dict()["w"].fill_(7)
    own, shared = arena.area(private), arena.area(weights)
    with own.fault(), shared.fault():
        assert is_there(own, {"w": torch.full((1 << 19,), 7.0)})
        assert is_there(shared, {"w": torch.zeros(1 << 19)})


def test_pins_that_are_forgotten_are_released(arena: co.Arena) -> None:
    area = arena.area(weights_of(1, 100))

    def forget() -> None:
        area.fault(working_memory=5)
        gc.collect()

    with pytest.warns(ResourceWarning, match="never released"):
        forget()
    assert arena.status().pinned == 0
    assert arena.budget.used == PAGE


REFUSED: dict[str, tuple[Callable[[co.Arena, co.Area], Any], type[Exception], str]] = {
    "no weights": (lambda a, _: a.area({}), co.InvalidTypeError, "Weights or PrivateWeights"),
    "a text of names": (
        lambda a, _: a.area(weights_of(1, 1), order="t0"),
        co.InvalidTypeError,
        "a list of names, not str",
    ),
    "an unknown name": (
        lambda a, _: a.area(weights_of(1, 1), order=["x"]),
        co.TensorNotFoundError,
        "'model 1' has no tensor 'x'|no tensor \"x\"",
    ),
    "a block of nothing": (lambda _, x: x.block(["t9"]), co.TensorNotFoundError, "t9"),
    "a name as a block": (lambda _, x: x.fault("t0"), co.InvalidTypeError, r"area\.block\(names\)"),
    "negative memory": (
        lambda _, x: x.fault(working_memory=-1),
        co.InvalidValueError,
        "working_memory",
    ),
    "no memory": (lambda _, x: x.fault(working_memory=1.5), co.InvalidTypeError, "working_memory"),
    "more than there is": (
        lambda _, x: x.fault(working_memory="1TiB"),
        co.BudgetExceededError,
        "1 TiB",
    ),
    "a bad timeout": (lambda _, x: x.fault(timeout=-1), co.InvalidValueError, "timeout"),
    "a bad token": (lambda _, x: x.fault(cancel=3), co.InvalidTypeError, "CancelToken"),
    "a tensor that is not there": (lambda _, x: x.pinned("?"), co.TensorNotFoundError, r"\?"),
    "evicting a text": (lambda a, _: a.evict("much"), co.InvalidValueError, "much"),
    "watermarks upside down": (
        lambda a, _: a.set_watermarks(2, 1),
        co.InvalidValueError,
        "low watermark",
    ),
    "an arena of nothing": (
        lambda a, _: co.Arena(co.virtual_devices(1)[0], a.budget),
        co.InvalidDeviceError,
        "no memory of its own",
    ),
    "a priority beyond measure": (
        lambda _, x: setattr(x, "priority", 1 << 70),
        co.InvalidValueError,
        "whole number of 64 bits",
    ),
    "an arena without a budget": (
        lambda a, _: co.Arena(a.device, 3),
        co.InvalidTypeError,
        "charged to a Budget, not to int",
    ),
    "another pin": (
        lambda a, _: co.Arena(a.device, a.budget, pin="some"),
        co.InvalidValueError,
        "pin is 'staging', 'all' or 'none', not 'some'",
    ),
    "host memory without a budget": (
        lambda a, _: co.Arena(a.device, a.budget, ram="8GiB"),
        co.InvalidTypeError,
        "charged to a Budget, not to str",
    ),
    "less than nothing": (
        lambda *_: co.virtual_devices(1, memory=1)[0].occupy(0).resize(-1),
        co.InvalidValueError,
        "nbytes",
    ),
    "occupying what is unified": (
        lambda *_: co.virtual_devices(1)[0].occupy(1),
        co.InvalidDeviceError,
        "is none",
    ),
    "jitter without memory": (
        lambda *_: co.virtual_devices(1, jitter=3),
        co.InvalidValueError,
        "jitter needs memory",
    ),
    "moving without memory": (
        lambda *_: co.virtual_devices(1, moving=True),
        co.InvalidValueError,
        "moving needs memory",
    ),
    "the tensors of a name": (
        lambda _, x: x.state_dict("t0"),
        co.InvalidTypeError,
        r"area\.block\(names\)",
    ),
}


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_and_leaves_nothing(arena: co.Arena, call: str) -> None:
    area = arena.area(weights_of(5, 100))
    wrong, error, told = REFUSED[call]
    with pytest.raises(error, match=told):
        wrong(arena, area)
    assert arena.budget.used == 0
    with area.fault():
        assert area.residency().tolist() == [2]


def test_a_block_of_another_area_is_refused(arena: co.Arena) -> None:
    one, other = (arena.area(weights_of(seed, 100)) for seed in (1, 2))
    for call in (one.fault, one.state_dict):
        with pytest.raises(co.InvalidValueError, match="of another area"):
            call(other.block(["t0"]))


def test_tensors_on_a_device_are_where_they_are(arena: co.Arena) -> None:
    tensor = arena.area(co.WeightStore().share("m", {"w": torch.ones(2, 3).half()})).pinned("w")
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("float16", (2, 3), 12)
    device = arena.device
    there = (1, 0) if device.type == "virtual" else (2, device.index)
    assert tensor.__dlpack_device__() == there
    with pytest.raises(BufferError, match="copy it then"):
        tensor.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=rf"is on {device}, \({there[0]}, {there[1]}\) in DLPack"):
        tensor.__dlpack__(dl_device=(14, 0))


@needs_virtual
def test_a_forked_child_is_refused_and_the_parent_goes_on() -> None:
    ended = run_script(
        """
        import os, coresident as co, torch
        [device] = co.virtual_devices(1, memory="8MiB")
        arena = co.Arena(device, co.Budget(device))
        area = arena.area(co.WeightStore().share("model", {"w": torch.ones(100)}))
        pins = area.fault(working_memory=5)
        tensor = torch.from_dlpack(area.pinned("w"))
        if os.fork() == 0:
            for call in (area.fault, arena.status, arena.evict, area.renew, area.residency):
                try:
                    call()
                except co.ForkedError:
                    continue
                os._exit(3)
            pins.release()
            del tensor, pins, area, arena, device
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]), tensor.sum().item(), arena.status().pinned)
        pins.release()
        """
    )
    assert ended.stdout == f"0 100.0 {PAGE}\n", ended.stderr


@needs_virtual
def test_the_interpreter_ends_with_copies_under_way_and_pins_held() -> None:
    ended = run_script(
        """
        import threading, coresident as co, torch
        [device] = co.virtual_devices(1, memory="64MiB", bandwidth="100MiB", jitter=1)
        arena = co.Arena(device, co.Budget(device))
        area = arena.area(co.WeightStore().share("model", {"w": torch.ones(8 << 20)}))
        threading.Thread(target=area.fault, daemon=True).start()
        pins = arena.area(co.WeightStore().share("other", {"w": torch.ones(1)})).fault()
        tensor = torch.from_dlpack(pins.area.pinned("w"))
        print("done")
        """
    )
    assert (ended.stdout, ended.returncode) == ("done\n", 0), ended.stderr
