"""Leases and borrows, next to a lock per device."""

from __future__ import annotations

from contextlib import ExitStack

import coresident as co
import pytest
from peers import LockPool

on_devices = pytest.mark.parametrize("count", [2, 4, 8], ids="{} devices".format)


def names(count):
    return [f"virtual:{index}" for index in range(count)]


def ours(count):
    return co.DevicePool(co.virtual_devices(8)[:count])


def peer(count):
    return LockPool(names(count))


def lease_last(pool, count, timed):
    lease, name = pool.lease, names(count)[-1]

    def loop(calls):
        for _ in calls:
            with lease(name):
                pass

    timed(loop)


def borrow_any(pool, timed):
    borrow = pool.borrow

    def loop(calls):
        for _ in calls:
            with borrow():
                pass

    timed(loop)


def borrow_when_busy(pool, count, timed):
    with ExitStack() as held:
        for name in names(count):
            held.enter_context(pool.lease(name))
        borrow_any(pool, timed)


@on_devices
@pytest.mark.benchmark(group="lease")
def test_ours_lease(timed, count):
    lease_last(ours(count), count, timed)


@on_devices
@pytest.mark.benchmark(group="lease")
def test_ours_lease_beside_asyncio(timed, count, asyncio_imported):
    lease_last(ours(count), count, timed)


@on_devices
@pytest.mark.benchmark(group="lease")
def test_peer_lock_pool(timed, count):
    lease_last(peer(count), count, timed)


@on_devices
@pytest.mark.benchmark(group="borrow, all idle")
def test_ours_borrow(timed, count):
    borrow_any(ours(count), timed)


@on_devices
@pytest.mark.benchmark(group="borrow, all idle")
def test_ours_borrow_beside_asyncio(timed, count, asyncio_imported):
    borrow_any(ours(count), timed)


@on_devices
@pytest.mark.benchmark(group="borrow, all idle")
def test_peer_try_locks(timed, count):
    borrow_any(peer(count), timed)


@on_devices
@pytest.mark.benchmark(group="borrow, all busy")
def test_ours_borrow_nothing(timed, count):
    borrow_when_busy(ours(count), count, timed)


@on_devices
@pytest.mark.benchmark(group="borrow, all busy")
def test_peer_try_locks_in_vain(timed, count):
    borrow_when_busy(peer(count), count, timed)
