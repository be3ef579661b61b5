"""A wait that could never end is an error that names everyone in it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import coresident as co
import pytest
from conftest import Spawned, lease_once, spawn, until, waiting


def test_taking_ones_own_lease_again_is_an_error(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"):
        for timeout in (None, 30):
            with pytest.raises(co.DeadlockError) as error:
                pool.lease("virtual:0", timeout=timeout)
        me = "thread 'MainThread'"
        assert error.value.cycle == [(me, "virtual:0", [me])]
        assert str(error.value) == (
            f"this wait would never end: {me} waits for virtual:0, which it holds itself"
        )
        assert waiting(pool) == 0


def test_only_looking_is_not_waiting(pool: co.DevicePool) -> None:
    with pool.lease("virtual:0"), pytest.raises(co.WaitTimeoutError):
        pool.lease("virtual:0", timeout=0)


def test_a_cycle_through_leases_names_every_holder_and_waiter(pool: co.DevicePool) -> None:
    meet = threading.Barrier(2)
    errors: list[co.DeadlockError] = []

    def cross(mine: str, other: str) -> None:
        with pool.lease(mine):
            meet.wait(20)
            try:
                lease_once(pool, other, timeout=30)
            except co.DeadlockError as error:
                errors.append(error)

    first = spawn(lambda: cross("virtual:0", "virtual:1"), "a")
    second = spawn(lambda: cross("virtual:1", "virtual:0"), "b")
    first.join()
    second.join()
    (error,) = errors
    waits = {
        ("thread 'a'", "virtual:1", ("thread 'b'",)),
        ("thread 'b'", "virtual:0", ("thread 'a'",)),
    }
    assert {(who, what, tuple(held_by)) for who, what, held_by in error.cycle} == waits


def test_a_cycle_through_a_lease_and_the_load_lock(pool: co.DevicePool, lock: co.LoadLock) -> None:
    meet = threading.Barrier(2)
    errors: list[str] = []

    def attempt(take: Callable[[], object]) -> None:
        meet.wait(20)
        try:
            take()
        except co.DeadlockError as error:
            errors.append(str(error))

    def construct() -> None:
        with lock.write():
            attempt(lambda: lease_once(pool, "virtual:0"))

    def load() -> None:
        with pool.lease("virtual:0"):
            attempt(lambda: lock.read().release())

    for thread in (spawn(construct, "constructor"), spawn(load, "loader")):
        thread.join()
    (error,) = errors
    assert "thread 'constructor' waits for virtual:0, held by thread 'loader'" in error
    assert "thread 'loader' waits for the load lock to read, held by thread 'constructor'" in error


def test_a_cycle_of_three(pool: co.DevicePool) -> None:
    pool = co.DevicePool(co.virtual_devices(3))
    meet = threading.Barrier(3)
    errors: list[co.DeadlockError] = []

    def chase(mine: int) -> None:
        with pool.lease(f"virtual:{mine}"):
            meet.wait(20)
            try:
                lease_once(pool, f"virtual:{(mine + 1) % 3}")
            except co.DeadlockError as error:
                errors.append(error)

    for thread in [spawn(lambda n=n: chase(n), f"chaser {n}") for n in range(3)]:
        thread.join()
    assert len(errors) == 1
    assert len(errors[0].cycle) == 3


def test_waiting_for_any_device_is_a_deadlock_only_if_every_alternative_is(
    pool: co.DevicePool,
) -> None:
    with pool.lease("virtual:0"):
        release, held = threading.Event(), threading.Event()

        def hold_the_other() -> None:
            with pool.lease("virtual:1"):
                held.set()
                release.wait(20)

        other = spawn(hold_the_other)
        assert held.wait(20)
        opener = threading.Timer(0.05, release.set)
        opener.start()
        assert lease_once(pool, None, timeout=20) == "virtual:1"
        other.join()
        opener.join()
        with (
            pool.lease("virtual:1"),
            pytest.raises(co.DeadlockError, match="any of virtual:0, virtual:1"),
        ):
            pool.lease()


def test_taking_the_last_way_out_of_the_pool_makes_a_deadlock(pool: co.DevicePool) -> None:
    other = pool.lease("virtual:1").hand_over()

    def wait_for_any() -> None:
        with pool.lease("virtual:0"), pytest.raises(co.DeadlockError, match="any of virtual:0"):
            pool.lease()

    waiter = spawn(wait_for_any)
    until(lambda: waiting(pool) == 1)
    pool.reconfigure(["virtual:0"])
    waiter.join()
    other.release()


def test_a_guard_handed_over_is_not_part_of_a_cycle(pool: co.DevicePool) -> None:
    lease = pool.lease("virtual:0").hand_over()
    releaser = threading.Timer(0.05, lease.release)
    releaser.start()
    assert lease_once(pool, "virtual:0", timeout=20) == "virtual:0"
    releaser.join()


def test_a_worker_that_waits_for_its_own_later_task_is_told(workers: co.WorkerPool) -> None:
    def wait_for_myself() -> None:
        workers.post("virtual:0", int).result()

    with pytest.raises(co.DeadlockError, match="result of a task on virtual:0"):
        workers.run("virtual:0", wait_for_myself)

    def wait_for_my_future() -> None:
        workers.submit("virtual:0", int).result()

    with pytest.raises(co.DeadlockError):
        workers.run("virtual:0", wait_for_my_future)


def test_two_workers_that_wait_for_each_other_are_told(workers: co.WorkerPool) -> None:
    meet = threading.Barrier(2)

    def ask_the_other(other: str) -> int:
        meet.wait(20)
        return workers.post(other, int).result()

    first = workers.post("virtual:0", ask_the_other, "virtual:1")
    second = workers.post("virtual:1", ask_the_other, "virtual:0")
    outcomes: list[object] = []
    for ticket in (first, second):
        try:
            outcomes.append(ticket.result(20))
        except co.DeadlockError as error:
            outcomes.append(type(error))
    assert sorted(map(str, outcomes)) == ["0", str(co.DeadlockError)]


def test_a_worker_cannot_wait_for_the_lease_of_the_one_who_waits_for_it(
    pool: co.DevicePool, workers: co.WorkerPool
) -> None:
    with pool.lease("virtual:0"), pytest.raises(co.DeadlockError, match="virtual:0, held by"):
        workers.run("virtual:1", lease_once, pool, "virtual:0")


def test_closing_a_pool_from_its_own_worker_is_told(workers: co.WorkerPool) -> None:
    with pytest.raises(co.DeadlockError, match="the worker of virtual:0 to finish"):
        workers.run("virtual:0", workers.close)


def test_a_thousand_waiters_in_line_are_all_served(pool: co.DevicePool) -> None:
    lease = pool.lease("virtual:0")
    threads: list[Spawned[str]] = [
        spawn(lambda: lease_once(pool, "virtual:0")) for _ in range(1000)
    ]
    until(lambda: sum(1 for status in pool.status()[:1] for _ in status.waiting) == 1000)
    lease.release()
    assert {thread.join() for thread in threads} == {"virtual:0"}
