"""The threads of a WorkerPool.

They are plain Python threads around a loop in Python, so that ``threading``, debuggers and
tracebacks see them as such, and no frame of the core lies below the code of a task.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from coresident import _core

# Whoever serves, and what: read and changed by single calls, so that no lock is left in a child.
_threads: dict[threading.Thread, _core.Lane] = {}


def start(lane: _core.Lane, torch_threads: int | None, workers: int) -> None:
    """Starts the thread of a lane that has none."""
    thread = threading.Thread(
        target=_serve,
        args=(lane, torch_threads, workers),
        name=f"worker {lane.device}",
        daemon=True,
    )
    _threads[thread] = lane
    try:
        thread.start()
    except BaseException:
        # Ctrl-C may come when the thread runs already: then it takes itself out.
        if thread.ident is None:
            _threads.pop(thread, None)
        raise


def finish_all() -> None:
    """Lets every worker finish what it has been given, and waits for it: the interpreter exits."""
    finished: set[threading.Thread] = set()
    # A task that runs may make a pool of its own.
    while unfinished := {
        thread: lane for thread, lane in _threads.copy().items() if thread not in finished
    }:
        for lane in unfinished.values():
            lane.drain()
        for thread in unfinished:
            if thread.ident is not None:
                thread.join()
        finished.update(unfinished)


def entered_child() -> None:
    """A forked child has none of its parent's threads."""
    _threads.clear()


def _serve(lane: _core.Lane, torch_threads: int | None, workers: int) -> None:
    try:
        if lane.serve():
            _run_tasks(lane, torch_threads, workers)
    except BaseException as error:
        # Thrown into this thread from outside, between two lines of the loop: it is the task's that
        # was in hand, and must not take the lane with it.
        if not lane.abort(error):
            raise
    finally:
        rest = lane.leave()
        _threads.pop(threading.current_thread(), None)
        if rest is not None:
            start(rest, torch_threads, workers)


def _run_tasks(lane: _core.Lane, torch_threads: int | None, workers: int) -> None:
    take, succeed, fail, set_pin = lane.take, lane.succeed, lane.fail, lane.set_pin
    torch_is_ready = False
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
            continue
        try:
            context.run(set_pin, pin)
            if not torch_is_ready and "torch" in sys.modules:
                torch_is_ready = _prepare_torch(lane.device, torch_threads, workers)
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
        else:
            # An argument's end may need what the caller holds: it comes before the caller's wake.
            prepare = context = pin = function = args = kwargs = None
            succeed(value)
            if future is not None:
                future.set_result(value)
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
