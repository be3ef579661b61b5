"""A queue that outlives its process: several users, a crash in the middle, nothing lost.

    python examples/serve.py jobs.sqlite    # ann and bob queue images; the process "crashes"
    python examples/serve.py jobs.sqlite    # again: what was left is drawn, once

Ctrl-C lets what runs end, and leaves the rest for the next time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import coresident as co
from coresident.display import watch

STEPS = 20


def draw(job: co.ServedJob) -> Path:
    """Stands for a pipeline: a text encoder on an idle device, steps, a file."""
    text = job.run_borrowed(encode, job.payload["prompt"])
    job.stage("unet")
    for step in range(1, STEPS + 1):
        if job.token.wait(0.01):  # a step takes its time
            job.raise_if_cancelled()
        job.step(step, STEPS)
        if job.payload.get("crashes") and job.attempt == 1 and step == STEPS // 2:
            os._exit(1)  # as a driver's error would end it: no handler, no exit, no goodbye
    file = Path(f"{job.payload['prompt'].replace(' ', '-')}.txt")
    file.write_text(f"{text} on {job.device}, attempt {job.attempt}\n")
    return file  # a path is kept in the queue's file, so that later processes know it too


def encode(prompt: str) -> str:
    """Stands for a text encoder."""
    return f"{prompt!r} encoded on {co.current_device()}"


def main(path: str) -> None:
    """Serves what is queued in a file; the first time, queues something."""
    runtime = co.Runtime(co.virtual_devices(2))
    with co.JobQueue(path, devices=runtime.devices) as queue, watch(queue):
        if not queue.jobs():
            for number in range(12):
                queue.submit({"prompt": f"ann {number}", "crashes": number == 5}, user="ann")
            for number in range(3):
                queue.submit({"prompt": f"bob {number}"}, user="bob")
        with runtime.serve(draw, queue) as server:
            server.stop("drain")
        for job in queue.jobs():
            print(job.user, job.state, f"after {job.attempts} attempts:", job.result())


if __name__ == "__main__":
    main(sys.argv[1])
