"""Threads that load, move and patch models at the same time, again and again: how often that breaks.

    python tests/python/loading_trials.py [--trials 200] [--out FILE]

Runs every mix without and with ``coresident.torch.install()``, and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hazards
import tiny_models
import torch

Job = Callable[[], set[str]]
DIFFUSERS, TRANSFORMERS = ("unet", "unet2", "vae", "qwen"), ("clip", "t5")
DTYPES = (None, torch.float16, torch.bfloat16)


@dataclass
class Outcome:
    """What came of the trials of one mix."""

    trials: int = 0
    broken: int = 0
    left: int = 0
    how: Counter[str] = field(default_factory=Counter)


class Trials:
    """Jobs for threads, and what they should come to.

    Args:
        folder: The models of ``tiny_models``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = (*DIFFUSERS, *TRANSFORMERS)
        self._classes = {name: type(model) for name, model in tiny_models.models().items()}
        self._loaded = {(name, None): self._load(name, None) for name in names}
        self._expected = {
            (name, dtype): _content(self._load(name, dtype)) for name in names for dtype in DTYPES
        }
        assert hazards.leftovers() == []

    def _load(self, name: str, dtype: torch.dtype | None) -> Any:
        key = "torch_dtype" if name in DIFFUSERS else "dtype"
        options: dict[str, Any] = {} if dtype is None else {key: dtype}
        return self._classes[name].from_pretrained(self._folder / name, **options)

    def load(self, name: str, dtype: torch.dtype | None) -> Job:
        return lambda: _damage(self._load(name, dtype), self._expected[name, dtype])

    def single_file(self, dtype: torch.dtype | None) -> Job:
        """Loads a checkpoint of one file, as it is downloaded."""
        folder = self._folder / "qwen"
        options = {} if dtype is None else {"torch_dtype": dtype}

        def work() -> set[str]:
            model = self._classes["qwen"].from_single_file(
                str(folder / "diffusion_pytorch_model.safetensors"),
                config=str(folder),
                subfolder="",
                local_files_only=True,
                **options,
            )
            return _damage(model, self._expected["qwen", dtype])

        return work

    def assign(self, name: str) -> Job:
        """Moves a model as caches of models do: by assigning its tensors, there and back."""
        model = copy.deepcopy(self._loaded[name, None])
        state = {key: value.clone() for key, value in model.state_dict().items()}

        def work() -> set[str]:
            found: set[str] = set()
            for _ in range(20):
                tensors = {key: value.clone() for key, value in state.items()}
                model.load_state_dict(tensors, assign=True)
                found |= _damage(model, self._expected[name, None])
            return found

        return work

    def move(self, name: str) -> Job:
        model = copy.deepcopy(self._loaded[name, None])

        def work() -> set[str]:
            for _ in range(20):
                model.to(torch.float64)
                model.to(torch.float32)
            return _damage(model, self._expected[name, None])

        return work

    def adapter(self) -> Job:
        """Puts a LoRA into a model, as diffusers does it."""
        from peft import LoraConfig, inject_adapter_in_model

        model = copy.deepcopy(self._loaded["unet2", None])

        def work() -> set[str]:
            config = LoraConfig(r=2, target_modules=["to_q", "to_k"])
            inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
            new = {n: torch.ones(p.shape) for n, p in model.named_parameters() if "lora_" in n}
            model.load_state_dict(new, strict=False, assign=True)
            return {"meta"} if any(p.is_meta for p in model.parameters()) else set()

        return work

    def jobs(self, mix: str, threads: int, chance: random.Random) -> list[Job]:
        """As many jobs of a mix as there are threads."""
        one, two = {
            "diffusers": ("diffusers", "diffusers"),
            "transformers": ("transformers", "transformers"),
            "both": ("diffusers", "transformers"),
            "single files and folders": ("single file", "either"),
            "loads and assigned state dicts": ("either", "assign"),
            "loads and moves": ("either", "move"),
            "LoRAs": ("adapter", "adapter"),
            "loads and LoRAs": ("either", "adapter"),
        }[mix]
        return [self._job((one, two)[number % 2], chance) for number in range(threads)]

    def _job(self, kind: str, chance: random.Random) -> Job:
        match kind:
            case "diffusers":
                return self.load(chance.choice(DIFFUSERS), chance.choice(DTYPES))
            case "transformers":
                return self.load(chance.choice(TRANSFORMERS), chance.choice(DTYPES))
            case "either":
                names = (*DIFFUSERS, *TRANSFORMERS)
                return self.load(chance.choice(names), chance.choice(DTYPES))
            case "single file":
                return self.single_file(chance.choice(DTYPES))
            case "assign":
                return self.assign(chance.choice(DIFFUSERS))
            case "move":
                return self.move(chance.choice(DIFFUSERS))
            case _:
                return self.adapter()

    def run(self, mix: str, threads: int, trials: int) -> Outcome:
        """Trials, each from a process that is whole."""
        outcome, chance = Outcome(trials), random.Random(1)
        for _ in range(trials):
            with hazards.mended():
                found = _at_once(self.jobs(mix, threads, chance))
                left = hazards.leftovers()
            outcome.broken += any(found)
            outcome.left += bool(left)
            outcome.how.update(how for damage in found for how in damage)
            outcome.how.update(f"{name} left" for name in left)
        return outcome


MIXES = (
    "diffusers",
    "transformers",
    "both",
    "single files and folders",
    "loads and assigned state dicts",
    "loads and moves",
    "LoRAs",
    "loads and LoRAs",
)


def _content(model: Any) -> dict[str, torch.Tensor]:
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def _damage(model: Any, expected: dict[str, torch.Tensor]) -> set[str]:
    found, content = set(), _content(model)
    if content.keys() != expected.keys():
        found.add("names")
    for name in content.keys() & expected.keys():
        tensor, wanted = content[name], expected[name]
        if tensor.is_meta:
            found.add("meta")
        elif tensor.dtype != wanted.dtype:
            found.add("dtype")
        elif not torch.equal(tensor, wanted):
            found.add("values")
    return found


def _at_once(jobs: list[Job]) -> list[set[str]]:
    """Runs each in a thread of its own; tells what is broken, exceptions by the names of theirs."""
    start, found = threading.Barrier(len(jobs)), [{"hang"} for _ in jobs]

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = jobs[number]()
        except Exception as error:
            found[number] = {type(error).__name__}

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and the advice of the libraries."""
    import diffusers
    import transformers

    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    yield


def table(rows: list[tuple[str, int, Outcome, Outcome]]) -> str:
    """Markdown: each mix without and with, in the same process."""
    lines = [
        "| mix | threads | trials | broken without | left changed without | broken | left | how, without |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mix, threads, raw, ours in rows:
        how = ", ".join(f"{name} {count}" for name, count in raw.how.most_common(4))
        figures = (raw.trials, raw.broken, raw.left, ours.broken, ours.left)
        lines.append(f"| {mix} | {threads} | {' | '.join(map(str, figures))} | {how} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import coresident.torch

    rows = []
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trials = Trials(tiny_models.write(Path(folder)))
        for mix in MIXES:
            for threads in (2, 4):
                raw = trials.run(mix, threads, options.trials)
                installation = coresident.torch.install()
                ours = trials.run(mix, threads, options.trials)
                installation.uninstall()
                rows.append((mix, threads, raw, ours))
                print(table(rows).splitlines()[-1], flush=True)
    if options.out:
        options.out.write_text(f"# Threads that load models at once\n\n{table(rows)}")
    if any(ours.broken or ours.left for *_, ours in rows):
        sys.exit("something is broken with install() too")


if __name__ == "__main__":
    main()
