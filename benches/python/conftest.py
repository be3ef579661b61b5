"""Fixtures of the benches, and the tables that sum them up."""

from __future__ import annotations

import importlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path

import pytest
import ratios

LOOP = 1000
HOGGED_ROUNDS = 60


def pytest_addoption(parser):
    parser.addoption("--ratios", metavar="FILE", help="also write the tables to FILE, as Markdown")


def pytest_collection_modifyitems(items):
    # Once imported, asyncio stays: what is to be measured without it comes first.
    items.sort(key=lambda item: "asyncio_imported" in item.fixturenames)


@pytest.fixture(scope="session")
def asyncio_imported():
    importlib.import_module("asyncio")


@pytest.fixture(params=["quiet", "hogged", "hogged-after a pause"])
def interpreter(request):
    """The interpreter as it is, or with a thread that never lets go of it by itself.

    Who calls again and again meets workers that are still awake; after a pause they sleep.
    """
    if request.param == "quiet":
        yield request.param
        return
    over = threading.Event()

    def hog():
        while not over.is_set():
            pass

    thread = threading.Thread(target=hog, name="hog", daemon=True)
    thread.start()
    yield request.param
    over.set()
    thread.join()


def pause():
    time.sleep(1e-3)


@pytest.fixture
def timed(benchmark):
    """Times a loop over ``calls``, so that no function call is counted."""

    def measure(loop):
        benchmark.extra_info.update(calls=LOOP, figure="median")
        benchmark(lambda: loop(repeat(None, LOOP)))

    return measure


@pytest.fixture
def timed_call(benchmark):
    """Times a function that takes long enough by itself."""

    def measure(function):
        benchmark.extra_info.update(calls=1, figure="median")
        benchmark(function)

    return measure


@pytest.fixture
def timed_p99(benchmark):
    """Times each call of a function on 4 threads at once: of all calls, the 99th of 100."""

    def measure(function, threads=4, calls=20_000):
        benchmark.extra_info.update(calls=1, figure="median")

        def loop(start):
            now = time.perf_counter
            start.wait()
            taken = []
            for _ in range(calls):
                before = now()
                function()
                taken.append(now() - before)
            return taken

        def run():
            start = threading.Barrier(threads)
            with ThreadPoolExecutor(threads) as pool:
                taken = sorted(chain(*pool.map(loop, repeat(start, threads))))
            benchmark.extra_info["seconds"] = taken[len(taken) * 99 // 100]

        benchmark.pedantic(run, rounds=3)

    return measure


@pytest.fixture
def timed_task(benchmark, interpreter):
    """Times a function that gives tasks, one or as many as it says."""

    def measure(function, tasks=1):
        benchmark.extra_info["calls"] = tasks
        if interpreter == "quiet":
            benchmark.extra_info["figure"] = "median"
            benchmark(function)
        else:
            # A turn at the interpreter comes at once or after 5 ms: only a mean tells how often.
            benchmark.extra_info["figure"] = "mean"
            setup = pause if "pause" in interpreter else None
            benchmark.pedantic(function, setup=setup, rounds=HOGGED_ROUNDS, warmup_rounds=5)

    return measure


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    rows = ratios.measured(config._benchmarksession.benchmarks)
    if not rows:
        return
    tables = ratios.tables(rows)
    for title, table in tables:
        terminalreporter.section(title)
        for line in ratios.as_text(table):
            terminalreporter.write_line(line)
    if file := config.getoption("ratios"):
        Path(file).write_text(ratios.as_markdown(tables), encoding="utf-8")
        terminalreporter.write_line(f"written to {file}")
