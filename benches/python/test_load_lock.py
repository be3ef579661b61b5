"""The load lock taken and given back, next to a readers-writer lock from one condition."""

from __future__ import annotations

import coresident as co
import pytest
from peers import ConditionLock

in_mode = pytest.mark.parametrize("mode", ["read", "write"])
pytestmark = pytest.mark.benchmark(group="lock pair")


def pair(lock, mode, timed):
    take = getattr(lock, mode)

    def loop(calls):
        for _ in calls:
            with take():
                pass

    timed(loop)


@in_mode
def test_ours_load_lock(timed, mode):
    pair(co.LoadLock(), mode, timed)


@in_mode
def test_ours_load_lock_beside_asyncio(timed, mode, asyncio_imported):
    pair(co.LoadLock(), mode, timed)


@in_mode
def test_peer_condition(timed, mode):
    pair(ConditionLock(), mode, timed)
