"""The load lock: shared reading, exclusive writing, and nobody starves."""

from __future__ import annotations

import gc
import threading
import warnings

import coresident as co
import pytest
from conftest import Spawned, spawn, until


def wait_in_line(lock: co.LoadLock, mode: str, log: list[str], name: str) -> Spawned[None]:
    """A thread that is in the lock's line, and logs its name once inside."""
    before = len(lock.status().waiting)

    def go() -> None:
        with getattr(lock, mode)():
            log.append(name)

    thread = spawn(go, name)
    until(lambda: len(lock.status().waiting) == before + 1)
    return thread


def test_readers_share_and_writers_exclude(lock: co.LoadLock) -> None:
    with lock.read():
        with spawn(lambda: lock.read(timeout=0).hand_over()).join():
            pass
        with pytest.raises(co.WaitTimeoutError, match="held by thread 'MainThread' to read"):
            spawn(lambda: lock.write(timeout=0)).join()
    with lock.write():
        for take in (lock.read, lock.write):
            with pytest.raises(co.WaitTimeoutError, match="to write"):
                spawn(lambda take=take: take(timeout=0)).join()


def test_reads_nest_even_while_a_writer_waits(lock: co.LoadLock) -> None:
    log: list[str] = []
    with lock.read():
        writer = wait_in_line(lock, "write", log, "writer")
        with lock.read(timeout=0), lock.read(timeout=0):
            assert log == []
        assert log == []
    writer.join()
    assert log == ["writer"]


def test_a_read_inside_ones_own_write_is_allowed(lock: co.LoadLock) -> None:
    with lock.write():
        with lock.read(timeout=0):
            pass
        with pytest.raises(co.WaitTimeoutError):
            spawn(lambda: lock.read(timeout=0)).join()


def test_a_nested_read_that_outlives_the_write_lets_readers_in(lock: co.LoadLock) -> None:
    write = lock.write()
    nested = lock.read()
    write.release()
    with spawn(lambda: lock.read(timeout=5).hand_over()).join():
        pass
    with pytest.raises(co.WaitTimeoutError):
        spawn(lambda: lock.write(timeout=0)).join()
    nested.release()


@pytest.mark.parametrize("held", ["read", "write"])
def test_asking_to_write_inside_is_a_deadlock_at_once(lock: co.LoadLock, held: str) -> None:
    with getattr(lock, held)():
        with pytest.raises(co.DeadlockError, match="which it holds itself"):
            lock.write()
        with pytest.raises(co.DeadlockError):
            lock.write(timeout=30)
        with pytest.raises(co.WaitTimeoutError):
            lock.write(timeout=0)
    assert lock.status().holders == []


def test_a_waiting_writer_goes_before_new_readers(lock: co.LoadLock) -> None:
    log: list[str] = []
    first = lock.read()
    writer = wait_in_line(lock, "write", log, "writer")
    reader = wait_in_line(lock, "read", log, "reader")
    first.release()
    writer.join()
    reader.join()
    assert log == ["writer", "reader"]


def test_after_a_writer_the_readers_that_wait_go_before_the_next_writer(lock: co.LoadLock) -> None:
    log: list[str] = []
    first = lock.write()
    second = wait_in_line(lock, "write", log, "second writer")
    readers = [wait_in_line(lock, "read", log, "reader") for _ in range(3)]
    first.release()
    for thread in (second, *readers):
        thread.join()
    assert log == ["reader"] * 3 + ["second writer"]


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_writer_that_gives_up_leaves_no_trace(lock: co.LoadLock, how: str) -> None:
    token = co.CancelToken()
    log: list[str] = []
    with lock.read():
        timeout = 0.2 if how == "timeout" else None
        writer = spawn(lambda: lock.write(timeout=timeout, cancel=token))
        until(lambda: lock.status().waiting)
        reader = spawn(lambda: log.append("reader") or lock.read().release())
        if how == "cancel":
            token.cancel()
        with pytest.raises((co.WaitTimeoutError, co.CancelledError)):
            writer.join()
        reader.join()  # it goes on, although the first reader is still inside
        assert lock.status().waiting == []


def test_two_looping_writers_and_four_looping_readers_all_make_progress(lock: co.LoadLock) -> None:
    stop = threading.Event()
    turns = [0] * 6
    inside = {"writers": 0, "readers": 0}
    count = threading.Lock()

    def write(number: int) -> None:
        while not stop.is_set():
            with lock.write():
                inside["writers"] += 1
                assert inside == {"writers": 1, "readers": 0}
                inside["writers"] -= 1
                turns[number] += 1

    def read(number: int) -> None:
        while not stop.is_set():
            with lock.read():
                with count:
                    inside["readers"] += 1
                assert inside["writers"] == 0
                with count:
                    inside["readers"] -= 1
                turns[number] += 1

    threads = [spawn(lambda n=n: (write if n < 2 else read)(n)) for n in range(6)]
    until(lambda: min(turns) >= 200)
    stop.set()
    for thread in threads:
        thread.join()


def test_a_reader_waits_for_one_writer_at_most(lock: co.LoadLock) -> None:
    """Bounded overtaking: however many writers stand in line, a reader waits for one of them."""
    log: list[str] = []
    first = lock.write()
    writers = [wait_in_line(lock, "write", log, "writer") for _ in range(5)]
    reader = wait_in_line(lock, "read", log, "reader")
    first.release()
    for thread in (*writers, reader):
        thread.join()
    assert log.index("reader") == 0


def test_a_dead_threads_guard_does_not_block_the_others(lock: co.LoadLock) -> None:
    kept: list[co.LockGuard] = []
    spawn(lambda: kept.append(lock.write())).join()
    until(lambda: kept[0].released)
    with lock.write(timeout=5):
        pass


def test_a_guard_handed_over_is_released_elsewhere(lock: co.LoadLock) -> None:
    guard = spawn(lambda: lock.write().hand_over()).join()
    assert not guard.released
    with guard, lock.read(timeout=0):
        pass
    assert guard.released


def test_release_is_idempotent_and_never_lets_another_out(lock: co.LoadLock) -> None:
    old = lock.write()
    old.release()
    with lock.write():
        old.release()
        with pytest.raises(co.WaitTimeoutError):
            spawn(lambda: lock.read(timeout=0)).join()
    with pytest.raises(co.ReleasedError, match="the load lock to write has been released"), old:
        pass


def test_a_forgotten_guard_is_released_with_a_warning(lock: co.LoadLock) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock.write()
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    with lock.write(timeout=0):
        pass


def test_status_shows_holders_and_waiters(lock: co.LoadLock) -> None:
    log: list[str] = []
    with lock.read():
        writer = wait_in_line(lock, "write", log, "patient")
        status = lock.status()
        assert [(one.owner, one.mode) for one in status.holders] == [
            ("thread 'MainThread'", "read")
        ]
        assert [(one.owner, one.mode) for one in status.waiting] == [("thread 'patient'", "write")]
        assert "waiting: thread 'patient' to write" in repr(lock)
    writer.join()
