"""A model that is larger than its device, streamed here and by diffusers and accelerate:
``python benches/streaming.py --out benches/results``.

The device is a virtual one, on whose bus copies take as long as on a slower one. The peers run
their own code, with their own hooks, groups and order, on the CPU; only what moves a tensor is
replaced: it copies the bytes, and then waits until the same bus would have carried them. What they
prefetch on a stream of CUDA's cannot be run on the CPU, so that there is a row with what that would
come to at best: as if all copying were hidden as far as computing takes.

Each step is measured beside one of plain torch with all weights resident, in turn: what counts is
the median of their ratios, and the machine may do other things meanwhile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import coresident as co
import torch
from streaming_peers import PEERS, Bus

PAGE = 2 << 20
HEADS = (
    "| bus | | step | of resident | moved per step | copying hidden |\n|---|---|---|---|---|---|"
)


def transformer(nbytes: int) -> Any:
    """A diffusers transformer of about so many bytes."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    sizes = {"attention_head_dim": 64, "num_attention_heads": 8, "axes_dims_rope": (16, 24, 24)}
    # Of this width a double block has 36 MiB in float32, and a single one 15.
    pairs = max(1, round(nbytes / (66 << 20)))
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=pairs,
        num_single_layers=2 * pairs,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        **sizes,
    ).eval()


def inputs(tokens: int) -> dict[str, Any]:
    """What a step is called with."""
    return {
        "hidden_states": torch.randn(1, tokens, 16),
        "encoder_hidden_states": torch.randn(1, 16, 64),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(16, 3),
        "return_dict": False,
    }


@dataclass
class Plain:
    """Plain torch with everything resident, beside which all is measured."""

    module: Any
    given: dict[str, Any]
    count: int

    def __post_init__(self) -> None:
        self.expected = self.module(**self.given)[0]
        self.seconds = median(self._step() for _ in range(self.count))

    def _step(self) -> float:
        began = time.perf_counter()
        self.module(**self.given)
        return time.perf_counter() - began

    def beside(self, module: Any, count: int | None = None) -> tuple[list[float], list[float]]:
        """The seconds of a module's steps, and each beside one of plain torch."""
        took, ratios = [], []
        for turn in range(count or self.count):
            # Whichever is first has what the caches have from before.
            plain = self._step() if turn % 2 else 0.0
            began = time.perf_counter()
            output = module(**self.given)[0]
            took.append(time.perf_counter() - began)
            ratios.append(took[-1] / (plain or self._step()))
        assert torch.allclose(output, self.expected, atol=1e-5)
        return took, ratios


def row(bus: str, way: str, step: float, ratio: float, moved: float, hidden: float | None) -> str:
    """A line of the table."""
    shown = "" if hidden is None else f"{max(0.0, min(1.0, hidden)):.0%}"
    cells = [bus, way, f"{step * 1e3:.0f} ms", f"{ratio:.2f}", f"{moved / 2**20:.0f} MiB", shown]
    return f"| {' | '.join(cells)} |"


def hidden(step: float, ratio: float, copying: float) -> float:
    """The share of copying that a step has not become longer by."""
    return 1 - (step - step / ratio) / copying if copying else 1.0


def fits(folder: Path, plain: Plain, size: int, pairs: int, stream: bool) -> str:
    """What it costs where everything fits: the median of many pairs, and how they spread."""
    [large] = co.virtual_devices(1, memory=2 * size)
    with (
        co.Runtime([large]) as house,
        house.load("flux", folder).on(large, stream=stream) as module,
    ):
        module(**plain.given)
        ratios = plain.beside(module, pairs)[1]
    low, middle, high = quantiles(ratios, n=4)
    how = "With `stream=True`" if stream else "Where everything fits"
    return (
        f"{how} a step takes {middle:.3f} of plain torch's: the median of {pairs} pairs of steps, "
        f"half of which lie between {low:.3f} and {high:.3f}."
    )


def streamed(folder: Path, plain: Plain, memory: int, rate: float) -> str:
    """Our row."""
    [device] = co.virtual_devices(1, memory=memory, bandwidth=int(rate))
    with co.Runtime([device]) as house:
        residence = house.load("flux", folder).on(device)
        with residence as module:
            for _ in range(3):
                module(**plain.given)
            first = residence.streaming
            took, ratios = plain.beside(module)
            last = residence.streaming
            assert first is not None
            assert last is not None
    moved, copying = last.moved - first.moved, last.copying - first.copying
    step, ratio = median(took), median(ratios)
    share = hidden(step, ratio, copying / plain.count)
    return row(speed(rate), "**coresident, streamed**", step, ratio, moved / plain.count, share)


