"""Models on a real GPU: what machines without one cannot show.

Those that are larger than what they may have are streamed (``test_streaming.py`` asks more of that, on
virtual devices). None of this has run on a GPU yet.

``python -m pytest tests/gpu`` on a machine with CUDA and torch; needs no compiler.
"""

from __future__ import annotations

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import coresident as co
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

import coresident.torch as ct  # noqa: E402

MIB = 1 << 20


class Mlp(torch.nn.Module):  # type: ignore[misc] # torch's own types are not looked at
    """So many MiB of weights in float32, a MiB in each layer."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(512, 512, False) for _ in range(layers))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def mlp(layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    return Mlp(layers)


def load(runtime: co.Runtime, layers: int, seed: int = 0) -> ct.Model:
    return runtime.load(f"mlp {layers} {seed}", lambda: mlp(layers, seed))


@pytest.fixture
def x(device: co.Device) -> Any:
    made = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    return made.to(device.torch_name)


def expected(device: co.Device, x: Any, layers: int, seed: int = 0) -> Any:
    with torch.no_grad():
        return mlp(layers, seed).to(device.torch_name)(x)


def test_a_model_is_what_torch_would_move(runtime: co.Runtime, device: co.Device, x: Any) -> None:
    model = load(runtime, 40)
    for _ in range(3):
        with model.on(device) as module, torch.no_grad():
            assert str(next(module.parameters()).device) == device.torch_name
            assert torch.equal(module(x), expected(device, x, 40))


def test_when_all_fits_nothing_moves(runtime: co.Runtime, device: co.Device) -> None:
    models = [load(runtime, 40, seed) for seed in range(3)]
    for model in models:
        model.on(device).release()
    filled = runtime.analyze(device).filled
    for model in models * 5:
        model.on(device).release()
    assert runtime.analyze(device).filled == filled


def test_models_that_do_not_fit_together_stay_right(
    runtime: co.Runtime, device: co.Device, x: Any
) -> None:
    models = [load(runtime, 120, seed) for seed in range(3)]
    results = [expected(device, x, 120, seed) for seed in range(3)]
    for turn in range(60):
        at = (turn * 7) % 3
        with models[at].on(device) as module, torch.no_grad():
            assert torch.equal(module(x), results[at]), turn
    status = runtime.analyze(device)
    assert status.evicted > 0
    assert status.resident <= 256 * MIB
    assert status.resident == runtime.vram[device].used


def test_threads_with_streams_of_their_own_share_a_device(
    runtime: co.Runtime, device: co.Device, x: Any
) -> None:
    models = [load(runtime, 60, seed) for seed in range(4)]
    results = [expected(device, x, 60, seed) for seed in range(4)]

    def job(number: int) -> None:
        def run() -> None:
            for turn in range(20):
                at = (number + turn) % 4
                with models[at].on(device) as module, torch.no_grad():
                    assert torch.equal(module(x), results[at])

        if device.type == "cuda":
            stream = torch.cuda.Stream(device.index)
            stream.wait_stream(torch.cuda.current_stream(device.index))
            with torch.cuda.stream(stream):
                run()
        else:
            run()

    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(job, number) for number in range(3)]:
            future.result()
    assert runtime.analyze(device).pinned == 0


def test_memory_that_leaves_is_given_back(runtime: co.Runtime, device: co.Device) -> None:
    model = load(runtime, 120)
    model.on(device).release()
    if device.type == "cuda":
        torch.cuda.synchronize()
    before = device.free_memory()
    while runtime.analyze(device).resident:
        runtime.arenas[device].evict()
    after = device.free_memory()
    assert before is not None
    assert after is not None
    assert after - before >= 110 * MIB


def test_pinned_tensors_outlive_their_model(runtime: co.Runtime, device: co.Device) -> None:
    model = load(runtime, 10)
    tensor = torch.from_dlpack(model.area(device).pinned("layers.3.weight"))
    model.close()
    del model
    gc.collect()
    runtime.arenas[device].evict()
    assert torch.equal(tensor.cpu(), mlp(10, 0).layers[3].weight)


def test_adapters_come_to_the_device_with_their_module(
    runtime: co.Runtime, device: co.Device, x: Any
) -> None:
    replica = load(runtime, 10).replica(device)
    with ct.writable(replica) as module, torch.no_grad():
        module.layers[0].adapter = torch.nn.Linear(512, 512, False)
        module.layers[1].weight.mul_(2)
        with replica.on():
            assert str(module.layers[0].adapter.weight.device) == device.torch_name
            doubled = mlp(10, 0).to(device.torch_name)
            doubled.layers[1].weight.mul_(2)
            assert torch.equal(module(x), doubled(x))
        assert module.layers[0].adapter.weight.device.type == "cpu"
    replica.release()


def test_working_memory_is_learned(runtime: co.Runtime, device: co.Device, x: Any) -> None:
    model = load(runtime, 10)
    residence = model.on(device)
    with residence as module, torch.no_grad():
        module(x)
        module(x)
        assert x.nbytes <= residence.working_memory <= 64 * MIB


def test_a_call_that_does_not_fit_is_an_error_that_leaves_the_device_usable(
    runtime: co.Runtime, device: co.Device, x: Any
) -> None:
    class Large(Mlp):
        def forward(self, x: Any) -> Any:
            torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
            return super().forward(x)

    model = runtime.load("large", lambda: Large(3))
    with model.on(device) as module, pytest.raises((co.DeviceMemoryError, RuntimeError)):
        module(x)
    with load(runtime, 3).on(device) as module, torch.no_grad():
        assert torch.equal(module(x), expected(device, x, 3))


class Layer(torch.nn.Module):  # type: ignore[misc] # as above
    """So many MiB, a MiB in each part."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(*(torch.nn.Linear(512, 512, False) for _ in range(mib)))

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.parts(x))


