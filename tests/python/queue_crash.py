"""A process that submits, claims and ends jobs on a durable queue until it is killed.

It writes down what it has been told: one line before each call, one after it has returned. The
lines are what a test holds against the file that is left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import coresident as co

ATTEMPTS = 3
ENDS = {"done": "done", "fail": "failed", "cancelled": "cancelled"}


def work(file: str, seed: int) -> None:
    """Submits and cancels in one thread, claims and ends in two, until the process is killed."""
    queue = co.JobQueue(file, devices=co.virtual_devices(2), max_attempts=ATTEMPTS)

    def tell(*words: object) -> None:
        # One write per line: whole or not there.
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    def serve(device: str) -> None:
        chance = random.Random(f"{seed} {device}")
        while True:
            with queue.claim(device) as claim:
                tell("claimed", claim.job.id, claim.attempt)
                roll = chance.random()
                if roll < 0.1:
                    tell("releasing", claim.job.id)
                    claim.release()
                elif roll < 0.3:
                    tell("ending", claim.job.id, "fail")
                    tell("ended", claim.job.id, claim.fail("by chance"))
                else:
                    tell("ending", claim.job.id, "done")
                    tell("ended", claim.job.id, claim.finish(Path(f"/result/{claim.job.id}")))

    for device in ("virtual:0", "virtual:1"):
        threading.Thread(target=serve, args=(device,), daemon=True).start()
    chance = random.Random(seed)
    while True:
        number = chance.randrange(1, 6)
        for job in queue.submit_many([str(seed)] * number, user=chance.choice(["ann", "bob"])):
            tell("submitted", job.id)
        if chance.random() < 0.3:
            job = chance.choice(queue.jobs(limit=20))
            tell("cancelling", job.id)
            if queue.cancel(job):
                tell("cancelled", job.id)
        while len(queue) > 30:
            time.sleep(0.001)


class Story:
    """What all the processes so far were told, line by line."""

    def __init__(self) -> None:
        self.submitted: set[int] = set()
        self.ended: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.begun: Counter[int] = Counter()
        #: Jobs whose end or cancel was ordered by a process that did not live to see it.
        self.unsure: set[int] = set()

    def read(self, lines: list[str]) -> None:
        """Reads the lines of one process."""
        ordered: dict[tuple[str, int], bool] = {}
        before = set(self.cancelled)
        for line in lines:
            word, id_, *rest = line.split()
            job = int(id_)
            if word == "submitted":
                self.submitted.add(job)
            elif word == "claimed":
                # A job is never run again that was over or cancelled, nor by two at once.
                assert job not in self.ended, f"{line}: it had {self.ended.get(job)}"
                # One that is cancelled now may have been claimed before, and told of it after.
                assert job not in before, f"{line}: it was cancelled"
                assert not ordered.get(("claim", job)), f"{line}: it runs already"
                ordered["claim", job] = True
                self.begun[job] += 1
                assert int(rest[0]) <= ATTEMPTS, line
            elif word == "releasing":
                ordered["claim", job] = False
                self.begun[job] -= 1
            elif word == "ending":
                ordered["end", job] = True
            elif word == "ended":
                ordered.pop(("end", job))
                ordered["claim", job] = False
                self.ended[job] = rest[0]
            elif word == "cancelling":
                ordered["cancel", job] = True
            elif word == "cancelled":
                ordered.pop(("cancel", job))
                self.cancelled.add(job)
        self.unsure |= {job for what, job in ordered if what in ("end", "cancel")}

    def compare(self, queue: co.JobQueue) -> None:
        """Holds the file that is left against what the processes were told."""
        jobs = {job.id: job for job in queue.jobs()}
        missing = self.submitted - set(jobs)
        assert not missing, f"acknowledged and lost: {sorted(missing)}"
        for number, job in jobs.items():
            told = self.ended.get(number)
            if told is not None:
                assert job.state == told, f"job {number} was {told} and is {job.state}"
                if told == "done":
                    assert job.result() == Path(f"/result/{number}")
            elif number in self.cancelled:
                assert job.state == "cancelled", f"job {number} was cancelled and is {job.state}"
            elif number not in self.unsure:
                # What ran is queued again, until its attempts are used.
                assert job.state in ("queued", "failed"), f"job {number} is {job.state}"
                if job.state == "failed":
                    assert job.attempts == ATTEMPTS
                    assert job.error is not None
                    assert "attempts have been used" in job.error
            assert job.payload.isdigit()


def killed(file: Path, seed: int, after: float) -> list[str]:
    """What a process writes that is killed so many seconds after its first line."""
    reading, writing = os.pipe()
    # Forked from here, where everything is imported: a thousand interpreters would take an hour.
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        os.closerange(3, 64)
        try:
            work(str(file), seed)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        first = pipe.readline()
        # What is said before it has begun is lost by nobody.
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        out = first + pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it ended by itself, with {status}"
    return out[: out.rfind(b"\n") + 1].decode().splitlines()


def rounds(count: int, folder: Path, longest: float = 0.25) -> dict[str, int]:
    """Kills a process at a random instant, as often as is said, and looks after each time."""
    file = folder / "jobs.sqlite"
    chance = random.Random(count)
    story = Story()
    for seed in range(count):
        lines = killed(file, seed, chance.uniform(0, longest))
        story.read(lines)
        with co.JobQueue(file, devices=co.virtual_devices(2), max_attempts=ATTEMPTS) as queue:
            story.compare(queue)
            # The history stays small, so that every round looks at all of it.
            if seed % 10 == 9:
                over = [job.id for job in queue.jobs() if job.done()]
                queue.delete(over)
                for known in (story.submitted, story.cancelled, story.unsure):
                    known.difference_update(over)
                for job in over:
                    story.ended.pop(job, None)
    return {"rounds": count, "jobs": len(story.begun), "begun": story.begun.total()}


def main(arguments: list[str]) -> Any:
    """One process to be killed: ``FILE SEED``; or all of the rounds: ``--rounds N FOLDER``."""
    if arguments[0] == "--rounds":
        print(rounds(int(arguments[1]), Path(arguments[2])))
        return
    work(arguments[0], int(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
