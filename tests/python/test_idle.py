"""What devices let go of when they have had no jobs for a while, in a time of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import coresident as co
import numpy as np
import pytest
from conftest import until
from coresident.serving.idle import Idleness

LONG = 20.0
ONE, OTHER = co.virtual_devices(2)


class House:
    """Two devices, and what was let go of when."""

    def __init__(self, *policies: co.IdlePolicy) -> None:
        self.freed: list[str] = []
        # Bytes that streams use still, each time that a device is freed.
        self.stays: list[int] = []
        # What happens meanwhile.
        self.meanwhile: Callable[[], object] = lambda: None
        by_device = dict(zip((ONE, OTHER), policies, strict=False))
        self.idleness = Idleness(
            by_device,
            [ONE, OTHER],
            self._free,
            lambda: self.freed.append("host"),
            now=0.0,
        )

    def _free(self, device: co.Device) -> int:
        self.freed.append(str(device))
        self.meanwhile()
        return self.stays.pop(0) if self.stays else 0

    def look(self, now: float) -> tuple[float | None, list[str]]:
        self.freed.clear()
        return self.idleness.look(now), list(self.freed)


def test_weights_leave_a_device_that_has_had_no_job_for_long_enough_and_once() -> None:
    house = House(co.IdlePolicy(vram=10), co.IdlePolicy(vram=20))
    assert house.look(9.9) == (10, [])
    assert house.look(10) == (20, ["virtual:0"])
    assert house.look(15) == (20, [])
    assert house.look(21) == (None, ["virtual:1"])
    assert house.look(1000) == (None, [])


def test_a_job_begins_the_time_anew() -> None:
    house = House(co.IdlePolicy(vram=10))
    house.idleness.begins(ONE)
    assert house.look(100) == (None, []), "it has a job"
    house.idleness.ends(ONE, 100, cancelled=False)
    assert house.look(105) == (110, [])
    assert house.look(110) == (None, ["virtual:0"])
    house.idleness.begins(ONE)
    house.idleness.ends(ONE, 120, cancelled=False)
    assert house.look(130) == (None, ["virtual:0"])


def test_host_memory_goes_when_every_device_has_been_idle_for_long_enough() -> None:
    house = House(co.IdlePolicy(vram=1, ram=10), co.IdlePolicy(vram=1, ram=20))
    house.idleness.begins(OTHER)
    assert house.look(15) == (None, ["virtual:0"]), "the other one has a job"
    house.idleness.ends(OTHER, 15, cancelled=False)
    assert house.look(16) == (35, ["virtual:1"])
    assert house.look(35) == (None, ["host"])
    assert house.look(99) == (None, [])


@pytest.mark.parametrize("over", [False, True])
def test_what_was_due_stays_if_a_job_begins_while_another_device_is_emptied(over: bool) -> None:
    house = House(co.IdlePolicy(vram=10, ram=10), co.IdlePolicy(vram=10, ram=10))

    def a_job() -> None:
        house.idleness.begins(OTHER)
        if over:
            house.idleness.ends(OTHER, 11, cancelled=False)

    house.meanwhile = a_job
    assert house.look(10)[1] == ["virtual:0"]
    house.meanwhile = lambda: None
    if over:
        assert house.look(20) == (21, []), "ten seconds from its end on"
        assert house.look(21) == (None, ["virtual:1", "host"])
    else:
        assert house.look(100) == (None, [])


def test_a_device_without_a_policy_keeps_the_host_memory() -> None:
    house = House(co.IdlePolicy(vram=1, ram=2))
    assert house.look(100) == (None, ["virtual:0"])


def test_after_a_cancel_weights_leave_at_once_if_that_is_wanted() -> None:
    for policy, freed in (
        (co.IdlePolicy(vram=10, after_cancel=True), ["virtual:0"]),
        (co.IdlePolicy(vram=10), []),
    ):
        house = House(policy)
        for cancelled in (False, True):
            house.freed.clear()
            house.idleness.begins(ONE)
            house.idleness.ends(ONE, 1, cancelled=cancelled)
            assert house.freed == (freed if cancelled else [])
        assert house.look(5) == (None if freed else 11, [])


def test_what_streams_still_use_leaves_a_little_later() -> None:
    house = House(co.IdlePolicy(vram=10))
    house.stays = [1 << 20, 1 << 20]
    assert house.look(10) == (10.5, ["virtual:0"])
    assert house.look(10.5) == (11, ["virtual:0"])
    assert house.look(11) == (None, ["virtual:0"])
    house.stays = [1 << 20]
    house.idleness.begins(ONE)
    house.idleness.ends(ONE, 20, cancelled=False)
    assert house.look(30) == (30.5, ["virtual:0"])
    house.idleness.begins(ONE)
    assert house.look(31) == (None, []), "it has a job again"


# On live devices


@pytest.fixture
def runtime() -> Iterator[co.Runtime]:
    made = co.Runtime(co.virtual_devices(1, memory="8MiB"))
    yield made
    made.close(timeout=LONG)


def uses(runtime: co.Runtime, weights: Any) -> Any:
    """A handler that has weights on its device, for as long as it runs."""
    (arena,) = runtime.arenas.values()
    area = arena.area(weights)

    def handler(job: co.ServedJob) -> int:
        with area.fault():
            if job.payload == "wait":
                job.token.wait(LONG)
                job.raise_if_cancelled()
            return arena.status().resident

    return handler


def test_weights_leave_on_request(runtime: co.Runtime) -> None:
    weights = runtime.weights.share("unet", {"weight": np.ones(1 << 18, np.float32)})
    (arena,) = runtime.arenas.values()
    with runtime.serve(uses(runtime, weights)) as server:
        assert server.queue.submit("once").result(LONG) >= 1 << 20
    resident = arena.status().resident
    assert [runtime.free("virtual:0"), runtime.free()] == [resident, 0]
    assert arena.status().resident == 0
    weights.release()
    assert runtime.weights.status()
    runtime.free(ram=True)
    # The arena's area holds them still: what somebody has stays.
    assert [status.key for status in runtime.weights.status()] == ["unet"]


def test_weights_leave_after_a_cancel_and_after_a_while(runtime: co.Runtime) -> None:
    weights = runtime.weights.share("unet", {"weight": np.ones(1 << 18, np.float32)})
    (arena,) = runtime.arenas.values()
    handler = uses(runtime, weights)
    with runtime.serve(handler, idle=co.IdlePolicy(after_cancel=True)) as server:
        server.queue.submit("once").result(LONG)
        assert arena.status().resident > 0
        job = server.queue.submit("wait")
        until(lambda: [one.id for one in server.running] == [job.id])
        job.cancel()
        until(lambda: arena.status().resident == 0)
    with runtime.serve(handler, idle={"virtual:0": co.IdlePolicy(vram=0.01)}) as server:
        server.queue.submit("once").result(LONG)
        until(lambda: arena.status().resident == 0)


def own_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith(("serve ", "coresident idle")))


def test_there_is_one_thread_for_it_if_it_is_asked_for_and_none_otherwise() -> None:
    runtime = co.Runtime(co.virtual_devices(3))
    until(lambda: not own_threads())
    workers = ["serve virtual:0", "serve virtual:1", "serve virtual:2"]
    for idle, threads in ((None, workers), (co.IdlePolicy(vram=1), ["coresident idle", *workers])):
        server = runtime.serve(str, idle=idle)
        assert own_threads() == threads
        server.stop(timeout=LONG)
        until(lambda: not own_threads())
    runtime.close(timeout=LONG)
