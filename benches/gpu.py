"""Weights on their way to a GPU, beside what torch does: ``python benches/gpu.py``.

Needs CUDA and torch, and no compiler; diffusers for its group offload, and host memory for two of
the transformer. ``--device virtual`` tries the script itself where there is no GPU; what it prints
then says nothing about one. ``python tests/gpu`` runs the suite first.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coresident as co
import torch
from safetensors.torch import save_file

MIB = 1 << 20
ROUNDS = 5


def seconds(work: Callable[[], Any], device: co.Device) -> float:
    """The median of some rounds, each until the device has done it."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device.index)

    taken = []
    for _ in range(ROUNDS + 1):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - began)
    # The first one makes buffers, and contexts.
    return statistics.median(taken[1:])


class Weights(torch.nn.Module):  # type: ignore[misc] # torch's own types are not looked at
    """Tensors of so many bytes each."""

    def __init__(self, sizes: list[int], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.all = torch.nn.ParameterList(torch.randn(max(1, size // 4)) for size in sizes)


def mostly_small(count: int, nbytes: int) -> list[int]:
    """As a diffusion transformer has them: more than half of the tensors are below 64 KiB."""
    small, large = count * 6 // 10, count - count * 6 // 10
    rest = (nbytes - small * (16 << 10)) // large
    return [16 << 10 if at % 5 < 3 else rest for at in range(count)]


def rate(device: co.Device, weights: Any, runtime: co.Runtime) -> float:
    """Bytes per second of weights that have left, made resident again."""
    arena = runtime.arenas[device]
    area = arena.area(weights)

    def again() -> None:
        while arena.status().resident:
            arena.evict()
        area.fault().release()

    return float(area.nbytes / seconds(again, device))


def rates(device: co.Device, nbytes: int, plain: float) -> Iterator[list[str]]:
    """From memory of the store's own, by what of it is page-locked, and from a cached file."""
    contents = {"64 tensors": [nbytes // 64] * 64, "1900 tensors": mostly_small(1900, nbytes)}
    for name, sizes in contents.items():
        tensors = {f"t{at}": torch.randn(max(1, size // 4)) for at, size in enumerate(sizes)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_file(tensors, path)
            del tensors
            # How much of a plain pinned copy's rate is meant to come out.
            aims = {("all", True): 95 if len(sizes) == 64 else 85, ("staging", False): 70}
            for pin, copy in (("all", True), ("staging", True), ("staging", False), ("none", True)):
                with (
                    co.Runtime([device], pin=pin) as runtime,
                    runtime.weights.open("model", path, copy=copy) as weights,
                ):
                    speed = rate(device, weights, runtime)
                lies = "in memory" if copy else "in a cached file"
                what = f"{name}, {nbytes / MIB:.0f} MiB {lies}, pin={pin!r}"
                share = f"{speed / plain:.0%} of the pinned copy"
                if (pin, copy) in aims:
                    share += f" (aim: {aims[pin, copy]}% or more)"
                yield [what, f"{speed / 1e9:.2f} GB/s", share]


def two_workers(runtime: co.Runtime, device: co.Device) -> list[str]:
    """Two jobs on one device, each with a stream of its own, beside one after the other."""

    class Chain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.all = torch.nn.ModuleList(torch.nn.Linear(1024, 1024) for _ in range(8))

        def forward(self, x: Any) -> Any:
            for layer in self.all:
                x = layer(x)
            return x

    models = [runtime.load(f"chain {n}", lambda n=n: Chain(n)) for n in range(2)]
    cuda = device.type == "cuda"

    def job(model: Any) -> None:
        stream = torch.cuda.Stream(device.index) if cuda else None
        with torch.inference_mode(), torch.cuda.stream(stream), model.on(device) as module:
            x = torch.randn(256 if cuda else 4, 1024, device=device.torch_name)
            for _ in range(20):
                x = module(x)

    def together() -> None:
        threads = [threading.Thread(target=job, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    own = seconds(together, device)
    other = seconds(lambda: [job(model) for model in models], device)
    for model in models:
        model.close()
    what = "two workers with a stream each"
    return [what, f"{own * 1e3:.1f} ms", f"{own / other:.2f} x one after the other"]


def plain_rate(device: co.Device, nbytes: int) -> float:
    """Bytes per second of the best plain copy from pinned memory."""
    pinned = torch.empty(nbytes, dtype=torch.uint8)
    if device.type == "cuda":
        pinned = pinned.pin_memory()
    there = torch.empty(nbytes, dtype=torch.uint8, device=device.torch_name)
    return nbytes / seconds(lambda: there.copy_(pinned, non_blocking=True), device)


def resident_block(runtime: co.Runtime, device: co.Device) -> list[str]:
    """A block that is there, beside `.to()`, which moves nothing either."""
    with runtime.load("block", lambda: Weights([1 << 18] * 40)) as model:
        area = model.area(device)
        block = area.block(area.keys())
        ours = seconds(lambda: [area.fault(block).release() for _ in range(1000)], device) / 1000
    module = Weights([1 << 18] * 40).to(device.torch_name)
    theirs = seconds(lambda: [module.to(device.torch_name) for _ in range(100)], device) / 100
    figure = f"{ours * 1e6:.1f} us"
    return ["a resident block of 40 tensors", figure, f"{ours / theirs:.3f} x .to()"]


def arriving_block(runtime: co.Runtime, device: co.Device) -> list[str]:
    """A block that has to come, beside `.to()`; both leave without a copy back."""
    sizes = [1 << 18] * 40
    with runtime.load("arriving", lambda: Weights(sizes)) as model:
        area, arena = model.area(device), runtime.arenas[device]
        block = area.block(area.keys())

        def ours() -> None:
            while arena.status().resident:
                arena.evict()
            area.fault(block).release()

        own = seconds(ours, device)
    tensors = [tensor.detach() for tensor in Weights(sizes).all]
    other = seconds(lambda: [tensor.to(device.torch_name) for tensor in tensors], device)
    what = f"a block of {sum(sizes) / MIB:.0f} MiB that comes"
    return [what, f"{own * 1e3:.2f} ms", f"{own / other:.2f} x .to()"]


class Block(torch.nn.Module):  # type: ignore[misc]
    """A layer of a transformer, without its attention's scores: twelve squares of its width."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        limit = width**-0.5
        made = (torch.empty(shape, dtype=dtype).uniform_(-limit, limit) for shape in shapes)
        self.qkv, self.out, self.up, self.down = map(torch.nn.Parameter, made)
        self.norm = torch.nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, x: Any) -> Any:
        y = torch.nn.functional.rms_norm(x, x.shape[-1:], self.norm)
        q, k, v = torch.nn.functional.linear(y, self.qkv).chunk(3, dim=-1)
        x = x + torch.nn.functional.linear(torch.tanh(q * k) * v, self.out)
        y = torch.nn.functional.gelu(torch.nn.functional.linear(x, self.up))
        return x + torch.nn.functional.linear(y, self.down)


class Transformer(torch.nn.Module):  # type: ignore[misc]
    """So many layers of so many bytes together."""

    def __init__(self, nbytes: int, dtype: torch.dtype, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = max(8, int(math.sqrt(nbytes / layers / 12 / dtype.itemsize)) // 8 * 8)
        self.blocks = torch.nn.ModuleList(Block(self.width, dtype) for _ in range(layers))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def larger_than_the_budget(device: co.Device, options: argparse.Namespace) -> Iterator[list[str]]:
    """A transformer of which half may be there, beside what diffusers does and all of it there."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    wanted = int(options.transformer_gib * 1024) * MIB
    where, made = device.torch_name, Transformer(wanted, dtype, options.layers)
    nbytes = sum(parameter.nbytes for parameter in made.parameters())
    x = torch.randn(1, options.tokens, made.width).to(dtype).to(where)
    name = f"{nbytes / MIB / 1024:.3g} GiB in {len(made.blocks)} layers, {options.steps} steps"

    def steps(module: Any) -> Any:
        y = x
        with torch.inference_mode():
            for _ in range(options.steps):
                y = module(y) / 2
        return y

    def row(how: str, work: Callable[[], Any]) -> list[str]:
        try:
            taken = seconds(work, device)
        except (torch.OutOfMemoryError, co.CoresidentError, ImportError, ValueError) as error:
            return [f"{name}: {how}", "-", f"{type(error).__name__}: {str(error).splitlines()[0]}"]
        figures[how] = taken
        beside = figures.get(_OURS, taken)
        same = "" if how == _OURS else f"coresident takes {beside / taken:.2f} of that"
        return [f"{name}: {how}", f"{taken:.3f} s", same]

    figures: dict[str, float] = {}
    results: list[Any] = []
    with co.Runtime([device]) as runtime:
        runtime.vram[device].limit = nbytes // 2
        model = runtime.load("transformer", lambda: made)

        def ours() -> None:
            with model.on(device) as module:
                results[:] = [steps(module).cpu()]

        yield row(_OURS, ours)
        model.close()
    own = results.pop() if results else None

    def offloaded() -> None:
        made.to(where)
        results[:] = [steps(made).cpu()]
        made.to("cpu")

    yield row("model offload, without a limit", offloaded)
    made.to(where)
    yield row("resident, without a limit", lambda: steps(made))
    made.to("cpu")
    if own is not None and results:
        torch.testing.assert_close(own, results[0], rtol=0, atol=0)

    def grouped() -> Callable[[], Any]:
        from diffusers.hooks import apply_group_offloading

        how = {"use_stream": True, "non_blocking": True} if cuda else {}
        onload, offload = torch.device(where), torch.device("cpu")
        apply_group_offloading(
            made, onload, offload, offload_type="block_level", num_blocks_per_group=1, **how
        )
        return lambda: steps(made)

    what = "diffusers' group offload" + (" with streams" if cuda else "")
    try:
        work = grouped()
    except ImportError as error:
        yield [f"{name}: {what}", "-", str(error)]
        return
    yield row(what, work)


_OURS = "coresident with half of that"


def switching(runtime: co.Runtime, device: co.Device, nbytes: int) -> list[str]:
    """Three models of which two fit, in turn, beside moving them to the device and back."""
    sizes = [nbytes // 40] * 40
    budget = runtime.vram[device]
    before, budget.limit = budget.limit, int(2.2 * nbytes)
    models = [runtime.load(f"model {n}", lambda n=n: Weights(sizes, n)) for n in range(3)]
    replicas = [model.replica(device) for model in models]

    def ours() -> None:
        for replica in replicas:
            replica.on().release()

    own = seconds(ours, device)
    for replica in replicas:
        replica.release()
    for model in models:
        model.close()
    budget.limit = before
    modules = [Weights(sizes, n) for n in range(3)]

    def theirs() -> None:
        for module in modules:
            module.to(device.torch_name)
            module.to("cpu")

    other = seconds(theirs, device)
    name = f"a round of three models of {nbytes / MIB:.0f} MiB"
    return [name, f"{own * 1e3:.1f} ms", f"{own / other:.2f} x .to() and back"]


def main() -> None:
    """Prints the table, and writes it where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument(
        "--mib", type=int, default=2048, help="of the models that are moved as a whole"
    )
    parser.add_argument(
        "--transformer-gib", type=float, default=24, help="of the one that is larger"
    )
    parser.add_argument("--layers", type=int, default=48, help="of the transformer")
    parser.add_argument("--tokens", type=int, default=4096, help="that the transformer is given")
    parser.add_argument("--steps", type=int, default=4, help="of the transformer")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="of each figure; the median counts"
    )
    parser.add_argument("--out", type=Path, help="a file for the table, as Markdown")
    options = parser.parse_args()
    globals()["ROUNDS"] = options.rounds
    nbytes = options.mib * MIB
    if options.device == "virtual":
        memory = max(4 * nbytes, int(2048 * options.transformer_gib) * MIB)
        [device] = co.virtual_devices(1, memory=memory)
    else:
        [device] = co.devices(options.device)
    plain = plain_rate(device, nbytes)
    rows = [["a plain copy from pinned memory", f"{plain / 1e9:.2f} GB/s", ""]]
    rows += rates(device, nbytes, plain)
    with co.Runtime([device]) as runtime:
        rows.append(resident_block(runtime, device))
        rows.append(arriving_block(runtime, device))
        rows.append(switching(runtime, device, nbytes // 2))
        rows.append(two_workers(runtime, device))
    rows += larger_than_the_budget(device, options)
    lines = [
        f"# {device.label}, torch {torch.__version__}",
        "",
        "| what | measured | |",
        "|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
