"""Where bytes and time went: a table, and a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from coresident import _core
from coresident._core import Hint, Recording
from coresident.display import _memory
from coresident.errors import InvalidTypeError, InvalidValueError
from coresident.trace.reading import Source, read
from coresident.trace.replaying import hints as hints_of

_KIND = {name: number for number, name in enumerate(Recording.kinds)}
_CAUSE = {name: number for number, name in enumerate(Recording.causes)}
_HEADS = (
    "device",
    "model",
    "wanted",
    "copies",
    "first",
    "again",
    "other",
    "evicted",
    "time",
    "share",
    "hidden",
)


@dataclass(frozen=True)
class Row:
    """What became of one model on one device.

    Attributes:
        device: The device.
        component: The model's key.
        requests: How often it, or a part of it, was wanted there.
        copies: How often something of it was copied there.
        first: Bytes copied because they had never been there.
        again: Bytes copied because they had left.
        other: Bytes copied for other causes: written to, streamed, prefetched.
        evicted: Bytes that have left.
        seconds: How long copying took.
        waited: How long was waited for bytes, in seconds.
        retries: How often the device was full, and it was tried again.
        share: The share of the time of jobs on the device that copying took, 0 to 1; ``None`` if
            that is not known.
        stalled: How long work on its blocks waited for copies, if it was streamed, in seconds.
        hidden: The share of copying behind which it computed, 0 to 1; ``None`` if it was not
            streamed.
    """

    device: str
    component: str
    requests: int
    copies: int
    first: int
    again: int
    other: int
    evicted: int
    seconds: float
    waited: float
    retries: int
    share: float | None
    stalled: float
    hidden: float | None


@dataclass(frozen=True)
class Explanation:
    """Where bytes and time went. ``str()`` of it is a table; a notebook shows it with a picture.

    Attributes:
        recording: What it is made of.
        rows: One for each model on each device; those with the most copied bytes first.
        job_seconds: How long some job ran on each device.
        hints: What would have spared copies.
    """

    recording: Recording
    rows: list[Row]
    job_seconds: dict[str, float]
    hints: list[Hint] = field(default_factory=list)

    def svg(self, title: str = "") -> str:
        """A picture: for each device what was in its memory, who used it, and what was copied.

        Args:
            title: What stands above.

        Raises:
            InvalidTypeError: ``title`` is no text.
        """
        if not isinstance(title, str):
            raise InvalidTypeError(f"title is a text, not {type(title).__name__}")
        return _memory.draw(_lanes(self), self.recording.seconds, title)

    def save_svg(self, path: str | Path, title: str = "") -> None:
        """Writes the picture to a file.

        Raises:
            InvalidTypeError: an argument is of a wrong type.
            OSError: the file cannot be written.
        """
        if not isinstance(path, (str, Path)):
            raise InvalidTypeError(f"path is the path of a file, not {type(path).__name__}")
        Path(path).write_text(self.svg(title), encoding="utf-8")

    def __str__(self) -> str:
        table = [_HEADS, *map(_cells, self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(_HEADS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join([*self._summary(), *lines, *(f"hint: {hint}" for hint in self.hints)])

    def _summary(self) -> Iterable[str]:
        for device in sorted({*self.job_seconds, *(row.device for row in self.rows)}):
            seconds = self.job_seconds.get(device, 0.0)
            own = [row for row in self.rows if row.device == device]
            copied = sum(row.first + row.again + row.other for row in own)
            took, again = sum(row.seconds for row in own), sum(row.again for row in own)
            line = f"{device}: {_core.size(copied)} copied, {_core.size(again)} of it again"
            if seconds > 0:
                share = min(took / seconds, 1)
                line += f", in {share:.0%} of {_seconds(seconds)} of jobs"
            if (hidden := _hidden_of(own)) is not None:
                line += f", {hidden:.0%} of streaming hidden"
            yield line
        if not self.rows:
            yield "nothing was copied to any device"
        if self.recording.lost:
            lost = self.recording.lost
            yield f"{lost} earlier events are not kept: sums have them, shares of time do not"

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in _HEADS)
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:{'left' if column < 2 else 'right'}'>{escape(cell)}</td>"
                for column, cell in enumerate(_cells(row))
            )
            + "</tr>"
            for row in self.rows
        )
        told = "".join(f"<p>{escape(line)}</p>" for line in self._summary())
        hints = "".join(f"<p><b>hint:</b> {escape(str(hint))}</p>" for hint in self.hints)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<div>{told}{self.svg()}{table}{hints}</div>"


def explain(source: Source, *, hints: list[Hint] | None = None) -> Explanation:
    """Where bytes and time went in a timeline. Takes seconds for thousands of requests.

    Args:
        source: A timeline, or the path of a recorded one.
        hints: What would have spared copies; ``None`` finds out.

    Raises:
        InvalidTypeError: it is nothing of that.
        InvalidValueError: it is no recorded timeline; a trace has no times.
        OSError: the file cannot be read.
        ForkedError: the timeline is another process's.
    """
    recording = read(source)
    if isinstance(recording, str):
        raise InvalidValueError(
            "this is no recorded timeline: traces have no times, which is what is explained"
        )
    found = hints_of(recording) if hints is None else list(hints)
    job_seconds = {name: recording.job_seconds(name) for name in recording.requested()}
    return Explanation(recording, _rows(recording, job_seconds), job_seconds, found)


def _rows(recording: Recording, job_seconds: dict[str, float]) -> list[Row]:
    names, counters = recording.names, recording.counters
    rows = []
    for device, component in dict.fromkeys(
        zip(counters["device"].tolist(), counters["component"].tolist(), strict=True)
    ):
        own = counters[(counters["device"] == device) & (counters["component"] == component)]
        total = partial(_total, own)
        name, seconds = names[device], total("seconds", "copy")
        of = job_seconds.get(name, 0.0)
        rows.append(
            Row(
                device=name,
                component=names[component],
                requests=int(total("times", "request") + total("times", "part")),
                copies=int(total("times", "copy")),
                first=int(total("bytes", "copy", "first use")),
                again=int(total("bytes", "copy", "came back")),
                other=int(total("bytes", "copy", "renewed", "streamed", "prefetched")),
                evicted=int(total("bytes", "evict")),
                seconds=seconds,
                waited=total("seconds", "wait"),
                retries=int(total("times", "retry")),
                # What is lost has no times.
                share=min(seconds / of, 1.0) if of > 0 and not recording.lost else None,
                stalled=total("seconds", "stall"),
                hidden=_hidden(total("seconds", "stall"), seconds)
                if total("times", "visit")
                else None,
            )
        )
    rows.sort(key=lambda row: (row.device, -(row.first + row.again + row.other), row.component))
    return rows


def _hidden_of(rows: list[Row]) -> float | None:
    """The share of copying of streamed models behind which they computed."""
    streamed = [row for row in rows if row.hidden is not None]
    if not streamed:
        return None
    return _hidden(sum(row.stalled for row in streamed), sum(row.seconds for row in streamed))


def _hidden(stalled: float, copying: float) -> float:
    return max(0.0, 1.0 - stalled / copying) if copying > 0 else 1.0


def _total(counters: Any, what: str, kind: str, *causes: str) -> float:
    """A sum over counters of a kind, and of some causes if any are named."""
    chosen = counters["kind"] == _KIND[kind]
    numbers = [_CAUSE[cause] for cause in causes or _CAUSE]
    among = [cause in numbers for cause in counters["cause"].tolist()]
    return float(counters[what][chosen & among].sum())


def _cells(row: Row) -> tuple[str, ...]:
    def size(nbytes: int) -> str:
        return _core.size(nbytes) if nbytes else "-"

    return (
        row.device,
        row.component,
        str(row.requests),
        str(row.copies),
        size(row.first),
        size(row.again),
        size(row.other),
        size(row.evicted),
        _seconds(row.seconds) if row.copies else "-",
        "-" if row.share is None else f"{row.share:.0%}",
        "-" if row.hidden is None else f"{row.hidden:.0%}",
    )


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _lanes(explanation: Explanation) -> list[_memory.Lane]:
    """What the picture shows of each device."""
    recording, names = explanation.recording, explanation.recording.names
    events = recording.events
    lanes = []
    for device in recording.devices:
        own = events[events["device"] == names.index(device)]
        settings = [s for s in recording.settings if s["device"] == device]
        lane = _memory.Lane(device, limit=settings[-1]["limit"] if settings else 0)
        rows = [row for row in explanation.rows if row.device == device]
        seconds = explanation.job_seconds.get(device, 0.0)
        lane.copied = sum(row.first + row.again + row.other for row in rows)
        lane.again = sum(row.again for row in rows)
        if seconds > 0 and not recording.lost:
            lane.share = min(sum(row.seconds for row in rows) / seconds, 1.0)
        lane.hidden = _hidden_of(rows)
        open_since: dict[int, list[float]] = {}
        for event in own:
            kind, component = int(event["kind"]), int(event["component"])
            name, at, until = (
                names[component],
                float(event["at"]),
                float(event["at"] + event["took"]),
            )
            if kind == _KIND["request"]:
                open_since.setdefault(component, []).append(until)
            elif kind == _KIND["request ends"] and open_since.get(component):
                lane.uses.append((name, open_since[component].pop(), at))
            elif kind == _KIND["copy"]:
                cause = recording.causes[int(event["cause"])]
                nbytes = int(event["bytes"])
                lane.copies.append((name, at, until, nbytes, cause))
                if cause != "renewed":
                    lane.changes.append((until, name, nbytes))
            elif kind == _KIND["visit"]:
                lane.visits.append((name, at, until, int(event["bytes"])))
            elif kind == _KIND["stall"]:
                lane.stalls.append((name, at, until))
            elif kind == _KIND["evict"]:
                lane.changes.append((at, name, -int(event["bytes"])))
        for component, since in open_since.items():
            lane.uses.extend((names[component], begun, recording.seconds) for begun in since)
        if len(own):
            lane.changes.sort(key=lambda change: change[0])
            lanes.append(lane)
    return lanes
