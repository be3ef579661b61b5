"""What leaves a device first: planners, the jobs that they know of, and models that do not all fit."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import run_script, spawn
from coresident import trace

PAGE = 2 << 20


@pytest.fixture
def planner() -> co.Planner:
    """What is known to come leaves last; the rest by its last use."""
    return co.Planner("virtual:0", "known")


def use(planner: co.Planner, *keys: str) -> None:
    for key in keys:
        planner.used(key, PAGE)


def order(planner: co.Planner, keys: str) -> list[str]:
    """In which order these leave, each of which is one letter."""
    return planner.order(list(keys))


def test_a_planner_tells_what_it_is() -> None:
    planner = co.Planner("virtual:0")
    assert (str(planner.device), planner.policy) == ("virtual:0", trace.POLICIES[0])
    assert repr(planner) == "<Planner of virtual:0: look-ahead>"
    assert planner.forecast is None
    assert planner.order([]) == []


def test_a_job_that_was_declared_keeps_what_it_still_needs(planner: co.Planner) -> None:
    with planner.job(["a", "b", "c", "a"]) as job:
        assert (job.device, job.released) == ("virtual:0", False)
        use(planner, "a", "b")
        assert order(planner, "abcd") == ["d", "b", "a", "c"]
        use(planner, "c")
        assert order(planner, "abc") == ["b", "c", "a"]
    assert job.released
    assert order(planner, "abc") == ["a", "b", "c"]
    job.release()
    assert repr(job) == "<RunningJob on virtual:0 ended>"


def test_a_job_is_known_by_how_it_begins(planner: co.Planner) -> None:
    for stages in ("abcd", "bda"):
        with planner.job():
            use(planner, *stages)
    with planner.job():
        use(planner, "a", "b")
        assert order(planner, "abcd") == ["a", "b", "d", "c"]
    with planner.job():
        use(planner, "b")
        assert order(planner, "abcd") == ["c", "b", "a", "d"]
        # It departs, and nothing is known of what comes.
        use(planner, "c")
        assert order(planner, "abd") == ["d", "a", "b"]


def test_what_is_used_in_turns_is_not_held_back_by_what_came_before() -> None:
    planner = co.Planner("virtual:0")
    use(planner, "a")
    for _ in range(40):
        use(planner, "b", "c")
    assert order(planner, "abc")[0] == "a"


def test_what_is_used_under_one_lease_is_a_job() -> None:
    pool = co.DevicePool(co.virtual_devices(1))
    planner = co.Planner("virtual:0", "known", pool=pool)
    for _ in range(2):
        with pool.lease():
            use(planner, "a", "b", "a", "c")
    with pool.lease():
        use(planner, "a", "b")
        assert order(planner, "abc") == ["b", "c", "a"]
    assert order(planner, "abc") == ["c", "a", "b"], "nothing runs any more"


def test_jobs_to_come_are_given_as_a_list_or_by_a_function(planner: co.Planner) -> None:
    use(planner, "a", "b", "c")
    planner.forecast = [["c", "a"], ("b",)]
    assert planner.forecast == [["c", "a"], ["b"]]
    assert order(planner, "abc") == ["b", "a", "c"]
    asked: list[tuple[str, int]] = []

    def coming(device: co.Device, most: int) -> Any:
        asked.append((str(device), most))
        return (list("ba") for _ in range(most + 5))

    planner.forecast = coming
    assert planner.forecast is coming
    assert order(planner, "abc") == ["c", "a", "b"]
    assert asked == [("virtual:0", 8)]
    planner.forecast = None
    assert order(planner, "abc") == ["a", "b", "c"]


def test_a_forecast_that_fails_is_shown_and_counts_for_nothing(planner: co.Planner) -> None:
    shown: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda what: shown.append(str(what.exc_value))
    try:
        use(planner, "a", "b")
        planner.forecast = lambda *_: 1 / 0
        assert order(planner, "ba") == ["a", "b"]
        planner.forecast = lambda *_: "a"
        assert order(planner, "ba") == ["a", "b"]
        planner.forecast = lambda *_: [[3]]
        assert order(planner, "ba") == ["a", "b"]
    finally:
        sys.unraisablehook = before
    assert shown == [
        "division by zero",
        "a forecast is a list of jobs, each a list of keys, not str",
        "a job is a text, not int",
    ]


def test_a_forecast_may_use_the_planner(planner: co.Planner) -> None:
    # It is called with no lock held.
    def coming(_device: co.Device, _most: int) -> list[list[str]]:
        planner.forecast = None
        planner.used("b", 1)
        with planner.job(["c"]):
            return [order(planner, "ab")]

    use(planner, "a", "b")
    planner.forecast = coming
    assert sorted(order(planner, "abc")) == ["a", "b", "c"]


def test_a_function_that_holds_what_asks_it_is_collected() -> None:
    class Queue:
        def __init__(self) -> None:
            self.planner = co.Planner("virtual:0")
            [device] = co.virtual_devices(1, memory=4 * PAGE)
            self.arena = co.Arena(device, co.Budget(device), planner=self.planner)
            self.planner.forecast = self.coming

        def coming(self, _device: co.Device, _most: int) -> list[list[str]]:
            return []

    queue = weakref.ref(Queue())
    gc.collect()
    assert queue() is None


def test_the_context_carries_the_job_to_tasks_and_threads(planner: co.Planner) -> None:
    async def pipeline(stages: str) -> None:
        with planner.job(list(stages)):
            for stage in stages:
                # Somebody else, who works for the same job.
                await asyncio.gather(asyncio.to_thread(planner.used, stage, 1))
                await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(pipeline("abc"), pipeline("dba"))

    asyncio.run(both())
    # Each job was seen as what it was, though they took turns.
    with planner.job():
        use(planner, "d")
        assert order(planner, "abc") == ["c", "a", "b"]
    with planner.job():
        use(planner, "a")
        assert order(planner, "bcd") == ["d", "c", "b"]


def test_a_job_within_a_job_comes_first(planner: co.Planner) -> None:
    with planner.job(["a", "b"]):
        use(planner, "a")
        with planner.job(["c", "d"]):
            use(planner, "c")
            assert order(planner, "abcd") == ["a", "c", "b", "d"]
        assert order(planner, "abcd") == ["d", "a", "c", "b"]
        use(planner, "b")
        assert order(planner, "ab") == ["a", "b"]


def test_jobs_of_other_devices_are_not_meant(planner: co.Planner) -> None:
    other = co.Planner("virtual:0", "known")
    with planner.job(["a", "b"]), other.job(["b", "a"]):
        use(planner, "a")
        use(other, "b")
        assert order(planner, "ab") == ["a", "b"]
        assert order(other, "ab") == ["b", "a"]


def test_a_job_may_be_released_anywhere_and_again(planner: co.Planner) -> None:
    job = planner.job(["a", "b"])
    spawn(job.release).join()
    assert job.released
    job.release()
    with pytest.raises(co.ReleasedError, match="the guard of a running job has been released"):
        job.__enter__()


def test_a_forgotten_job_ends_with_a_warning(planner: co.Planner) -> None:
    def forget() -> None:
        planner.job(["b", "a"])
        gc.collect()

    with pytest.warns(ResourceWarning, match="the guard of a running job was never released"):
        forget()
    use(planner, "a", "b")
    assert order(planner, "ba") == ["a", "b"]


def test_a_job_entered_in_another_context_is_carried_there(planner: co.Planner) -> None:
    job = contextvars.copy_context().run(planner.job, ["a", "b"])

    def elsewhere() -> None:
        with planner.job(["b", "a"]), job:
            use(planner, "a")

    contextvars.Context().run(elsewhere)
    assert job.released


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: co.Planner("gpu"), co.InvalidDeviceError, "unknown device type"),
        (lambda p: co.Planner(7), co.InvalidTypeError, "a device is given by its name"),
        (lambda p: co.Planner("virtual:0", "LRU"), co.InvalidValueError, 'no policy "LRU"'),
        (lambda p: co.Planner("virtual:0", None), co.InvalidTypeError, "one of look-ahead, "),  # type: ignore[arg-type]
        (lambda p: co.Planner("virtual:0", 3), co.InvalidTypeError, "one of look-ahead.*not int"),
        (lambda p: co.Planner("virtual:0", pool=3), co.InvalidTypeError, "a DevicePool or None"),
        (lambda p: p.job("unet"), co.InvalidTypeError, "stages takes a list of names, not str"),
        (lambda p: p.job([3]), co.InvalidTypeError, "stages is a text, not int"),
        (lambda p: p.job(3), co.InvalidTypeError, "stages takes a list of names, not int"),
        (lambda p: p.used(3, 1), co.InvalidTypeError, "key is a text, not int"),
        (lambda p: p.used("a", -1), co.InvalidValueError, "nbytes must be between 0"),
        (lambda p: p.used("a", "much"), co.InvalidValueError, "is not a number of bytes"),
        (lambda p: p.used("a", 1.5), co.InvalidTypeError, "nbytes is a number of bytes"),
        (lambda p: p.left(None), co.InvalidTypeError, "key is a text, not NoneType"),
        (lambda p: p.order(3), co.InvalidTypeError, "keys takes a list of names, not int"),
        (lambda p: setattr(p, "forecast", 3), co.InvalidTypeError, "a forecast is a list of jobs"),
        (lambda p: setattr(p, "forecast", ["a"]), co.InvalidTypeError, "a job takes a list"),
    ],
)
def test_bad_input(
    planner: co.Planner, call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    planner.forecast = [["b"]]
    with pytest.raises(error, match=message):
        call(planner)
    assert planner.forecast == [["b"]], "nothing has changed"
    assert planner.order(["b", "a"]) == ["a", "b"]


def test_an_arena_takes_a_planner_of_its_own_device() -> None:
    [one, other] = co.virtual_devices(2, memory=4 * PAGE)
    with pytest.raises(co.InvalidTypeError, match="planner is a Planner or None, not str"):
        co.Arena(one, co.Budget(one), planner="lru")  # type: ignore[arg-type]
    with pytest.raises(co.InvalidValueError, match="a planner of virtual:1 cannot decide on"):
        co.Arena(one, co.Budget(one), planner=co.Planner(other))
    planner = co.Planner(one, "always-evict")
    arena = co.Arena(one, co.Budget(one), planner=planner)
    assert arena.planner is planner
    assert (arena.status().low, arena.status().high) == (0, 0)
    assert co.Arena(one, co.Budget(one)).planner is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_refused_and_its_parents_jobs_go_on() -> None:
    done = run_script(
        """
        import os, sys
        import coresident as co

        planner = co.Planner("virtual:0", "known")
        job = planner.job(["b", "a"])
        child = os.fork()
        if child == 0:
            try:
                planner.job(["c"])
            except co.ForkedError:
                # The others do nothing there.
                planner.used("x", 1)
                planner.left("x")
                job.release()
                os._exit(7 if planner.order(["b", "a"]) == ["b", "a"] and job.released else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not job.released
        assert planner.order(["b", "a"]) == ["a", "b"]
        job.release()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


# Pages of the weights of a store, without torch.


class House:
    """One device, with a model of so many pages for each key."""

    def __init__(self, pages: int, policy: str = "look-ahead", **sizes: int) -> None:
        [self.device] = co.virtual_devices(1, memory=pages * PAGE)
        self.runtime = co.Runtime([self.device], policy=policy)
        self.areas = {}
        for key, size in sizes.items():
            weights = self.runtime.weights.share(key, {"w": bytes_of(size)}, copy=True)
            self.areas[key] = self.runtime.arenas[self.device].area(weights)

    def use(self, *keys: str) -> None:
        for key in keys:
            self.areas[key].fault().release()

    @property
    def pages(self) -> dict[str, int]:
        counts = {key: int((area.residency() > 0).sum()) for key, area in self.areas.items()}
        return {key: count for key, count in counts.items() if count}


def bytes_of(pages: int) -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.zeros(pages * PAGE, "uint8")


def test_when_all_of_it_fits_nothing_moves_but_what_is_always_evicted() -> None:
    for policy in trace.POLICIES:
        house = House(8, policy, a=3, b=2, c=3)
        for _ in range(4):
            with house.runtime.job():
                house.use("a", "b", "c")
        status = house.runtime.analyze(house.device)
        rounds = 4 if policy == "always-evict" else 1
        assert status.filled == rounds * 8 * PAGE, policy
        assert house.pages == ({} if policy == "always-evict" else {"a": 3, "b": 2, "c": 3})


def test_only_the_missing_pages_of_what_is_needed_last_leave() -> None:
    house = House(6, a=2, b=3, c=2)
    with house.runtime.job(["a", "b", "c", "b"]):
        house.use("a", "b", "c")
        assert house.pages == {"a": 1, "b": 3, "c": 2}
    house.runtime.forecast = [["a", "c"]]
    with house.runtime.job(["b"]):
        house.use("b", "a")
    assert house.pages == {"a": 2, "b": 2, "c": 2}


def test_the_arena_is_asked_in_the_planners_order_whoever_asks_for_bytes() -> None:
    house = House(6, "known", a=2, b=2, c=2)
    with house.runtime.job(["a", "b", "c", "a", "b"]):
        house.use("a", "b", "c")
        house.runtime.arenas[house.device].evict(PAGE)
        assert house.pages == {"a": 2, "b": 2, "c": 1}
        with house.runtime.vram[house.device].reserve(2 * PAGE, timeout=0):
            assert house.pages == {"a": 2, "b": 2}
        status = house.runtime.analyze(house.device)
        assert [area.key for area in status.areas] == ["b", "a", "c"], "the least wanted first"


def test_a_runtimes_jobs_and_forecasts_take_models_or_keys() -> None:
    devices = co.virtual_devices(2, memory=4 * PAGE)
    with co.Runtime(devices, policy="known") as runtime:

        class Model:
            key = "b"

        with pytest.raises(co.InvalidDeviceError, match="name one of virtual:0, virtual:1"):
            runtime.job(["a"])
        with pytest.raises(co.InvalidDeviceError, match="none of this runtime's"):
            runtime.job(["a"], device="cpu")
        for wrong, given in (("unet", "not str"), ([3], "has a int"), (3, "not int")):
            with pytest.raises(co.InvalidTypeError, match=f"stages is a list .* {given}"):
                runtime.job(wrong, device="virtual:1")  # type: ignore[arg-type]
        with runtime.pool.lease("virtual:1"), runtime.job([Model(), "a"]) as job:
            assert job.device == "virtual:1"
        planner = runtime.planners[devices[0]]
        runtime.forecast = [[Model(), "a"]]
        assert order(planner, "ab") == ["a", "b"]
        runtime.forecast = lambda device, most: [["a", Model()]][:most]
        assert order(planner, "ab") == ["b", "a"]
        assert callable(runtime.forecast)
        for wrong in (3, "ab", [3], [[None]]):
            with pytest.raises(co.InvalidTypeError, match="is a list of"):
                runtime.forecast = wrong  # type: ignore[assignment]
        assert order(planner, "ab") == ["b", "a"], "nothing has changed"
        runtime.forecast = None
        assert planner.forecast is None
    with pytest.raises(co.InvalidValueError, match='there is no policy "best"'):
        co.Runtime(devices, policy="best")
    for odd in (3, None):
        with pytest.raises(co.InvalidTypeError, match="policy is one of look-ahead, "):
            co.Runtime(devices, policy=odd)  # type: ignore[arg-type]


def test_live_devices_move_what_replay_says(tmp_path: Path) -> None:
    sizes = {"te": 3, "unet": 5, "vae": 1, "other": 4}
    jobs = [["te", "unet", "vae", "unet"], ["unet", "vae"], ["te", "other", "vae"]]
    kinds = [0, 0, 1, 2, 2, 0, 1, 1, 0, 2]
    requests = [
        {"job": number, "component": key, "bytes": sizes[key] * PAGE, "working_bytes": 0}
        for number, kind in enumerate(kinds)
        for key in jobs[kind]
    ]
    recorded = {"name": "made", "capacity_bytes": 8 * PAGE, "requests": requests}
    # With always-evict what is used twice in a row leaves in between; in replay with the next one.
    for policy in set(trace.POLICIES) - {"always-evict"}:
        house = House(8, policy, **sizes)
        for number, kind in enumerate(kinds):
            house.runtime.forecast = [jobs[next_kind] for next_kind in kinds[number + 1 :][:2]]
            with house.runtime.job(jobs[kind]):
                house.use(*jobs[kind])
        expected = trace.replay(recorded, policy=policy, lookahead=2).bytes_moved
        assert house.runtime.analyze(house.device).filled == expected, policy


# Real modules.


@pytest.fixture(scope="module")
def hires() -> Iterator[Any]:
    """The bench of SDXL with a second pass."""
    pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    for library in ("diffusers", "transformers"):
        pytest.importorskip(library, reason="comes with the test extra")
    path = Path(__file__).parents[2] / "benches" / "sdxl_hires.py"
    spec = importlib.util.spec_from_file_location("sdxl_hires", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sdxl_hires"] = module
    spec.loader.exec_module(module)
    threads = module.torch.get_num_threads()
    # Several are in each other's way on a busy machine.
    module.torch.set_num_threads(1)
    yield module
    module.torch.set_num_threads(threads)
    del sys.modules["sdxl_hires"]


def test_sdxl_with_a_second_pass_moves_nothing_where_it_fits_and_little_where_it_does_not(
    hires: Any,
) -> None:
    import torch

    scale = hires.Scale(
        width=32,
        text=(32, 160),
        layers=(1, 3),
        transformers=(1, 1, 1),
        decoder=(16, 32),
        latents=8,
        steps=(1, 1),
    )
    sizes = hires.weights(scale)
    per_image = sum(sizes[key] for key in hires.STAGES)
    everything = sum(sizes.values())
    assert sizes["sdxl/unet"] >= 4 * PAGE
    roomy, tight = everything + (64 << 20), everything - 2 * PAGE
    reference = hires.run(hires.RESIDENT, roomy, 3, scale)
    assert reference.copied == [0, 0, 0], "it was all there before"
    runs = {
        (policy, memory): hires.run(policy, memory, 3, scale)
        for policy, memory in [
            ("look-ahead", roomy),
            ("always-evict", roomy),
            ("look-ahead", tight),
            ("lru", tight),
        ]
    }
    for made in runs.values():
        assert all(map(torch.equal, made.images, reference.images))
    assert runs["look-ahead", roomy].copied == [everything, 0, 0]
    assert runs["always-evict", roomy].copied == [per_image] * 3
    little, lru = (runs[policy, tight].copied[1:] for policy in ("look-ahead", "lru"))
    assert 0 < sum(little) <= sum(lru) < 2 * per_image
