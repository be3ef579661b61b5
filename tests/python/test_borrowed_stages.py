"""Stages of jobs on idle devices: where they run, what they give back, and when."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import coresident as co
import pytest
from conftest import spawn, until

LONG = 20.0


@pytest.fixture
def runtime() -> Iterator[co.Runtime]:
    made = co.Runtime(co.virtual_devices(2))
    yield made
    made.close(timeout=LONG)


def where() -> str:
    return str(co.current_device())


def run(runtime: co.Runtime, handler: Callable[[co.ServedJob], Any], **terms: Any) -> Any:
    """What a handler returns for one job on ``virtual:0``."""
    with runtime.serve(handler, devices="virtual:0") as server:
        return server.queue.submit(b"", **terms).result(LONG)


@co.borrowable
def stage() -> str:
    return where()


# Where a stage runs


def test_a_stage_runs_on_an_idle_device_and_else_in_place(runtime: co.Runtime) -> None:
    def handler(job: co.ServedJob) -> list[str]:
        with job.borrowed() as device:
            found = [str(device), where()]
        return [*found, where(), job.run_borrowed(where), stage()]

    at_home = "virtual:0"
    assert run(runtime, handler) == ["virtual:1", "virtual:1", at_home, "virtual:1", "virtual:1"]
    with runtime.pool.lease("virtual:1"):
        assert run(runtime, handler) == [at_home] * 5


def test_the_device_goes_back_when_the_stage_ends_however_it_ends(runtime: co.Runtime) -> None:
    @co.borrowable
    def fail() -> None:
        assert where() == "virtual:1"
        raise SystemExit("over")

    def handler(_job: co.ServedJob) -> bool:
        with pytest.raises(SystemExit):
            fail()
        (status,) = (one for one in runtime.pool.status() if str(one.device) == "virtual:1")
        return status.holder is None and where() == "virtual:0"

    assert run(runtime, handler)


def test_outside_of_a_job_a_stage_is_just_the_function(runtime: co.Runtime) -> None:
    assert stage() == "None"
    with runtime.pool.lease("virtual:0"):
        assert stage() == "virtual:0"


def test_a_stage_in_a_stage_runs_on_the_same_device(runtime: co.Runtime) -> None:
    three = co.Runtime(co.virtual_devices(3))

    def handler(job: co.ServedJob) -> list[str]:
        with job.borrowed(prefer=["virtual:2"]) as device, job.borrowed() as inner:
            return [str(device), str(inner), stage()]

    assert run(three, handler) == ["virtual:2"] * 3
    three.close(timeout=LONG)


def test_the_same_stage_goes_back_to_the_same_device() -> None:
    runtime = co.Runtime(co.virtual_devices(4))

    def handler(job: co.ServedJob) -> set[str]:
        with job.borrowed(affinity="t5", prefer=["virtual:3"]):
            pass
        found = set()
        for _ in range(5):
            with job.borrowed(affinity="t5") as device:
                found.add(str(device))
        return found

    assert run(runtime, handler) == {"virtual:3"}
    runtime.close(timeout=LONG)


def test_a_task_that_a_job_gives_to_a_worker_has_stages_too(runtime: co.Runtime) -> None:
    def handler(job: co.ServedJob) -> tuple[str, bool]:
        ticket = runtime.workers.post("virtual:0", lambda: (stage(), co.current_job() is job))
        found: tuple[str, bool] = ticket.result(LONG)
        return found

    # The worker's own pin is the job's device.
    assert run(runtime, handler) == ("virtual:1", True)


def test_a_thread_that_outlives_its_job_has_no_stages(runtime: co.Runtime) -> None:
    import contextvars

    left: list[contextvars.Context] = []
    run(runtime, lambda _job: left.append(contextvars.copy_context()))
    until(lambda: left[0].run(co.current_job) is None)
    assert left[0].run(stage) == "None"


def test_a_stage_in_place_while_the_pool_is_closed(runtime: co.Runtime) -> None:
    def handler(job: co.ServedJob) -> str:
        runtime.pool.close()
        with job.borrowed() as device:
            return str(device)

    assert run(runtime, handler) == "virtual:0"


# Giving back early


def test_a_long_stage_sees_that_its_device_is_wanted(runtime: co.Runtime) -> None:
    borrowed = threading.Event()

    def handler(job: co.ServedJob) -> list[bool]:
        seen = [job.wanted]
        with job.borrowed():
            seen.append(job.wanted)
            borrowed.set()
            until(lambda: job.wanted)
            seen.append(job.wanted)
        return [*seen, job.wanted]

    waiter = spawn(
        lambda: (borrowed.wait(LONG), runtime.pool.lease("virtual:1", timeout=LONG).release())
    )
    assert run(runtime, handler) == [False, False, True, False]
    waiter.join()


def test_between_two_items_the_device_goes_to_whoever_waits_for_it(runtime: co.Runtime) -> None:
    waits, taken, over = threading.Event(), threading.Event(), threading.Event()

    def encode(number: int) -> tuple[int, str]:
        if number == 2:
            waits.set()
            until(lambda: any(status.waiting for status in runtime.pool.status()))
        return number, where()

    def take() -> None:
        waits.wait(LONG)
        with runtime.pool.lease("virtual:1", timeout=LONG):
            taken.set()
            over.wait(LONG)

    def handler(job: co.ServedJob) -> Any:
        return job.map_borrowed(encode, range(5))

    taker = spawn(take)
    away, home = "virtual:1", "virtual:0"
    found = run(runtime, handler)
    assert taken.wait(LONG)
    over.set()
    taker.join()
    assert found == [(0, away), (1, away), (2, away), (3, home), (4, home)]


def test_a_waiting_job_gets_its_device_before_the_next_item(runtime: co.Runtime) -> None:
    """A borrow never overtakes a job that waits."""
    submitted = threading.Event()

    def handler(job: co.ServedJob) -> Any:
        if job.payload == "native":
            return str(job.device)

        def encode(number: int) -> str:
            if number == 1:
                server.queue.submit("native", devices=["virtual:1"], tags=["native"])
                submitted.set()
                until(lambda: job.wanted)
            return where()

        return job.map_borrowed(encode, range(3))

    with runtime.serve(handler) as server:
        batch = server.queue.submit("batch", devices=["virtual:0"])
        found = batch.result(LONG)
        (native,) = server.queue.jobs(tag="native")
        assert native.result(LONG) == "virtual:1"
    assert found[:2] == ["virtual:1"] * 2


def test_a_cancelled_job_stops_between_two_items(runtime: co.Runtime) -> None:
    ran: list[int] = []

    def handler(job: co.ServedJob) -> Any:
        def encode(number: int) -> None:
            ran.append(number)
            if number == 1:
                server.queue.cancel(job.id, reason="enough")

        return job.map_borrowed(encode, range(100))

    with runtime.serve(handler) as server:
        with pytest.raises(co.CancelledError, match="enough"):
            server.queue.submit(b"").result(LONG)
    assert ran == [0, 1]


# What is marked


def test_functions_methods_and_classes_can_be_marked(runtime: co.Runtime) -> None:
    class Frontend:
        def __init__(self, name: str) -> None:
            self.name = name

        @co.borrowable
        def encode(self, more: str = "") -> str:
            return f"{self.name}{more} on {where()}"

        @co.borrowable
        @classmethod
        def of_class(cls) -> str:
            return f"{cls.__name__} on {where()}"

        @staticmethod
        @co.borrowable(affinity="static")
        def static() -> str:
            return f"static on {where()}"

    @co.borrowable(method="invoke")
    class Node:
        def invoke(self) -> str:
            return f"node on {where()}"

    @co.borrowable
    class Encoder:
        def __call__(self) -> str:
            return f"encoder on {where()}"

    class Derived(Encoder):
        pass

    def handler(_job: co.ServedJob) -> list[str]:
        front = Frontend("front")
        return [
            front.encode(more="end"),
            Frontend.of_class(),
            front.static(),
            Node().invoke(),
            Encoder()(),
            Derived()(),
        ]

    whose = ["frontend", "Frontend", "static", "node", "encoder", "encoder"]
    assert run(runtime, handler) == [f"{name} on virtual:1" for name in whose]
    assert Node().invoke() == "node on None"


def test_what_is_marked_keeps_its_name_and_its_words() -> None:
    @co.borrowable
    def encode(prompt: str) -> str:
        """Encodes."""
        return prompt

    assert (encode.__name__, encode.__doc__, encode("a")) == ("encode", "Encodes.", "a")


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


class Later:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: co.borrowable(7), co.InvalidTypeError, "something to call, not int"),
        (lambda: co.borrowable(coroutine), co.InvalidTypeError, "coroutine does not run when"),
        (lambda: co.borrowable(generator), co.InvalidTypeError, "a stage is a plain function"),
        (lambda: co.borrowable(partial(generator)), co.InvalidTypeError, "does not run when"),
        (lambda: co.borrowable(Later()), co.InvalidTypeError, "does not run when"),
        (lambda: co.borrowable(to="gpu"), co.InvalidValueError, "'host' or 'job', not 'gpu'"),
        (lambda: co.borrowable(method=1), co.InvalidTypeError, "method is a text"),
        (lambda: co.borrowable(affinity=1), co.InvalidTypeError, "affinity is a text"),
        (lambda: co.borrowable(method="x")(where), co.InvalidTypeError, "is for classes"),
        (
            lambda: co.borrowable(method="encode")(Gone),
            co.InvalidTypeError,
            "Gone has no method encode",
        ),
        (lambda: co.borrowable(Gone), co.InvalidTypeError, "Gone has no method __call__"),
    ],
)
def test_what_cannot_be_a_stage_is_refused(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


class Gone:
    pass


def test_terms_that_cannot_be_meant_are_refused(runtime: co.Runtime) -> None:
    calls: list[tuple[Callable[[co.ServedJob], Any], type[Exception], str]] = [
        (lambda job: job.borrowed(prefer="virtual:1").__enter__(), co.InvalidTypeError, "prefer"),
        (lambda job: job.borrowed(affinity=1).__enter__(), co.InvalidTypeError, "affinity"),
        (lambda job: job.borrowed(min_free="x").__enter__(), co.InvalidValueError, "number of"),
        (lambda job: job.borrowed(prefer=["cpu"]).__enter__(), co.DeviceNotFoundError, "cpu"),
        (lambda job: job.run_borrowed(1), co.InvalidTypeError, "something to call"),
        (lambda job: job.run_borrowed(where, to=1), co.InvalidValueError, "to is 'host' or"),
        (lambda job: job.map_borrowed(1, []), co.InvalidTypeError, "something to call"),
        (lambda job: job.map_borrowed(where, 1), co.InvalidTypeError, "gone through"),
        (lambda job: job.map_borrowed(where, [], to=""), co.InvalidValueError, "to is"),
        (lambda job: job.on_step_with(1), co.InvalidTypeError, "preview is a function"),
        (lambda job: job.stage(1), co.InvalidTypeError, "a stage"),
        (lambda job: job.stage(""), co.InvalidValueError, "a stage"),
        (lambda job: job.step("1", 2), co.InvalidTypeError, "step is a whole number"),
        (lambda job: job.step(3, 2), co.InvalidValueError, "step 3 is more than all 2"),
        (lambda job: job.step(-1, 2), co.InvalidValueError, "step must be from 0"),
    ]

    def handler(job: co.ServedJob) -> int:
        for call, error, message in calls:
            with pytest.raises(error, match=message):
                call(job)
        return len(calls)

    assert run(runtime, handler) == len(calls)


# What a stage returns


def test_tensors_are_moved_wherever_they_are_in_what_a_stage_returns() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    from coresident.serving.borrowing import _moved

    class Output(NamedTuple):
        hidden: Any
        name: str

    @dataclass(frozen=True)
    class Record:
        tensor: Any
        others: list[Any] = field(default_factory=list)

    class Model(OrderedDict):  # type: ignore[type-arg]
        pass

    one, other = torch.ones(2), torch.zeros(1)
    given = {
        "tuple": (one, "text", [other, {"deep": one}]),
        "named": Output(one, "name"),
        "record": Record(one, [other]),
        "model": Model(hidden=one),
        "none": None,
    }
    # To a place that any machine has, and that is not where they are.
    meta = torch.device("meta")
    moved = _moved(given, meta, torch.Tensor, {})
    assert moved["tuple"][0].device == moved["tuple"][2][1]["deep"].device == meta
    assert (moved["tuple"][1], type(moved["named"]), moved["named"].name) == (
        "text",
        Output,
        "name",
    )
    assert moved["named"].hidden.device == moved["record"].others[0].device == meta
    assert (type(moved["record"]), type(moved["model"])) == (Record, Model)
    assert moved["model"]["hidden"].device == meta
    assert given["record"].tensor is one, "what was given has changed"  # type: ignore[union-attr]
    assert _moved(given, one.device, torch.Tensor, {}) is given


def test_outputs_of_models_are_moved_as_what_they_are() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    outputs = pytest.importorskip("transformers.modeling_outputs")
    from coresident.serving.borrowing import _moved

    given = outputs.BaseModelOutput(last_hidden_state=torch.ones(1), hidden_states=(torch.ones(1),))
    moved = _moved(given, torch.device("meta"), torch.Tensor, {})
    assert isinstance(moved, outputs.BaseModelOutput)
    assert moved.last_hidden_state.device.type == moved.hidden_states[0].device.type == "meta"
    assert moved["last_hidden_state"] is moved.last_hidden_state


def test_what_is_part_of_itself_and_what_is_there_twice(runtime: co.Runtime) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    from coresident.serving.borrowing import _moved

    loop: list[Any] = [1]
    loop.append(loop)
    assert run(runtime, lambda job: job.run_borrowed(lambda: loop))[0] == 1
    pair = [torch.ones(1)]
    moved = _moved((pair, pair), torch.device("meta"), torch.Tensor, {})
    assert moved[0] is moved[1]


@pytest.mark.parametrize("grad", [False, True])
def test_handlers_have_the_grad_mode_that_was_asked_for(runtime: co.Runtime, grad: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

    def handler(_job: co.ServedJob) -> bool:
        recorded: bool = (torch.ones(1, requires_grad=True) * 2).requires_grad
        # As code that forgets to put it back does.
        torch.set_grad_enabled(not grad)
        return recorded

    with runtime.serve(handler, devices="virtual:0", grad=grad) as server:
        assert [server.queue.submit(b"").result(LONG) for _ in range(3)] == [grad] * 3
    assert torch.is_grad_enabled()