class Layers(torch.nn.Module):  # type: ignore[misc] # as above
    """Blocks of 16 MiB each, which are repeated."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Layer(16) for _ in range(blocks))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


LAYERS = 32


@pytest.fixture(scope="module")
def layers() -> Any:
    """Twice as much as the runtime may have."""
    torch.manual_seed(3)
    return Layers(LAYERS)


@pytest.fixture
def larger(runtime: co.Runtime, layers: Any) -> ct.Model:
    return runtime.load("larger", lambda: layers)


def streaming_of(residence: ct.Residence) -> co.StreamingStatus:
    status = residence.streaming
    assert status is not None, "it is not streamed"
    return status


def test_a_model_that_is_larger_gives_the_bits_of_a_resident_one(
    runtime: co.Runtime, device: co.Device, larger: ct.Model, layers: Any, x: Any
) -> None:
    residence = larger.on(device)
    with residence as module, torch.no_grad():
        streamed = [module(x) for _ in range(5)]
        status = streaming_of(residence)
        assert 0 < status.kept < status.blocks == LAYERS * 16 * MIB
        # The first step copies all, the others what does not stay, and what has come ahead.
        most = status.resident + status.blocks + 4 * status.streamed + status.allotted
        assert status.moved <= most
        assert runtime.vram[device].used <= 256 * MIB
    # Enough for all of it, so that nothing comes and goes.
    with co.Runtime([device]) as other, torch.no_grad():
        with (residence := other.load("larger", lambda: layers).on(device)) as module:
            assert residence.streaming is None
            resident = module(x)
    assert all(torch.equal(one, resident) for one in streamed)
    assert runtime.analyze(device).pinned == 0


def test_streamed_blocks_are_right_on_streams_of_ones_own(
    runtime: co.Runtime, device: co.Device, larger: ct.Model, x: Any
) -> None:
    def run(model: ct.Model) -> Any:
        with model.on(device) as module, torch.no_grad():
            for _ in range(3):
                output = module(x)
            return output

    first = run(larger)
    if device.type == "cuda":
        stream = torch.cuda.Stream(device.index)
        stream.wait_stream(torch.cuda.current_stream(device.index))
        with torch.cuda.stream(stream):
            second = run(larger)
        torch.cuda.current_stream(device.index).wait_stream(stream)
    else:
        second = run(larger)
    assert torch.equal(first, second)
    assert runtime.analyze(device).pinned == 0


def test_copies_hide_behind_the_work_of_blocks(device: co.Device, larger: ct.Model, x: Any) -> None:
    much = x.repeat(64, 1)
    residence = larger.on(device)
    with residence as module, torch.no_grad():
        for _ in range(4):
            module(much)
        status = streaming_of(residence)
        # How much is a figure of the bench; here, that there is one.
        assert 0.0 <= status.hidden <= 1.0
        assert status.visits == 4 * LAYERS


def test_a_graph_within_a_block_is_replayed_there(
    device: co.Device, larger: ct.Model, x: Any
) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA captures graphs")

    class Replayed(torch.nn.Module):  # type: ignore[misc] # as above
        """Captures a graph of its part at the first call, within its block, and replays it."""

        def __init__(self, part: Any) -> None:
            super().__init__()
            self.part = part
            self.graph: Any = None

        def forward(self, x: Any) -> Any:
            if self.graph is None:
                side = torch.cuda.Stream(device.index)
                side.wait_stream(torch.cuda.current_stream(device.index))
                with torch.cuda.stream(side):
                    self.part(x)
                torch.cuda.current_stream(device.index).wait_stream(side)
                self.input, self.graph = x.clone(), torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.output = self.part(self.input)
            self.input.copy_(x)
            self.graph.replay()
            return self.output.clone()

    residence = larger.on(device)
    with residence as module, torch.no_grad():
        eager = module(x)
        # What comes and goes comes to the same addresses again.
        for block in module.blocks:
            block.parts = Replayed(block.parts)
        for _ in range(4):
            # A graph may choose other kernels.
            torch.testing.assert_close(module(x), eager)
        assert streaming_of(residence).streamed > 0


def test_a_graph_of_all_of_it_is_refused_with_the_reason(
    runtime: co.Runtime, device: co.Device, larger: ct.Model, x: Any
) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA captures graphs")
    with larger.on(device) as module, torch.no_grad():
        expected = module(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            pytest.raises(co.InvalidValueError, match="capture within the blocks"),
            torch.cuda.graph(graph),
        ):
            module(x)
        assert torch.equal(module(x), expected), "and it goes on"
    assert runtime.analyze(device).pinned == 0


def test_compiled_blocks_are_streamed_and_all_of_it_as_one_graph_is_not(
    runtime: co.Runtime, device: co.Device, larger: ct.Model, x: Any
) -> None:
    backend = "inductor" if device.type == "cuda" or shutil.which("c++") else "eager"
    with larger.on(device) as module, torch.no_grad():
        expected = module(x)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="streamed"):
            torch.compile(module, backend="eager", fullgraph=True)(x)
        torch.compiler.reset()
        for block in module.blocks:
            block.compile(backend=backend)
        for _ in range(3):
            # Compiled code may round otherwise.
            torch.testing.assert_close(module(x), expected)
    torch.compiler.reset()
    assert runtime.analyze(device).pinned == 0
