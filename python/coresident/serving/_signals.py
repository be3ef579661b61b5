"""What Ctrl-C and SIGTERM do to whoever serves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from coresident import _core


@contextlib.contextmanager
def signals(wake: _core.CancelToken) -> Iterator[None]:
    """Has the first Ctrl-C or SIGTERM in the block raise a token, and the next one an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        if not wake.cancel():
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Somebody else's handler has its own idea of what is to happen.
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                before[number] = signal.signal(number, handle)
        yield
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
