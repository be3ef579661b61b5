"""Fixtures of the benches, and the tables that sum them up."""

from __future__ import annotations

import importlib
import threading
from itertools import repeat
from pathlib import Path

import pytest
import ratios

LOOP = 1000


def pytest_addoption(parser):
    parser.addoption("--ratios", metavar="FILE", help="also write the tables to FILE, as Markdown")


def pytest_collection_modifyitems(items):
    # Once imported, asyncio stays: what is to be measured without it comes first.
    items.sort(key=lambda item: "asyncio_imported" in item.fixturenames)


@pytest.fixture(scope="session")
def asyncio_imported():
    importlib.import_module("asyncio")


@pytest.fixture(params=[False, True], ids=["quiet", "hogged"])
def interpreter(request):
    """The interpreter as it is, or with a thread that never lets go of it by itself."""
    over = threading.Event()

    def hog():
        while not over.is_set():
            pass

    thread = threading.Thread(target=hog, name="hog", daemon=True)
    if request.param:
        thread.start()
    yield
    over.set()
    if request.param:
        thread.join()


@pytest.fixture
def timed_once(benchmark):
    """Times a function that does a thing once, or as often as it says."""

    def time(function, calls=1):
        benchmark.extra_info["calls"] = calls
        benchmark(function)

    return time


@pytest.fixture
def timed(timed_once):
    """Times a loop over ``calls``, so that no function call is counted."""

    def time(loop):
        timed_once(lambda: loop(repeat(None, LOOP)), LOOP)

    return time


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
