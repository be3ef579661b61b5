"""Models that are larger than their device: `Model.on` with blocks that come and go."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import coresident as co
import pytest
from conftest import spawn, until

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
import tiny_models  # noqa: E402
from coresident.trace import Recording  # noqa: E402

PAGE = 2 << 20
SIDE = 1 << 9


class Layer(torch.nn.Module):  # type: ignore[misc] # torch's own types are not looked at
    """So many pages, each a matrix."""

    def __init__(self, pages: int) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(
            torch.nn.Linear(2 * SIDE, SIDE, bias=False) for _ in range(pages)
        )

    def forward(self, x: Any) -> Any:
        for part in self.parts:
            x = torch.cat([torch.tanh(part(x)), x[..., :SIDE]], dim=-1)
        return x


class Layers(torch.nn.Module):  # type: ignore[misc] # as above
    """A page that stays, and blocks that are called in an order of choice."""

    def __init__(self, blocks: int = 8, pages: int = 2) -> None:
        super().__init__()
        self.before = torch.nn.Linear(2 * SIDE, SIDE, bias=False)
        self.layers = torch.nn.ModuleList(Layer(pages) for _ in range(blocks))
        self.order: list[int] = list(range(blocks))

    def forward(self, x: Any) -> Any:
        x = torch.cat([self.before(x), x[..., :SIDE]], dim=-1)
        for at in self.order:
            x = self.layers[at](x)
        return x


def layers(blocks: int = 8, pages: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Layers(blocks, pages)


def x(seed: int = 1) -> Any:
    return torch.randn(2, 2 * SIDE, generator=torch.Generator().manual_seed(seed))


def runtime(pages: int, count: int = 1, **options: Any) -> co.Runtime:
    return co.Runtime(co.virtual_devices(count, memory=pages * PAGE, jitter=11), **options)


@pytest.fixture
def house() -> Iterator[co.Runtime]:
    """One device of ten pages: what stays, four blocks of two pages, and one page more."""
    with runtime(10) as made, torch.no_grad():
        yield made


def is_clean(house: co.Runtime) -> bool:
    """Whether nothing is pinned, and the ledger has what the device has; it also has some outputs."""
    for device in house.devices:
        status = house.analyze(device)
        taken = (device.memory or 0) - (device.free_memory() or 0)
        if status.pinned or not status.resident == house.vram[device].used == taken // PAGE * PAGE:
            return False
    return True


def test_a_model_that_does_not_fit_is_streamed_and_gives_the_same_bits(house: co.Runtime) -> None:
    expected = layers()(x())
    residence = house.load("layers", layers).on(house.devices[0])
    with residence as module:
        for _ in range(4):
            assert torch.equal(module(x()), expected)
        status = residence.streaming
        assert status is not None
        assert 0 < status.kept < status.blocks == 16 * PAGE
        assert status.kept + status.streamed == status.blocks
        assert house.analyze(house.devices[0]).resident <= 10 * PAGE
    assert is_clean(house)


def test_what_fits_is_not_streamed_unless_it_is_to_be() -> None:
    with runtime(20) as house, torch.no_grad():
        model, [device] = house.load("layers", layers), house.devices
        with pytest.raises(co.BudgetExceededError, match="beside"):
            model.on(device, "30MiB", stream=False)
        for residence in (model.on(device), model.on(device, stream=False)):
            with residence:
                assert residence.streaming is None
        with (residence := model.on(device, "10MiB")):
            assert residence.streaming is not None, "with its working memory it does not fit"
        with (residence := model.on(device, stream=True)) as module:
            assert residence.streaming is not None
            assert torch.equal(module(x()), layers()(x()))
            assert residence.streaming.kept > 12 * PAGE
        assert is_clean(house)


def test_blocks_may_be_called_in_any_order_and_twice_and_not_at_all(house: co.Runtime) -> None:
    reference = layers()
    random = torch.Generator().manual_seed(3)
    with house.load("layers", layers).on(house.devices[0]) as module:
        for turn in range(30):
            count = int(torch.randint(12, (1,), generator=random))
            order = torch.randint(8, (count,), generator=random).tolist()
            reference.order, module.order = order, order
            assert torch.equal(module(x(turn)), reference(x(turn))), order
    assert is_clean(house)


def test_hooks_see_the_weights_of_their_block(house: co.Runtime) -> None:
    expected = layers().layers[5].parts[0].weight.sum()
    seen = []

    def hook(module: Any, *_: Any) -> None:
        seen.append(module.parts[0].weight.sum())

    with house.load("layers", layers).on(house.devices[0]) as module:
        block = module.layers[5]
        for register in (block.register_forward_pre_hook, block.register_forward_hook):
            register(hook)
        torch.nn.modules.module.register_module_forward_pre_hook(everywhere := lambda *_: None)
        module(x())
        module(x())
        torch.nn.modules.module._global_forward_pre_hooks.clear()
        assert everywhere is not None
        # Without hooks, as some wrappers call it.
        assert torch.equal(block.forward(x()), layers().layers[5](x()))
    assert seen == [expected] * 4


def test_outside_its_call_a_block_has_its_weights_in_host_memory(house: co.Runtime) -> None:
    reference = layers()
    with house.load("layers", layers).on(house.devices[0]) as module:
        for _ in range(2):
            module(x())
            own, expected = module.state_dict(), reference.state_dict()
            assert all(torch.equal(own[name], expected[name]) for name in expected)
            assert torch.equal(module.layers[3].parts[1](x()), reference.layers[3].parts[1](x())), (
                "a part of a block alone"
            )
        assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_every_mode_without_gradients(house: co.Runtime, mode: Any) -> None:
    with house.load("layers", layers).on(house.devices[0]) as module, mode():
        for autocast in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
            with autocast:
                for _ in range(2):
                    assert torch.equal(module(x()), layers().requires_grad_(False)(x()))


def test_gradients_through_it_are_refused(house: co.Runtime) -> None:
    with house.load("layers", layers).on(house.devices[0]) as module:
        with torch.enable_grad(), pytest.raises(co.InvalidValueError, match="differentiated"):
            module(x().requires_grad_())
        assert torch.equal(module(x()), layers()(x()))
    assert is_clean(house)


def test_tied_weights_and_shared_parts_are_right(house: co.Runtime) -> None:
    def tied() -> Any:
        model = layers()
        model.layers[6].parts[0].weight = model.layers[1].parts[0].weight
        model.layers[7].parts[1] = model.layers[0].parts[1]
        model.layers.append(model.layers[2])
        model.order.append(8)
        return model

    expected = tied()(x())
    with house.load("tied", tied).on(house.devices[0]) as module:
        assert module.layers[6].parts[0].weight is module.layers[1].parts[0].weight
        for _ in range(3):
            assert torch.equal(module(x()), expected)
    assert is_clean(house)


def test_an_exception_in_a_block_leaves_the_device_clean(house: co.Runtime) -> None:
    def stop(*_: Any) -> None:
        raise ArithmeticError("stop")

    model = house.load("layers", layers)
    residence = model.on(house.devices[0])
    with residence as module:
        handle = module.layers[4].register_forward_hook(stop)
        for _ in range(2):
            with pytest.raises(ArithmeticError):
                module(x())
        handle.remove()
        assert torch.equal(module(x()), layers()(x())), "and it goes on"
    assert is_clean(house)
    assert not [name for layer in module.layers for name in vars(layer) if name == "forward"]


def test_a_cancel_in_the_middle_of_a_step_leaves_the_device_clean() -> None:
    devices = co.virtual_devices(1, memory=10 * PAGE, bandwidth=4 * PAGE)
    with co.Runtime(devices) as house, torch.no_grad():
        token = co.CancelToken()
        with house.load("layers", layers).on(devices[0], cancel=token) as module:
            module.layers[2].register_forward_pre_hook(lambda *_: token.cancel("enough"))
            with pytest.raises(co.CancelledError, match="enough"):
                module(x())
        until(lambda: is_clean(house))


def test_a_residence_that_is_forgotten_leaves_the_device_clean(house: co.Runtime) -> None:
    residence = house.load("layers", layers).on(house.devices[0])
    residence.module(x())
    del residence
    with pytest.warns(ResourceWarning, match="never released"):
        gc.collect()
    assert is_clean(house)


def test_what_stays_is_given_up_when_others_need_room_and_comes_back(house: co.Runtime) -> None:
    [device] = house.devices
    model, other = house.load("layers", layers), house.load("other", lambda: layers(1, 3, seed=2))
    residence = model.on(device)
    with residence as module:
        module(x())
        assert residence.streaming is not None
        before = residence.streaming.allotted
        with other.on(device) as second:
            assert residence.streaming.allotted < before
            assert torch.equal(second(x()), layers(1, 3, seed=2)(x()))
            for _ in range(2):
                assert torch.equal(module(x()), layers()(x()))
            assert is_within(house)
        for _ in range(3):
            assert torch.equal(module(x()), layers()(x()))
        assert residence.streaming.allotted >= before
    assert is_clean(house)


def is_within(house: co.Runtime) -> bool:
    return all(house.vram[device].used <= (device.memory or 0) for device in house.devices)


def test_who_waits_for_its_device_does_not_stop_it(house: co.Runtime) -> None:
    [device] = house.devices
    model, large = house.load("layers", layers), house.load("large", lambda: layers(4, 2, seed=2))
    with model.on(device) as module:
        module(x())
        waiter = spawn(lambda: large.on(device, stream=False).release())
        until(lambda: house.vram[device].status().waiting)
        for _ in range(3):
            assert torch.equal(module(x()), layers()(x()))
    waiter.join()
    assert is_clean(house)


def test_activations_take_room_from_what_stays(house: co.Runtime) -> None:
    class Hungry(Layers):
        hunger = 0

        def forward(self, x: Any) -> Any:
            for at in self.order:
                x = self.layers[at](x)
                x = x + 0 * torch.empty(self.hunger, dtype=torch.uint8).numel()
            return x

    torch.manual_seed(0)
    reference = Hungry()
    torch.manual_seed(0)
    residence = house.load("hungry", Hungry).on(house.devices[0])
    with residence as module:
        assert torch.equal(module(x()), reference(x()))
        assert residence.streaming is not None
        before = residence.streaming.allotted
        module.hunger = 4 * PAGE
        twice = x().repeat(2, 1)
        for _ in range(3):
            assert torch.equal(module(twice), reference(twice))
        assert residence.streaming.allotted < before
        assert residence.working_memory >= 4 * PAGE
        module.hunger = 9 * PAGE
        with pytest.raises(co.DeviceMemoryError):
            module(x().repeat(3, 1))
        module.hunger = 0
        assert torch.equal(module(x()), reference(x()))
    assert is_clean(house)


def test_two_devices_stream_the_same_host_copy_at_once() -> None:
    with runtime(10, count=2) as house:
        model, expected = house.load("layers", layers), layers()(x())
        before = house.ram.used

        def job(number: int) -> None:
            with torch.no_grad(), model.on(house.devices[number]) as module:
                for _ in range(10):
                    assert torch.equal(module(x()), expected)

        for thread in [spawn(lambda n=n: job(n), name=f"job {n}") for n in range(2)]:
            thread.join(60)
        assert house.ram.used == before
        assert is_clean(house)


def test_two_threads_may_call_blocks_of_one_module(house: co.Runtime) -> None:
    reference = layers()
    with house.load("layers", layers).on(house.devices[0]) as module:
        barrier = threading.Barrier(2)

        def call(at: int) -> None:
            with torch.no_grad():
                barrier.wait()
                for turn in range(20):
                    block = (at + turn) % 3
                    assert torch.equal(module.layers[block](x()), reference.layers[block](x()))

        for thread in [spawn(lambda n=n: call(n)) for n in range(2)]:
            thread.join()
    assert is_clean(house)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_packed_weights_are_streamed_as_their_bytes(house: co.Runtime, dtype: Any) -> None:
    class Packed(torch.nn.Module):  # type: ignore[misc] # as above
        def __init__(self, at: int) -> None:
            super().__init__()
            packed = torch.full((PAGE,), at, dtype=torch.uint8).view(dtype)
            self.packed = torch.nn.Parameter(packed, requires_grad=False)

        def forward(self, x: Any) -> Any:
            return x * 2 + self.packed[::999].view(torch.uint8).sum()

    class Model(torch.nn.Module):  # type: ignore[misc] # as above
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(Packed(at) for at in range(20))

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    zero = torch.zeros(1, dtype=torch.int64)
    expected = Model()(zero)
    residence = house.load("packed", Model).on(house.devices[0])
    with residence as module:
        assert torch.equal(module(zero), expected)
        assert residence.streaming is not None
        assert residence.streaming.moved <= 22 * PAGE, "a byte is a byte"


def test_a_lora_of_one_replica_is_streamed_with_it(tmp_path: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    made = tiny_models.flux()
    made.save_pretrained(tmp_path / "flux")
    inputs = tiny_models.flux_inputs()
    made.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k"]), "some")
    lora = {
        name.replace(".some", ""): torch.randn_like(value)
        for name, value in made.state_dict().items()
        if "lora_" in name
    }

    def outputs(pages: int, streamed: bool) -> list[Any]:
        with runtime(pages) as house, torch.no_grad():
            model, [device] = house.load("flux", tmp_path / "flux"), house.devices
            got = []
            with model.replica(device) as replica:
                for _ in range(2):
                    with ct.lora(replica, lora) as module, (residence := replica.on()):
                        assert (residence.streaming is not None) == streamed
                        got += [module(**inputs)[0] for _ in range(2)]
                    with replica.on() as module:
                        got.append(module(**inputs)[0])
            assert is_clean(house)
            return got

    nbytes = sum(parameter.nbytes for parameter in made.parameters())
    resident, streamed = outputs(64, False), outputs(int(nbytes / PAGE / 1.5), True)
    assert all(torch.equal(one, other) for one, other in zip(resident, streamed, strict=True))
    assert not torch.equal(resident[0], resident[2]), "the adapter makes a difference"


def test_what_is_written_on_purpose_is_streamed(house: co.Runtime) -> None:
    def write(layer: Any, _: Any) -> None:
        layer.parts[1].weight.add_(1)

    with house.load("layers", layers).replica(house.devices[0]) as replica:
        reference = layers()
        with ct.writable(replica) as module, replica.on():
            for model in (module, reference):
                model(x())
                model.layers[4].parts[0].weight.mul_(2)
                model.layers[5].register_forward_pre_hook(write)
            for _ in range(3):
                assert torch.equal(module(x()), reference(x()))


def test_compiled_blocks_are_right_and_a_whole_graph_is_refused_with_the_reason(
    house: co.Runtime,
) -> None:
    expected = layers()(x())
    with house.load("layers", layers).on(house.devices[0]) as module:
        compiled = torch.compile(module, backend="eager")
        for _ in range(3):
            assert torch.equal(compiled(x()), expected)
        torch.compiler.reset()
        whole = torch.compile(module, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="streamed"):
            whole(x())
        for layer in module.layers:
            layer.compile(backend="eager")
        for _ in range(2):
            assert torch.equal(module(x()), expected)
    torch.compiler.reset()


@pytest.mark.skipif(
    shutil.which("c++") is None, reason="inductor compiles C++ here, and there is no compiler"
)
@pytest.mark.timeout(300)
def test_a_block_that_inductor_has_compiled_is_streamed(house: co.Runtime) -> None:
    expected = layers()(x())
    model = house.load("layers", layers)
    residence = model.on(house.devices[0], blocks=[f"layers.{at}" for at in range(8)])
    with residence as module:
        module.layers[3].compile(backend="inductor")
        for _ in range(3):
            # Compiled code may round otherwise.
            torch.testing.assert_close(module(x()), expected)
        assert residence.streaming is not None
        assert residence.streaming.streamed > 0
    torch.compiler.reset()
    assert is_clean(house)


def test_blocks_may_be_compiled_each_by_itself(house: co.Runtime) -> None:
    expected, names = layers()(x()), [f"layers.{at}" for at in range(8)]
    with house.load("layers", layers).on(house.devices[0], blocks=names) as module:
        for layer in module.layers:
            layer.compile(backend="eager")
        for _ in range(3):
            assert torch.equal(module(x()), expected)
    torch.compiler.reset()
    assert is_clean(house)


def test_blocks_may_be_named(house: co.Runtime) -> None:
    model, [device] = house.load("layers", layers), house.devices
    with (residence := model.on(device, blocks=["layers"])) as module:
        assert residence.streaming is not None
        assert residence.streaming.blocks == 16 * PAGE
        assert torch.equal(module(x()), layers()(x()))
    names = [f"layers.{at}" for at in range(6)] + ["layers.6.parts", "before"]
    with (residence := model.on(device, blocks=names)) as module:
        assert residence.streaming is not None
        assert residence.streaming.resident == 2 * PAGE, "layers.7 is in none of them"
        assert torch.equal(module(x()), layers()(x()))
    for wrong, told in [
        (["layer"], "did you mean 'layers'"),
        (["layers", "layers.1"], "has it"),
        ([""], "no part ''$"),
        ([], "no blocks"),
    ]:
        with pytest.raises(co.InvalidValueError, match=told):
            model.on(device, blocks=wrong)
    for nothing in ("layers", 3, [4]):
        with pytest.raises(co.InvalidTypeError):
            model.on(device, blocks=nothing)  # type: ignore[arg-type]
    with pytest.raises(co.InvalidValueError, match="'auto'"):
        model.on(device, stream="no")  # type: ignore[arg-type]
    with pytest.raises(co.InvalidValueError, match="stream is False"):
        model.on(device, stream=False, blocks=["layers"])
    with co.Runtime(co.virtual_devices(1)) as unified:
        other = unified.load("layers", layers)
        with pytest.raises(co.InvalidValueError, match="stream"):
            other.on(unified.devices[0], stream=True)


def test_a_block_that_cannot_fit_is_named_with_its_bytes() -> None:
    with runtime(4) as house:
        model = house.load("layers", lambda: layers(3, 6))
        with pytest.raises(co.BudgetExceededError, match=r"'layers\.0' has 12 MiB"):
            model.on(house.devices[0], blocks=["layers"])
        with torch.no_grad(), model.on(house.devices[0]) as module:
            assert torch.equal(module(x()), layers(3, 6)(x())), "in parts it fits"
        assert is_clean(house)


def test_what_is_there_from_before_is_not_copied_again(house: co.Runtime) -> None:
    model, [device] = house.load("layers", layers), house.devices
    with model.on(device) as module:
        module(x())
        module(x())
    with (residence := model.on(device)):
        assert residence.streaming is not None
        assert residence.streaming.kept > 4 * PAGE
        assert residence.streaming.moved < 5 * PAGE, "nothing but what comes ahead"


def test_a_closed_model_lets_its_pages_go(house: co.Runtime) -> None:
    model = house.load("layers", layers)
    with model.on(house.devices[0]) as module:
        module(x())
    model.close()
    del model, module
    gc.collect()
    assert house.analyze(house.devices[0]).resident == 0
    assert is_clean(house)


def test_the_timeline_shows_what_was_hidden_behind_computing() -> None:
    # Slow enough that blocks wait for their copies.
    devices = co.virtual_devices(1, memory=10 * PAGE, bandwidth=200 * PAGE)
    with co.Runtime(devices) as house, torch.no_grad():
        residence = house.load("layers", layers).on(devices[0])
        with residence as module:
            for _ in range(3):
                module(x())
            status = residence.streaming
        assert status is not None
        shown = house.explain()
        [row] = shown.rows
        assert row.requests == 1
        assert row.stalled == pytest.approx(status.stalled, abs=1e-4)
        assert row.hidden is not None
        assert row.hidden == pytest.approx(status.hidden, abs=0.1)
        assert status.late > 0
        assert f"{row.hidden:.0%} of streaming hidden" in str(shown)
        events = house.timeline.recording().events
        kinds = [Recording.kinds[kind] for kind in events["kind"]]
        assert kinds.count("visit") == status.visits == 3 * 16
        assert kinds.count("stall") == status.late
        picture = shown.svg()
        assert picture.count("computed for") == status.visits
        assert picture.count("waited") == status.late
        assert "waits for a copy" in picture
        assert f"{row.hidden:.0%} of it hidden" in picture


def test_what_fits_has_nothing_to_hide() -> None:
    with runtime(30) as house, torch.no_grad():
        with house.load("layers", layers).on(house.devices[0]) as module:
            module(x())
        shown = house.explain()
        assert [row.hidden for row in shown.rows] == [None]
        assert "hidden" not in shown.svg()
