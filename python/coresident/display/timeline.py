"""Who worked on which device, and when."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter

import coresident as co
from coresident.display import _svg
from coresident.display.span import Span


@dataclass
class Timeline:
    """Spans of work on some devices, from any number of threads.

    A device is busy while a span lasts, also where the work waits for the interpreter or a core.
    In a notebook the timeline shows itself as a picture.

    Attributes:
        devices: A lane each, in this order.
        spans: What has been recorded, in the order in which it ended.

    Example:
        >>> timeline = Timeline(pool.devices)
        >>> with timeline.record(device, user="ann", job="seven", stage="vae"):
        ...     image = vae.decode(latents)
        >>> timeline.busy(device)
        0.97
    """

    devices: list[co.Device]
    spans: list[Span] = field(default_factory=list, repr=False)
    _began: float = field(default_factory=time.perf_counter, repr=False)

    @contextmanager
    def record(
        self,
        device: co.Device,
        *,
        user: str,
        job: str,
        stage: str,
        borrowed: bool = False,
        number: int = 0,
    ) -> Iterator[None]:
        """Records what the block does as one span, unless it raises. Does not wait."""
        start = time.perf_counter() - self._began
        yield
        end = time.perf_counter() - self._began
        span = Span(str(device), user, job, stage, start, end, borrowed, number)
        self.spans.append(span)

    def mark_cancelled(self, number: int) -> None:
        """Says that the job of a number was cancelled: its last span shows it. Does not wait."""
        own = [at for at, span in enumerate(self.spans) if span.number == number]
        if own:
            last = max(own, key=lambda at: self.spans[at].end)
            self.spans[last] = replace(self.spans[last], cancelled=True)

    @property
    def start(self) -> float:
        """When the first span starts, in seconds; 0 without one."""
        return min((span.start for span in self.spans), default=0.0)

    @property
    def seconds(self) -> float:
        """From the start of the first span to the end of the last."""
        return max((span.end for span in self.spans), default=0.0) - self.start

    def busy(self, device: co.Device) -> float:
        """The share of the time, 0 to 1, in which somebody worked on the device."""
        return self._share(_union(self._of(device)))

    def busy_at_once(self) -> float:
        """The share of the time, 0 to 1, in which somebody worked on every device at once."""
        if not self.devices:
            return 0.0
        common = [(self.start, self.start + self.seconds)]
        for device in self.devices:
            common = _intersection(common, _union(self._of(device)))
        return self._share(common)

    def stages(self) -> list[Span]:
        """One span for each stage of each job on each device, however many calls it took."""
        key = attrgetter("device", "user", "number", "job", "stage", "borrowed")
        grouped = [list(spans) for _, spans in groupby(sorted(self.spans, key=key), key)]
        merged = [
            replace(
                spans[0],
                start=min(span.start for span in spans),
                end=max(span.end for span in spans),
                cancelled=any(span.cancelled for span in spans),
            )
            for spans in grouped
        ]
        return sorted(merged, key=attrgetter("start"))

    def svg(self, title: str = "") -> str:
        """A picture: a lane for each device, a bar for each stage, a colour for each user."""
        lanes = [
            (str(device), self.busy(device), [s for s in self.stages() if s.device == str(device)])
            for device in self.devices
        ]
        return _svg.draw(lanes, self.start, self.seconds, title)

    def _repr_svg_(self) -> str:
        return self.svg()

    def _of(self, device: co.Device) -> list[Span]:
        return [span for span in self.spans if span.device == str(device)]

    def _share(self, intervals: Iterable[tuple[float, float]]) -> float:
        total = self.seconds
        return sum(end - start for start, end in intervals) / total if total else 0.0


def _union(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """The times that at least one of the spans covers, in order and apart."""
    apart: list[tuple[float, float]] = []
    for span in sorted(spans, key=attrgetter("start")):
        if apart and span.start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(apart[-1][1], span.end))
        else:
            apart.append((span.start, span.end))
    return apart


def _intersection(
    one: list[tuple[float, float]], other: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """The times in both, each in order and apart."""
    common, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        start, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if start < end:
            common.append((start, end))
        if one[i][1] <= other[j][1]:
            i += 1
        else:
            j += 1
    return common
