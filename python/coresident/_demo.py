"""Several users' jobs on several devices, in numpy: who ran where, and for how long.

A job leases a device, borrows an idle one for its "text encoder" if there is one, and then takes
its steps, each split in the two halves of classifier-free guidance over whatever devices it holds.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import coresident as co

WIDTH = 64
SIZE = 256


@dataclass
class Timeline:
    """Who worked on which device, and when."""

    began: float = field(default_factory=time.perf_counter)
    bars: list[tuple[str, str, float, float]] = field(default_factory=list)
    borrows: int = 0

    def add(self, device: co.Device, user: str, start: float) -> None:
        """Notes that ``user`` has worked on ``device`` since ``start``."""
        self.bars.append((device.name, user, start - self.began, time.perf_counter() - self.began))

    def lane(self, device: str, total: float) -> str:
        """One device as a line: a letter where a user worked, a dot where nobody did."""
        cells = ["·"] * WIDTH
        for name, user, start, end in self.bars:
            if name == device:
                first, last = int(start / total * WIDTH), int(end / total * WIDTH)
                cells[first : last + 1] = user[0] * len(cells[first : last + 1])
        return "".join(cells)

    def busy(self, device: str, total: float) -> float:
        """The share of the time in which somebody worked on the device."""
        spans = sorted((start, end) for name, _, start, end in self.bars if name == device)
        covered, reached = 0.0, 0.0
        for start, end in spans:
            covered += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return covered / total


class Studio:
    """One runtime, and the jobs that share it."""

    def __init__(self, runtime: co.Runtime, steps: int) -> None:
        self.runtime = runtime
        self.steps = steps
        self.timeline = Timeline()
        self._note = threading.Lock()
        with runtime.load_lock.write():
            import numpy

            self.numpy: Any = numpy
            self.weights = numpy.random.default_rng(0).standard_normal((SIZE, SIZE)) / SIZE**0.5

    def work(self, user: str, state: Any) -> Any:
        """A piece of a model on the current device."""
        device, start = co.current_device(), time.perf_counter()
        for _ in range(4):
            state = self.numpy.tanh(state @ self.weights)
        if device is not None:
            with self._note:
                self.timeline.add(device, user, start)
        return state

    def job(self, number: int, user: str) -> float:
        """One job of one user; returns a checksum that does not depend on where it ran."""
        prompt = self.numpy.random.default_rng(number).standard_normal((SIZE, SIZE))
        pool, workers = self.runtime.pool, self.runtime.workers
        with pool.lease() as lease, self.runtime.load_lock.read():
            with pool.borrow(affinity="text encoder") as spare:
                self.timeline.borrows += spare is not None
                encoded = self.work(user, prompt)
            image = encoded
            for _ in range(self.steps):
                with pool.borrow() as spare:
                    other = spare.device if spare is not None else None
                    guided = partial(self.work, user, image)
                    if other is None:
                        halves = [guided(), self.work(user, encoded)]
                    else:
                        unguided = workers.post(other, self.work, user, encoded)
                        halves = [workers.run(lease.device, guided), unguided.result()]
                image = 0.5 * (halves[0] + halves[1])
        return float(image.sum())


def run(devices: list[co.Device], jobs: int, users: int, steps: int) -> int:
    """Runs the jobs, checks them against a serial run, and prints what happened where."""
    names = [f"{chr(ord('a') + n % 26)}{'' if n < 26 else n // 26}" for n in range(users)]
    with co.Runtime(devices) as runtime:
        studio = Studio(runtime, steps)
        start = studio.timeline.began = time.perf_counter()
        with ThreadPoolExecutor(len(devices) + 1, "session") as sessions:
            users_of_jobs = [names[n % users] for n in range(jobs)]
            sums = list(sessions.map(studio.job, range(jobs), users_of_jobs))
        total = time.perf_counter() - start
        lanes = [(device, studio.timeline.lane(device.name, total)) for device in devices]
        busy = {device.name: studio.timeline.busy(device.name, total) for device in devices}
        borrows = studio.timeline.borrows
        serial = [studio.job(n, names[n % users]) for n in range(min(2, jobs))]
    print(f"{jobs} jobs of {users} users on {len(devices)} devices in {total:.2f} s\n")
    for device, lane in lanes:
        print(f"  {device.name:<10} {lane} {busy[device.name]:4.0%} busy")
    same = sums[: len(serial)] == serial
    print("\n  a letter is a user at work;", end=" ")
    print(f"text encoders on a borrowed device: {borrows} of {jobs}")
    print(f"  the first {len(serial)} jobs run again alone: {'equal' if same else 'DIFFERENT'}")
    return 0 if same else 1
