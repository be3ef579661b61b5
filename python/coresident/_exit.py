"""Registers, once, what the library does when the process forks or ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading

from coresident import _core, _hints, _serve


def _before_threads_are_joined() -> None:
    # The main thread's code is over: what it still holds would keep other threads waiting.
    _core.release_this_thread()
    # Jobs give tasks to workers.
    if (serving := sys.modules.get("coresident.serving._group")) is not None:
        serving.finish_all()
    _serve.finish_all()
    _hints.finish_all()


def _entered_child() -> None:
    _core.entered_child()
    atexit.register(_keep, _core.LastMoment())


def _keep(last_moment: _core.LastMoment) -> None:
    """Does nothing: what counts is when ``atexit`` lets go of it."""


# As concurrent.futures does: before threading joins what is not a daemon, else at exit.
getattr(threading, "_register_atexit", atexit.register)(_before_threads_are_joined)
# Other callbacks may wait for threads that wait here, whether they were registered before or after:
# the interpreter is closed to threads when all have run, which is when atexit drops this argument.
atexit.register(_keep, _core.LastMoment())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_core.about_to_fork,
        after_in_parent=_core.has_forked,
        after_in_child=_entered_child,
    )
