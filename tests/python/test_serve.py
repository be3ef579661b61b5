"""Servers: workers that run the jobs of a queue, whatever those do."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import run_script, spawn, threads_but, until

# What cannot go wrong takes no time, so that only a hang takes this long.
LONG = 20.0


@pytest.fixture
def runtime() -> Iterator[co.Runtime]:
    """One of two virtual devices."""
    made = co.Runtime(co.virtual_devices(2))
    yield made
    made.close(timeout=LONG)


def idle(runtime: co.Runtime) -> bool:
    return not any(status.holder or status.waiting for status in runtime.pool.status())


class Gate:
    """A handler that waits in each job until it is let go on, or is told to stop."""

    def __init__(self) -> None:
        self.begun: list[co.ServedJob] = []
        self._open = threading.Event()

    def __call__(self, job: co.ServedJob) -> str:
        self.begun.append(job)
        while not self._open.wait(0.001):
            job.raise_if_cancelled()
        return f"done on {job.device}"

    def open(self) -> None:
        self._open.set()


# What a worker does


def test_every_job_is_run_once_and_its_value_is_its_result(runtime: co.Runtime) -> None:
    ran: list[int] = []

    def square(job: co.ServedJob) -> int:
        ran.append(job.payload)
        return int(job.payload) ** 2

    with runtime.serve(square) as server:
        jobs = [server.queue.submit(n, user=f"user {n % 7}") for n in range(200)]
        assert [job.result(LONG) for job in jobs] == [n**2 for n in range(200)]
    assert sorted(ran) == list(range(200))


def test_both_devices_run_jobs_at_once(runtime: co.Runtime) -> None:
    together = threading.Barrier(2)

    def meet(job: co.ServedJob) -> str:
        together.wait(LONG)
        return str(job.device)

    with runtime.serve(meet) as server:
        jobs = [server.queue.submit(b"") for _ in range(2)]
        assert sorted(job.result(LONG) for job in jobs) == ["virtual:0", "virtual:1"]


def test_a_handler_has_its_device_leased_and_current(runtime: co.Runtime) -> None:
    def look(job: co.ServedJob) -> tuple[Any, ...]:
        (status,) = (one for one in runtime.pool.status() if one.device == job.device)
        held = status.holder is not None and not status.holder.borrowed
        return co.current_device() == job.device, co.current_job() is job, held

    with runtime.serve(look) as server:
        assert server.queue.submit(b"").result(LONG) == (True, True, True)
    assert co.current_job() is None


def test_a_handler_knows_its_job(runtime: co.Runtime) -> None:
    def look(job: co.ServedJob) -> tuple[Any, ...]:
        return job.id, job.user, job.payload, job.needs, job.batch, job.tags, job.attempt

    with runtime.serve(look) as server:
        job = server.queue.submit({"a": 1}, user="ann", needs=["unet"], batch="b", tags=["t"])
        assert job.result(LONG) == (job.id, "ann", {"a": 1}, ("unet",), "b", ("t",), 1)


def test_what_one_handler_sets_in_its_context_no_other_sees(runtime: co.Runtime) -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="unset")

    def look(job: co.ServedJob) -> str:
        before = variable.get()
        variable.set(job.payload)
        return before

    with runtime.serve(look, devices="virtual:0") as server:
        jobs = [server.queue.submit(text) for text in ("one", "two")]
        assert [job.result(LONG) for job in jobs] == ["unset", "unset"]


def test_an_idle_worker_holds_nothing_and_its_device_can_be_lent(runtime: co.Runtime) -> None:
    with runtime.serve(str) as server:
        server.queue.submit(b"").result(LONG)
        until(lambda: idle(runtime))
        with runtime.pool.lease("virtual:0"), runtime.pool.borrow() as spare:
            assert spare is not None


def test_a_device_that_is_lent_out_holds_no_job_which_another_device_runs(
    runtime: co.Runtime,
) -> None:
    with runtime.pool.lease("virtual:0"), runtime.serve(lambda job: str(job.device)) as server:
        jobs = [server.queue.submit(b"") for _ in range(20)]
        assert {job.result(LONG) for job in jobs} == {"virtual:1"}


def test_a_job_for_a_device_that_is_lent_out_is_not_claimed_before_it_comes_back(
    runtime: co.Runtime,
) -> None:
    with runtime.serve(lambda job: str(job.device)) as server:
        with runtime.pool.borrow(prefer=["virtual:1"]) as spare:
            assert spare is not None
            job = server.queue.submit(b"", devices=["virtual:1"])
            until(lambda: spare.wanted)
            assert (job.state, job.attempts) == ("queued", 0)
        assert job.result(LONG) == "virtual:1"


def test_a_job_that_is_cancelled_while_its_device_is_awaited_never_starts(
    runtime: co.Runtime,
) -> None:
    ran: list[int] = []
    with runtime.serve(lambda job: ran.append(job.id)) as server:
        with runtime.pool.borrow(prefer=["virtual:1"]) as spare:
            assert spare is not None
            job = server.queue.submit(b"", devices=["virtual:1"])
            until(lambda: spare.wanted)
            assert job.cancel("no longer wanted")
        other = server.queue.submit(b"", devices=["virtual:1"])
        other.result(LONG)
    assert (job.state, ran) == ("cancelled", [other.id])


def test_a_cancel_reaches_a_running_job_at_once_and_alone(runtime: co.Runtime) -> None:
    gate = Gate()
    with runtime.serve(gate) as server:
        jobs = [server.queue.submit(b"") for _ in range(2)]
        until(lambda: len(gate.begun) == 2)
        jobs[0].cancel("enough")
        with pytest.raises(co.CancelledError, match="enough"):
            jobs[0].result(LONG)
        assert jobs[1].state == "running"
        gate.open()
        assert jobs[1].result(LONG).startswith("done")


def test_a_job_that_ends_after_its_cancel_is_cancelled(runtime: co.Runtime) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def deaf(_job: co.ServedJob) -> str:
        begun.set()
        go_on.wait(LONG)
        return "done all the same"

    with runtime.serve(deaf) as server:
        job = server.queue.submit(b"")
        begun.wait(LONG)
        job.cancel()
        go_on.set()
        assert job.wait(LONG) == "cancelled"


def test_events_of_a_job_come_in_order_with_its_device_and_label(runtime: co.Runtime) -> None:
    def work(job: co.ServedJob) -> None:
        job.stage("unet")
        for step in (1, 2):
            job.step(step, 2, preview=f"preview {step}")

    with runtime.serve(work, devices="virtual:1") as server:
        with server.queue.subscribe() as events:
            job = server.queue.submit(b"", user="ann")
            seen = []
            for event in events:
                seen.append(event)
                if event.kind == "finished":
                    break
    kinds = [event.kind for event in seen]
    assert [kind for kind in kinds if kind != "step"] == [
        *("queued", "claimed", "started", "stage", "finished"),
    ]
    (last,) = (event for event in seen if event.step == 2)
    assert (last.steps, last.preview, last.stage, last.user) == (2, "preview 2", "unet", "ann")
    assert all(event.id == job.id for event in seen)
    assert {str(event.device) for event in seen[1:]} == {"virtual:1"}
    assert seen[1].label == co.virtual_devices(2)[1].label


def test_the_callback_of_diffusers_tells_steps_and_ends_a_cancelled_job(
    runtime: co.Runtime,
) -> None:
    class Pipe:
        num_timesteps = 1000

        def __call__(self, on_step: Callable[..., Any]) -> None:
            for step in range(self.num_timesteps):
                assert on_step(self, step, 0.5, {"latents": step}) == {"latents": step}
                if step == 1:
                    told.wait(LONG)

    told = threading.Event()

    def work(job: co.ServedJob) -> None:
        Pipe()(job.on_step_with(lambda tensors: f"at {tensors['latents']}"))

    with runtime.serve(work) as server, server.queue.subscribe() as events:
        job = server.queue.submit(b"")
        while (event := events.next(LONG)) is not None and event.step != 2:
            pass
        assert event is not None
        assert (event.steps, event.preview) == (1000, "at 1")
        job.cancel("seen enough")
        told.set()
        with pytest.raises(co.CancelledError, match="seen enough"):
            job.result(LONG)
        assert job.progress == (2, 1000)


def test_a_job_of_which_the_handler_has_returned_is_over(runtime: co.Runtime) -> None:
    kept: list[co.ServedJob] = []
    with runtime.serve(kept.append) as server:
        server.queue.submit(b"").result(LONG)
        (job,) = kept
        until(lambda: job.over)
        for late in (
            lambda: job.step(1, 2),
            lambda: job.stage("late"),
            lambda: job.borrowed(),
            lambda: job.run_borrowed(int),
            lambda: job.map_borrowed(int, [1]),
        ):
            with pytest.raises(co.CoresidentError):
                late()


def test_a_big_batch_holds_nobody_up_who_comes_after_it(runtime: co.Runtime) -> None:
    order: list[str] = []
    gate = Gate()

    def handler(job: co.ServedJob) -> None:
        order.append(job.user)
        gate(job)

    with runtime.serve(handler, devices="virtual:0") as server:
        jobs = [server.queue.submit(b"", user="ann")]
        until(lambda: gate.begun)
        # What ann's job was only expected to take is no advance of hers.
        jobs += [server.queue.submit(b"", user=user) for user in ["ann"] * 10 + ["bob"] * 4]
        gate.open()
        for job in jobs:
            job.result(LONG)
    # In turn, from then on: his last one leaves some of her batch behind it.
    assert "bob" in order[1:3], order
    assert order[-2:] == ["ann", "ann"], order


# What a worker survives


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("an error while telling an error")


class UnspeakableExit(BaseException):
    def __str__(self) -> str:
        raise SystemExit("an exit while telling an error")


class OddPath:
    def __fspath__(self) -> str:
        raise KeyboardInterrupt("a path that interrupts")


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (raising(ValueError("no such seed")), "ValueError: no such seed"),
        (raising(SystemExit(3)), "SystemExit: 3"),
        (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raising(GeneratorExit()), "GeneratorExit"),
        (raising(co.CancelledError("by itself")), "CancelledError: by itself"),
        (raising(co.ClosedError("some pool of its own")), "ClosedError: some pool"),
        (raising(co.WaitTimeoutError("some wait")), "WaitTimeoutError: some wait"),
        (raising(MemoryError()), "MemoryError"),
        (raising(UnspeakableError()), "UnspeakableError"),
        (raising(UnspeakableExit()), "UnspeakableExit"),
        (OddPath, "KeyboardInterrupt: a path that interrupts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worker_survives_whatever_a_handler_does(
    runtime: co.Runtime, does: Callable[[], object], told: str
) -> None:
    handlers: dict[str, Callable[[], object]] = {"bad": does, "good": lambda: "fine"}
    with runtime.serve(lambda job: handlers[job.payload](), devices="virtual:0") as server:
        for _ in range(3):
            bad = server.queue.submit("bad")
            assert bad.wait(LONG) == "failed"
            assert (bad.error or "").startswith(told)
            assert server.queue.submit("good").result(LONG) == "fine"
        assert not server.errors
        until(lambda: idle(runtime))


def test_the_error_of_a_job_is_raised_where_its_result_is_asked_for(runtime: co.Runtime) -> None:
    def fail(_job: co.ServedJob) -> None:
        raise LookupError("no such model")

    with runtime.serve(fail) as server:
        with pytest.raises(LookupError, match="no such model"):
            server.queue.submit(b"").result(LONG)


def test_an_error_keeps_nothing_of_what_its_handler_had(runtime: co.Runtime) -> None:
    import gc
    import weakref

    class Tensor:
        pass

    kept: list[weakref.ref[Tensor]] = []

    def fail(_job: co.ServedJob) -> None:
        tensor = Tensor()
        kept.append(weakref.ref(tensor))
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise RuntimeError("outer") from error

    gc.disable()
    try:
        with runtime.serve(fail) as server:
            job = server.queue.submit(b"")
            assert job.wait(LONG) == "failed"
            until(lambda: kept[0]() is None)
    finally:
        gc.enable()


def test_a_device_can_be_borrowed_again_after_any_failure(runtime: co.Runtime) -> None:
    with runtime.serve(lambda _job: sys.exit("over")) as server:
        jobs = [server.queue.submit(b"") for _ in range(20)]
        assert {job.wait(LONG) for job in jobs} == {"failed"}
        until(lambda: idle(runtime))
        with runtime.pool.borrow() as spare:
            assert spare is not None


WRITER = """
    import sqlite3, sys

    other = sqlite3.connect(sys.argv[1], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
    sys.stdin.readline()
    other.execute("ROLLBACK")
"""


def writer_of(path: Any) -> subprocess.Popen[str]:
    """Another process that writes to a file: a process does not lock files against itself."""
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "locked\n"
    return writer


def test_a_queue_whose_file_cannot_be_written_stops_no_worker_and_loses_no_job(
    runtime: co.Runtime, tmp_path: Any
) -> None:
    path = tmp_path / "jobs.sqlite"
    queue = co.JobQueue(path, devices=runtime.devices)
    jobs = [queue.submit(n) for n in range(3)]
    writer = writer_of(path)
    with runtime.serve(lambda job: job.payload, queue) as server:
        until(lambda: server.errors)
        assert {job.state for job in jobs} == {"queued"}
        writer.communicate("\n", timeout=LONG)
        assert [job.wait(LONG) for job in jobs] == ["done"] * 3
        assert [job.attempts for job in jobs] == [1] * 3
        assert "jobs.sqlite" in server.errors[0]
    queue.close()


@pytest.mark.parametrize("mode", ["finish", "cancel"])
def test_an_outcome_that_cannot_be_written_is_written_later_or_the_job_runs_again(
    runtime: co.Runtime, tmp_path: Any, mode: Any
) -> None:
    path = tmp_path / "jobs.sqlite"
    queue = co.JobQueue(path, devices=runtime.devices)
    job = queue.submit(b"")
    gate = Gate()
    server = runtime.serve(gate, queue)
    until(lambda: gate.begun)
    writer = writer_of(path)
    gate.open()
    until(lambda: server.errors)
    # Its device is free for others meanwhile.
    until(lambda: idle(runtime))
    assert job.state == "running"
    if mode == "cancel":
        server.stop("cancel", timeout=LONG)
    writer.communicate("\n", timeout=LONG)
    server.stop(timeout=LONG)
    queue.close()
    with co.JobQueue(path, devices=runtime.devices) as later:
        expected = {"finish": ("done", 1), "cancel": ("queued", 1)}[mode]
        assert (later.job(job.id).state, later.job(job.id).attempts) == expected


# An offer that was on its way to a variable is found by the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_that_is_thrown_into_a_worker_costs_an_attempt_and_nothing_else(
    runtime: co.Runtime,
) -> None:
    import ctypes

    def thrown(worker: threading.Thread) -> None:
        number = ctypes.c_ulong(worker.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))

    with runtime.serve(lambda job: job.payload) as server:
        for _ in range(30):
            jobs = [server.queue.submit(n) for n in range(4)]
            for worker in server._group.workers:
                thrown(worker)
            # Within its handler it is the job's error, which is for its submitter to see.
            assert {job.wait(LONG) for job in jobs} <= {"done", "failed"}
        assert server.queue.submit(b"still there").wait(LONG) in ("done", "failed")
        assert all(worker.is_alive() for worker in server._group.workers)


# Ends


def test_a_server_of_its_own_queue_drains_it_at_the_end_of_the_block(runtime: co.Runtime) -> None:
    with runtime.serve(lambda job: job.payload) as server:
        jobs = [server.queue.submit(n) for n in range(50)]
    assert [job.state for job in jobs] == ["done"] * 50
    assert server.ended
    with pytest.raises(co.ClosedError):
        server.queue.submit(b"")


def test_a_server_leaves_what_is_queued_to_others_if_the_queue_is_theirs(
    runtime: co.Runtime,
) -> None:
    gate = Gate()
    with co.JobQueue(devices=runtime.devices) as queue:
        with runtime.serve(gate, queue) as server:
            jobs = [queue.submit(n) for n in range(5)]
            until(lambda: len(gate.begun) == 2)
            stopping = spawn(server.stop)
            until(lambda: server._group.stopping.cancelled)
            gate.open()
            stopping.join()
        assert sorted(job.state for job in jobs) == ["done"] * 2 + ["queued"] * 3
        with runtime.serve(gate, queue) as server:
            server.stop("drain", timeout=LONG)
        assert [job.state for job in jobs] == ["done"] * 5


def test_draining_waits_for_jobs_that_only_begin_when_others_end(runtime: co.Runtime) -> None:
    with co.JobQueue(devices=runtime.devices) as queue:
        queue.set_user("ann", running=1)
        jobs = [queue.submit(n, user="ann", devices=[f"virtual:{n % 2}"]) for n in range(20)]
        with runtime.serve(lambda job: job.payload, queue) as server:
            server.stop("drain", timeout=LONG)
        assert [job.state for job in jobs] == ["done"] * 20


def test_draining_does_not_wait_for_what_is_paused(runtime: co.Runtime) -> None:
    with co.JobQueue(devices=runtime.devices) as queue:
        queue.pause("ann")
        job = queue.submit(b"", user="ann")
        with runtime.serve(str, queue) as server:
            server.stop("drain", timeout=LONG)
        assert job.state == "queued"


def test_a_stop_by_cancelling_queues_again_what_it_has_stopped(runtime: co.Runtime) -> None:
    gate = Gate()
    with co.JobQueue(devices=runtime.devices) as queue:
        jobs = [queue.submit(n) for n in range(3)]
        server = runtime.serve(gate, queue)
        until(lambda: len(gate.begun) == 2)
        jobs[0].cancel("its user left")
        server.stop("cancel", timeout=LONG)
        assert [job.state for job in jobs] == ["cancelled", "queued", "queued"]
        assert [job.attempts for job in jobs[1:]] == [0, 0]
        assert idle(runtime)


def test_a_stop_whose_time_is_over_names_what_runs_and_can_be_made_more_urgent(
    runtime: co.Runtime,
) -> None:
    gate = Gate()
    server = runtime.serve(gate)
    job = server.queue.submit(b"", user="ann", devices=["virtual:1"])
    until(lambda: gate.begun)
    for _ in range(2):
        with pytest.raises(co.WaitTimeoutError, match=f"job {job.id} of ann on virtual:1") as late:
            server.stop("finish", timeout=0.01)
    assert late.value.running == [f"job {job.id} of ann on virtual:1"]
    server.stop("cancel", timeout=LONG)
    assert server.ended
    server.stop()
    assert job.state == "cancelled", "its queue was the server's own"


def test_a_job_that_waits_for_its_server_is_refused(runtime: co.Runtime) -> None:
    with runtime.serve(lambda _job: server.stop()) as server:
        with pytest.raises(co.DeadlockError, match="have somebody else stop it"):
            server.queue.submit(b"").result(LONG)


def test_closing_the_queue_ends_the_server(runtime: co.Runtime) -> None:
    queue = co.JobQueue(devices=runtime.devices)
    server = runtime.serve(str, queue)
    queue.close()
    server.wait(LONG)
    assert server.ended


def test_closing_the_runtime_stops_its_servers() -> None:
    gate = Gate()
    runtime = co.Runtime(co.virtual_devices(1))
    server = runtime.serve(gate)
    job = server.queue.submit(b"")
    until(lambda: gate.begun)
    closing = spawn(runtime.close)
    until(lambda: server._group.mode is not None)
    gate.open()
    closing.join()
    assert (job.state, server.ended) == ("done", True)


def test_a_block_that_raises_cancels_what_runs(runtime: co.Runtime) -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError):
        with runtime.serve(gate) as server:
            job = server.queue.submit(b"")
            until(lambda: gate.begun)
            1 / 0  # noqa: B018
    assert job.state == "cancelled"


def test_two_servers_share_a_queue_and_its_devices(runtime: co.Runtime) -> None:
    ran: list[int] = []
    with co.JobQueue(devices=runtime.devices) as queue:
        servers = [
            runtime.serve(lambda job: ran.append(job.payload), queue, devices=device)
            for device in runtime.devices
        ]
        jobs = [queue.submit(n) for n in range(100)]
        for job in jobs:
            job.result(LONG)
        for server in servers:
            server.stop(timeout=LONG)
    assert sorted(ran) == list(range(100))


def test_it_stops_at_any_moment_and_every_job_is_queued_or_over_once() -> None:
    ran: list[int] = []
    for _ in range(40):
        with co.Runtime(co.virtual_devices(3)) as runtime:
            with co.JobQueue(devices=runtime.devices) as queue:
                server = runtime.serve(lambda job: ran.append(job.payload), queue)
                jobs = [queue.submit(n) for n in range(30)]
                server.stop("finish", timeout=LONG)
                done = [job.payload for job in jobs if job.state == "done"]
                assert sorted(ran) == sorted(done)
                assert {job.state for job in jobs} <= {"done", "queued"}
                ran.clear()


# asyncio


def test_it_is_waited_for_in_asyncio(runtime: co.Runtime) -> None:
    async def main() -> list[Any]:
        async with runtime.serve(lambda job: job.payload) as server:
            jobs = [server.queue.submit(n) for n in range(5)]
            results = [await job for job in jobs]
        assert server.ended
        await server.wait_async(LONG)
        return results

    assert asyncio.run(main()) == list(range(5))


def test_a_wait_in_asyncio_that_is_late_or_cancelled_leaves_the_server_be(
    runtime: co.Runtime,
) -> None:
    gate = Gate()

    async def main(server: co.Server) -> None:
        with pytest.raises(co.WaitTimeoutError, match="has not ended after"):
            await server.wait_async(0.01)
        waiting = asyncio.create_task(server.stop_async())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.open()
        await server.wait_async(LONG)

    with runtime.serve(gate) as server:
        job = server.queue.submit(b"")
        until(lambda: gate.begun)
        asyncio.run(main(server))
    assert job.state == "done"


# Processes


def test_a_script_that_ends_runs_what_it_has_queued_first() -> None:
    ended = run_script(
        """
        import os
        import coresident as co

        runtime = co.Runtime(co.virtual_devices(2))
        server = runtime.serve(lambda job: os.write(1, b"ran %d\\n" % job.payload))
        for number in range(5):
            server.queue.submit(number)
        os.write(1, b"the end of the script\\n")
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines())[:5] == [f"ran {number}" for number in range(5)]


