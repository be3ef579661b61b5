"""What a run of the benches says: ours against the peers, and against the aims."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Table = list[Sequence[str]]


@dataclass(frozen=True)
class Row:
    """One bench: the seconds of one call, by this library, by a peer, or of the floor."""

    side: str
    what: str
    group: str
    case: str
    seconds: float


@dataclass(frozen=True)
class Aim:
    """At most so many seconds in the worst case of a bench, or so much of what a peer takes."""

    what: str
    group: str
    seconds: float | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        most = told(self.seconds) if self.seconds else f"{self.ratio:g} x the executor"
        return f"{self.what} <= {most}"


PIPELINED = "2,000 tasks, per task"
P99 = "acquire and release on 4 threads, 99th percentile"
AIMS = [
    Aim("lease", "lease", seconds=300e-9),
    Aim("lease beside asyncio", "lease", seconds=300e-9),
    Aim("borrow", "borrow, all idle", seconds=300e-9),
    Aim("borrow beside asyncio", "borrow, all idle", seconds=300e-9),
    Aim("borrow nothing", "borrow, all busy", seconds=300e-9),
    Aim("load lock", "lock pair", seconds=150e-9),
    Aim("load lock beside asyncio", "lock pair", seconds=150e-9),
    Aim("run", "round trip", seconds=8e-6),
    Aim("run", "round trip", ratio=0.5),
    Aim("post", PIPELINED, seconds=0.6e-6),
    Aim("submit result", "round trip", ratio=0.8),
    Aim("submit", PIPELINED, ratio=0.8),
    Aim("used", "what is used", seconds=100e-9),
    Aim("acquire", "acquire and release", seconds=250e-9),
    Aim("tensor", "a view of a tensor", seconds=250e-9),
    Aim("open", "open 2,000 tensors", seconds=1e-3),
    Aim("acquire among 4", P99, seconds=5e-6),
    Aim("first state dict", "2,000 tensors to torch", seconds=2000 * 1e-6),
    Aim("next state dict", "2,000 tensors to torch", seconds=2000 * 0.15e-6),
    Aim("release of a large one", "release", seconds=10e-6),
    Aim("replica", "the next module, 686 tensors", seconds=5e-3),
    Aim("queue in memory", "claim, finish and submit", seconds=50e-6),
    Aim("fault and unpin", "a resident block of 40 tensors, per tensor", seconds=1e-6),
]


def measured(benchmarks: Iterable[Any]) -> list[Row]:
    """The benches of a session that ran; their names begin with ours, peer or floor."""
    return [_row(bench) for bench in benchmarks if bench and not bench.has_error]


def _row(bench: Any) -> Row:
    _, side, what = bench.name.partition("[")[0].split("_", 2)
    case = (bench.param or "").replace("-", ", ")
    figure = getattr(bench.stats, bench.extra_info["figure"]) / bench.extra_info["calls"]
    seconds = bench.extra_info.get("seconds", figure)
    return Row(side, what.replace("_", " "), bench.group, case, seconds)


def tables(rows: list[Row]) -> list[tuple[str, Table]]:
    return [
        ("ours and peers, median (hogged: mean) per call", _ratios(rows)),
        ("aims, worst case of this run on a quiet interpreter", _aims(rows)),
        (f"floor of this machine, Python {platform.python_version()}", _floor(rows)),
    ]


def _pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    for peer in (row for row in rows if row.side == "peer"):
        for ours in rows:
            if ours.side == "ours" and (ours.group, ours.case) == (peer.group, peer.case):
                yield ours, peer


def _ratios(rows: list[Row]) -> Table:
    table: Table = [("group", "ours", "peer", "ours", "peer", "ratio")]
    for ours, peer in _pairs(rows):
        group = f"{ours.group}: {ours.case}"
        times = (told(ours.seconds), told(peer.seconds), f"{ours.seconds / peer.seconds:.2f}")
        table.append((group, ours.what, peer.what, *times))
    return table


def _aims(rows: list[Row]) -> Table:
    table: Table = [("aim", "measured", "")]
    for aim in AIMS:
        if aim.seconds:
            found = [row.seconds for row in rows if _is_meant(aim, row)]
            most, tell = aim.seconds, told
        else:
            pairs = [pair for pair in _pairs(rows) if _is_meant(aim, pair[0])]
            found = [ours.seconds / peer.seconds for ours, peer in pairs]
            most, tell = aim.ratio, "{:.2f} x".format
        if found:
            verdict = "met" if max(found) <= most else "missed"
            table.append((str(aim), tell(max(found)), verdict))
    return table


def _is_meant(aim: Aim, row: Row) -> bool:
    mine = row.side == "ours" and (row.what, row.group) == (aim.what, aim.group)
    return mine and "hogged" not in row.case


def _floor(rows: list[Row]) -> Table:
    floor = [row for row in rows if row.side == "floor"]
    return [("what", "median"), *((row.what, told(row.seconds)) for row in floor)]


def told(seconds: float) -> str:
    """A time as people read it, three digits."""
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def as_text(table: Table) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for at, row in enumerate(table):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if at == 0:
            yield "  ".join("-" * width for width in widths)


def as_markdown(tables: list[tuple[str, Table]]) -> str:
    lines = []
    for title, (head, *rest) in tables:
        lines += [f"### {title[0].upper()}{title[1:]}", ""]
        rule = ["---"] * len(head)
        lines += [f"| {' | '.join(row)} |" for row in (head, rule, *rest)]
        lines.append("")
    return "\n".join(lines)
