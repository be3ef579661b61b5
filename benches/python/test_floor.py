"""What this machine charges for the smallest things, to compare figures from different machines."""

from __future__ import annotations

from contextvars import ContextVar

import coresident as co
import pytest

pytestmark = pytest.mark.benchmark(group="floor")


def test_floor_empty_python_function(timed):
    def empty():
        pass

    def loop(calls):
        for _ in calls:
            empty()

    timed(loop)


def test_floor_rust_property(timed):
    token = co.CancelToken()

    def loop(calls):
        for _ in calls:
            token.cancelled  # noqa: B018

    timed(loop)


def test_floor_context_var_set_and_reset(timed):
    variable = ContextVar("variable")

    def loop(calls):
        for _ in calls:
            variable.reset(variable.set(None))

    timed(loop)
