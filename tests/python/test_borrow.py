"""Borrows: idle devices, lent without waiting, given back early."""

from __future__ import annotations

import coresident as co
import pytest
from conftest import lease_once, spawn, until, waiting


def test_a_borrow_takes_an_idle_device_and_is_current_inside(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"):
        with pool.borrow() as spare:
            assert str(spare.device) == "virtual:1"
            assert str(co.current_device()) == "virtual:1"
        assert str(co.current_device()) == "virtual:0"
    assert co.current_device() is None


def test_a_borrow_is_none_when_nothing_is_idle(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"), pool.lease("virtual:1"):
        with pool.borrow() as spare:
            assert spare is None
            assert str(co.current_device()) == "virtual:1"
        nothing = pool.borrow()
        assert not nothing
        assert nothing.device is None
        assert not nothing.wanted
        nothing.release()
        with pytest.raises(co.ReleasedError, match="holds no device"):
            nothing.hand_over()


def test_a_borrow_never_overtakes_a_waiting_lease(pool: co.DevicePool) -> None:
    for _ in range(200):
        lease = pool.lease("virtual:0")
        other = pool.lease("virtual:1")
        waiter = spawn(lambda: pool.lease("virtual:0").hand_over())
        until(lambda: waiting(pool) == 1)
        lease.release()
        with pool.borrow() as spare:
            assert spare is None
        waiter.join().release()
        other.release()


def test_a_borrower_sees_that_its_device_is_wanted(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"), pool.borrow() as spare:
        assert not spare.wanted
        waiter = spawn(lambda: lease_once(pool, "virtual:1"))
        until(lambda: spare.wanted)
        spare.release()
        assert not spare.wanted
        waiter.join()


def test_one_who_waits_for_any_device_wants_them_all(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0") as lease, pool.borrow() as spare:
        waiter = spawn(lambda: lease_once(pool))
        until(lambda: spare.wanted and lease.wanted)
        spare.release()
        waiter.join()


def test_devices_are_preferred_in_the_order_given_then_in_that_of_the_pool() -> None:
    pool = co.DevicePool(co.virtual_devices(4))
    with pool.borrow(prefer=["virtual:2", "virtual:1"]) as first:
        assert str(first.device) == "virtual:2"
        with pool.borrow(prefer=["virtual:2", "virtual:1"]) as second:
            assert str(second.device) == "virtual:1"
            with pool.borrow(prefer=["virtual:2", "virtual:1"]) as third:
                assert str(third.device) == "virtual:0"


def test_a_borrow_stays_with_the_device_that_served_the_same_affinity_last() -> None:
    pool = co.DevicePool(co.virtual_devices(3))
    with pool.borrow(prefer=["virtual:2"], affinity="t5") as first:
        assert str(first.device) == "virtual:2"
    with pool.borrow(affinity="clip") as other:
        assert str(other.device) == "virtual:0"
    with pool.borrow(prefer=["virtual:0"], affinity="t5") as again:
        assert str(again.device) == "virtual:2"
        with pool.borrow(affinity="t5") as elsewhere:
            assert str(elsewhere.device) == "virtual:0"


def test_only_devices_of_the_lenders_type_unless_told_otherwise() -> None:
    pool = co.DevicePool(["virtual:0", "cpu"])
    with pool.lease("virtual:0"):
        with pool.borrow() as spare:
            assert spare is None
        with pool.borrow(any_type=True) as spare:
            assert str(spare.device) == "cpu"
    with pool.borrow() as unbound:
        assert str(unbound.device) == "virtual:0"


def test_free_memory_can_be_required() -> None:
    small = co.virtual_devices(1, memory="1GiB")
    pool = co.DevicePool(small)
    with pool.borrow(min_free="1GiB") as spare:
        assert spare is not None
    with pool.borrow(min_free=2**30 + 1) as spare:
        assert spare is None


def test_a_borrow_of_a_device_that_is_not_in_the_pool_is_refused(pool: co.DevicePool) -> None:
    with pytest.raises(co.DeviceNotFoundError) as error:
        pool.borrow(prefer=["virtual:9"])
    assert error.value.device == "virtual:9"
    assert error.value.present == ["virtual:0", "virtual:1"]


def test_many_affinities_are_forgotten_oldest_first() -> None:
    pool = co.DevicePool(co.virtual_devices(2))
    for number in range(9000):
        with pool.borrow(prefer=["virtual:1"], affinity=f"model {number}"):
            pass
    with pool.borrow(affinity="model 8999") as recent:
        assert str(recent.device) == "virtual:1"
    with pool.borrow(affinity="model 0") as forgotten:
        assert str(forgotten.device) == "virtual:0"
