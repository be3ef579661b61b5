"""The demo from its first line to its last."""

from __future__ import annotations

from contextlib import nullcontext

import diffusers.utils.logging
import torch
import transformers.utils.logging
from rich import get_console

import coresident as co
from coresident.demo import DIGITS, Options, large, memory, report
from coresident.demo.pipeline import SharedPipeline
from coresident.demo.studio import Job, Studio

USERS = ("ann", "bob", "cyd", "dan", "eve", "fay", "gil", "hal")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
JOBS = {"digits": 20, "large": 4}
STEPS = {"digits": 20, "large": 6}


def run(options: Options, devices: list[co.Device]) -> int:
    """Runs the demo; returns the exit status."""
    # More threads in each worker would compete for the cores; and in which order a sum is taken,
    # so that its last bit, depends on their number.
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    console = get_console()
    jobs = wanted(options.jobs or JOBS[options.preset], options.users)
    steps = options.steps or STEPS[options.preset]
    heavy = options.preset == "large"
    if heavy:
        print("making 400 MB of random weights, and loading them in three ways ...", flush=True)
    with large.random_weights() if heavy else nullcontext(DIGITS) as folder:
        footprints = memory.compare(folder, len(devices)) if heavy else {}
        with co.Runtime(devices) as runtime:
            pipeline = SharedPipeline(runtime, folder)
            studio = Studio(runtime, pipeline, steps, split=options.split)
            drawings = studio.draw_all(jobs)
        with co.Runtime(devices[0]) as runtime:
            alone = Studio(runtime, pipeline, steps)
            again = alone.draw_all(jobs if heavy else jobs[:2])
        host_bytes = pipeline.host_bytes()
    outcome = report.Outcome(
        drawings, studio.timeline, again, alone.timeline, host_bytes, footprints
    )
    report.show(outcome, console)
    for path in report.save(outcome, options.out):
        console.print(f"wrote {path}", highlight=False)
    return 1 if outcome.differing else 0


def wanted(count: int, users: int) -> list[Job]:
    """What the users want: a digit each time, in turn."""
    names = [*USERS, *(f"user {n}" for n in range(len(USERS) + 1, users + 1))]
    return [
        Job(names[n % users], f"a handwritten {WORDS[n % len(WORDS)]}", seed=n)
        for n in range(count)
    ]
