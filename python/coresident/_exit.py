"""Registers, once, what the library does when the process forks or ends."""

from __future__ import annotations

import atexit
import os
import threading

from coresident import _core, _serve


def _before_threads_are_joined() -> None:
    # The main thread's code is over: what it still holds would keep other threads waiting.
    _core.release_this_thread()
    _serve.finish_all()


# As concurrent.futures does: before threading joins what is not a daemon, else at exit.
getattr(threading, "_register_atexit", atexit.register)(_before_threads_are_joined)
atexit.register(_core.begin_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core.entered_child)
