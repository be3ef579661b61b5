"""Live bars of the jobs of a queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import coresident as co
from coresident.display import progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


def watch(
    queue: co.JobQueue,
    *,
    user: str | None = None,
    describe: Callable[[co.Job], str] | None = None,
    console: Console | None = None,
) -> Watch:
    """Shows a bar for each job of a queue that runs, and one for all of them, from now on::

        with coresident.display.watch(queue):
            ...

    In a terminal and in a notebook the bars are live, and a line stays for each job that failed or
    was cancelled. Where the output is neither, nothing is shown. Does not wait: a thread of its own
    shows what happens, and never keeps a job from going on.

    Args:
        queue: Whose jobs.
        user: Those of one user alone.
        describe: Says what a job is, in a few words; by default its number, and its batch.
        console: Where to show it; the standard output if ``None``.

    Returns:
        What ends it, to be used with ``with`` or closed. It also ends with the queue.

    Raises:
        InvalidTypeError: an argument is of a wrong type.
        ImportError: rich is not installed.
        ForkedError: the queue was made before a fork.
    """
    if not isinstance(queue, co.JobQueue):
        raise co.InvalidTypeError(f"queue is a JobQueue, not {type(queue).__name__}")
    if describe is not None and not callable(describe):
        given = type(describe).__name__
        raise co.InvalidTypeError(f"describe is a function of a job, not {given}")
    return Watch(queue, user, describe or _number, console)


class Watch:
    """Live bars, until they are closed. Made by :func:`watch`."""

    def __init__(
        self,
        queue: co.JobQueue,
        user: str | None,
        describe: Callable[[co.Job], str],
        console: Console | None,
    ) -> None:
        from rich import get_console

        self._console = console or get_console()
        self._describe = describe
        self._progress = progress.bars(self._console)
        self._bars: dict[int, TaskID] = {}
        self._done = 0
        self._events = queue.subscribe(user=user)
        # Those that were there before; what has happened to them since is among the events.
        known = (*queue.jobs(user=user, state="queued"), *queue.jobs(user=user, state="running"))
        self._open = {job.id for job in known}
        self._all = self._progress.add_task(
            "all jobs", total=len(self._open), device="", user="", stage=""
        )
        for job in known:
            if job.running():
                self._begin(job, "" if job.device is None else job.device.label)
        self._thread = threading.Thread(target=self._follow, name="coresident bars", daemon=True)
        try:
            self._progress.start()
            self._thread.start()
        except BaseException:  # Ctrl-C: the cursor is hidden already
            self._events.close()
            self._progress.stop()
            raise

    def close(self) -> None:
        """Ends it. Again without effect."""
        self._events.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._progress.stop()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _follow(self) -> None:
        for event in self._events:
            self._show(event)

    def _show(self, event: co.Event) -> None:
        job, kind = event.job, event.kind
        if kind == "queued":
            self._end(job.id)
            self._open.add(job.id)
        elif kind in ("finished", "failed", "cancelled"):
            self._end(job.id)
            if job.id in self._open:
                self._open.discard(job.id)
                self._done += 1
            if kind != "finished":
                self._tell(event)
        elif (bar := self._bars.get(job.id)) is None:
            self._begin(job, event.label or "")
        elif kind == "stage":
            self._progress.update(bar, stage=event.stage)
        elif kind == "step":
            self._progress.update(bar, total=event.steps, completed=event.step)
        self._progress.update(self._all, total=self._done + len(self._open), completed=self._done)

    def _begin(self, job: co.Job, device: str) -> None:
        what = self._describe(job)
        self._bars[job.id] = self._progress.add_task(
            what, total=None, device=device, user=job.user, stage=""
        )

    def _end(self, number: int) -> None:
        bar = self._bars.pop(number, None)
        if bar is not None:
            self._progress.remove_task(bar)

    def _tell(self, event: co.Event) -> None:
        """A line that stays, of a job that came to nothing."""
        if self._progress.disable:
            return
        where = "" if event.device is None else f" on {event.device}"
        said = f"{event.user}: {self._describe(event.job)}{where}: {event.error or event.kind}"
        style = "red" if event.kind == "failed" else "yellow"
        self._progress.console.print(said, style=style, markup=False, highlight=False)


def _number(job: co.Job) -> str:
    return f"job {job.id}" + ("" if job.batch is None else f" of {job.batch}")
