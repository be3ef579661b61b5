"""Workers: one thread per device for life, and every outcome with its own task."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import traceback
import weakref
from concurrent import futures
from functools import partial

import coresident as co
import pytest
from conftest import run_script, spawn, threads_but, until


def test_a_worker_is_one_thread_named_after_its_device(workers: co.WorkerPool) -> None:
    def who() -> tuple[int, str, str]:
        return threading.get_ident(), threading.current_thread().name, str(co.current_device())

    seen = {workers.run("virtual:1", who) for _ in range(50)}
    assert len(seen) == 1
    ident, name, device = seen.pop()
    assert ident != threading.get_ident()
    assert name == "worker virtual:1"
    assert device == "virtual:1"


def test_thread_locals_survive_between_tasks(workers: co.WorkerPool) -> None:
    local = threading.local()

    def count() -> int:
        local.count = getattr(local, "count", 0) + 1
        return local.count

    assert [workers.run("virtual:0", count) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert workers.run("virtual:1", count) == 1


def test_no_thread_starts_before_there_is_a_task() -> None:
    before = threading.enumerate()
    workers = co.WorkerPool(co.virtual_devices(2))
    assert not threads_but(before)
    assert [status.state for status in workers.status()] == ["not started", "not started"]
    workers.run("virtual:0", int)
    assert len(threads_but(before)) == 1
    workers.close()
    until(lambda: not threads_but(before))


def test_arguments_and_keywords_reach_the_function(workers: co.WorkerPool) -> None:
    def join(*args: object, **kwargs: object) -> tuple[object, object]:
        return args, kwargs

    expected = ((1, "a"), {"device": "x", "function": 2})
    given = {"device": "x", "function": 2}
    assert workers.run("virtual:0", join, 1, "a", **given) == expected
    assert workers.post("virtual:0", join, 1, "a", **given).result() == expected
    assert workers.submit("virtual:0", join, 1, "a", **given).result() == expected


def test_submit_returns_a_real_future(workers: co.WorkerPool) -> None:
    jobs = [workers.submit(f"virtual:{n % 2}", pow, n, 2) for n in range(10)]
    assert all(isinstance(job, futures.Future) for job in jobs)
    assert futures.wait(jobs, timeout=20).not_done == set()
    assert {job.result() for job in futures.as_completed(jobs)} == {n * n for n in range(10)}

    async def in_asyncio() -> int:
        return await asyncio.wrap_future(workers.submit("virtual:0", pow, 3, 3))

    assert asyncio.run(in_asyncio()) == 27


def test_a_queued_future_can_be_cancelled_and_waiters_are_told(workers: co.WorkerPool) -> None:
    gate = threading.Event()
    running = workers.submit("virtual:0", gate.wait, 20)
    queued = workers.submit("virtual:0", pytest.fail, "a cancelled task ran")
    called: list[futures.Future[object]] = []
    queued.add_done_callback(called.append)
    assert queued.cancel()
    assert queued.cancel()
    assert futures.wait([queued], timeout=5).done == {queued}
    assert called == [queued]
    with pytest.raises(futures.CancelledError):
        queued.result()
    gate.set()
    assert running.result(timeout=20)
    assert workers.run("virtual:0", int) == 0


def test_a_running_task_sees_its_cancel_token(workers: co.WorkerPool) -> None:
    started = threading.Event()

    def work() -> str:
        token = co.current_cancel_token()
        started.set()
        token.wait(20)
        return f"stopped: {token.reason}"

    ticket = workers.post("virtual:0", work)
    assert started.wait(20)
    assert ticket.running()
    assert not ticket.cancel("enough")
    assert ticket.result(20) == "stopped: enough"
    started.clear()
    future = workers.submit("virtual:0", work)
    assert started.wait(20)
    assert not future.cancel()
    assert future.result(20) == "stopped: None"


def test_a_cancelled_ticket_never_runs_and_frees_its_task(workers: co.WorkerPool) -> None:
    class Payload:
        pass

    gate = threading.Event()
    blocker = workers.post("virtual:0", gate.wait, 20)
    payload = Payload()
    ticket = workers.post("virtual:0", pytest.fail, payload)
    alive = weakref.ref(payload)
    del payload
    assert ticket.cancel("changed my mind")
    assert not ticket.cancel()
    assert alive() is None
    assert ticket.done()
    assert ticket.cancelled()
    with pytest.raises(co.CancelledError, match="changed my mind"):
        ticket.result()
    gate.set()
    blocker.result(20)


def test_no_result_is_ever_paired_with_another_task(workers: co.WorkerPool) -> None:
    def submit_many(base: int) -> None:
        tickets = [
            (n, workers.post(f"virtual:{n % 2}", lambda n=n: n)) for n in range(base, base + 500)
        ]
        for n, ticket in tickets[::3]:
            ticket.cancel(str(n))
        for n, ticket in tickets:
            try:
                assert ticket.result(20) == n
            except co.CancelledError as error:
                assert error.reason == str(n)

    for thread in [spawn(lambda base=base: submit_many(base)) for base in range(0, 4000, 1000)]:
        thread.join()


def test_a_result_after_an_error_is_not_a_stale_one(workers: co.WorkerPool) -> None:
    for n in range(20):
        with pytest.raises(ZeroDivisionError):
            workers.run("virtual:0", lambda: 1 / 0)
        assert workers.run("virtual:0", lambda n=n: n) == n


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_any_exception_reaches_the_caller_with_its_traceback(
    workers: co.WorkerPool, kind: type[BaseException]
) -> None:
    def deep_inside() -> None:
        raise kind("from the worker")

    for call in (
        lambda: workers.run("virtual:0", deep_inside),
        lambda: workers.post("virtual:0", deep_inside).result(20),
        lambda: workers.submit("virtual:0", deep_inside).result(20),
        lambda: workers.scatter({"virtual:0": deep_inside}),
    ):
        with pytest.raises(kind, match="from the worker") as error:
            call()
        frames = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
        assert frames[-1] == "deep_inside"
    assert workers.run("virtual:0", int) == 0


def test_context_variables_travel_and_do_not_leak_back(workers: co.WorkerPool) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    def rename() -> str:
        before = user.get()
        user.set("the worker")
        return before

    user.set("ann")
    assert workers.run("virtual:0", rename) == "ann"
    assert workers.submit("virtual:0", rename).result(20) == "ann"
    assert user.get() == "ann"
    assert contextvars.Context().run(workers.run, "virtual:0", rename) == "nobody"


def test_the_callers_own_device_runs_on_the_calling_thread(workers: co.WorkerPool) -> None:
    pool = co.DevicePool(co.virtual_devices(2))
    here = threading.get_ident()
    with pool.lease("virtual:0"):
        assert workers.run("virtual:0", threading.get_ident) == here
        where = workers.scatter(dict.fromkeys(("virtual:0", "virtual:1"), threading.get_ident))
        assert where["virtual:0"] == here
        assert where["virtual:1"] != here
    assert workers.run("virtual:0", threading.get_ident) != here
    nested = workers.run("virtual:0", workers.run, "virtual:0", threading.get_ident)
    assert nested == workers.run("virtual:0", threading.get_ident)


def test_scatter_runs_all_devices_at_once_and_keeps_keys(workers: co.WorkerPool) -> None:
    meet = threading.Barrier(2)
    first, second = workers.devices
    results = workers.scatter({first: partial(meet.wait, 20), second: partial(meet.wait, 20)})
    assert list(results) == [first, second]
    assert sorted(results.values()) == [0, 1]
    assert workers.scatter({}) == {}


def test_a_failing_part_of_a_scatter_stops_and_awaits_the_others(workers: co.WorkerPool) -> None:
    started, stopped = threading.Event(), threading.Event()

    def long_work() -> None:
        started.set()
        co.current_cancel_token().wait(20)
        stopped.set()

    def fail() -> None:
        assert started.wait(20)
        raise ValueError("half of the step failed")

    with pytest.raises(ValueError, match="half of the step"):
        workers.scatter({"virtual:0": fail, "virtual:1": long_work})
    assert stopped.is_set()


def test_a_scatter_that_times_out_returns_at_once_and_stops_its_parts(
    workers: co.WorkerPool,
) -> None:
    stopped = threading.Event()

    def long_work() -> None:
        co.current_cancel_token().wait(20)
        stopped.set()

    with pytest.raises(co.WaitTimeoutError, match="virtual:1"):
        workers.scatter({"virtual:1": long_work}, timeout=0.05)
    assert stopped.wait(20)


def test_run_can_time_out_and_be_cancelled(workers: co.WorkerPool) -> None:
    def long_work() -> bool:
        return co.current_cancel_token().wait(20)

    with pytest.raises(co.WaitTimeoutError, match="result of a task on virtual:0"):
        workers.run("virtual:0", long_work, timeout=0.05)
    token = co.CancelToken()
    canceller = threading.Timer(0.05, token.cancel)
    canceller.start()
    with pytest.raises(co.CancelledError):
        workers.run("virtual:0", long_work, cancel=token)
    canceller.join()
    assert workers.run("virtual:0", int) == 0


def test_a_start_hook_runs_once_in_the_worker_with_its_device() -> None:
    seen: list[tuple[str, str, str]] = []

    def prepare(device: co.Device) -> None:
        seen.append((str(device), str(co.current_device()), threading.current_thread().name))

    with co.WorkerPool(co.virtual_devices(2), on_start=prepare) as workers:
        for _ in range(3):
            workers.run("virtual:1", int)
    assert seen == [("virtual:1", "virtual:1", "worker virtual:1")]


def test_a_start_hook_that_fails_fails_that_devices_tasks_until_a_restart() -> None:
    broken = {"virtual:0": True}

    def prepare(device: co.Device) -> None:
        if broken.get(str(device)):
            raise OSError(f"{device} is not ready")

    with co.WorkerPool(co.virtual_devices(2), on_start=prepare) as workers:
        for _ in range(2):
            with pytest.raises(OSError, match="virtual:0 is not ready"):
                workers.run("virtual:0", pytest.fail, "it ran")
        assert workers.run("virtual:1", int) == 0
        broken.clear()
        with pytest.raises(OSError, match="virtual:0 is not ready"):
            workers.run("virtual:0", int)
        workers.restart("virtual:0")
        assert workers.run("virtual:0", int) == 0


def test_close_drains_what_was_accepted_and_later_submits_raise() -> None:
    workers = co.WorkerPool(co.virtual_devices(1))
    gate = threading.Event()
    tickets = [workers.post("virtual:0", gate.wait, 20)]
    tickets += [workers.post("virtual:0", lambda n=n: n) for n in range(100)]
    closer = spawn(workers.close)
    until(lambda: "closed" in repr(workers.status()) or not _accepts(workers))
    gate.set()
    closer.join()
    assert [ticket.result(0) for ticket in tickets[1:]] == list(range(100))
    for call in (workers.post, workers.submit, workers.run):
        with pytest.raises(co.ClosedError, match="the worker of virtual:0 is closed"):
            call("virtual:0", int)
    workers.close()


def _accepts(workers: co.WorkerPool) -> bool:
    try:
        workers.post("virtual:0", int)
    except co.ClosedError:
        return False
    return True


def test_close_can_cancel_what_is_queued_and_tell_what_runs() -> None:
    workers = co.WorkerPool(co.virtual_devices(1))
    started = threading.Event()

    def long_work() -> str:
        started.set()
        token = co.current_cancel_token()
        token.wait(20)
        return token.reason

    running = workers.post("virtual:0", long_work)
    ticket = workers.post("virtual:0", pytest.fail)
    future = workers.submit("virtual:0", pytest.fail)
    assert started.wait(20)
    workers.close("cancel", timeout=20)
    assert running.result(0) == "the worker pool was closed"
    assert ticket.cancelled()
    assert future.cancelled()
    assert futures.wait([future], timeout=5).done == {future}


def test_close_says_what_is_still_running_when_its_time_is_over() -> None:
    workers = co.WorkerPool(co.virtual_devices(2))
    gate, started = threading.Event(), threading.Event()
    workers.post("virtual:1", lambda: (started.set(), gate.wait(20)))
    assert started.wait(20)
    with pytest.raises(co.WaitTimeoutError) as error:
        workers.close(timeout=0.05)
    assert len(error.value.running) == 1
    assert error.value.running[0].startswith("virtual:1 has run a task for")
    gate.set()
    workers.close(timeout=20)


def test_a_forgotten_pool_finishes_its_tasks_and_its_threads() -> None:
    before = threading.enumerate()
    ticket = co.WorkerPool(co.virtual_devices(1)).post("virtual:0", pow, 2, 8)
    gc.collect()
    assert ticket.result(20) == 256
    until(lambda: not threads_but(before))


def test_results_and_errors_are_not_kept_alive_by_an_idle_worker(workers: co.WorkerPool) -> None:
    class Big:
        pass

    def make() -> Big:
        return Big()

    def fail() -> None:
        big = Big()
        kept.append(weakref.ref(big))
        raise ValueError(big)

    kept: list[weakref.ref[Big]] = []
    kept.append(weakref.ref(workers.run("virtual:0", make)))
    with pytest.raises(ValueError, match="Big"):
        workers.run("virtual:0", fail)
    until(lambda: gc.collect() >= 0 and all(ref() is None for ref in kept))


def test_a_ticket_in_a_cycle_is_collected(workers: co.WorkerPool) -> None:
    class Node:
        ticket: object = None

    def make_a_cycle() -> weakref.ref[Node]:
        node = Node()
        node.ticket = workers.post("virtual:0", lambda: node)
        node.ticket.result(20)
        return weakref.ref(node)

    alive = make_a_cycle()
    until(lambda: gc.collect() >= 0 and alive() is None)


# It may hit the standard library's own code, which can only print it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_thrown_into_a_worker_from_outside_does_not_lose_the_lane(
    workers: co.WorkerPool,
) -> None:
    import ctypes

    ident = workers.run("virtual:0", threading.get_ident)
    for _ in range(20):
        throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
        throw(ctypes.c_ulong(ident), ctypes.py_object(TimeoutError))
        tickets = [workers.post("virtual:0", lambda n=n: n) for n in range(5)]
        for n, ticket in enumerate(tickets):
            try:
                assert ticket.result(20) == n
            except TimeoutError as error:
                assert not isinstance(error, co.WaitTimeoutError)
        ident = workers.run("virtual:0", threading.get_ident)


@pytest.mark.parametrize(
    ("total", "speeds", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (10, [3, 1], [8, 2]),
        (1, [1, 1, 1], [1, 0, 0]),
        (0, [1, 2], [0, 0]),
        (7, [1, 0, 1], [4, 0, 3]),
        (10, {"cuda:0": 2.5, "cuda:1": 1}, {"cuda:0": 7, "cuda:1": 3}),
        (2**51, [1e308, 1e308], [2**50, 2**50]),
        (5, [5e-324, 5e-324], [3, 2]),
    ],
)
def test_shares_are_whole_and_keep_the_sum(total: int, speeds: object, expected: object) -> None:
    assert co.shares(total, speeds) == expected


def test_a_hook_that_fails_often_keeps_one_traceback() -> None:
    def fail(_: co.Device) -> None:
        raise OSError("no device")

    def refusal(workers: co.WorkerPool) -> int:
        with pytest.raises(OSError, match="no device") as error:
            workers.run("virtual:0", int)
        return len(traceback.extract_tb(error.value.__traceback__))

    with co.WorkerPool(co.virtual_devices(1), on_start=fail) as workers:
        assert len({refusal(workers) for _ in range(20)}) == 1


def test_a_forgotten_pool_ends_even_when_its_hook_belongs_to_its_owner() -> None:
    class Frontend:
        def __init__(self) -> None:
            self.workers = co.WorkerPool(co.virtual_devices(1), on_start=self.prepare)

        def prepare(self, _: co.Device) -> None:
            pass

    before = threading.enumerate()
    frontend = Frontend()
    assert frontend.workers.run("virtual:0", int) == 0
    del frontend
    until(lambda: gc.collect() is not None and not threads_but(before))


def test_a_callback_may_need_whoever_waits_for_the_future(workers: co.WorkerPool) -> None:
    """``set_result`` wakes waiters before it calls callbacks: so it is here."""
    gate, served = threading.Event(), threading.Event()
    future = workers.submit("virtual:0", gate.wait, 20)
    future.add_done_callback(lambda _: served.wait(20))

    def wait() -> bool:
        assert future.result(20)
        served.set()
        return True

    waiter = spawn(wait)
    gate.set()
    assert waiter.join()


def test_closing_a_pool_from_its_own_worker_leaves_it_open(workers: co.WorkerPool) -> None:
    with pytest.raises(co.DeadlockError, match="the worker of virtual:0 to finish"):
        workers.run("virtual:0", workers.close)
    assert workers.run("virtual:0", int) == 0


def test_every_part_of_a_failed_scatter_is_cancelled_whatever_is_raised_on_the_way() -> None:
    gate = threading.Event()
    with co.WorkerPool(co.virtual_devices(3)) as workers:
        blockers = [workers.post(f"virtual:{n}", gate.wait, 20) for n in (1, 2)]

        def fail() -> None:
            raise ValueError("half of the step failed")

        def never() -> None:
            pytest.fail("a cancelled part ran")

        calls = {"virtual:0": fail, "virtual:1": never, "virtual:2": never}
        scatter = spawn(lambda: workers.scatter(calls))
        with pytest.raises(ValueError, match="half of the step"):
            scatter.join()
        gate.set()
        assert all(blocker.result(20) for blocker in blockers)


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_while_a_worker_starts_leaves_the_lane_with_one_worker(started: bool) -> None:
    script = f"""
        import threading
        import coresident as co
        start = threading.Thread.start
        def interrupted(thread):
            if {started}:
                start(thread)
            raise KeyboardInterrupt
        workers = co.WorkerPool(co.virtual_devices(1))
        threading.Thread.start = interrupted
        try:
            workers.post("virtual:0", print, "queued")
        except KeyboardInterrupt:
            pass
        threading.Thread.start = start
        ran = {{workers.run("virtual:0", threading.get_ident) for _ in range(100)}}
        alive = [one for one in threading.enumerate() if one.name.startswith("worker")]
        print(len(ran), len(alive))
        """
    done = run_script(script)
    # A thread that has begun by then serves what was queued.
    assert done.stdout in ({"1 1\n", "queued\n1 1\n"} if started else {"1 1\n"})
    assert done.stderr == ""


def test_a_thread_that_comes_after_it_was_given_up_serves_nobody() -> None:
    """Ctrl-C can end ``Thread.start`` before the new thread has said that it runs."""
    script = """
        import threading
        import coresident as co
        late, start = [], threading.Thread.start
        def interrupted(thread):
            late.append(thread)
            raise KeyboardInterrupt
        workers = co.WorkerPool(co.virtual_devices(1))
        threading.Thread.start = interrupted
        try:
            workers.post("virtual:0", print, "never")
        except KeyboardInterrupt:
            pass
        threading.Thread.start = start
        ident = workers.run("virtual:0", threading.get_ident)
        late[0].start()
        late[0].join()
        print(workers.run("virtual:0", threading.get_ident) == ident)
        """
    done = run_script(script)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_run_starts_a_worker_when_the_one_that_was_there_has_gone() -> None:
    """Between looking for a worker and queueing the task, the worker's start may have failed."""
    script = """
        import threading
        import coresident as co
        workers = co.WorkerPool(co.virtual_devices(1))
        start, enumerate_threads = threading.Thread.start, threading.enumerate
        refused, naming = threading.Event(), threading.Event()
        def refuse(thread):
            if thread.name.startswith("worker"):
                naming.wait(20)
                raise RuntimeError("can't start new thread")
            start(thread)
        def post():
            try:
                workers.post("virtual:0", int)
            except RuntimeError:
                refused.set()
        def hold_the_window_open():
            if threading.current_thread().name == "runner":
                naming.set()
                refused.wait(20)
                threading.Thread.start = start
            return enumerate_threads()
        poster = threading.Thread(target=post)
        runner = threading.Thread(target=lambda: print(workers.run("virtual:0", pow, 2, 3)), name="runner")
        threading.Thread.start = refuse
        poster.start()
        while workers.status()[0].queued == 0:
            pass
        threading.enumerate = hold_the_window_open
        runner.start()
        runner.join()
        poster.join()
        threading.enumerate = enumerate_threads
        print(workers.run("virtual:0", pow, 2, 4))
        """
    done = run_script(script)
    assert (done.stdout, done.stderr) == ("8\n16\n", "")
