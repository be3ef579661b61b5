"""Jobs from `submit` to `result`: threads, asyncio, events, bad input, fork and exit."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import run_script, spawn, until

MAX = 2**32
BLOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.close()
"""


@pytest.fixture
def queue() -> Iterator[co.JobQueue]:
    with co.JobQueue(devices=co.virtual_devices(2)) as queue:
        yield queue


def finish_next(queue: co.JobQueue, device: str = "virtual:0", result: object = None) -> str:
    with queue.claim(device, timeout=0) as claim:
        return claim.finish(result)


def test_the_result_is_the_very_object_that_the_claim_finished_with(queue: co.JobQueue) -> None:
    job = queue.submit({"prompt": "a cat", "seeds": [1, 2]}, user="ann", needs=["unet"], tags=["x"])
    assert (job.state, job.user, job.needs, job.tags) == ("queued", "ann", ("unet",), ("x",))
    image = object()
    with queue.claim("virtual:0") as claim:
        assert claim.job == job
        assert claim.job.payload == {"prompt": "a cat", "seeds": [1, 2]}
        assert str(claim.device) == str(job.device) == "virtual:0"
        assert claim.finish(image) == "done"
    assert job.result() is image
    assert job.wait() == "done"
    assert job.started is not None
    assert job.finished is not None
    assert job.submitted <= job.started <= job.finished


@pytest.mark.parametrize(
    "payload", [b"\0\xff", "t\u00e4xt", "\ud800", 7, None, 1.5, ["a", {"b": None}], {}]
)
def test_a_payload_comes_back_as_it_was_given(queue: co.JobQueue, payload: Any) -> None:
    assert queue.submit(payload).payload == payload


def test_a_payload_is_a_copy(queue: co.JobQueue) -> None:
    given = {"steps": 20}
    data = bytearray(b"abc")
    jobs = [queue.submit(given), queue.submit(data), queue.submit(memoryview(data))]
    given["steps"] = 30
    data[:] = b"xyz"
    assert [job.payload for job in jobs] == [{"steps": 20}, b"abc", b"abc"]
    jobs[0].payload["steps"] = 40
    assert jobs[0].payload == {"steps": 20}


def test_an_error_fails_its_job_and_goes_on(queue: co.JobQueue) -> None:
    job = queue.submit()
    with pytest.raises(ValueError, match="no luck"):
        with queue.claim("virtual:0"):
            raise ValueError("no luck")
    assert (job.state, job.error) == ("failed", "ValueError: no luck")
    with pytest.raises(ValueError, match="no luck"):
        job.result()


def test_a_failure_in_words_is_an_error_of_ours(queue: co.JobQueue) -> None:
    job = queue.submit()
    with queue.claim("virtual:0") as claim:
        assert claim.fail("the card fell off") == "failed"
    with pytest.raises(co.JobFailedError, match="job 1 failed: the card fell off") as caught:
        job.result()
    assert (caught.value.job, caught.value.error) == (1, "the card fell off")


def test_a_failure_that_cannot_even_be_told_is_a_failure(queue: co.JobQueue) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    job = queue.submit()
    with queue.claim("virtual:0") as claim:
        claim.fail(MuteError())
    assert (job.state, job.error) == ("failed", "MuteError, which cannot be shown")


def test_a_failure_keeps_no_frames_alive(queue: co.JobQueue) -> None:
    class Tensor:
        pass

    def run() -> weakref.ref[Tensor]:
        tensor = Tensor()
        with queue.claim("virtual:0") as claim:
            try:
                raise ValueError(f"with {tensor}")
            except ValueError as error:
                claim.fail(error)
        return weakref.ref(tensor)

    job = queue.submit()
    tensor = run()
    gc.collect()
    assert tensor() is None
    assert job.state == "failed"


