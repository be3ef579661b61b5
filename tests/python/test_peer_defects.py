"""Defects of earlier programs: each scenario holds here, and fails by the old rule in ``peers``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias, TypeVar

import coresident as co
import numpy as np
import pytest
from conftest import spawn, until, waiting
from peers import Line, OpenedError
from peers import device_pool as old_device_pool
from peers import load_lock as old_load_lock
from peers import paging as old_paging
from peers import session_processor as old_processor
from peers import session_queue as old_queue
from peers import thread_pool as old_thread_pool

T = TypeVar("T")

AnyPool: TypeAlias = co.DevicePool | old_device_pool.DevicePool
AnyLock: TypeAlias = co.LoadLock | old_load_lock.LoadLock
AnyWorkers: TypeAlias = co.WorkerPool | old_thread_pool.ThreadPool

# By an old rule a thread that has come to wait hangs if it still waits after so many seconds.
PATIENCE = 0.3


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def pool() -> co.DevicePool:
    return co.DevicePool("virtual:0")


@pytest.fixture
def old_pool() -> Iterator[old_device_pool.DevicePool]:
    pool = old_device_pool.DevicePool(["virtual:0"])
    yield pool
    pool.open()


@pytest.fixture
def old_lock() -> Iterator[old_load_lock.LoadLock]:
    lock = old_load_lock.LoadLock()
    yield lock
    lock.open()


@pytest.fixture
def old_workers() -> Iterator[old_thread_pool.ThreadPool]:
    workers = old_thread_pool.ThreadPool(["virtual:0", "virtual:1"])
    yield workers
    workers.open()


def played(scenario: Callable[[T], object], subject: T) -> object:
    """What the scenario comes to, in a thread of its own; fails when it hangs."""
    return spawn(lambda: scenario(subject), scenario.__name__).join()


def hangs(scenario: Callable[[T], object], subject: T, *, waiters: int = 1) -> bool:
    """Whether the scenario never ends by an old rule, with so many threads waiting."""
    assert isinstance(subject, Line)
    thread = spawn(lambda: scenario(subject), scenario.__name__)
    until(lambda: subject.waiting == waiters or not thread.thread.is_alive())
    thread.thread.join(PATIENCE)
    hung = thread.thread.is_alive() and subject.waiting == waiters
    subject.open()
    if hung:
        with pytest.raises(OpenedError):
            thread.join()
    else:
        thread.join()
    return hung


def in_line(subject: AnyPool | AnyLock) -> int:
    """How many wait."""
    if isinstance(subject, Line):
        return subject.waiting
    if isinstance(subject, co.DevicePool):
        return waiting(subject)
    return len(subject.status().waiting)


# The device pool


def test_a_lease_cannot_be_released_by_anyone_else(
    pool: co.DevicePool, old_pool: old_device_pool.DevicePool
) -> None:
    def a_former_holder_releases_again(pool: AnyPool) -> str:
        former = pool.lease("virtual:0")
        former.release()
        present = spawn(lambda: pool.lease("virtual:0").hand_over()).join()
        former.release()
        with pool.borrow() as intruder:
            outcome = "still held" if intruder is None else "two hold it"
        present.release()
        return outcome

    assert played(a_former_holder_releases_again, pool) == "still held"
    assert played(a_former_holder_releases_again, old_pool) == "two hold it"


@pytest.mark.parametrize(
    "changes", [[["virtual:0"]], [["virtual:1"], ["virtual:0"]]], ids=["kept", "out and back"]
)
def test_a_lease_stays_exclusive_while_its_pool_is_reconfigured(
    pool: co.DevicePool, old_pool: old_device_pool.DevicePool, changes: list[list[str]]
) -> None:
    def the_devices_change_while_one_is_leased(pool: AnyPool) -> str:
        with pool.lease("virtual:0"):
            for devices in changes:
                pool.reconfigure(devices)
            with pool.borrow() as intruder:
                return "still held" if intruder is None else "two hold it"

    assert played(the_devices_change_while_one_is_leased, pool) == "still held"
    assert played(the_devices_change_while_one_is_leased, old_pool) == "two hold it"


def test_taking_ones_own_lease_again_is_refused_and_does_not_hang(
    pool: co.DevicePool, old_pool: old_device_pool.DevicePool
) -> None:
    def a_holder_leases_again(pool: AnyPool) -> str:
        with pool.lease("virtual:0"):
            try:
                again = pool.lease("virtual:0")
            except co.DeadlockError:
                return "refused"
            again.release()
            return "two hold it"

    assert played(a_holder_leases_again, pool) == "refused"
    assert hangs(a_holder_leases_again, old_pool)


def test_a_borrower_does_not_overtake_a_waiting_session(
    pool: co.DevicePool, old_pool: old_device_pool.DevicePool
) -> None:
    def nobody_wakes_yet(pool: AnyPool) -> AbstractContextManager[object]:
        # A thread that is woken runs when it is scheduled. Here that is late every time.
        return pool.condition if isinstance(pool, Line) else nullcontext()

    def a_borrower_comes_while_a_session_waits(pool: AnyPool) -> str:
        lease = pool.lease("virtual:0")
        session = spawn(lambda: pool.lease("virtual:0").hand_over(), "session")
        until(lambda: in_line(pool) == 1)
        with nobody_wakes_yet(pool):
            lease.release()
            with pool.borrow() as borrower:
                outcome = "the session's" if borrower is None else "the borrower's"
        session.join().release()
        return outcome

    assert played(a_borrower_comes_while_a_session_waits, pool) == "the session's"
    assert played(a_borrower_comes_while_a_session_waits, old_pool) == "the borrower's"


# The load lock


def test_writing_inside_ones_own_read_is_refused_and_does_not_hang(
    lock: co.LoadLock, old_lock: old_load_lock.LoadLock
) -> None:
    def a_reader_writes(lock: AnyLock) -> str:
        with lock.read():
            try:
                write = lock.write()
            except co.DeadlockError:
                return "refused"
            write.release()
            return "wrote beside a reader"

    assert played(a_reader_writes, lock) == "refused"
    assert hangs(a_reader_writes, old_lock)


def test_reading_inside_ones_own_write_does_not_hang(
    lock: co.LoadLock, old_lock: old_load_lock.LoadLock
) -> None:
    def a_writer_reads(lock: AnyLock) -> str:
        with lock.write(), lock.read():
            return "read"

    assert played(a_writer_reads, lock) == "read"
    assert hangs(a_writer_reads, old_lock)


def test_reading_inside_ones_own_read_does_not_hang_when_a_writer_waits(
    lock: co.LoadLock, old_lock: old_load_lock.LoadLock
) -> None:
    def a_reader_reads_while_a_writer_waits(lock: AnyLock) -> list[str]:
        log: list[str] = []

        def write() -> None:
            with lock.write():
                log.append("write")

        with lock.read():
            writer = spawn(write, "writer")
            until(lambda: in_line(lock) == 1)
            with lock.read():
                log.append("nested read")
        writer.join()
        return log

    assert played(a_reader_reads_while_a_writer_waits, lock) == ["nested read", "write"]
    assert hangs(a_reader_reads_while_a_writer_waits, old_lock, waiters=2)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """The handler of an interactive start: one in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("how", ["Ctrl-C", "timeout"])
