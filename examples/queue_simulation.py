"""A million jobs of a thousand users on sixty-four devices, in virtual time.

``python examples/queue_simulation.py`` runs ``examples/queue_simulation.rs``, which drives the real
queue; prints what happened, and draws it where ``--out`` says: how long jobs wait, by how much
their users queue, and how many bytes of weights are moved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: The runs: what each is called, and its colour.
RUNS = {
    "fifo": ("one line for all", "#9ca3af"),
    "fair": ("fair by GPU time", "#93c5fd"),
    "placed": ("fair, and placed where the weights are", "#1d4ed8"),
}


def simulated(jobs: int) -> dict[str, Any]:
    """What the simulation prints."""
    command = ["cargo", "run", "--release", "--quiet", "--example", "queue_simulation", "--"]
    done = subprocess.run(
        [*command, str(jobs)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def told(result: dict[str, Any]) -> list[str]:
    """A row for each run, as Markdown."""
    heads = [f"{wait['jobs_of_a_user']:,}+" for wait in result["runs"][0]["waits"]]
    lines = [
        f"| order | {' | '.join(f'median wait, {head} jobs' for head in heads)} | moved "
        "| busy while jobs wait | a job takes |",
        "|" + "---|" * (len(heads) + 4),
    ]
    for run in result["runs"]:
        waits = " | ".join(f"{wait['median']:,.0f} s" for wait in run["waits"])
        lines.append(
            f"| {RUNS[run['order']][0]} | {waits} | {run['bytes_moved'] / 2**50:.2f} PiB "
            f"| {run['busy_while_jobs_wait']:.2%} | {run['seconds'] / run['jobs'] * 1e6:.1f} us |"
        )
    return lines


def draw(result: dict[str, Any], out: Path) -> None:
    """Waiting times beside bytes moved."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # The same bytes for the same figures.
    matplotlib.rcParams["svg.hashsalt"] = "coresident"
    figure, (waits, moved) = plt.subplots(
        1, 2, figsize=(11, 4), layout="constrained", width_ratios=[3, 1]
    )
    width = 0.8 / len(RUNS)
    for at, run in enumerate(result["runs"]):
        name, colour = RUNS[run["order"]]
        places = [group + (at - 1) * width for group in range(len(run["waits"]))]
        medians = [max(wait["median"], 1) for wait in run["waits"]]
        tails = [max(wait["p95"] - median, 0) for wait, median in zip(run["waits"], medians, strict=True)]
        waits.bar(places, medians, width, color=colour, label=name)
        waits.errorbar(
            places, medians, yerr=[[0] * len(tails), tails], fmt="none", ecolor="#6b7280", lw=1
        )
        moved.bar(at, run["bytes_moved"] / 2**50, color=colour)
    heads = [f"{wait['jobs_of_a_user']:,}+" for wait in result["runs"][0]["waits"]]
    waits.set_xticks(range(len(heads)), heads)
    waits.set_xlabel("jobs that the user queues in all")
    waits.set_ylabel("seconds from submit to start, median to 95 %")
    waits.set_yscale("log")
    waits.legend(fontsize=8)
    moved.set_xticks(range(len(RUNS)), ["one line", "fair", "placed"])
    moved.set_ylabel("PiB of weights moved")
    for axes in (waits, moved):
        axes.grid(axis="y", color="#e5e7eb")
        axes.set_axisbelow(True)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="how many jobs, a million")
    parser.add_argument("--out", type=Path, help="a file for the picture, as SVG")
    options = parser.parse_args()
    result = simulated(options.jobs)
    print("\n".join(told(result)))
    if options.out:
        draw(result, options.out)


if __name__ == "__main__":
    main()