def test_a_forked_child_gets_a_clear_error_and_no_job() -> None:
    ended = run_script(
        """
        import os, sys
        import coresident as co

        runtime = co.Runtime(co.virtual_devices(2))

        def work(job):
            if job.payload == "fork":
                child = os.fork()
                if child == 0:
                    return "in the child"
                return os.waitpid(child, 0)[1]
            return "ran"

        server = runtime.serve(work, devices="virtual:0")
        job = server.queue.submit("other")
        assert job.result(20) == "ran"
        child = os.fork()
        if child == 0:
            for call in (server.stop, server.wait, server.serve_forever, server.__enter__):
                try:
                    call()
                except co.ForkedError as error:
                    continue
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        forked = server.queue.submit("fork")
        print(forked.result(20), server.queue.submit("other").result(20))
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "0 ran\n"


FOREVER = """
    import sys, threading
    import coresident as co

    begun = threading.Event()

    def work(job):
        print("begun", flush=True)
        if {deaf}:
            threading.Event().wait()
        while not job.token.wait(0.05):
            {on}
        job.raise_if_cancelled()

    with co.Runtime(co.virtual_devices(1)) as runtime:
        queue = co.JobQueue(devices=runtime.devices)
        job = queue.submit(b"")
        try:
            runtime.serve_forever(work, queue, grace={grace})
            print("ended", job.state, flush=True)
        finally:
            print("finally", flush=True)
"""


def serving(**settings: object) -> subprocess.Popen[str]:
    source = textwrap.dedent(FOREVER).format(**{"deaf": False, "on": "pass", **settings})
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


posix = pytest.mark.skipif(sys.platform == "win32", reason="only POSIX sends signals")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_what_runs_end(number: int) -> None:
    process = serving(on="return", grace=30)
    process.send_signal(number)
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, errors) == (0, "")
    assert output.splitlines() == ["ended done", "finally"]


@posix
def test_after_the_grace_what_runs_is_told_to_stop_and_queued_again() -> None:
    process = serving(grace=0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, errors) == (0, "")
    assert output.splitlines() == ["ended queued", "finally"]


@posix
def test_a_second_ctrl_c_stops_at_once_whatever_the_jobs_do() -> None:
    process = serving(deaf=True, grace=1000)
    process.send_signal(signal.SIGINT)
    # The second one counts as such once the first has been seen.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert output.splitlines() == ["finally"]


@posix
def test_ctrl_c_in_a_block_cancels_and_a_second_one_does_not_wait() -> None:
    source = """
    import os, signal, threading
    import coresident as co

    def work(job):
        job.token.wait()
        print("told", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

    runtime = co.Runtime(co.virtual_devices(1))
    with runtime.serve(work) as server:
        job = server.queue.submit(b"")
        while not server.running:
            pass
        os.kill(os.getpid(), signal.SIGINT)
        job.wait()
    """
    ended = run_script(source, timeout=LONG)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "told\n"
    assert "KeyboardInterrupt" in ended.stderr


# Bad input


async def coroutine(_job: co.ServedJob) -> None: ...


def generator(_job: co.ServedJob) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda rt: rt.serve(None), co.InvalidTypeError, "handler is a function of a job"),
        (lambda rt: rt.serve(coroutine), co.InvalidTypeError, "call asyncio.run in a function"),
        (lambda rt: rt.serve(generator), co.InvalidTypeError, "generator does not run when"),
        (lambda rt: rt.serve(str, "jobs.sqlite"), co.InvalidTypeError, "queue is a JobQueue"),
        (lambda rt: rt.serve(str, grad=1), co.InvalidTypeError, "grad is True or False"),
        (lambda rt: rt.serve(str, devices="cuda:77"), co.DeviceNotFoundError, "cuda:77"),
        (lambda rt: rt.serve(str, devices=[]), co.InvalidDeviceError, "."),
        (lambda rt: rt.serve(str, devices="virtual:9"), co.InvalidDeviceError, "virtual:9"),
        (lambda rt: rt.serve(str, idle=60), co.InvalidTypeError, "idle is an IdlePolicy"),
        (
            lambda rt: rt.serve(str, idle={"cpu": co.IdlePolicy()}),
            co.InvalidDeviceError,
            "idle has cpu, which is not served",
        ),
        (
            lambda rt: rt.serve(str, idle={"virtual:0": 60}),
            co.InvalidTypeError,
            "policy of virtual:0",
        ),
        (
            lambda rt: rt.serve(str, co.JobQueue(devices="cpu")),
            co.InvalidDeviceError,
            "they share no device",
        ),
        (lambda rt: rt.free("cpu"), co.InvalidDeviceError, "cpu is none of this runtime's"),
        (lambda rt: rt.free(ram="yes"), co.InvalidTypeError, "ram is True or False"),
        (lambda _rt: co.IdlePolicy(vram="1"), co.InvalidTypeError, "vram is a number of seconds"),
        (lambda _rt: co.IdlePolicy(vram=-1), co.InvalidValueError, "vram must be 0 or more"),
        (lambda _rt: co.IdlePolicy(vram=1, ram=float("nan")), co.InvalidValueError, "not nan"),
        (lambda _rt: co.IdlePolicy(ram=1), co.InvalidValueError, "leave the device first"),
        (lambda _rt: co.IdlePolicy(vram=2, ram=1), co.InvalidValueError, "ram is 1 and vram is 2"),
        (lambda _rt: co.IdlePolicy(after_cancel=1), co.InvalidTypeError, "after_cancel"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    runtime: co.Runtime, call: Callable[[co.Runtime], Any], error: type[Exception], message: str
) -> None:
    threads = threading.enumerate()
    with pytest.raises(error, match=message):
        call(runtime)
    assert not threads_but(threads)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda it: it.stop("now"), co.InvalidValueError, "'drain', 'finish' or 'cancel'"),
        (lambda it: it.stop(1), co.InvalidTypeError, "mode is a text"),
        (lambda it: it.stop(timeout=-1), co.InvalidValueError, "timeout must be 0 or more"),
        (lambda it: it.wait("1"), co.InvalidTypeError, "timeout is a number"),
        (lambda it: it.serve_forever(grace=None), co.InvalidTypeError, "grace is a number"),
        (lambda it: it.serve_forever(grace=-1), co.InvalidValueError, "grace must be"),
        (lambda it: asyncio.run(it.stop_async("x")), co.InvalidValueError, "mode is"),
        (lambda it: asyncio.run(it.wait_async(True)), co.InvalidTypeError, "not bool"),
    ],
)
def test_a_stop_that_cannot_be_meant_stops_nothing(
    runtime: co.Runtime, call: Callable[[co.Server], Any], error: type[Exception], message: str
) -> None:
    with runtime.serve(lambda _job: "runs") as server:
        with pytest.raises(error, match=message):
            call(server)
        assert server.queue.submit(b"").result(LONG) == "runs"


def test_a_runtime_of_a_parent_process_serves_nothing() -> None:
    ended = run_script(
        """
        import os
        import coresident as co

        runtime = co.Runtime(co.virtual_devices(1))
        if os.fork() == 0:
            try:
                runtime.serve(str)
            except co.ForkedError:
                os._exit(0)
            os._exit(1)
        print(os.wait()[1])
        """
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_the_timeline_of_the_runtime_has_jobs_stages_and_borrows(runtime: co.Runtime) -> None:
    def work(job: co.ServedJob) -> None:
        job.stage("text")
        with job.borrowed(affinity="t5"):
            pass
        job.stage("unet")
        job.step(1, 1)

    with runtime.serve(work, devices="virtual:0") as server:
        job = server.queue.submit(b"", user="ann")
        job.result(LONG)
    recording = runtime.timeline.recording()
    events = recording.events
    told = [
        (
            recording.kinds[event["kind"]],
            recording.names[event["device"]],
            recording.names[event["component"]],
        )
        for event in events
    ]
    name = f"job {job.id}"
    assert told == [
        ("job begins", "virtual:0", name),
        ("borrow", "virtual:1", "t5"),
        ("stage", "virtual:0", "text"),
        ("step", "virtual:0", "unet"),
        ("stage", "virtual:0", "unet"),
        ("job ends", "virtual:0", name),
    ]
    assert {recording.names[whom] for whom in events["whom"]} == {"ann"}
    assert len(set(events["job"])) == 1
    assert events["took"][-1] >= events["took"][1:-1].sum() - events["took"][1]


def test_a_recording_joins_what_is_recorded_for_one_job_by_whomever() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    from coresident.torch import install

    install()
    runtime = co.Runtime(co.virtual_devices(2, memory="16MiB"), hints=False)
    models = {key: runtime.load(key, lambda: torch.nn.Linear(512, 1024)) for key in ("t5", "unet")}

    def work(job: co.ServedJob) -> int:
        with job.borrowed(affinity="t5") as device, models["t5"].on(device, 0):
            pass
        with models["unet"].on(job.device, 0):
            return job.number

    with runtime, runtime.serve(work, devices="virtual:0") as server:
        jobs = [server.queue.submit(b"", needs=needs) for needs in ((), ("unet",))]
        numbers = [job.result(LONG) for job in jobs]
        recording = runtime.timeline.recording()
    names, events = recording.names, recording.events

    def of(number: int, kind: str) -> list[tuple[str, str]]:
        wanted = events[(events["job"] == number) & (events["kind"] == recording.kinds.index(kind))]
        return [(names[one["device"]], names[one["component"]]) for one in wanted]

    assert numbers[0] != numbers[1]
    borrows = events[events["kind"] == recording.kinds.index("borrow")]
    for job, number, borrow in zip(jobs, numbers, borrows, strict=True):
        assert of(number, "job begins") == [("virtual:0", f"job {job.id}")]
        assert len(of(number, "job declared")) == 1
        assert of(number, "request") == [("virtual:0", "unet")]
        assert of(number, "request ends") == [("virtual:0", "unet")]
        assert of(number, "borrow") == [("virtual:1", "t5")]
        assert borrow["job"] == number
        assert of(int(borrow["of"]), "request") == [("virtual:1", "t5")]
    assert of(numbers[0], "copy") == [("virtual:0", "unet")]
    assert of(numbers[1], "copy") == [], "it has stayed"


def test_the_example_goes_on_after_a_crash_and_draws_everything_once(tmp_path: Any) -> None:
    example = Path(__file__).parents[2] / "examples" / "serve.py"
    runs = [
        subprocess.run(
            [sys.executable, str(example), "jobs.sqlite"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for _ in range(2)
    ]
    assert [run.returncode for run in runs] == [1, 0], runs[1].stderr
    lines = runs[1].stdout.splitlines()
    assert len(lines) == 15
    assert sum("after 2 attempts" in line for line in lines) in (1, 2), "what ran at the crash"
    assert all(" done after " in line for line in lines)
    assert len(list(tmp_path.glob("*.txt"))) == 15
