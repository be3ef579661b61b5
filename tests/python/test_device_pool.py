"""Leases: exclusive, in order of arrival, and never lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings

import coresident as co
import pytest
from conftest import lease_once, spawn, until, waiting


def test_a_lease_is_exclusive(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"):
        with pytest.raises(co.WaitTimeoutError, match=r"virtual:0, held by thread 'MainThread'"):
            spawn(lambda: pool.lease("virtual:0", timeout=0)).join()
    assert spawn(lambda: lease_once(pool, "virtual:0", timeout=0)).join() == "virtual:0"


def test_lease_without_a_device_takes_any_free_one(pool: co.DevicePool) -> None:
    with pool.lease() as first, pool.lease() as second:
        assert {str(first.device), str(second.device)} == {"virtual:0", "virtual:1"}


def test_a_device_is_given_by_name_by_device_or_in_any_case(pool: co.DevicePool) -> None:
    for device in ("virtual:1", " VIRTUAL : 1 ", pool.devices[1]):
        with pool.lease(device) as lease:
            assert str(lease.device) == "virtual:1"


def test_waiters_are_served_in_order_of_arrival(pool: co.DevicePool) -> None:
    served: list[int] = []
    lease = pool.lease("virtual:0")

    def wait(number: int) -> None:
        with pool.lease("virtual:0"):
            served.append(number)

    threads = []
    for number in range(8):
        threads.append(spawn(lambda number=number: wait(number), f"waiter {number}"))
        until(lambda number=number: waiting(pool) == number + 1)
    lease.release()
    for thread in threads:
        thread.join()
    assert served == list(range(8))


def test_one_who_waits_for_any_device_gets_the_first_that_comes_free(pool: co.DevicePool) -> None:
    first, second = pool.lease("virtual:0"), pool.lease("virtual:1")
    waiter = spawn(lambda: lease_once(pool))
    until(lambda: waiting(pool) == 1)
    second.release()
    assert waiter.join() == "virtual:1"
    first.release()


def test_a_newcomer_never_overtakes_one_who_waits_for_any_device(pool: co.DevicePool) -> None:
    both = [pool.lease("virtual:0"), pool.lease("virtual:1")]
    order: list[str] = []

    def take(name: str, device: str | None) -> None:
        with pool.lease(device):
            order.append(name)

    any_device = spawn(lambda: take("any", None))
    until(lambda: waiting(pool) == 1)
    named = spawn(lambda: take("named", "virtual:0"), "named")
    until(lambda: waiting(pool) == 2)
    both[0].release()
    any_device.join()
    named.join()
    both[1].release()
    assert order == ["any", "named"]


def test_release_is_idempotent_and_never_releases_anothers_lease(pool: co.DevicePool) -> None:
    old = pool.lease("virtual:0")
    old.release()
    with pool.lease("virtual:0") as new:
        old.release()
        assert old.released
        assert not new.released
        with pytest.raises(co.WaitTimeoutError):
            spawn(lambda: pool.lease("virtual:0", timeout=0)).join()


def test_a_lease_may_be_released_by_another_thread(pool: co.DevicePool) -> None:
    lease = pool.lease("virtual:0")
    spawn(lease.release).join()
    assert lease.released
    with pool.lease("virtual:0", timeout=0):
        pass


def test_a_released_lease_cannot_be_entered_or_handed_over(pool: co.DevicePool) -> None:
    lease = pool.lease("virtual:0")
    lease.release()
    with pytest.raises(co.ReleasedError, match="virtual:0 has been released"), lease:
        pass
    with pytest.raises(co.ReleasedError):
        lease.hand_over()


def test_a_forgotten_lease_is_released_with_a_warning(pool: co.DevicePool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool.lease("virtual:0")
        gc.collect()
    assert [str(warning.message) for warning in caught] == [
        "the lease of virtual:0 was never released: use it in a with block, or call release()"
    ]
    assert caught[0].category is ResourceWarning
    with pool.lease("virtual:0", timeout=0):
        pass


def test_a_thread_that_dies_holding_a_lease_does_not_take_the_device_with_it(
    pool: co.DevicePool,
) -> None:
    kept: list[co.Lease] = []
    spawn(lambda: kept.append(pool.lease("virtual:0"))).join()
    until(lambda: kept[0].released)
    with pool.lease("virtual:0", timeout=5):
        pass


def test_a_lease_handed_over_outlives_the_thread_that_took_it(pool: co.DevicePool) -> None:
    lease = spawn(lambda: pool.lease("virtual:0").hand_over()).join()
    assert not lease.released
    assert pool.status()[0].holder.handed_over
    with lease:
        assert str(co.current_device()) == "virtual:0"
        assert "MainThread" in pool.status()[0].holder.owner
    assert lease.released


def test_a_waiter_that_times_out_leaves_no_trace(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"):
        with pytest.raises(co.WaitTimeoutError) as error:
            spawn(lambda: pool.lease("virtual:0", timeout=0.02)).join()
        assert error.value.timeout == pytest.approx(0.02)
        assert waiting(pool) == 0
    with pool.lease("virtual:0", timeout=0):
        pass


def test_a_cancelled_waiter_leaves_no_trace_and_tells_the_reason(pool: co.DevicePool) -> None:
    token = co.CancelToken()
    with pool.lease("virtual:0"):
        waiter = spawn(lambda: pool.lease("virtual:0", cancel=token))
        until(lambda: waiting(pool) == 1)
        assert token.cancel("the user left")
        with pytest.raises(co.CancelledError, match="the user left") as error:
            waiter.join()
        assert error.value.reason == "the user left"
        assert waiting(pool) == 0


def test_a_cancelled_token_takes_nothing_even_if_it_is_free(pool: co.DevicePool) -> None:
    token = co.CancelToken()
    token.cancel()
    with pytest.raises(co.CancelledError):
        pool.lease("virtual:0", cancel=token)
    assert pool.status()[0].holder is None


def test_status_names_holders_since_when_and_waiters(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"), pool.borrow():
        waiter = spawn(lambda: lease_once(pool, timeout=20), "patient")
        until(lambda: waiting(pool) == 1)
        first, second = pool.status()
        assert first.holder.owner == "thread 'MainThread'"
        assert not first.holder.borrowed
        assert second.holder.borrowed
        assert 0 <= first.holder.seconds < 20
        assert first.holder.since > 1_700_000_000
        assert [one.owner for one in first.waiting] == ["thread 'patient'"]
        assert first.waiting[0].device is None
        assert "wanted by thread 'patient'" in repr(first)
    waiter.join()


def test_reconfiguring_while_leased_keeps_the_holder_of_a_kept_device(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"):
        assert pool.reconfigure(co.virtual_devices(3)) == []
        with pytest.raises(co.WaitTimeoutError):
            spawn(lambda: pool.lease("virtual:0", timeout=0)).join()
        with pool.lease("virtual:2", timeout=0):
            pass
    assert [str(device) for device in pool.devices] == ["virtual:0", "virtual:1", "virtual:2"]


def test_a_removed_device_drains_and_a_returned_one_still_has_its_holder(
    pool: co.DevicePool,
) -> None:
    lease = pool.lease("virtual:1")
    assert [str(device) for device in pool.reconfigure(["virtual:0"])] == ["virtual:1"]
    assert [status.draining for status in pool.status()] == [False, True]
    with pytest.raises(co.DeviceNotFoundError, match="virtual:1 is not in this pool"):
        pool.lease("virtual:1", timeout=0)
    pool.reconfigure(["virtual:0", "virtual:1"])
    with pytest.raises(co.WaitTimeoutError):
        spawn(lambda: pool.lease("virtual:1", timeout=0)).join()
    pool.reconfigure(["virtual:0"])
    lease.release()
    assert len(pool.status()) == 1


def test_whoever_waits_for_a_removed_device_is_told_and_others_get_the_new_ones(
    pool: co.DevicePool,
) -> None:
    held = [pool.lease("virtual:0"), pool.lease("virtual:1")]
    named = spawn(lambda: pool.lease("virtual:1"), "named")
    until(lambda: waiting(pool) == 1)
    any_device = spawn(lambda: lease_once(pool), "any")
    until(lambda: waiting(pool) == 2)
    pool.reconfigure(["virtual:0", "virtual:7"])
    with pytest.raises(co.DeviceRemovedError, match="virtual:1 was taken out of the pool"):
        named.join()
    assert any_device.join() == "virtual:7"
    for lease in held:
        lease.release()


def test_a_closed_pool_refuses_everyone_and_frees_no_holder(pool: co.DevicePool) -> None:
    lease = pool.lease("virtual:0")
    waiter = spawn(lambda: pool.lease("virtual:0"))
    until(lambda: waiting(pool) == 1)
    pool.close()
    pool.close()
    with pytest.raises(co.ClosedError):
        waiter.join()
    for take in (pool.lease, pool.borrow):
        with pytest.raises(co.ClosedError, match="closed"):
            take()
    with pytest.raises(co.ClosedError):
        pool.reconfigure(["virtual:0"])
    assert not lease.released
    lease.release()


def test_exclusivity_holds_under_stress(pool: co.DevicePool) -> None:
    inside = {"virtual:0": 0, "virtual:1": 0}
    start = threading.Barrier(8)

    def hammer(number: int) -> int:
        start.wait()
        turns = 0
        for turn in range(300):
            device = (None, "virtual:0", "virtual:1")[(turn + number) % 3]
            with pool.borrow() if turn % 5 == 0 else pool.lease(device) as lease:
                if lease is None:
                    continue
                name = str(lease.device)
                inside[name] += 1
                assert inside[name] == 1
                assert str(co.current_device()) == name
                inside[name] -= 1
                turns += 1
        assert co.current_device() is None
        return turns

    threads = [spawn(lambda number=number: hammer(number)) for number in range(8)]
    assert sum(thread.join() for thread in threads) > 8 * 200
    assert all(status.holder is None and not status.waiting for status in pool.status())


def test_leasing_hand_over_hand_keeps_nothing_of_what_was_released(pool: co.DevicePool) -> None:
    held = pool.lease("virtual:0")
    for turn in range(50_000):  # a chain of so many would overflow the stack when it is dropped
        following = pool.lease(f"virtual:{(turn + 1) % 2}")
        held.release()
        held = following
    assert str(co.current_device()) == str(held.device)
    held.release()
    assert co.current_device() is None


def test_a_thread_that_was_joined_holds_nothing(pool: co.DevicePool) -> None:
    def forget() -> None:
        forgotten.append(pool.lease("virtual:0"))

    async def forget_in_a_task() -> None:
        forgotten.append(await pool.lease_async("virtual:1"))

    for _ in range(200):
        forgotten: list[co.Lease] = []
        threads = [
            threading.Thread(target=forget),
            threading.Thread(target=lambda: asyncio.run(forget_in_a_task())),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pool.borrow(["virtual:0"]) as first, pool.borrow(["virtual:1"]) as second:
            assert first
            assert second
