"""The threads of a WorkerPool.

They are plain Python threads around a loop in Python, so that ``threading``, debuggers and
tracebacks see them as such, and no frame of the core lies below the code of a task.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from coresident import _core

_threads: dict[threading.Thread, _core.Lane] = {}
_guard = threading.Lock()


def start(
    lane: _core.Lane,
    on_start: Callable[[_core.Device], object] | None,
    torch_threads: int | None,
    workers: int,
) -> None:
    """Starts the thread of a lane that has none."""
    thread = threading.Thread(
        target=_serve,
        args=(lane, on_start, torch_threads, workers),
        name=f"worker {lane.device}",
        daemon=True,
    )
    with _guard:
        _threads[thread] = lane
    try:
        thread.start()
    except BaseException:
        # Ctrl-C may come when the thread runs already: then the lane has its worker.
        if thread.ident is None:
            with _guard:
                _threads.pop(thread, None)
            lane.give_up()
        raise


def finish_all() -> None:
    """Lets every worker finish what it has been given, and waits for it: the interpreter exits."""
    with _guard:
        threads = list(_threads.items())
    for _, lane in threads:
        lane.drain()
    for thread, _ in threads:
        thread.join()


def _serve(
    lane: _core.Lane,
    on_start: Callable[[_core.Device], object] | None,
    torch_threads: int | None,
    workers: int,
) -> None:
    try:
        lane.serve()
        _run_tasks(lane, on_start, torch_threads, workers)
    except BaseException as error:
        # Thrown into this thread from outside, between two lines of the loop: it is the task's that
        # was in hand, and must not take the lane with it.
        if not lane.abort(error):
            raise
    finally:
        needs_another = lane.leave()
        with _guard:
            _threads.pop(threading.current_thread(), None)
        if needs_another:
            start(lane, on_start, torch_threads, workers)


def _run_tasks(
    lane: _core.Lane,
    on_start: Callable[[_core.Device], object] | None,
    torch_threads: int | None,
    workers: int,
) -> None:
    take, succeed, fail, set_pin = lane.take, lane.succeed, lane.fail, lane.set_pin
    torch_is_ready = False
    broken: BaseException | None = None
    while (task := take()) is not None:
        context: Any
        pin: Any
        function: Any
        args: Any
        kwargs: Any
        unprepared, torch_mode, context, pin, function, args, kwargs, future = task
        del task
        if future is not None and not future.set_running_or_notify_cancel():
            succeed(None)
            continue
        try:
            context.run(set_pin, pin)
            if not torch_is_ready and "torch" in sys.modules:
                torch_is_ready = _prepare_torch(lane.device, torch_threads, workers)
            if unprepared:
                broken = None
                if on_start is not None:
                    broken = _prepare(on_start, context, lane.device)
            if broken is not None:
                raise broken
            if torch_mode:
                function = _in_torch_mode(torch_mode, function)
            if kwargs is None:
                value = context.run(function, *args)
            else:
                value = context.run(function, *args, **kwargs)
        except BaseException as error:  # whatever it is, it belongs to the caller
            context = pin = function = args = kwargs = None
            if future is not None:
                future.set_exception(error)
            fail(error)
        else:
            # An argument's end may need what the caller holds: it comes before the caller's wake.
            context = pin = function = args = kwargs = None
            if future is not None:
                future.set_result(value)
            succeed(value)
            del value
        # Nothing of a task stays alive while the worker is idle.
        del context, pin, function, args, kwargs, future


def _prepare(
    on_start: Callable[[_core.Device], object], context: Any, device: _core.Device
) -> BaseException | None:
    """Runs the start hook. Its error is the outcome of every task until a restart."""
    try:
        context.copy().run(on_start, device)
    except BaseException as error:  # whatever it is, it belongs to the callers
        return error
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
