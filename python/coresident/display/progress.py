"""A live progress bar for each job that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


def bars(console: Console) -> Progress:
    """Bars with a device, a user, what it is, and its stage; shown where somebody looks."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    return Progress(
        TextColumn("{task.fields[device]}", style="cyan", markup=False),
        TextColumn("{task.fields[user]}", style="bold", markup=False),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}", style="dim", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Elapsed(),
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),
    )


@dataclass(frozen=True)
class Bar:
    """The bar of one job."""

    _progress: Progress
    _task: TaskID

    def advance(self, steps: int = 1) -> None:
        """Notes that so many steps more are done. Does not wait."""
        self._progress.advance(self._task, steps)

    def show_device(self, device: str) -> None:
        """Shows another device, or several, from now on. Does not wait."""
        self._progress.update(self._task, device=device)


class JobProgress:
    """A bar for each job that runs, with its device, and one for all of them.

    Any thread may use it. Nothing is shown where the output is not a terminal or a notebook.

    Args:
        jobs: How many there will be.
        console: Where to show it; the standard output if ``None``.

    Example:
        >>> with JobProgress(jobs=9) as progress:
        ...     with progress.job("cuda:0", "ann", "a handwritten seven", steps=20) as bar:
        ...         bar.advance()
    """

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        from rich import get_console

        self._progress = bars(console or get_console())
        self._all = self._progress.add_task("all jobs", total=jobs, device="", user="", stage="")

    @contextmanager
    def job(self, device: str, user: str, what: str, steps: int) -> Iterator[Bar]:
        """Shows a bar of so many steps while the block runs. Does not wait."""
        task = self._progress.add_task(what, total=steps, device=device, user=user, stage="")
        try:
            yield Bar(self._progress, task)
            self._progress.advance(self._all)
        finally:
            self._progress.remove_task(task)

    def __enter__(self) -> JobProgress:
        try:
            self._progress.start()
        except BaseException:  # Ctrl-C: the cursor is hidden already
            self._progress.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