def test_ctrl_c_and_an_end_without_a_word_queue_the_job_again(queue: co.JobQueue) -> None:
    job = queue.submit(max_attempts=1)
    with pytest.raises(KeyboardInterrupt):
        with queue.claim("virtual:0"):
            raise KeyboardInterrupt
    assert (job.state, job.attempts) == ("queued", 0)
    queue.claim("virtual:0").release()
    assert (job.state, job.attempts) == ("queued", 0)
    with queue.claim("virtual:0"):
        pass
    assert (job.state, job.attempts) == ("failed", 1)
    assert job.error == "its claim ended without an outcome, and all 1 attempts have been used"


def test_a_forgotten_claim_is_released_with_a_warning(queue: co.JobQueue) -> None:
    job = queue.submit()
    with pytest.warns(ResourceWarning, match="the claim of job 1 was never released"):
        queue.claim("virtual:0")
    assert (job.state, job.attempts) == ("queued", 1)
    with pytest.warns(ResourceWarning, match="the offer of job 1 was never released"):
        queue.offer("virtual:0")
    assert finish_next(queue) == "done"


def test_a_cancel_is_seen_at_once_and_ends_the_job_as_cancelled(queue: co.JobQueue) -> None:
    jobs = queue.submit_many([1, 2, 3], batch="b")
    with queue.claim("virtual:0") as one, queue.claim("virtual:1") as other:
        assert queue.cancel(batch="b", reason="enough") == 3
        assert queue.cancel(batch="b") == 0
        assert one.token.cancelled
        assert other.token.cancelled
        assert jobs[0].cancelling
        with pytest.raises(co.CancelledError, match="enough"):
            one.token.raise_if_cancelled()
        assert one.finish("an image") == other.fail("stopped") == "cancelled"
    assert [job.state for job in jobs] == ["cancelled"] * 3
    with pytest.raises(co.CancelledError, match="job 1 was cancelled: enough") as caught:
        jobs[0].result()
    assert caught.value.reason == "enough"


def test_deleting_retrying_and_moving(queue: co.JobQueue) -> None:
    first, second, third = queue.submit_many([1, 2, 3])
    assert queue.move([third], "front") == 1
    with queue.claim("virtual:0") as claim:
        assert claim.job == third
        claim.fail("no luck")
    assert queue.retry(third, front=True) == 1
    assert third.error is None
    with queue.claim("virtual:0") as claim:
        assert claim.job == third
        assert queue.delete(third) == 1
        assert claim.token.cancelled
        assert claim.finish() == "cancelled"
    with pytest.raises(co.JobNotFoundError, match="there is no job 3") as caught:
        queue.job(third.id)
    assert caught.value.job == 3
    assert queue.move(first, priority=-1) == 1
    assert [job.id for job in queue.jobs()] == [first.id, second.id]
    with queue.claim("virtual:0") as claim:
        assert claim.job == second
        claim.finish()
    assert [job.id for job in queue.jobs(state="done")] == [second.id]
    assert queue.jobs(limit=1)[0] == second
    assert queue.delete(everything=True) == 2
    assert queue.jobs() == []


def test_an_offer_may_be_declined(queue: co.JobQueue) -> None:
    job = queue.submit()
    with queue.offer("virtual:0") as offer:
        assert offer.job == job
        with pytest.raises(co.WaitTimeoutError):
            queue.claim("virtual:1", timeout=0)
    assert offer.released
    assert job.state == "queued"
    with queue.offer("virtual:1") as offer:
        claim = offer.accept()
        assert claim is not None
        claim.finish()
    with pytest.raises(co.ReleasedError, match="the offer of job 1 has been ended already"):
        offer.accept()
    assert job.attempts == 1


