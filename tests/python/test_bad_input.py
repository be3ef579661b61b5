"""Whatever cannot be meant is refused at once, by name, and changes nothing."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from typing import Any

import coresident as co
import numpy as np
import pytest

PAGE = 2 << 20


@pytest.fixture
def waits(pool: co.DevicePool, lock: co.LoadLock, workers: co.WorkerPool) -> dict[str, Any]:
    """Every synchronous call that takes ``timeout=``, ready to be made."""
    ticket = workers.post("virtual:0", int)
    ticket.result(20)
    return {
        "lease": pool.lease,
        "read": lock.read,
        "write": lock.write,
        "result": ticket.result,
        "run": lambda **terms: workers.run("virtual:1", int, **terms),
        "scatter": lambda **terms: workers.scatter({"virtual:1": int}, **terms),
        "close": workers.close,
        "token": co.CancelToken().wait,
        "lease_async": pool.lease_async,
        "read_async": lock.read_async,
        "write_async": lock.write_async,
    }


@pytest.mark.parametrize(
    ("timeout", "error", "message"),
    [
        (-1, co.InvalidValueError, "timeout must be 0 or more seconds, or None .* not -1"),
        (math.nan, co.InvalidValueError, "not nan"),
        (math.inf, co.InvalidValueError, "None to wait for ever, not inf"),
        ("1", co.InvalidTypeError, "timeout is a number of seconds, .* not str"),
        (True, co.InvalidTypeError, "not bool"),
        ([], co.InvalidTypeError, "not list"),
    ],
)
def test_timeouts(waits: Any, timeout: Any, error: type[Exception], message: str) -> None:
    for name, call in waits.items():
        with pytest.raises(error, match=message):
            call(timeout=timeout)
            pytest.fail(f"{name} took it")


def test_ctrl_c_in_a_number_of_the_callers_is_not_lost(waits: Any) -> None:
    class Interrupting:
        def __float__(self) -> float:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        waits["lease"](timeout=Interrupting())


def test_a_timeout_may_be_huge(waits: Any) -> None:
    for name in ("lease", "read", "write"):
        waits[name](timeout=1e300).release()
    assert waits["run"](timeout=1e300) == 0


def test_cancel_tokens(waits: Any) -> None:
    for name in set(waits) - {"close", "token"}:
        with pytest.raises(
            co.InvalidTypeError, match="cancel takes a CancelToken or None, not str"
        ):
            waits[name](cancel="now")


@pytest.mark.parametrize("device", [7, 1.5, b"cpu", ["virtual:0"], object()])
def test_devices_of_a_wrong_type(
    pool: co.DevicePool, workers: co.WorkerPool, device: object
) -> None:
    for call in (
        lambda: pool.lease(device),
        lambda: pool.borrow(prefer=[device]),
        lambda: pool.lease_async(device),
        lambda: pool.reconfigure([device]),
        lambda: workers.post(device, int),
        lambda: workers.submit(device, int),
        lambda: workers.run(device, int),
        lambda: workers.restart(device),
        lambda: co.DevicePool([device]),
        lambda: co.WorkerPool([device]),
    ):
        with pytest.raises(co.InvalidTypeError, match="a device is given by its name"):
            call()


def test_devices_that_are_not_in_the_pool(pool: co.DevicePool, workers: co.WorkerPool) -> None:
    for call in (
        lambda: pool.lease("cuda:0"),
        lambda: pool.borrow(["cuda:0"]),
        lambda: workers.post("cuda:0", int),
        lambda: workers.submit("cuda:0", int),
        lambda: workers.run("cuda:0", int),
        lambda: workers.scatter({"cuda:0": int}),
        lambda: workers.restart("cuda:0"),
    ):
        with pytest.raises(
            co.DeviceNotFoundError, match="cuda:0 is not in this pool, which has virtual:0"
        ):
            call()
    assert isinstance(co.DeviceNotFoundError("x"), (ValueError, LookupError))


def test_pools_need_devices() -> None:
    for kind in (co.DevicePool, co.WorkerPool, co.Runtime):
        with pytest.raises(co.InvalidDeviceError, match="the list of devices is empty"):
            kind([])
        with pytest.raises(co.InvalidTypeError, match="takes a list of devices, not int"):
            kind(3)
        with pytest.raises(co.InvalidDeviceError, match="unknown device type"):
            kind("gpu")


def test_numbers_that_python_does_not_even_print() -> None:
    for call in (
        lambda: co.virtual_devices(10**5000),
        lambda: co.virtual_devices(1, memory=10**5000),
        lambda: co.shares(10**5000, [1]),
    ):
        with pytest.raises(co.InvalidValueError, match="not a much larger number"):
            call()


def test_texts_that_are_no_unicode(pool: co.DevicePool) -> None:
    with pytest.raises(co.InvalidDeviceError, match="unknown device type"):
        pool.lease("\ud800:0")
    with pytest.raises(co.InvalidValueError, match="is not a number of bytes"):
        pool.borrow(min_free="\ud800")


def test_lists_of_devices_that_never_end() -> None:
    for kind in (co.DevicePool, co.WorkerPool, co.devices):
        with pytest.raises(co.InvalidValueError, match="takes 65536 devices at most"):
            kind(itertools.repeat("virtual:0"))


def test_a_mapping_whose_items_are_no_pairs(workers: co.WorkerPool) -> None:
    class Odd(dict[str, Any]):
        def items(self) -> Any:
            return [3]

    with pytest.raises(co.InvalidTypeError, match="of a mapping are pairs, not int"):
        workers.scatter(Odd())


def test_a_failed_reconfiguration_changes_nothing(pool: co.DevicePool) -> None:
    for wrong in ([], ["virtual:0", "gpu"], ["cuda:9"], 3):
        with pytest.raises(co.CoresidentError):
            pool.reconfigure(wrong)
    assert [str(device) for device in pool.devices] == ["virtual:0", "virtual:1"]


def test_borrow(pool: co.DevicePool) -> None:
    with pytest.raises(co.InvalidTypeError, match="prefer takes a list of devices, not the text"):
        pool.borrow(prefer="virtual:0")
    with pytest.raises(co.InvalidTypeError, match="affinity is a text, not int"):
        pool.borrow(affinity=3)
    with pytest.raises(co.InvalidTypeError, match="min_free is a number of bytes"):
        pool.borrow(min_free=1.5)
    assert all(status.holder is None for status in pool.status())


def test_workers_take_something_to_call(workers: co.WorkerPool) -> None:
    for call in (workers.post, workers.submit, workers.run):
        with pytest.raises(co.InvalidTypeError, match="a task is something to call, not int"):
            call("virtual:0", 3)
    with pytest.raises(co.InvalidTypeError, match="something to call, not NoneType"):
        workers.scatter({"virtual:0": int, "virtual:1": None})
    with pytest.raises(
        co.InvalidTypeError, match="takes a mapping of devices to functions, not list"
    ):
        workers.scatter([int])
    with pytest.raises(co.InvalidValueError, match="was given virtual:0 twice"):
        workers.scatter({"virtual:0": int, "Virtual": int})
    assert [status.finished for status in workers.status()] == [0, 0]


def test_worker_pools() -> None:
    devices = co.virtual_devices(1)
    with pytest.raises(
        co.InvalidTypeError, match="on_start takes a function of the device, not str"
    ):
        co.WorkerPool(devices, on_start="hook")
    with pytest.raises(co.InvalidTypeError, match="torch_threads is a whole number"):
        co.WorkerPool(devices, torch_threads=1.5)
    with pytest.raises(co.InvalidValueError, match="torch_threads must be at least 1"):
        co.WorkerPool(devices, torch_threads=0)
    with pytest.raises(co.InvalidValueError, match="how='drain' or how='cancel', not \"later\""):
        co.WorkerPool(devices).close("later")


@pytest.mark.parametrize(
    ("total", "speeds", "error", "message"),
    [
        (1, [], co.InvalidValueError, "at least one speed"),
        (1, {}, co.InvalidValueError, "at least one speed"),
        (1, [0, 0], co.InvalidValueError, "more than 0"),
        (1, [-1], co.InvalidValueError, "0 or more, not -1"),
        (1, [math.nan], co.InvalidValueError, "not NaN"),
        (1, [math.inf], co.InvalidValueError, "not inf"),
        (1, ["a"], co.InvalidTypeError, "a list of numbers"),
        (1, "12", co.InvalidTypeError, "a list of numbers"),
        (1, 7, co.InvalidTypeError, "a list of numbers"),
        (-1, [1], co.InvalidValueError, "total must be between 0"),
        (1.5, [1], co.InvalidTypeError, "total is a whole number"),
        (2**60, [1, 1], co.InvalidValueError, "cannot split"),
    ],
)
def test_shares(total: Any, speeds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        co.shares(total, speeds)


_NUMBERS: list[tuple[Any, type[Exception]]] = [
    (-1, co.InvalidValueError),
    (2**70, co.InvalidValueError),
    (10**5000, co.InvalidValueError),
    (True, co.InvalidTypeError),
    (1.0, co.InvalidTypeError),
    ("a", co.InvalidTypeError),
    (None, co.InvalidTypeError),
    ([], co.InvalidTypeError),
]


@pytest.fixture
def area() -> co.Area:
    """Three tensors of a page, each beginning with a page of its own, on a device of eight pages."""
    [device] = co.virtual_devices(1, memory=8 * PAGE)
    arena = co.Arena(device, co.Budget(device))
    weights = co.WeightStore().share("model", {name: np.ones(PAGE, np.uint8) for name in "abc"})
    return arena.area(weights, list("abc"), groups=[0, 1, 2])


def test_streams_of_blocks(area: co.Area) -> None:
    for blocks, error, message in [
        ("a", co.InvalidTypeError, "blocks is a list of lists of names, not str"),
        (None, co.InvalidTypeError, "not NoneType"),
        (["a"], co.InvalidTypeError, "a block"),
        ([[1]], co.InvalidTypeError, "a block"),
        ([], co.InvalidValueError, "blocks is empty"),
        ([[]], co.InvalidValueError, "no tensors with bytes"),
        ([["a"], ["a"]], co.InvalidValueError, "a page in common"),
        ([["d"]], co.TensorNotFoundError, "no tensor"),
    ]:
        with pytest.raises(error, match=message):
            area.stream_blocks(blocks)  # type: ignore[arg-type]
    for name in ("working_memory", "leave"):
        for given, error in _NUMBERS:
            if given not in ("a", None):
                with pytest.raises(error, match=rf"{name} (is a number of bytes|must be)"):
                    area.stream_blocks([["a"]], **{name: given})
        with pytest.raises(co.InvalidValueError, match="is not a number of bytes"):
            area.stream_blocks([["a"]], **{name: "much"})  # type: ignore[arg-type]
    with pytest.raises(co.BudgetExceededError):
        area.stream_blocks([["a"]], working_memory=2**64 - 1)
    for stream in (7, "1", True):
        with pytest.raises((co.InvalidTypeError, co.InvalidValueError)):
            area.stream_blocks([["a"]], stream=stream)  # type: ignore[arg-type]
    with pytest.raises(co.InvalidValueError, match="timeout must be"):
        area.stream_blocks([["a"]], timeout=-1)
    with pytest.raises(co.InvalidTypeError, match="cancel takes"):
        area.stream_blocks([["a"]], cancel="now")  # type: ignore[arg-type]
    assert area.arena.status().pinned == 0
    assert area.arena.budget.used == 0


def test_calls_of_a_streaming(area: co.Area) -> None:
    streaming = area.stream_blocks([["a"], ["b"], ["c"]])
    calls = {
        "block": [
            streaming.enter,
            lambda block: streaming.leave(block, 0),
            lambda block: streaming.keep_at_most(block, 0),
        ],
        "keep": [
            lambda keep: streaming.leave(0, keep),
            lambda keep: streaming.keep_at_most(0, keep),
        ],
        "nbytes": [streaming.plan, streaming.shrink],
        "leave": [streaming.grow],
    }
    for name, all_of_it in calls.items():
        for given, error in _NUMBERS:
            for call in all_of_it:
                if (name, given) == ("nbytes", None) and call == streaming.plan:
                    continue
                if name in ("nbytes", "leave") and given in ("a", None):
                    continue
                with pytest.raises(error, match=rf"{name} (is a |must be between)"):
                    call(given)
                    pytest.fail(f"{name} took {given}")
    for call in calls["block"]:
        for block in (3, 2**64 - 1):
            with pytest.raises(co.InvalidValueError, match="between 0 and 2, the last one, not"):
                call(block)
    for call in (streaming.plan, streaming.shrink, streaming.grow):
        with pytest.raises(co.InvalidValueError, match="is not a number of bytes"):
            call("much")
    for stream in (7, "1", True, 2**70):
        with pytest.raises((co.InvalidTypeError, co.InvalidValueError)):
            streaming.enter(0, stream=stream)  # type: ignore[arg-type]
        with pytest.raises((co.InvalidTypeError, co.InvalidValueError)):
            streaming.also_on(stream)  # type: ignore[arg-type]
    with pytest.raises(co.InvalidValueError, match="timeout must be"):
        streaming.enter(0, timeout=math.nan)
    with pytest.raises(co.InvalidTypeError, match="cancel takes"):
        streaming.enter(0, cancel="now")  # type: ignore[arg-type]
    # What is large and can be meant: all of it.
    streaming.enter(0)
    streaming.leave(0, 2**64 - 1)
    assert streaming.plan(2**64 - 1) == [1, 1, 1]
    assert streaming.grow(2**64 - 1) == 0
    # One that was never visited is left without effect.
    streaming.leave(2, 0)
    streaming.close()
    assert area.arena.status().pinned == 0


def test_groups_of_an_area(area: co.Area) -> None:
    weights = co.WeightStore().share("other", {"a": np.ones(9, np.uint8)})
    for groups, error in [
        ("a", co.InvalidTypeError),
        (3, co.InvalidTypeError),
        ([True], co.InvalidTypeError),
        ([1.0], co.InvalidTypeError),
        ([-1], co.InvalidValueError),
        ([1], co.InvalidValueError),
        ([2**70], co.InvalidValueError),
    ]:
        with pytest.raises(error, match="group"):
            area.arena.area(weights, groups=groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [None, 64 * PAGE], ids=["unified", "bounded"])
def test_streaming_of_models(memory: int | None) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"stream": "no"}, co.InvalidValueError),
        ({"stream": "\ud800"}, co.InvalidValueError),
        ({"stream": 1}, co.InvalidTypeError),
        ({"stream": None}, co.InvalidTypeError),
        ({"stream": np.ones(3)}, co.InvalidTypeError),
        ({"blocks": "0"}, co.InvalidTypeError),
        ({"blocks": 3}, co.InvalidTypeError),
        ({"blocks": [0]}, co.InvalidTypeError),
        ({"blocks": [None]}, co.InvalidTypeError),
        ({"blocks": itertools.repeat("0")}, co.InvalidValueError),
    ]
    [device] = co.virtual_devices(1, memory=memory)
    with co.Runtime([device]) as runtime:
        model = runtime.load("model", lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)))
        with model.replica(device) as replica:
            for terms, error in wrong:
                for call in (functools.partial(model.on, device), replica.on):
                    with pytest.raises(error, match=r"stream is True|blocks (is a list|has)"):
                        call(**terms)
                        pytest.fail(f"{terms} was taken")
            replica.on().release()


def test_every_error_is_ours_and_a_built_in() -> None:
    ours = [
        kind
        for _, kind in inspect.getmembers(co, inspect.isclass)
        if issubclass(kind, Exception) and kind is not co.CoresidentError
    ]
    built_in = (ValueError, TypeError, RuntimeError, MemoryError, OSError, LookupError)
    assert len(ours) >= 10
    for kind in ours:
        assert issubclass(kind, co.CoresidentError)
        assert issubclass(kind, built_in)
        assert str(kind("a sentence")) == "a sentence"
