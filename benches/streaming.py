"""A model that is larger than its device, streamed here and by diffusers and accelerate:
``python benches/streaming.py --out benches/results``.

The device is a virtual one, on whose bus copies take as long as on a slower one. The peers run
their own code, with their own hooks, groups and order, on the CPU; only what moves a tensor is
replaced: it copies the bytes, and then waits until the same bus would have carried them. What they
prefetch on a stream of CUDA's cannot be run on the CPU, so that there is a row with what that would
come to at best: as if all copying were hidden as far as computing takes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import coresident as co
import torch

PAGE = 2 << 20


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


class Bus:
    """Carries so many bytes a second, one copy after the other."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.moved = 0
        self.busy = 0.0

    def carry(self, tensor: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        copy = tensor.detach().clone()
        self.moved += copy.nbytes
        left = began + copy.nbytes / self.rate - time.perf_counter()
        if left > 0:
            time.sleep(left)
        self.busy += time.perf_counter() - began
        return copy


@contextmanager
def group_offload(module: Any, kind: str, bus: Bus) -> Iterator[None]:
    """diffusers' own hooks, with this bus."""
    from diffusers.hooks import apply_group_offloading
    from diffusers.hooks.group_offloading import ModuleGroup

    before = ModuleGroup._transfer_tensor_to_device

    def transfer(_: Any, tensor: Any, source: Any, __: Any) -> None:
        tensor.data = bus.carry(source)

    ModuleGroup._transfer_tensor_to_device = transfer
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    try:
        cpu = torch.device("cpu")
        apply_group_offloading(module, cpu, cpu, offload_type=kind, **options)
        yield
    finally:
        ModuleGroup._transfer_tensor_to_device = before


@contextmanager
def sequential_offload(module: Any, bus: Bus) -> Iterator[None]:
    """accelerate's own hooks, with this bus: weights of a module come from the CPU for its call."""
    from accelerate import cpu_offload, hooks

    before = hooks.set_module_tensor_to_device

    def place(module: Any, name: str, device: Any, value: Any = None, **options: Any) -> None:
        if value is not None and str(device) != "meta":
            value = bus.carry(value)
        before(module, name, device, value=value, **options)

    hooks.set_module_tensor_to_device = place
    try:
        cpu_offload(module, torch.device("cpu"), offload_buffers=False)
        yield
    finally:
        hooks.set_module_tensor_to_device = before


def steps(call: Callable[[], Any], count: int) -> tuple[float, Any]:
    """The median seconds of some steps after a first one, and what the last has given."""
    call()
    took = []
    for _ in range(count):
        began = time.perf_counter()
        output = call()
        took.append(time.perf_counter() - began)
    return sorted(took)[count // 2], output


class Row:
    """One way to run the model."""

    def __init__(self, bus: str, way: str, step: float, moved: float, hidden: float | None) -> None:
        self.bus, self.way, self.step, self.moved, self.hidden = bus, way, step, moved, hidden

    def told(self, resident: float) -> str:
        hidden = "" if self.hidden is None else f"{self.hidden:.0%}"
        cells = [self.bus, self.way, f"{self.step * 1e3:.0f} ms", f"{self.step / resident:.2f}"]
        return f"| {' | '.join([*cells, f'{self.moved / 2**20:.0f} MiB', hidden])} |"


def measure(
    nbytes: int, memory: int, tokens: int, count: int, buses: list[float], folder: Path
) -> Iterator[str]:
    """The lines of the table, as Markdown, when they are known."""
    made = transformer(nbytes)
    made.save_pretrained(folder)
    given = inputs(tokens)
    size = sum(parameter.nbytes for parameter in made.parameters())
    call = lambda: made(**given)[0]  # noqa: E731
    plain, expected = steps(call, count)
    rows = [Row("", "plain torch, resident", plain, 0, None)]
    [large] = co.virtual_devices(1, memory=2 * size)
    with co.Runtime([large]) as house, house.load("flux", folder).on(large) as module:
        fits, output = steps(lambda: module(**given)[0], count)
        assert torch.equal(output, expected) or torch.allclose(output, expected, atol=1e-5)
    rows.append(Row("", "coresident, it fits", fits, 0, None))
    about = (
        f"A diffusers Flux transformer of {size / 2**20:.0f} MiB on a device of "
        f"{memory / 2**20:.0f} MiB, {tokens} tokens, {torch.get_num_threads()} thread(s)."
    )
    heads = "| bus | | step | of resident | moved per step | copying hidden |"
    yield from [about, "", heads, "|---|---|---|---|---|---|", *(row.told(plain) for row in rows)]
    for gigabytes in buses:
        rows = []
        rate = gigabytes * 1e9
        bus = f"{gigabytes:g} GB/s"
        rows += [ours(folder, memory, rate, given, count, bus, expected, plain)]
        peers: list[tuple[str, Callable[[Any, Bus], Any]]] = [
            ("diffusers, group offload by block", lambda m, b: group_offload(m, "block_level", b)),
            ("diffusers, group offload by leaf", lambda m, b: group_offload(m, "leaf_level", b)),
            ("accelerate, sequential offload", sequential_offload),
        ]
        for name, around in peers:
            module, carried = type(made).from_pretrained(folder).eval(), Bus(rate)
            with around(module, carried):
                step, output = steps(lambda module=module: module(**given)[0], count)
            assert torch.allclose(output, expected, atol=1e-5), name
            moved, busy = carried.moved / (count + 1), carried.busy / (count + 1)
            hidden = max(0.0, min(1.0, 1 - (step - plain) / busy))
            rows.append(Row(bus, name, step, moved, hidden))
            if "leaf" not in name and "diffusers" in name:
                best = max(plain, busy)
                rows.append(Row(bus, "the same with a stream, at best", best, moved, None))
        yield from (row.told(plain) for row in rows)


def ours(
    folder: Path,
    memory: int,
    rate: float,
    given: dict[str, Any],
    count: int,
    bus: str,
    expected: Any,
    plain: float,
) -> Row:
    [device] = co.virtual_devices(1, memory=memory, bandwidth=int(rate))
    with co.Runtime([device]) as house:
        residence = house.load("flux", folder).on(device)
        with residence as module:
            for _ in range(3):
                module(**given)
            first = residence.streaming
            assert first is not None
            step, output = steps(lambda: module(**given)[0], count)
            last = residence.streaming
            assert last is not None
        assert torch.equal(output, expected) or torch.allclose(output, expected, atol=1e-5)
    moved, copying = last.moved - first.moved, last.copying - first.copying
    hidden = max(0.0, min(1.0, 1 - (step - plain) * (count + 1) / copying)) if copying else 1.0
    return Row(bus, "**coresident, streamed**", step, moved / (count + 1), hidden)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nbytes", type=int, default=1 << 30, help="bytes of the model")
    parser.add_argument("--memory", type=int, default=400 << 20, help="bytes of the device")
    parser.add_argument("--tokens", type=int, default=256, help="how long a step computes")
    parser.add_argument("--steps", type=int, default=5, help="of which the median counts")
    parser.add_argument("--buses", type=float, nargs="+", default=[1, 2, 4, 8], help="GB a second")
    parser.add_argument("--out", type=Path, help="a folder for the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    import tempfile

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        memory = given.memory // PAGE * PAGE
        lines = []
        amounts = (given.nbytes, memory, given.tokens, given.steps, given.buses)
        for line in measure(*amounts, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if given.out is not None:
        (given.out / "streaming.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