def test_pausing_and_limits(queue: co.JobQueue) -> None:
    queue.set_user("ann", running=1, queued=2, weight=2)
    queue.submit_many([1, 2], user="ann")
    with pytest.raises(co.QueueFullError, match="ann has 2 jobs queued and may have 2") as caught:
        queue.submit(3, user="ann")
    assert (caught.value.user, caught.value.queued, caught.value.limit) == ("ann", 2, 2)
    queue.pause("ann")
    with pytest.raises(co.WaitTimeoutError, match="none of 2 that are queued may start there"):
        queue.claim("virtual:0", timeout=0)
    queue.resume("ann")
    with queue.claim("virtual:0") as claim:
        with pytest.raises(co.WaitTimeoutError):
            queue.claim("virtual:1", timeout=0)
        (ann,) = queue.status().users
        assert ann.blocked == "1 of 1 jobs run"
        queue.set_user("ann", running=None)
        assert queue.status().users[0].weight == 2
        assert finish_next(queue, "virtual:1") == "done"
        claim.finish()
    queue.pause()
    assert queue.status().paused
    queue.submit()
    with pytest.raises(co.WaitTimeoutError, match="while the queue is paused"):
        queue.claim("virtual:0", timeout=0)
    queue.resume()
    assert finish_next(queue) == "done"


def test_workers_in_threads_run_everything_once(queue: co.JobQueue) -> None:
    def work(device: str) -> int:
        done = 0
        while True:
            try:
                claim = queue.claim(device)
            except co.ClosedError:
                return done
            with claim:
                claim.finish(claim.job.payload * 2)
                done += 1

    workers = [spawn(lambda device=device: work(str(device))) for device in queue.devices]
    jobs = queue.submit_many(range(200))
    assert [job.result(20) for job in jobs] == [2 * number for number in range(200)]
    queue.close()
    assert sum(worker.join() for worker in workers) == 200


def test_a_worker_that_waits_for_its_own_device_is_told_so(queue: co.JobQueue) -> None:
    queue.submit()
    with queue.claim("virtual:0") as claim:
        nested = queue.submit(devices="virtual:0")
        for wait in (claim.job.wait, nested.result, lambda: list(nested.events())):
            with pytest.raises(co.DeadlockError, match="this wait would never end"):
                wait()
        claim.finish()


def test_events_in_a_loop(queue: co.JobQueue) -> None:
    job = queue.submit(user="ann")
    events = job.events()
    with queue.claim("virtual:0") as claim:
        claim.stage("text encoder")
        claim.step(1, 4, preview="a picture")
        step = [next(events) for _ in range(5)][-1]
        assert (step.step, step.steps, step.preview) == (1, 4, "a picture")
        assert (step.stage, step.user, step.id, step.attempt) == ("text encoder", "ann", job.id, 1)
        assert (str(step.device), step.label) == ("virtual:0", claim.device.label)
        assert (job.stage, job.progress) == ("text encoder", (1, 4))
        claim.finish()
    assert [event.kind for event in events] == ["finished"]
    assert events.next() is None
    assert [event.kind for event in job.events()] == ["finished"]


def test_a_subscriber_that_nobody_has_is_forgotten(queue: co.JobQueue) -> None:
    class Preview:
        pass

    job = queue.submit()
    events = queue.subscribe(buffer=10)
    preview = Preview()
    seen = weakref.ref(preview)
    with queue.claim("virtual:0") as claim:
        claim.step(1, 2, preview=preview)
        del preview
        gc.collect()
        assert seen() is not None
        del events
        gc.collect()
        assert seen() is None
        claim.finish()
    assert job.done()


def test_asyncio(queue: co.JobQueue) -> None:
    async def work(device: str) -> None:
        while True:
            try:
                async with queue.claim_async(device) as claim:
                    for step in range(3):
                        claim.step(step + 1, 3)
                        await asyncio.sleep(0)
                    claim.finish(claim.job.payload + 1)
            except co.ClosedError:
                return

    async def watch(job: co.Job) -> list[str]:
        return [event.kind async for event in job.events()]

    async def main() -> None:
        workers = [asyncio.create_task(work(str(device))) for device in queue.devices]
        jobs = queue.submit_many(range(20))
        watching = [asyncio.create_task(watch(job)) for job in jobs]
        assert await asyncio.gather(*jobs) == [number + 1 for number in range(20)]
        for kinds in await asyncio.gather(*watching):
            assert kinds[-1] == "finished"
        with pytest.raises(co.WaitTimeoutError):
            await queue.offer_async("virtual:0", timeout=0.01)
        queue.close()
        await asyncio.gather(*workers)

    asyncio.run(main())


