"""Traces of pipelines as people use them, made by chance: ``python benches/pipelines.py FOLDER``.

A seed tells everything: which models somebody has, how large the device is, and by which habit jobs
follow one another. The numbers in ``src/residency`` were chosen by the traces of the set ``train``;
those of the set ``held-out`` were only looked at afterwards, and half of them choose among models
that the others never have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

GIB = 1 << 30
#: Stages of a job: a component, its GiB, and the GiB of activations beside it.
Stage = tuple[str, float, float]
#: Kinds of jobs with a model: what is only needed for a new prompt, and what follows.
Kind = tuple[list[Stage], list[Stage]]

SDXL_TEXT: list[Stage] = [("sdxl.te1", 0.23, 0.3), ("sdxl.te2", 1.29, 0.3)]
SDXL_VAE: Stage = ("sdxl.vae", 0.16, 2.5)
SD3_TEXT: list[Stage] = [("sd3.te1", 0.23, 0.3), ("sd3.te2", 1.29, 0.3), ("sd3.t5", 4.56, 0.4)]


def unet(name: str, working: float = 1.2) -> Stage:
    """A UNet of SDXL."""
    return (name, 4.78, working)


def hires(name: str) -> list[Stage]:
    """An image, made larger, and drawn over."""
    large: Stage = ("sdxl.vae", 0.16, 7.5)
    return [unet(name), SDXL_VAE, ("upscaler", 0.07, 1.0), unet(name, 3.5), large]


KNOWN: dict[str, Kind] = {
    "sdxl": (SDXL_TEXT, [unet("sdxl.unet"), SDXL_VAE]),
    "sdxl-b": (SDXL_TEXT, [unet("sdxl-b.unet"), SDXL_VAE]),
    "sdxl-c": (SDXL_TEXT, [unet("sdxl-c.unet"), SDXL_VAE]),
    "hires": (SDXL_TEXT, hires("sdxl.unet")),
    "controlnet": (SDXL_TEXT, [("controlnet", 2.33, 1.2), unet("sdxl.unet"), SDXL_VAE]),
    "refiner": (SDXL_TEXT, [unet("sdxl.unet"), ("refiner.unet", 4.3, 1.2), SDXL_VAE]),
    "lora": (SDXL_TEXT, [("lora", 0.4, 0.1), unet("sdxl.unet"), SDXL_VAE]),
    "flux": (
        [("flux.clip", 0.23, 0.2), ("flux.t5", 4.56, 0.4)],
        [("flux.dit", 11.1, 1.6), ("flux.vae", 0.16, 2.5)],
    ),
    "flux-bf16": (
        [("flux.clip", 0.23, 0.2), ("flux-bf16.t5", 8.87, 0.4)],
        [("flux-bf16.dit", 22.15, 1.6), ("flux.vae", 0.16, 2.5)],
    ),
    "flux-control": (
        [("flux.clip", 0.23, 0.2), ("flux.t5", 4.56, 0.4)],
        [("flux.control", 3.1, 1.6), ("flux.dit", 11.1, 1.6), ("flux.vae", 0.16, 2.5)],
    ),
    "wan": (
        [("wan.te", 5.3, 0.5)],
        [("wan.high", 13.3, 5.0), ("wan.low", 13.3, 5.0), ("wan.vae", 0.24, 6.0)],
    ),
    "qwen": (
        [("llm", 4.5, 0.8), ("qwen.te", 7.9, 0.6)],
        [("qwen.dit", 19.0, 2.0), ("qwen.vae", 0.24, 3.0)],
    ),
}
#: Models of the set ``held-out`` alone.
UNSEEN: dict[str, Kind] = {
    "sd15": ([("sd15.te", 0.23, 0.2)], [("sd15.unet", 1.6, 0.8), ("sd15.vae", 0.16, 1.5)]),
    "sd3": (SD3_TEXT, [("sd3.dit", 8.1, 1.5), ("sd3.vae", 0.16, 2.5)]),
    "sd3-turbo": (SD3_TEXT, [("sd3-turbo.dit", 8.1, 1.5), ("sd3.vae", 0.16, 2.5)]),
    "chroma": ([("flux.t5", 4.56, 0.4)], [("chroma.dit", 8.9, 1.6), ("flux.vae", 0.16, 2.5)]),
    "hunyuan": (
        [("hunyuan.llm", 7.5, 0.6), ("hunyuan.clip", 0.23, 0.2)],
        [("hunyuan.dit", 12.9, 5.0), ("hunyuan.vae", 0.47, 5.0)],
    ),
    "ltx": (
        [("ltx.t5", 8.87, 0.5)],
        [("ltx.dit", 6.2, 2.0), ("ltx.up", 0.5, 2.0), ("ltx.dit", 6.2, 4.0), ("ltx.vae", 1.6, 4.0)],
    ),
    "edit": (
        [("edit.vlm", 7.9, 0.9)],
        [("qwen.vae", 0.24, 3.0), ("edit.dit", 19.0, 2.5), ("qwen.vae", 0.24, 3.0)],
    ),
    "restore": ([], [("faces", 0.35, 0.6), ("restore.dit", 3.3, 4.0), ("restore.vae", 0.5, 6.0)]),
}
SETS = {"train": range(400), "held-out": range(10_000, 10_400)}


def run(random: Random, kinds: list[str], jobs: int) -> Iterator[str]:
    """One stays with a model for a while, and goes to any other."""
    stays, kind = random.choice([0.6, 0.75, 0.8, 0.85, 0.9]), random.choice(kinds)
    for _ in range(jobs):
        yield kind
        if random.random() > stays:
            kind = random.choice(kinds)


def favourites(random: Random, kinds: list[str], jobs: int) -> Iterator[str]:
    """As before, and some models are used more than others."""
    stays, kind = random.choice([0.5, 0.7, 0.85]), random.choice(kinds)
    weights = [1 / (rank + 1) for rank in range(len(kinds))]
    for _ in range(jobs):
        yield kind
        if random.random() > stays:
            kind = random.choices(kinds, weights)[0]


def chance(random: Random, kinds: list[str], jobs: int) -> Iterator[str]:
    """Any model at any time: many strangers."""
    for _ in range(jobs):
        yield random.choice(kinds)


def workflow(random: Random, kinds: list[str], jobs: int) -> Iterator[str]:
    """The same models after one another, so often each, sometimes left in the middle."""
    steps = [(kind, random.choice([1, 1, 2, 4])) for kind in kinds]
    made = 0
    while made < jobs:
        for kind, times in steps:
            for _ in range(min(times, jobs - made)):
                yield kind
                made += 1
            if random.random() < 0.1:
                break


def users(random: Random, kinds: list[str], jobs: int) -> Iterator[str]:
    """Several who have their own models, one job of each in turn while they are there."""
    own = [run(random, random.sample(kinds, min(len(kinds), 2)), jobs) for _ in range(3)]
    there = [True, False, False]
    made = 0
    while made < jobs:
        for at, user in enumerate(own):
            if random.random() < 0.1:
                there[at] = not there[at]
            if there[at] and made < jobs:
                yield next(user)
                made += 1
        there[0] |= not any(there)


def change(random: Random, kinds: list[str], jobs: int) -> Iterator[str]:
    """One half of the models for a while, then the other, then both."""
    half = max(1, len(kinds) // 2)
    for some in (kinds[:half], kinds[half:] or kinds, kinds):
        yield from run(random, some, -(-jobs // 3))


HABITS = [run, run, run, favourites, chance, workflow, users, change]


def size(gib: float) -> int:
    """Whole MiB, in bytes."""
    return round(gib * 1024) << 20


def made(seed: int, models: dict[str, Kind]) -> dict[str, Any]:
    """The trace of a seed."""
    random = Random(seed)
    single = random.random() < 0.2
    while True:
        kinds = random.sample(sorted(models), 1 if single else random.randint(2, 5))
        card = random.choice([8, 12, 16, 24, 32, 48, 80])
        # What the driver and the desktop leave.
        capacity = size(card * 0.97 - 0.6)
        stages = [stage for kind in kinds for part in models[kind] for stage in part]
        fits = all(size(gib) + size(beside) <= capacity for _, gib, beside in stages)
        components = {name: size(gib) for name, gib, _ in stages}
        if fits and sum(components.values()) > capacity * 0.8:
            break
    habit = random.choice(HABITS)
    jobs, same_prompt = random.choice([60, 80, 80, 150]), random.choice([0.0, 0.3, 0.3, 0.6])
    requests = []
    for job, kind in enumerate(list(habit(random, kinds, jobs))[:jobs]):
        text, rest = models[kind]
        known = job > 0 and random.random() < same_prompt
        for name, _, working in [*([] if known else text), *rest]:
            request = {"job": job, "component": name, "bytes": components[name]}
            requests.append({**request, "working_bytes": size(working)})
    name = f"{seed} {habit.__name__} {'+'.join(kinds)} {card}g"
    return {"name": name, "capacity_bytes": capacity, "requests": requests}


def traces(of: str) -> list[dict[str, Any]]:
    """All traces of a set."""
    unseen = KNOWN | UNSEEN
    return [made(seed, unseen if of == "held-out" and seed % 2 else KNOWN) for seed in SETS[of]]


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the traces are written, as JSON")
    parser.add_argument("--set", choices=SETS, default="held-out", help="which traces")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for at, trace in enumerate(traces(options.set)):
        (options.folder / f"{at:03}.json").write_text(json.dumps(trace), encoding="utf-8")


if __name__ == "__main__":
    main()
