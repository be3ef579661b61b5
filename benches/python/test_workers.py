"""Tasks on persistent workers, next to executors and to a thread per step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import coresident as co
import pytest
from peers import Executors, thread_per_step

DEVICE = "virtual:0"
PIPELINED = 2000

round_trip = pytest.mark.benchmark(group="round trip")
pipelined = pytest.mark.benchmark(group=f"{PIPELINED:,} tasks, per task")
all_at_once = pytest.mark.benchmark(group="a step on each")
on_devices = pytest.mark.parametrize("count", [2, 4, 8], ids="{} devices".format)


def step():
    return None


@pytest.fixture
def workers():
    with co.WorkerPool(co.virtual_devices(8)) as pool:
        yield pool


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@round_trip
def test_ours_run(timed_task, workers):
    timed_task(lambda: workers.run(DEVICE, step))


@round_trip
def test_ours_submit_result(timed_task, workers):
    timed_task(lambda: workers.submit(DEVICE, step).result())


@round_trip
def test_ours_post_result(timed_task, workers):
    timed_task(lambda: workers.post(DEVICE, step).result())


@round_trip
def test_peer_thread_pool_executor(timed_task, executor):
    timed_task(lambda: executor.submit(step).result())


def through(give, *device):
    """Gives all the tasks, then takes all the results."""

    def whole():
        given = [give(*device, step) for _ in range(PIPELINED)]
        for one in given:
            one.result()

    return whole


@pipelined
def test_ours_post(timed_task, workers):
    timed_task(through(workers.post, DEVICE), PIPELINED)


@pipelined
def test_ours_submit(timed_task, workers):
    timed_task(through(workers.submit, DEVICE), PIPELINED)


@pipelined
def test_peer_executor_submit(timed_task, executor):
    timed_task(through(executor.submit), PIPELINED)


def one_each(count):
    return {f"virtual:{index}": step for index in range(count)}


@on_devices
@all_at_once
def test_ours_scatter(timed_task, workers, count):
    calls = one_each(count)
    timed_task(lambda: workers.scatter(calls))


@on_devices
@all_at_once
def test_peer_executors(timed_task, count):
    calls = one_each(count)
    executors = Executors(list(calls))
    timed_task(lambda: executors.scatter(calls))
    executors.close()


@on_devices
@all_at_once
def test_peer_thread_per_step(timed_task, count):
    calls = one_each(count)
    timed_task(lambda: thread_per_step(calls))
