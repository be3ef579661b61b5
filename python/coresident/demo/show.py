"""The demo from its first line to its last."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

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
# So many jobs are needed for one of them to be cancelled.
MANY = 10
# torch's settings and the terminal are the process's.
_ONE_AT_A_TIME = threading.Lock()


def run(options: Options, devices: list[co.Device]) -> int:
    """Runs the demo; returns the exit status."""
    steps = options.steps or STEPS[options.preset]
    jobs = changed(wanted(options.jobs or JOBS[options.preset], options.users), steps)
    heavy = options.preset == "large"
    if heavy:
        print("making 400 MB of random weights, and loading them in three ways ...", flush=True)
    with _ONE_AT_A_TIME, _reproducible(), co.Runtime(devices) as runtime:
        with large.random_weights() if heavy else nullcontext(DIGITS) as folder:
            footprints = memory.compare(folder, len(devices)) if heavy else {}
            pipeline = SharedPipeline(runtime, folder)
            studio = Studio(runtime, pipeline, steps, split=options.split)
            drawings = studio.draw_all(jobs)
            moved = {device: runtime.analyze(device) for device in runtime.arenas}
            with _with_room(devices[0]) as single:
                whole = SharedPipeline(single, folder) if moved else pipeline
                alone = Studio(single, whole, steps)
                again = alone.draw_all(jobs if heavy and len(jobs) < MANY else jobs[:2])
        outcome = report.Outcome(
            drawings,
            studio.timeline,
            again,
            alone.timeline if heavy else None,
            pipeline.host_bytes(),
            footprints,
            moved,
        )
    pictures = report.save(outcome, options.out)
    report.show(outcome, pictures, get_console())
    return 1 if outcome.differing else 0


def _with_room(device: co.Device) -> co.Runtime:
    """For one device alone; where weights come and go, one on which everything stays."""
    # In pages too: where tensors lie can decide the last bit.
    return co.Runtime(co.virtual_devices(1, memory="1TiB") if device.paged else device)


@contextmanager
def _reproducible() -> Iterator[None]:
    """One thread in each worker, and nothing that depends on chance; without progress bars.

    More threads would compete for the cores. And in which order a sum is taken, so that its last
    bit, depends on their number.
    """
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic
        for library in shown:
            library.enable_progress_bar()


def wanted(count: int, users: int) -> list[Job]:
    """What the users want: the first has a big batch, and comes first; the others a few each."""
    names = [*USERS, *(f"user {n}" for n in range(len(USERS) + 1, users + 1))][:users]
    few = max(count // (users + 2), 1)
    rest = [name for name in names[1:] for _ in range(few)][: max(count - 1, 0)]
    whose = [names[0]] * (count - len(rest)) + rest
    return [
        Job(user, f"a handwritten {WORDS[n % len(WORDS)]}", seed=n) for n, user in enumerate(whose)
    ]


def changed(jobs: list[Job], steps: int) -> list[Job]:
    """The same, but that the last one is cancelled half-way, if they are many."""
    if len(jobs) < MANY or steps < 2:
        return jobs
    return [*jobs[:-1], replace(jobs[-1], cancelled_after=steps // 2)]
