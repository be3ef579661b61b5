"""Threads that go on step by step, in the order that a test says."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

Steps = Generator[None, None, Any]


class _Stepper:
    """A thread that runs a generator, one step each time it is told."""

    def __init__(self, steps: Steps, name: str) -> None:
        self._steps = steps
        self._told = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self.over = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self.over:
            self._told.acquire()
            try:
                next(self._steps)
            except StopIteration as stopped:
                self.value, self.over = stopped.value, True
            except BaseException as error:
                self.error, self.over = error, True
            self._done.release()

    def step(self) -> None:
        self._told.release()
        assert self._done.acquire(timeout=60), f"{self._thread.name} hangs"


def interleave(order: str, **threads: Steps) -> dict[str, Any]:
    """Runs each generator in a thread of its own, a step at a time: ``"aabb"`` is two steps of the one
    called ``a``, then two of ``b``; then all of them to their ends, in that order of first steps.

    Returns:
        What each returned, or the exception that ended it.
    """
    steppers = {name: _Stepper(steps, name) for name, steps in threads.items()}
    for name in order:
        assert not steppers[name].over, f"{name} is over: {steppers[name].error!r}"
        steppers[name].step()
    for name in dict.fromkeys(order):
        while not steppers[name].over:
            steppers[name].step()
    return {name: stepper.error or stepper.value for name, stepper in steppers.items()}