def test_a_writer_that_was_interrupted_does_not_block_readers(
    lock: co.LoadLock, old_lock: old_load_lock.LoadLock, how: str
) -> None:
    def press(lock: AnyLock) -> None:
        until(lambda: in_line(lock) == 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def a_writer_gives_up(lock: AnyLock) -> None:
        reader = spawn(lambda: lock.read().hand_over()).join()
        if how == "Ctrl-C":
            with pytest.raises(KeyboardInterrupt):
                key = spawn(lambda: press(lock), "Ctrl-C")
                lock.write()
            key.join()
        else:
            with pytest.raises(TimeoutError):
                lock.write(timeout=0.01)
        reader.release()

    def somebody_reads(lock: AnyLock) -> str:
        with lock.read():
            return "read"

    a_writer_gives_up(lock)  # here, because signals are the main thread's
    assert played(somebody_reads, lock) == "read"
    a_writer_gives_up(old_lock)
    assert hangs(somebody_reads, old_lock)


def test_readers_do_not_starve_while_writers_follow_each_other(
    lock: co.LoadLock, old_lock: old_load_lock.LoadLock
) -> None:
    def a_reader_waits_while_there_is_always_another_writer(lock: AnyLock) -> list[str]:
        log: list[str] = []

        def read() -> None:
            with lock.read():
                log.append("read")

        writer = lock.write()
        reader = spawn(read, "reader")
        until(lambda: in_line(lock) == 1)
        for _ in range(20):
            before = in_line(lock)
            follower = spawn(lambda: lock.write().hand_over(), "writer")
            until(lambda before=before: in_line(lock) == before + 1)
            writer.release()
            writer = follower.join()
            log.append("write")
        writer.release()
        reader.join()
        return log

    scenario = a_reader_waits_while_there_is_always_another_writer
    assert played(scenario, lock) == ["read"] + ["write"] * 20
    assert played(scenario, old_lock) == ["write"] * 20 + ["read"]


# Workers


def test_a_system_exit_in_a_task_is_its_outcome_and_does_not_hang_the_caller(
    workers: co.WorkerPool, old_workers: old_thread_pool.ThreadPool
) -> None:
    def a_task_exits(workers: AnyWorkers) -> tuple[object, object]:
        try:
            code = workers.post("virtual:0", sys.exit, 3).result()
        except SystemExit as error:
            code = error.code
        return code, workers.post("virtual:0", len, "next").result()

    assert played(a_task_exits, workers) == (3, 4)
    assert hangs(a_task_exits, old_workers)


def test_a_step_after_an_error_gets_its_own_results(
    workers: co.WorkerPool, old_workers: old_thread_pool.ThreadPool
) -> None:
    def take_a_step(workers: AnyWorkers, name: str, divisor: int) -> list[object]:
        tickets = [
            workers.post("virtual:0", lambda: f"{name}, half {1 // divisor}"),
            workers.post("virtual:1", lambda: f"{name}, half 2"),
        ]
        return [ticket.result() for ticket in tickets]

    def a_step_fails_and_the_next_is_taken(workers: AnyWorkers) -> list[object]:
        with pytest.raises(ZeroDivisionError):
            take_a_step(workers, "step 1", 0)
        return take_a_step(workers, "step 2", 1)

    scenario = a_step_fails_and_the_next_is_taken
    assert played(scenario, workers) == ["step 2, half 1", "step 2, half 2"]
    assert played(scenario, old_workers) == ["step 2, half 1", "step 1, half 2"]


def test_a_task_that_comes_after_the_end_is_refused_and_not_lost(
    workers: co.WorkerPool, old_workers: old_thread_pool.ThreadPool
) -> None:
    def a_task_comes_after_the_end(workers: AnyWorkers) -> object:
        workers.close()
        try:
            return workers.post("virtual:0", len, "late").result()
        except co.ClosedError:
            return "refused"

    assert played(a_task_comes_after_the_end, workers) == "refused"
    assert hangs(a_task_comes_after_the_end, old_workers)


# Pages of device memory

PAGE = 2 << 20


class Paging:
    """Arenas of several devices, as the old rules are called."""

    def __init__(self, capacity: int, devices: int) -> None:
        found = co.virtual_devices(devices, memory=capacity * PAGE)
        self._arenas = [co.Arena(device, co.Budget(device)) for device in found]
        self._areas: list[co.Area] = []

    def fault(self, device: int, pages: int) -> None:
        weights = co.WeightStore().share("weights", {"w": np.zeros(pages * PAGE, np.uint8)})
        area = self._arenas[device].area(weights)
        self._areas.append(area)
        area.fault().release()

    def resident(self, device: int) -> int:
        return self._arenas[device].status().resident // PAGE

    @property
    def evicted(self) -> int:
        return sum(arena.status().evicted for arena in self._arenas) // PAGE

    def meet(self, parties: int) -> None:
        """Threads need not be brought together: what they do is one step for others."""


AnyPaging: TypeAlias = Paging | old_paging.Paging


def test_what_one_device_has_is_no_deficit_of_another() -> None:
    def three_pages_on_each_of_two_devices(paging: AnyPaging) -> int:
        paging.fault(0, 3)
        paging.fault(1, 3)
        return paging.evicted

    assert played(three_pages_on_each_of_two_devices, Paging(6, 2)) == 0
    assert played(three_pages_on_each_of_two_devices, old_paging.Paging(6, 2)) == 3


def test_what_fits_exactly_is_counted_once() -> None:
    def all_of_a_device(paging: AnyPaging) -> int:
        paging.fault(0, 4)
        return paging.evicted

    assert played(all_of_a_device, Paging(4, 1)) == 0
    assert played(all_of_a_device, old_paging.Paging(4, 1)) == 4


def test_two_threads_on_one_device_lose_no_page() -> None:
    def two_at_once(paging: AnyPaging) -> int:
        paging.meet(2)
        for thread in [spawn(lambda: paging.fault(0, 2)) for _ in range(2)]:
            thread.join()
        return paging.resident(0)

    assert played(two_at_once, Paging(8, 1)) == 4
    assert played(two_at_once, old_paging.Paging(8, 1)) == 2


# The queue


def turns_of_ann(claim: Callable[[], str | None], delete: Callable[[], object], rounds: int) -> int:
    """How many of so many turns ann gets who deletes her history after each."""
    count = 0
    for _ in range(rounds):
        count += claim() == "ann"
        delete()
    return count


def test_a_user_who_deletes_history_gets_no_more_turns() -> None:
    queue = co.JobQueue(devices="virtual:0")
    for user in ("ann", "bob"):
        queue.submit_many(range(20), user=user, estimate=10)

    def serve() -> str:
        claim = queue.claim("virtual:0", timeout=0)
        # What it is charged is the estimate: it is held until the end.
        held.append(claim)
        return claim.job.user

    held: list[co.Claim] = []
    ours = turns_of_ann(serve, lambda: queue.delete(user="ann", state="done"), 20)
    assert ours == 10
    for claim in held:
        claim.release()

    old = old_queue.SessionQueue()
    for user in ["ann"] * 20 + ["bob"] * 20:
        old.enqueue(user)

    def serve_old() -> str | None:
        item = old.dequeue()
        if item is None:
            return None
        old.complete(item[0])
        return item[1]

    assert turns_of_ann(serve_old, lambda: old.delete_history("ann"), 20) == 20


def test_fairness_counts_time_and_not_turns() -> None:
    # Ann's jobs take ten times as long as bob's.
    seconds = {"ann": 10.0, "bob": 1.0}
    queue = co.JobQueue(devices="virtual:0")
    for user, estimate in seconds.items():
        queue.submit_many(range(100), user=user, estimate=estimate)
    claims = [queue.claim("virtual:0", timeout=0) for _ in range(88)]
    had = {user: sum(seconds[user] for one in claims if one.job.user == user) for user in seconds}
    assert abs(had["ann"] - had["bob"]) <= 10
    for claim in claims:
        claim.release()

    old = old_queue.SessionQueue()
    for user in seconds:
        for _ in range(100):
            old.enqueue(user)
    users = [item[1] for _ in range(88) if (item := old.dequeue()) is not None]
    assert users.count("ann") == users.count("bob") == 44, "ten times the time, by turns"


def test_cancelling_a_batch_cancels_all_of_it_that_runs() -> None:
    queue = co.JobQueue(devices=co.virtual_devices(2))
    queue.submit_many([1, 2], batch="b")
    with queue.claim("virtual:0") as one, queue.claim("virtual:1") as other:
        assert queue.cancel(batch="b") == 2
        assert one.token.cancelled
        assert other.token.cancelled
        assert one.finish() == other.finish() == "cancelled"

    old = old_queue.SessionQueue()
    for _ in range(2):
        old.enqueue("ann", "b")
    running = [old.dequeue(), old.dequeue()]
    assert old.cancel_batch("b") == 1
    assert [old.status(item[0]) for item in running if item] == ["canceled", "in_progress"]


def test_a_cancel_between_the_claim_and_the_run_is_not_lost() -> None:
    queue = co.JobQueue(devices="virtual:0")
    job = queue.submit()
    with queue.claim("virtual:0") as claim:
        assert job.cancel()
        assert claim.token.cancelled
        assert claim.finish("an image that nobody wants") == "cancelled"
    assert job.state == "cancelled"

    old = old_queue.SessionQueue()
    old.enqueue("ann", "b")
    worker = old_queue.Worker(old, report=lambda error: None)
    seen: list[bool] = []

    def cancelled_now(_: int) -> None:
        old.cancel_batch("b")
        worker.cancelled.set()

    worker.run_one(lambda event: seen.append(event.is_set()), cancelled_now)
    assert seen == [False]
    assert old.status(1) == "completed"


def test_an_error_while_an_error_is_recorded_leaves_the_queue_serving() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("an error has no words")

    def serve_all() -> list[str]:
        served: list[str] = []
        while len(queue):
            try:
                with queue.claim("virtual:0") as claim:
                    if claim.job.payload == "bad":
                        raise UnspeakableError
                    served.append(claim.finish())
            except UnspeakableError:
                continue
        return served

    queue = co.JobQueue(devices="virtual:0")
    bad, good = queue.submit_many(["bad", "good"])
    assert serve_all() == ["done"]
    assert (bad.state, good.state) == ("failed", "done")
    assert bad.error == "UnspeakableError, which cannot be shown"

    old = old_queue.SessionQueue()
    for _ in range(2):
        old.enqueue("ann")

    def report(error: Exception) -> None:
        str(error)

    worker = old_queue.Worker(old, report)

    def fail(_: threading.Event) -> None:
        raise UnspeakableError

    with pytest.raises(RuntimeError, match="no words"):
        worker.run_one(fail, lambda id_: None)
    assert [old.status(1), old.status(2)] == ["in_progress", "pending"]


def test_deleting_jobs_that_run_cancels_all_of_them_first() -> None:
    queue = co.JobQueue(devices=co.virtual_devices(2))
    jobs = queue.submit_many([1, 2], user="ann")
    with queue.claim("virtual:0") as one, queue.claim("virtual:1") as other:
        assert queue.delete(user="ann") == 2
        assert one.token.cancelled
        assert other.token.cancelled
        # Nothing is updated that is not there any more.
        assert one.finish() == other.fail("stopped") == "cancelled"
    assert [job.state for job in jobs] == ["cancelled"] * 2
    assert queue.jobs() == []

    old = old_queue.SessionQueue()
    for _ in range(2):
        old.enqueue("ann", "b")
    running = [old.dequeue(), old.dequeue()]
    assert old.delete_batch("b") == 1
    assert running[1] is not None
    with pytest.raises(TypeError):
        old.complete(running[1][0])


# Workers that run the jobs of a queue


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("an error while an error is being recorded")


@pytest.mark.parametrize("kind", [UnspeakableError, SystemExit])
def test_a_worker_survives_what_a_job_raises_and_what_that_raises_when_it_is_recorded(
    kind: type[BaseException],
) -> None:
    def handler(job: co.ServedJob | old_processor.Session) -> None:
        if job.payload == "bad":
            raise kind

    def a_job_comes_after_a_bad_one(
        submit: Callable[[str], co.Job | old_processor.Session],
    ) -> str:
        submit("bad")
        return submit("good").wait()

    with co.Runtime("cpu") as runtime, runtime.serve(handler) as server:
        assert played(a_job_comes_after_a_bad_one, server.queue.submit) == "done"

    class Processor(old_processor.SessionProcessor):
        def __call__(self, payload: str) -> old_processor.Session:
            return self.submit(payload)

    assert hangs(a_job_comes_after_a_bad_one, Processor(handler))


def test_a_cancel_between_the_claim_and_the_start_is_not_lost() -> None:
    told: list[bool] = []

    def old_handler(session: old_processor.Session) -> None:
        told.append(session.processor.cancelled.is_set())

    old = old_processor.SessionProcessor(old_handler, claimed=lambda session: session.cancel())
    session = old.submit("")
    until(lambda: session.state == "done")
    assert told == [False], "it was cancelled, and ran to its end"
    old.open()

    with co.JobQueue(devices="cpu") as queue:
        job = queue.submit(b"")
        with queue.claim("cpu") as claim:
            assert job.cancel()
            assert claim.token.cancelled
            claim.finish()
        assert job.state == "cancelled"


def test_a_user_s_big_batch_does_not_come_before_another_user_s_one_job() -> None:
    order: list[str] = []
    old = old_processor.SessionProcessor(lambda session: order.append(session.payload))
    with old.condition:
        sessions = [old.submit(user) for user in ("ann", "ann", "ann", "ann", "bob")]
    assert sessions[-1].wait() == "done"
    assert order == ["ann", "ann", "ann", "ann", "bob"]
    old.open()

    with co.JobQueue(devices="cpu") as queue:
        for user in ("ann", "ann", "ann", "ann", "bob"):
            queue.submit(b"", user=user)
        claims = [queue.claim("cpu") for _ in range(2)]
        assert {claim.job.user for claim in claims} == {"ann", "bob"}
        for claim in claims:
            claim.release()
