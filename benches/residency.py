"""What policies of residency move, beside the least possible: ``python benches/residency.py``.

Replays the traces in ``benches/traces``; prints a table, and draws it where ``--out`` says. Then
come tables of the held-out traces that ``benches/pipelines.py`` makes: no number is from them.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import coresident as co
import pipelines
from coresident import _core, trace

QUEUED = "looking ahead, as the queue foretells"
TRACES = Path(__file__).parent / "traces"
#: What is drawn: a policy, how many jobs it knows, what that is called, and its colour.
DRAWN = [
    ("look-ahead", 2, "looking ahead, two jobs known", "#1d4ed8"),
    ("look-ahead", 0, "looking ahead, none known", "#93c5fd"),
    ("known", 2, "what is known, then LRU, two jobs known", "#047857"),
    ("lru", 0, "LRU", "#f59e0b"),
    ("smallest-first", 0, "smallest first", "#9ca3af"),
    ("gdsf", 0, "GDSF", "#d8b4fe"),
    ("always-evict", 0, "everything else leaves", "#ef4444"),
]


def queued(file: Path) -> int:
    """Bytes moved when a queue has all the jobs, and its forecast is all that a planner knows of
    them; one after the other on an imagined device."""
    found = json.loads(file.read_text())
    jobs = [list(job) for _, job in groupby(found["requests"], itemgetter("job"))]
    (device,) = co.virtual_devices(1)
    planner, queue = co.Planner(device), co.JobQueue(devices=[device], order="fifo", slack=0)
    connection = _core.connect(queue, [planner], [])
    for job in jobs:
        queue.submit(b"", needs=[request["component"] for request in job])
    resident: dict[str, int] = {}
    moved = 0
    for job in jobs:
        with queue.claim(device) as claim, planner.job(claim.job.needs):
            for request in job:
                moved += serve(planner, resident, request, found["capacity_bytes"])
            claim.finish()
    connection.end()
    return moved


def serve(
    planner: co.Planner, resident: dict[str, int], request: dict[str, Any], capacity: int
) -> int:
    """Makes a component resident; returns the bytes that had to be copied for that."""
    key, nbytes = request["component"], request["bytes"]
    planner.used(key, nbytes)
    own = resident.pop(key, 0)
    room = capacity - request["working_bytes"]
    missing = max(0, sum(resident.values()) + nbytes - room)
    for victim in planner.order(sorted(resident)) if missing else []:
        leaves = min(missing, resident[victim])
        resident[victim] -= leaves
        missing -= leaves
        if resident[victim] == 0:
            del resident[victim]
            planner.left(victim)
    resident[key] = nbytes
    return max(0, nbytes - own)


def table(files: list[Path]) -> list[str]:
    """A row for each trace, as Markdown."""
    heads = ["trace", "least moved", QUEUED, *(name for *_, name, _ in DRAWN)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for file in files:
        done = [trace.replay(file, policy=policy, lookahead=jobs) for policy, jobs, *_ in DRAWN]
        cells = [done[0].name, f"{done[0].bound / 2**30:.1f} GiB"]
        cells += [f"{queued(file) / done[0].bound:.3f}"]
        cells += [f"{one.multiple:.3f}" for one in done]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def held_out() -> list[str]:
    """A row for each policy, of one pipeline alone and of several, as Markdown."""
    heads = ["", "known", "mean", "9 of 10 are below", "worst", "worse than LRU"]
    made = pipelines.traces("held-out")
    lru = [trace.replay(one, policy="lru").multiple for one in made]
    lines = []
    for what, several in [("one pipeline", False), ("several", True)]:
        these = [at for at, one in enumerate(made) if ("+" in one["name"]) is several]
        lines += [f"| {' | '.join([what, *heads[1:]])} |", "|" + "---|" * len(heads)]
        for policy, jobs, *_ in DRAWN:
            done = [trace.replay(made[at], policy=policy, lookahead=jobs).multiple for at in these]
            worse = sum(one > lru[at] + 1e-9 for one, at in zip(done, these, strict=True))
            figures = [fmean(done), sorted(done)[len(done) * 9 // 10], max(done)]
            cells = [policy, str(jobs), *(f"{one:.3f}" for one in figures)]
            lines.append(f"| {' | '.join(cells)} | {worse} of {len(these)} |")
        lines.append("")
    return lines


def draw(files: list[Path], out: Path) -> None:
    """A group of bars for each trace."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # The same bytes for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "coresident"
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(DRAWN)
    for at, (policy, jobs, name, colour) in enumerate(DRAWN):
        done = [trace.replay(file, policy=policy, lookahead=jobs).multiple for file in files]
        places: list[Any] = [
            group + (at - len(DRAWN) / 2 + 0.5) * width for group in range(len(files))
        ]
        axes.bar(places, done, width, color=colour, label=name)
    axes.set_yscale("log")
    axes.set_ylim(0.95, None)
    ticks = [1, 1.5, 2, 4, 10, 100]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(files)), [file.stem for file in files], fontsize=8)
    axes.set_ylabel("bytes moved, as a multiple of the least")
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a file for the picture, as SVG")
    options = parser.parse_args()
    files = sorted(TRACES.glob("*.json"))
    print("\n".join(table(files)), end="\n\n")
    print("\n".join(held_out()))
    if options.out:
        draw(files, options.out)


if __name__ == "__main__":
    main()