def draw(folder: Path, plain: Plain, memory: int, rate: float, picture: Path) -> str:
    """A picture of the first three steps, and what it shows."""
    [device] = co.virtual_devices(1, memory=memory, bandwidth=int(rate))
    with co.Runtime([device]) as house, house.load("flux", folder).on(device) as module:
        for _ in range(3):
            module(**plain.given)
        shown = house.explain()
    about = f"{size_of(plain.module) >> 20} MiB on {memory >> 20} MiB, bus {speed(rate)}"
    shown.save_svg(picture, f"three steps of {about}")
    [row] = shown.rows
    return (
        f"![three steps]({picture.name})\n\nThree steps at {speed(rate)}: {row.hidden:.1%} of "
        "copying hidden, the first step with it, in which all that stays comes too."
    )


def peers(folder: Path, plain: Plain, rate: float) -> Iterator[str]:
    """The rows of the others."""
    for name, around in PEERS.items():
        module, bus = type(plain.module).from_pretrained(folder).eval(), Bus(rate)
        with around(module, bus):
            module(**plain.given)
            bus.moved, bus.busy = 0, 0.0
            took, ratios = plain.beside(module)
        step, ratio = median(took), median(ratios)
        moved, busy = bus.moved / plain.count, bus.busy / plain.count
        yield row(speed(rate), name, step, ratio, moved, hidden(step, ratio, busy))
        if "block" in name:
            best = max(step / ratio, busy)
            told = "the same with a stream, at best"
            yield row(speed(rate), told, best, best / (step / ratio), moved, None)


def together(folder: Path, plain: Plain, memory: int, seconds: float) -> str:
    """Two devices that stream the same host copy, with no bus but the host's memory."""
    devices = co.virtual_devices(2, memory=memory)
    steps, moved = [0, 0], [0, 0]
    begin, end = threading.Barrier(2), threading.Event()

    def run(at: int) -> None:
        residence = model.on(devices[at])
        with residence as module, torch.no_grad():
            module(**plain.given)
            before = residence.streaming
            begin.wait()
            while not end.is_set():
                module(**plain.given)
                steps[at] += 1
            after = residence.streaming
            assert before is not None
            assert after is not None
            moved[at] = after.moved - before.moved

    with co.Runtime(devices) as house:
        model = house.load("flux", folder)
        threads = [threading.Thread(target=run, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        end.wait(seconds)
        end.set()
        for thread in threads:
            thread.join()
    share = moved[0] / sum(moved)
    return (
        f"Two devices that stream one host copy at once, {seconds:g} s, no bus but the host's "
        f"memory: {steps[0]} and {steps[1]} steps, {moved[0] >> 20} and {moved[1] >> 20} MiB, "
        f"which is {share:.0%} and {1 - share:.0%} of the bytes."
    )


def speed(rate: float) -> str:
    """A bus, in words."""
    return f"{rate / 1e9:g} GB/s"


def size_of(module: Any) -> int:
    """Bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())


def measure(given: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The lines of the report, as Markdown, when they are known."""
    memory = given.memory // PAGE * PAGE
    made = transformer(given.nbytes)
    made.save_pretrained(folder)
    plain, size = Plain(made, inputs(given.tokens), given.steps), size_of(made)
    yield (
        f"A diffusers Flux transformer of {size / 2**20:.0f} MiB on a device of "
        f"{memory / 2**20:.0f} MiB, {given.tokens} tokens, {torch.get_num_threads()} thread(s). "
        f"Plain torch, resident: {plain.seconds * 1e3:.0f} ms for a step."
    )
    for stream in (False, True):
        yield f"\n{fits(folder, plain, size, given.pairs, stream)}"
    yield ""
    yield HEADS
    for gigabytes in given.buses:
        rate = gigabytes * 1e9
        yield streamed(folder, plain, memory, rate)
        yield from peers(folder, plain, rate)
    yield f"\n{together(folder, plain, memory, given.seconds)}"
    if given.out is not None:
        drawn = draw(folder, plain, memory, given.buses[0] * 1e9, given.out / "streaming.svg")
        yield f"\n{drawn}"


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nbytes", type=int, default=1 << 30, help="bytes of the model")
    parser.add_argument("--memory", type=int, default=400 << 20, help="bytes of the device")
    parser.add_argument("--tokens", type=int, default=256, help="how long a step computes")
    parser.add_argument("--steps", type=int, default=5, help="of which the median counts")
    parser.add_argument("--pairs", type=int, default=40, help="of steps where everything fits")
    parser.add_argument("--seconds", type=float, default=20, help="for two devices at once")
    parser.add_argument("--buses", type=float, nargs="+", default=[1, 2, 4, 8], help="GB a second")
    parser.add_argument("--out", type=Path, help="a folder for the report and a picture")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# A model larger than its device", ""]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for line in measure(given, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if given.out is not None:
        (given.out / "streaming.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