def test_a_task_that_is_cancelled_leaves_the_line_and_the_job_alone(queue: co.JobQueue) -> None:
    async def main() -> None:
        claiming = asyncio.ensure_future(_awaited(queue.claim_async("virtual:0")))
        await asyncio.sleep(0)
        assert queue.status().waiting == ["virtual:0"]
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        assert queue.status().waiting == []
        job = queue.submit()
        waiting = asyncio.ensure_future(_awaited(job))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert job.state == "queued"

    async def _awaited(awaitable: Any) -> Any:
        return await awaitable

    asyncio.run(main())


def test_a_path_outlives_the_process_and_other_results_do_not(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite"
    with co.JobQueue(file, devices="virtual:0") as queue:
        assert queue.path == file
        queue.submit_many([1, 2, 3, 4])
        assert finish_next(queue, result=tmp_path / "image.png") == "done"
        assert finish_next(queue, result=object()) == "done"
        with queue.claim("virtual:0") as claim:
            claim.fail(ValueError("no luck"))
        assert queue.job(1).result() == tmp_path / "image.png"
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as reader:
        states = [state for (state,) in reader.execute("SELECT state FROM jobs ORDER BY id")]
    reader.close()
    assert states == ["done", "done", "failed", "queued"]
    with co.JobQueue(file, devices="virtual:0") as queue:
        assert queue.job(1).result() == tmp_path / "image.png"
        with pytest.raises(co.ResultNotKeptError, match="job 2 was done in an earlier process"):
            queue.job(2).result()
        with pytest.raises(co.JobFailedError, match="job 3 failed: ValueError: no luck"):
            queue.job(3).result()
        assert len(queue) == 1
        assert finish_next(queue) == "done"


def test_a_file_has_one_owner(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite"
    with co.JobQueue(file, devices="virtual:0") as queue:
        with pytest.raises(co.QueueInUseError, match="another queue of this process") as caught:
            co.JobQueue(file, devices="virtual:0")
        assert caught.value.path == file
        assert isinstance(caught.value, OSError)
        other = run_script(f"""
            import coresident as co
            try:
                co.JobQueue({str(file)!r}, devices="virtual:0")
            except co.QueueInUseError as error:
                print(error)
        """)
        assert f"is owned by process {os.getpid()}" in other.stdout, other.stderr
        assert queue.submit().state == "queued"


def test_a_locked_file_is_an_error_to_the_submitter_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite"
    with co.JobQueue(file, devices="virtual:0") as queue:
        kept = queue.submit()
        # In another process: locks of files do not keep a process from itself.
        blocker = subprocess.Popen(
            [sys.executable, "-c", BLOCKER, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert blocker.stdout is not None
        assert blocker.stdout.readline() == b"locked\n"
        with pytest.raises(co.JournalError, match="somebody else has locked it"):
            queue.submit()
        blocker.communicate(b"go\n", timeout=20)
        assert [job.id for job in queue.jobs()] == [kept.id]
        assert finish_next(queue) == "done"


def test_a_full_disk_is_an_error_to_the_submitter_and_nothing_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="there are no limits on files here")
    script = run_script(f"""
        import resource
        import coresident as co
        queue = co.JobQueue({str(tmp_path / "jobs.sqlite")!r}, devices="virtual:0")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        accepted = []
        try:
            for number in range(10_000):
                accepted.append(queue.submit(bytes(10_000)).id)
        except co.JournalError as error:
            print("refused:", error)
        assert [job.id for job in queue.jobs()] == accepted
        try:
            claim = queue.claim("virtual:0")
        except co.JournalError:
            pass
        assert len(queue) == len(accepted) > 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        with queue.claim("virtual:0") as claim:
            assert claim.job.id == accepted[0]
            claim.finish()
        queue.close()
        with co.JobQueue({str(tmp_path / "jobs.sqlite")!r}, devices="virtual:0") as queue:
            assert [job.id for job in queue.jobs()] == accepted
            assert queue.status().done == 1
        print("nothing is lost")
    """)
    assert "refused: writing" in script.stdout, script.stderr
    assert "nothing is lost" in script.stdout, script.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_gets_an_error_and_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    script = run_script(f"""
        import os, warnings
        import coresident as co
        warnings.simplefilter("ignore")
        file = {str(tmp_path / "jobs.sqlite")!r}
        queue = co.JobQueue(file, devices="virtual:0")
        job, events = queue.submit(), queue.subscribe()
        claim = queue.claim("virtual:0")
        if (child := os.fork()) == 0:
            calls = [queue.submit, queue.status, job.wait, job.events, events.next, claim.finish,
                     lambda: queue.claim("virtual:0"), lambda: queue.cancel(job), queue.jobs]
            for call in calls:
                try:
                    call()
                except co.ForkedError:
                    continue
                os._exit(2)
            try:
                co.JobQueue(file, devices="virtual:0")
            except co.QueueInUseError:
                queue.close()
                claim.release()
                del queue, job, events, claim, calls, call
                os._exit(0)
            os._exit(3)
        assert os.waitpid(child, 0)[1] == 0
        assert claim.finish() == "done"
        assert queue.submit().state == "queued"
        print("fine")
    """)
    assert script.stdout == "fine\n", script.stderr


def test_the_interpreter_ends_cleanly_with_everything_under_way(tmp_path: Path) -> None:
    script = run_script(f"""
        import threading
        import coresident as co
        queue = co.JobQueue({str(tmp_path / "jobs.sqlite")!r}, devices=co.virtual_devices(2))
        job = queue.submit()
        def wait(call):
            thread = threading.Thread(target=call, daemon=True)
            thread.start()
        with queue.claim("virtual:0") as claim:
            claim.finish({{"a": object()}})
        queue.set_user("ann", gpu_seconds_per_hour=0)
        queue.submit(user="ann")
        events = queue.subscribe()
        wait(lambda: queue.claim("virtual:0"))
        wait(lambda: list(events))
        wait(queue.job(2).wait)
        while not queue.status().waiting:
            pass
    """)
    assert (script.returncode, script.stderr) == (0, "")


BAD_SUBMITS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"payload": object()}, co.PayloadError, "what JSON can say, which this is not"),
    ({"payload": math.nan}, co.PayloadError, "not JSON compliant"),
    ({"payload": {1, 2}}, co.PayloadError, "set is not JSON serializable"),
    ({"payload": bytes(2**20 + 1)}, co.PayloadError, "may have 1 MiB; keep large data in a file"),
    ({"user": 7}, co.InvalidTypeError, "user is a text, not int"),
    ({"user": ""}, co.InvalidValueError, "user has from 1 to 1024 bytes"),
    ({"user": "x" * 1025}, co.InvalidValueError, "not 1025 bytes"),
    ({"user": "\ud800"}, co.InvalidValueError, "user has characters that are none"),
    ({"priority": 1.5}, co.InvalidTypeError, "priority is a whole number, not float"),
    ({"priority": True}, co.InvalidTypeError, "not bool"),
    ({"priority": 1001}, co.InvalidValueError, "from -1000 to 1000, not 1001"),
    ({"batch": b"b"}, co.InvalidTypeError, "batch is a text, not bytes"),
    ({"tags": "x"}, co.InvalidTypeError, "tags takes a list of texts, not the text 'x'"),
    ({"tags": [1]}, co.InvalidTypeError, "one of tags is a text, not int"),
    ({"needs": 1}, co.InvalidTypeError, "needs takes a list of texts, not int"),
    ({"devices": "gpu"}, co.InvalidDeviceError, "gpu"),
    ({"devices": ["virtual:7"]}, co.DeviceNotFoundError, "not one of this queue's devices"),
    ({"devices": []}, co.UnrunnableJobError, "no device may run it"),
    ({"memory": "much"}, co.InvalidValueError, "not a number of bytes"),
    ({"estimate": -1}, co.InvalidValueError, "estimate must be from 0"),
    ({"estimate": math.nan}, co.InvalidValueError, "not nan"),
    ({"estimate": "1"}, co.InvalidTypeError, "estimate is a number, not str"),
    ({"max_attempts": 0}, co.InvalidValueError, "max_attempts must be from 1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_SUBMITS)
def test_what_cannot_be_a_job(
    queue: co.JobQueue, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        queue.submit(**arguments)
    if "payload" not in arguments:
        with pytest.raises(error, match=message):
            queue.submit_many([1], **arguments)
    assert queue.jobs() == []


def test_what_cannot_be_meant(queue: co.JobQueue) -> None:
    job = queue.submit()
    calls: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: queue.submit_many("ab"), co.InvalidTypeError, "one str is a payload"),
        (lambda: queue.submit_many({"a": 1}), co.InvalidTypeError, "one dict is a payload"),
        (lambda: queue.submit_many(7), co.InvalidTypeError, "takes a list of payloads, not int"),  # type: ignore[arg-type]
        (lambda: queue.cancel(), co.InvalidValueError, "say which jobs are meant"),
        (lambda: queue.delete(), co.InvalidValueError, "or everything=True"),
        (lambda: queue.retry(), co.InvalidValueError, "say which jobs are meant"),
        (lambda: queue.cancel("all"), co.InvalidTypeError, "a Job, its number, or a list"),  # type: ignore[arg-type]
        (lambda: queue.cancel([job, 1.5]), co.InvalidTypeError, "not float"),  # type: ignore[list-item]
        (lambda: queue.cancel(-1), co.InvalidValueError, "not -1"),
        (lambda: queue.move(job), co.InvalidValueError, "to='front', to='back' or priority="),
        (lambda: queue.move(job, "up"), co.InvalidValueError, "to is 'front' or 'back', not 'up'"),  # type: ignore[arg-type]
        (lambda: queue.jobs(state="lost"), co.InvalidValueError, "'cancelled', not 'lost'"),  # type: ignore[arg-type]
        (lambda: queue.jobs(limit=-1), co.InvalidValueError, "limit must be between 0"),
        (lambda: queue.job("1"), co.InvalidTypeError, "a whole number, not str"),  # type: ignore[arg-type]
        (lambda: queue.job(99), co.JobNotFoundError, "there is no job 99"),
        (
            lambda: queue.set_user("ann", weight=0),
            co.InvalidValueError,
            "weight must be from 0.001",
        ),
        (lambda: queue.set_user("ann", running=-1), co.InvalidValueError, "running must be"),
        (lambda: queue.set_user("ann", speed=1), co.InvalidTypeError, "not speed"),  # type: ignore[call-arg]
        (lambda: queue.subscribe(buffer=0), co.InvalidValueError, "buffer must be from 1"),
        (lambda: queue.forecast("virtual:0", 1001), co.InvalidValueError, "from 0 to 1000"),
        (lambda: queue.claim("virtual:9"), co.DeviceNotFoundError, "virtual:9 is not one of"),
        (lambda: queue.claim("virtual:0", timeout=-1), co.InvalidValueError, "0 or more seconds"),
        (lambda: queue.offer("virtual:0", cancel=1), co.InvalidTypeError, "not int"),  # type: ignore[arg-type]
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
    with queue.claim("virtual:0") as claim:
        for step in ((5, 4), (-1, 4), (MAX, MAX)):
            with pytest.raises(co.InvalidValueError):
                claim.step(*step)
        with pytest.raises(co.InvalidTypeError, match="step is a whole number, not float"):
            claim.step(0.5, 1)  # type: ignore[arg-type]
        with pytest.raises(co.InvalidTypeError, match="error is an exception or a text, not int"):
            claim.fail(7)  # type: ignore[arg-type]
        claim.finish()
    for ended in (claim.finish, claim.start, claim.hand_over, lambda: claim.stage("x")):
        with pytest.raises(co.ReleasedError, match="the claim of job 1 has been ended already"):
            ended()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"devices": []}, co.InvalidDeviceError, "list of devices is empty"),
        ({"devices": co.virtual_devices(65)}, co.InvalidValueError, "64 devices, not 65"),
        ({"order": "random"}, co.InvalidValueError, "order is 'fair' or 'fifo', not 'random'"),
        ({"ageing": -1.0}, co.InvalidValueError, "ageing must be 0 or more seconds, not -1"),
        ({"slack": math.nan}, co.InvalidValueError, "slack must be"),
        ({"speeds": {"virtual:0": 2}}, co.InvalidValueError, "a speed must be from 0.001 to 1"),
        ({"speeds": {"virtual:5": 1}}, co.DeviceNotFoundError, "virtual:5 is not one of"),
        ({"speeds": 3}, co.InvalidTypeError, "speeds takes a mapping"),
        ({"max_attempts": 0}, co.InvalidValueError, "max_attempts must be from 1"),
        ({"max_payload": -1}, co.InvalidValueError, "max_payload must be"),
        ({"history": -1}, co.InvalidValueError, "history must be from 0"),
        ({"durability": "none"}, co.InvalidValueError, "'process' or 'power', not 'none'"),
        ({"path": 7}, co.InvalidTypeError, "path is a path or None, not int"),
    ],
)
def test_what_cannot_be_a_queue(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        co.JobQueue(**{"devices": "virtual:0", **arguments})


def test_what_is_no_file_of_a_queue(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(bytes(range(256)) * 16)
    for path, message in (
        (noise, "is no queue: it is no database of SQLite"),
        (tmp_path, "failed"),
        (tmp_path / "no" / "jobs.sqlite", "No such file"),
    ):
        with pytest.raises(co.JournalError, match=message):
            co.JobQueue(path, devices="virtual:0")


def test_a_closed_queue_takes_and_gives_nothing(queue: co.JobQueue) -> None:
    left = queue.submit()
    waiting = spawn(lambda: queue.claim("virtual:0").finish())
    assert waiting.join() == "done"

    def turn_away() -> None:
        with pytest.raises(co.ClosedError, match="the queue is closed"):
            queue.claim("virtual:1")

    turned_away = spawn(turn_away)
    until(lambda: queue.status().waiting == ["virtual:1"])
    queue.close()
    turned_away.join()
    assert queue.closed
    assert left.done()
    for call in (queue.submit, lambda: queue.claim("virtual:0"), lambda: queue.retry(left)):
        with pytest.raises(co.ClosedError, match="the queue is closed"):
            call()
    assert list(queue.subscribe()) == []


def test_a_queue_and_what_its_jobs_came_to_can_be_collected() -> None:
    class Image:
        pass

    def use() -> weakref.ref[Image]:
        queue = co.JobQueue(devices="virtual:0")
        image = Image()
        job = queue.submit()
        finish_next(queue, result=image)
        assert job.result() is image
        return weakref.ref(image)

    image = use()
    gc.collect()
    assert image() is None


def test_submitting_from_many_threads_while_others_claim(tmp_path: Path) -> None:
    with co.JobQueue(tmp_path / "jobs.sqlite", devices=co.virtual_devices(2)) as queue:
        start = threading.Barrier(4)

        def submit() -> list[int]:
            start.wait()
            return [queue.submit(number).id for number in range(50)]

        def work(device: str) -> int:
            start.wait()
            for _ in range(50):
                with queue.claim(device) as claim:
                    claim.finish()
            return 50

        submitting = [spawn(submit) for _ in range(2)]
        working = [spawn(lambda at=at: work(f"virtual:{at}")) for at in range(2)]
        ids = {id_ for one in submitting for id_ in one.join()}
        assert sum(one.join() for one in working) == len(ids) == 100
        assert queue.status().done == 100
