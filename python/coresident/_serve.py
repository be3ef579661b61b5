"""The threads of a WorkerPool.

They are plain Python threads around a loop in Python, so that ``threading``, debuggers and
tracebacks see them as such, and no frame of the core lies below the code of a task.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Any, NamedTuple

from coresident import _core

_finishing = False


class _Worker(threading.Thread):
    """A lane's thread. ``threading`` itself is the list of them, also in a forked child."""

    def __init__(self, lane: _core.Lane, torch_threads: int | None, workers: int) -> None:
        # Nobody waits for daemons once the interpreter has begun to join its threads.
        super().__init__(name=f"worker {lane.device}", daemon=not _finishing)
        self.lane = lane
        self._options = torch_threads, workers

    def run(self) -> None:
        """Serves until the lane is closed and empty."""
        lane, options = self.lane, self._options
        try:
            if lane.serve():
                _run_tasks(lane, *options)
        except BaseException as error:
            # Thrown into this thread from outside, between two lines of the loop: it is the task's
            # that was in hand, and must not take the lane with it.
            if not lane.abort(error):
                raise
        finally:
            rest = lane.leave()
            if rest is not None:
                start(rest, *options)


def start(lane: _core.Lane, torch_threads: int | None, workers: int) -> None:
    """Starts the thread of a lane that has none."""
    _Worker(lane, torch_threads, workers).start()
    if _finishing:
        lane.drain()


def finish_all() -> None:
    """Lets every worker finish what it has been given, and waits for it: the interpreter exits."""
    global _finishing
    _finishing = True
    # A task that runs may make a pool of its own.
    while workers := _others():
        for worker in workers:
            worker.lane.drain()
        for worker in workers:
            _join(worker)


def _others() -> list[_Worker]:
    """Every other worker that is alive. A child that a task has forked goes on in a worker."""
    here = threading.current_thread()
    return [one for one in threading.enumerate() if isinstance(one, _Worker) and one is not here]


def _join(worker: _Worker) -> None:
    while worker.ident is None and worker in threading.enumerate():
        time.sleep(0.001)  # somebody is starting it right now
    if worker.ident is not None:
        worker.join()


def _run_tasks(lane: _core.Lane, torch_threads: int | None, workers: int) -> None:
    take, succeed, fail, set_pin = lane.take, lane.succeed, lane.fail, lane.set_pin
    torch_is_ready = False
    if "torch" not in sys.modules and find_spec("torch") is None:
        lane.stay_near()
    broken: _Broken | None = None
    while (task := take()) is not None:
        context: Any
        pin: Any
        function: Any
        args: Any
        kwargs: Any
        prepare, torch_mode, context, pin, function, args, kwargs, future = task
        del task
        if future is not None and not future.set_running_or_notify_cancel():
            succeed(None)
            lane.put_down()
            continue
        try:
            context.run(set_pin, pin)
            if not torch_is_ready and "torch" in sys.modules:
                torch_is_ready = _prepare_torch(lane.device, torch_threads, workers)
                if torch_is_ready:
                    # Not before: whoever loads torch has the process's threads counted by where he
                    # may run.
                    lane.stay_near()
            if prepare is not None:
                (on_start,) = prepare
                broken = None if on_start is None else _prepare(on_start, context, lane.device)
                del on_start
            if broken is not None:
                raise broken.error.with_traceback(broken.traceback)
            if torch_mode:
                function = _in_torch_mode(torch_mode, function)
            if kwargs is None:
                value = context.run(function, *args)
            else:
                value = context.run(function, *args, **kwargs)
        except BaseException as error:  # whatever it is, it belongs to the caller
            prepare = context = pin = function = args = kwargs = None
            fail(error)
            if future is not None:
                future.set_exception(error)
                lane.put_down()
        else:
            # An argument's end may need what the caller holds: it comes before the caller's wake.
            prepare = context = pin = function = args = kwargs = None
            succeed(value)
            if future is not None:
                future.set_result(value)
                lane.put_down()
            del value
        # Nothing of a task stays alive while the worker is idle.
        del prepare, context, pin, function, args, kwargs, future


class _Broken(NamedTuple):
    """A start hook's error, and where it was raised: each raise of it would add to that."""

    error: BaseException
    traceback: TracebackType | None


def _prepare(
    on_start: Callable[[_core.Device], object], context: Any, device: _core.Device
) -> _Broken | None:
    """Runs the start hook. Its error is the outcome of every task until a restart."""
    try:
        context.copy().run(on_start, device)
    except BaseException as error:  # whatever it is, it belongs to the callers
        return _Broken(error, error.__traceback__)
    return None


def _prepare_torch(device: _core.Device, threads: int | None, workers: int) -> bool:
    """Gives this thread its share of torch's intra-op threads, and its device.

    torch is somebody else's import, perhaps one that is still under way: then later.
    """
    torch: Any = sys.modules["torch"]
    if getattr(torch, "get_num_threads", None) is None or not hasattr(torch, "cuda"):
        return False
    total = torch.get_num_threads()
    torch.set_num_threads(threads or max(1, total // workers))
    _restore_default(torch, total)
    module = getattr(torch, device.type, None)
    if device.type in ("cuda", "xpu") and module is not None and module.is_available():
        module.set_device(device.index)
    return True


def _restore_default(torch: Any, total: int) -> None:
    """What ``set_num_threads`` sets is this thread's, but also the default of threads to come."""
    thread = threading.Thread(target=torch.set_num_threads, args=(total,), daemon=True)
    thread.start()
    thread.join()


def _in_torch_mode(mode: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under the submitter's ``no_grad`` or ``inference_mode``."""
    torch: Any = sys.modules["torch"]

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad() if mode == 1 else torch.inference_mode():
            return function(*args, **kwargs)

    return run
