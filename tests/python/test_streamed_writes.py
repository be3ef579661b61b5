"""What is written in a model while it is streamed: as right as if all of it stayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import coresident as co
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
import tiny_models  # noqa: E402
from coresident.torch.host_writes import HostWrites, same_bytes  # noqa: E402
from test_streaming import PAGE, SIDE, is_clean, layers, runtime, x  # noqa: E402

SIZES = {"streamed": 10, "resident": 40}


@pytest.fixture(params=SIZES)
def house(request: Any) -> Iterator[co.Runtime]:
    """A device on which the layers are streamed, and one on which all of them stay."""
    with runtime(SIZES[request.param]) as made, torch.no_grad():
        yield made


@pytest.fixture
def small() -> Iterator[co.Runtime]:
    """A device on which they are streamed."""
    with runtime(SIZES["streamed"]) as made, torch.no_grad():
        yield made


def is_as_meant(house: co.Runtime, residence: Any) -> bool:
    """Whether a model is streamed exactly where it does not fit."""
    [device] = house.devices
    return (residence.streaming is not None) == (device.memory == SIZES["streamed"] * PAGE)


def double(weight: Any) -> None:
    weight.mul_(2)


def copy(weight: Any) -> None:
    weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).view_as(weight))


def add_to_data(weight: Any) -> None:
    weight.data += 0.1


def replace_data(weight: Any) -> None:
    weight.data = weight.data * 2


def turn_data(weight: Any) -> None:
    weight.data = weight.data.flip(0).t().contiguous().t()


def write_by_numpy(weight: Any) -> None:
    weight.detach().numpy()[::2] *= 3


COUNTED = [double, copy]
REPLACED = [replace_data, turn_data]
UNCOUNTED = [add_to_data, write_by_numpy]


def written(
    model: Any, write: Callable[[Any], None], blocks: tuple[int, ...], turns: int = 2
) -> list[Any]:
    """What a model gives when its blocks are written between calls."""
    outputs = [model(x())]
    for turn in range(turns):
        for at in blocks:
            write(model.layers[at].parts[(at + turn) % 2].weight)
        outputs += [model(x(turn)) for turn in range(3)]
    return outputs


def are_equal(ours: list[Any], expected: list[Any]) -> bool:
    return len(ours) == len(expected) and all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("blocks", [(0,), (4,), (7,), (0, 3, 7), tuple(range(8))], ids=str)
@pytest.mark.parametrize("write", [*COUNTED, *REPLACED, *UNCOUNTED])
def test_what_is_written_between_calls_is_kept_within_writable(
    house: co.Runtime, write: Callable[[Any], None], blocks: tuple[int, ...]
) -> None:
    reference = layers()
    expected = written(reference, write, blocks)
    model = house.load("layers", layers)
    with model.replica(house.devices[0]) as replica:
        with ct.writable(replica) as module:
            with (residence := replica.on()):
                assert is_as_meant(house, residence)
                assert are_equal(written(module, write, blocks), expected)
            own = module.state_dict()
            assert all(torch.equal(own[n], value) for n, value in reference.state_dict().items())
            assert torch.equal(module(x()), reference(x())), "in host memory"
            for _ in range(2):
                with replica.on():
                    assert torch.equal(module(x()), reference(x())), "and on the device again"
        with replica.on() as module:
            assert torch.equal(module(x()), layers()(x())), "it is as a new one"
    assert is_clean(house)


@pytest.mark.parametrize("write", [*COUNTED, *REPLACED])
def test_what_is_written_between_calls_is_seen_without_it_and_nobody_else_sees_it(
    house: co.Runtime, write: Callable[[Any], None]
) -> None:
    expected, model = written(layers(), write, (0, 3, 7)), house.load("layers", layers)
    [device] = house.devices
    told = pytest.warns(ct.StrayWriteWarning) if write in COUNTED else nullcontext()
    with model.replica(device) as replica:
        with told as warned, (residence := replica.on()) as module:
            assert is_as_meant(house, residence)
            assert are_equal(written(module, write, (0, 3, 7)), expected)
        if warned is not None:
            [one] = warned
            assert "layers.3.parts.1.weight" in str(one.message)
        for _ in range(2):
            with replica.on() as module:
                assert torch.equal(module(x()), layers()(x())), "they are undone"
        assert replica.written() == []
    with model.on(device) as module:
        assert torch.equal(module(x()), layers()(x()))
    assert is_clean(house)


@pytest.mark.parametrize("write", UNCOUNTED)
def test_what_torch_does_not_count_is_named_where_it_is_in_host_memory(
    small: co.Runtime, write: Callable[[Any], None]
) -> None:
    model, [device] = small.load("layers", layers), small.devices
    replica = model.replica(device)
    with replica.on() as module:
        module(x())
        at_rest = {tensor.data_ptr() for tensor in replica._tensors.all}
        [*_, (name, weight)] = [
            (name, weight)
            for name, weight in module.layers.named_parameters(prefix="layers")
            if weight.data_ptr() in at_rest
        ]
        write(weight)
    with pytest.warns(ct.StrayWriteWarning, match=name):
        assert replica.release() == [name]
    with model.on(device) as module:
        assert torch.equal(module(x()), layers()(x())), "nobody else sees it"


@pytest.mark.parametrize("way", ["writable", "plain"])
def test_what_a_block_writes_in_its_own_call_is_read_by_the_next_one(
    house: co.Runtime, way: str
) -> None:
    def hook(layer: Any, *_: Any) -> None:
        layer.parts[0].weight.mul_(1.5)
        if way == "writable":
            layer.parts[1].weight.data.mul_(0.5)

    def outputs(module: Any) -> list[Any]:
        for at in (1, 2, 6):
            module.layers[at].register_forward_hook(hook)
        return [module(x()) for _ in range(6)]

    expected = outputs(layers())
    with house.load("layers", layers).replica(house.devices[0]) as replica:
        around = ct.writable(replica) if way == "writable" else pytest.warns(ct.StrayWriteWarning)
        with around, replica.on() as module:
            assert are_equal(outputs(module), expected)


def test_a_visit_may_leave_views_of_its_pages_behind(house: co.Runtime) -> None:
    def turn(layer: Any, *_: Any) -> None:
        # The same memory, read otherwise: what is left of it must not leave with the pages.
        layer.parts[1].weight.data = (
            layer.parts[1].weight.data.flatten()[: SIDE * SIDE].view(SIDE, SIDE)
        )

    def back(layer: Any, *_: Any) -> None:
        weight = layer.parts[1].weight
        weight.data = torch.cat([weight.data, weight.data], dim=-1)

    def outputs(module: Any) -> list[Any]:
        handle = module.layers[5].register_forward_hook(turn)
        first = [module(x())]
        handle.remove()
        module.layers[5].register_forward_pre_hook(back)
        return [*first, module(x()), module.layers[5].parts[1].weight.data.clone()]

    with torch.inference_mode():
        expected = outputs(layers())
        with house.load("layers", layers).replica(house.devices[0]) as replica:
            with ct.writable(replica), replica.on() as module:
                assert are_equal(outputs(module), expected)


def test_a_hook_may_write_another_block(house: co.Runtime) -> None:
    def outputs(module: Any) -> list[Any]:
        def hook(*_: Any) -> None:
            for at in (0, 2, 5):
                module.layers[at].parts[1].weight.add_(0.01)

        module.layers[3].register_forward_hook(hook)
        return [module(x()) for _ in range(4)]

    expected = outputs(layers())
    with house.load("layers", layers).replica(house.devices[0]) as replica:
        with ct.writable(replica), replica.on() as module:
            assert are_equal(outputs(module), expected)


class Norm(torch.nn.Module):  # type: ignore[misc] # torch's own types are not looked at
    """A block whose call writes its statistics, which torch does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.Linear(2 * SIDE, 2 * SIDE)
        self.norm = torch.nn.BatchNorm1d(2 * SIDE)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.norm(self.part(x)))


class Counter(torch.nn.Module):  # type: ignore[misc] # as above
    """A block that reads what its last call has written, in little and in much."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.Linear(2 * SIDE, 2 * SIDE)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("many", torch.zeros(1 << 18))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.many += self.calls
        return torch.tanh(self.part(x)) * self.calls + self.many[:1]


def spectral() -> Any:
    """A block whose parametrization writes what it has estimated, in training."""
    return torch.nn.Sequential(
        torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(2 * SIDE, 2 * SIDE)),
        torch.nn.Tanh(),
    )


@pytest.mark.parametrize("kind", [Norm, Counter, spectral])
@pytest.mark.parametrize("way", ["writable", "plain"])
@pytest.mark.parametrize("pages", [22, 80])
def test_buffers_that_a_call_writes_are_right(kind: Any, way: str, pages: int) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(*(kind() for _ in range(16))).eval().requires_grad_(False)

    def outputs(module: Any) -> list[Any]:
        module.train()
        trained = [module(x(turn)) for turn in range(3)]
        module.eval()
        return [*trained, module(x())]

    expected = outputs(made())
    with runtime(pages) as house, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ct.StrayWriteWarning)
        with house.load("made", made).replica(house.devices[0]) as replica:
            with ct.writable(replica) if way == "writable" else nullcontext():
                with (residence := replica.on()) as module:
                    assert (residence.streaming is not None) == (pages < 80)
                    assert are_equal(outputs(module), expected)


def as_bfloat16(module: Any) -> None:
    module.to(torch.bfloat16)


def as_float64(module: Any) -> None:
    module.double()


def casts_for_each_call(module: Any, blocks: int = 3) -> None:
    """Weights are kept in fewer bits than they are used in."""

    def before(part: Any, _: Any) -> None:
        part.weight.data = part.weight.data.to(torch.float32)

    def after(part: Any, *_: Any) -> None:
        part.weight.data = part.weight.data.to(torch.bfloat16)

    for part in module.layers[:blocks].modules():
        if isinstance(part, torch.nn.Linear):
            part.to(torch.bfloat16)
            part.register_forward_pre_hook(before)
            part.register_forward_hook(after)


@pytest.mark.parametrize("change", [as_bfloat16, as_float64, casts_for_each_call])
@pytest.mark.parametrize("when", ["before", "within", "between two"])
@pytest.mark.parametrize("way", ["writable", "plain"])
def test_a_module_that_was_cast_stays_so(
    change: Callable[[Any], None], when: str, way: str
) -> None:
    def call(module: Any) -> Any:
        dtype = torch.float32 if change is casts_for_each_call else module.before.weight.dtype
        return module(x().to(dtype))

    reference = layers()
    change(reference)
    expected = call(reference)
    for pages in (16, 40):
        # What was cast is the caller's, and beside the rest: it needs room of its own.
        devices = co.virtual_devices(1, memory=pages * PAGE)
        with co.Runtime(devices) as house, torch.no_grad():
            with house.load("layers", layers).replica(devices[0]) as replica:
                with ct.writable(replica) if way == "writable" else nullcontext():
                    if when == "before":
                        change(replica.module)
                    with (residence := replica.on()) as module:
                        assert (residence.streaming is not None) == (pages == 16)
                        if when != "before":
                            assert torch.equal(module(x()), layers()(x()))
                            change(module)
                        for _ in range(3):
                            assert torch.equal(call(module), expected)
                    if way == "writable":
                        with replica.on() as module:
                            assert torch.equal(call(module), expected)
                if way == "writable":
                    with replica.on() as module:
                        assert torch.equal(module(x()), layers()(x()))
            assert is_clean(house)


def test_what_is_cast_and_has_no_room_is_told_and_not_waited_for() -> None:
    with runtime(16) as house, torch.no_grad():
        with house.load("layers", layers).on(house.devices[0], timeout=20) as module:
            casts_for_each_call(module, 8)
            module(x())
            # The first call has made all of it, and a second one is thought to need as much.
            with pytest.raises(co.DeviceMemoryError, match="working memory"):
                module(x())
        assert is_clean(house)


def test_casts_for_the_time_of_a_call_do_not_end_the_streaming(small: co.Runtime) -> None:
    def made() -> Any:
        module = layers(16, 2)
        casts_for_each_call(module, 16)
        return module.eval().requires_grad_(False)

    expected = made()(x())
    # 32 matrices of half a page, and one of a whole one.
    residence = small.load("cast", made).on(small.devices[0])
    with residence as module:
        status = residence.streaming
        assert status is not None
        for _ in range(3):
            assert torch.equal(module(x()), expected)
            status = residence.streaming
        assert torch.equal(module(x()), expected)
        assert residence.streaming.moved > status.moved, "they still come"
    assert is_clean(small)


def test_channels_last_stays_and_so_does_what_is_turned() -> None:
    class Block(torch.nn.Module):  # type: ignore[misc] # as above
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(128, 128, 3, padding=1)
            self.part = torch.nn.Linear(1024, 1024)

        def forward(self, x: Any) -> Any:
            return torch.tanh(self.part(torch.tanh(self.conv(x)).flatten(2)).view_as(x))

    def made() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(*(Block() for _ in range(12))).eval().requires_grad_(False)

    def outputs(module: Any) -> list[Any]:
        given = torch.randn(1, 128, 16, 64, generator=torch.Generator().manual_seed(1))
        module(given)
        module.to(memory_format=torch.channels_last)
        given = given.to(memory_format=torch.channels_last)
        channels_last = [module(given) for _ in range(2)]
        for block in module:
            # The same memory, read otherwise.
            block.part.weight.data = block.part.weight.data.t()
        return [*channels_last, module(given), module(given)]

    with torch.no_grad():
        expected = outputs(made())
        for pages in (22, 80):
            with runtime(pages) as house:
                with house.load("made", made).replica(house.devices[0]) as replica:
                    with ct.writable(replica), (residence := replica.on()) as module:
                        assert (residence.streaming is not None) == (pages == 22)
                        assert are_equal(outputs(module), expected)


def test_layerwise_casting_of_diffusers_stays() -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return tiny_models.flux()

    torch.manual_seed(1)
    inputs = tiny_models.flux_inputs()

    def outputs(module: Any) -> list[Any]:
        module.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        return [module(**inputs)[0] for _ in range(3)]

    with torch.no_grad():
        reference = made()
        pages = int(sum(parameter.nbytes for parameter in reference.parameters()) / PAGE / 1.3)
        expected = outputs(reference)
        for memory in (pages, 100):
            with runtime(memory) as house:
                with house.load("flux", made).replica(house.devices[0]) as replica:
                    with ct.writable(replica), (residence := replica.on()) as module:
                        assert (residence.streaming is not None) == (memory == pages)
                        assert are_equal(outputs(module), expected)


class TestHostWrites:
    def mapped(self, folder: Path, count: int, dtype: Any = torch.float32) -> Any:
        """Tensors of a private map of a file."""
        path = folder / f"{count} of {dtype}"
        torch.zeros(count, dtype=dtype).numpy().tofile(path)
        return torch.from_file(str(path), shared=False, size=count, dtype=dtype)

    def test_each_write_is_found_once(self, tmp_path: Path) -> None:
        whole = self.mapped(tmp_path, 1 << 18)
        parts = list(whole.view(4, -1))
        writes = HostWrites(parts)
        assert not writes.look()
        for turn in range(3):
            for at in (0, 3):
                parts[at].numpy()[turn] = 1 + turn
                assert writes.look() == {id(parts[at])}
                assert not writes.look()

    def test_what_was_written_before_is_no_news_and_neither_is_what_is_noted(
        self, tmp_path: Path
    ) -> None:
        one, other = self.mapped(tmp_path, 1 << 16).view(2, -1)
        one.numpy()[5] = 1
        writes = HostWrites([one, other])
        assert not writes.look()
        other.numpy()[5] = 1
        writes.note(other)
        assert not writes.look()
        other.numpy()[5] = 1
        assert not writes.look(), "it is the same"

    def test_rows_that_change_places_are_found(self, tmp_path: Path) -> None:
        matrix = self.mapped(tmp_path, 1 << 18).view(256, -1)
        matrix.numpy()[:] = torch.arange(1 << 18).view(256, -1)
        writes = HostWrites([matrix])
        matrix.numpy()[[3, 200]] = matrix.numpy()[[200, 3]]
        assert writes.look() == {id(matrix)}
        matrix.neg_()
        assert writes.look() == {id(matrix)}

    def test_where_the_system_tells_nothing_everything_is_compared(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> int:
            raise PermissionError

        one, other = self.mapped(tmp_path, 1 << 16).view(2, -1)
        monkeypatch.setattr("os.open", refuse)
        writes = HostWrites([one, other])
        assert not writes.look()
        other.numpy()[5] = 1
        assert writes.look() == {id(other)}
        monkeypatch.undo()
        monkeypatch.setattr("os.pread", lambda *_: b"")
        one.numpy()[5] = 1
        assert writes.look() == {id(one)}

    @pytest.mark.parametrize("count", [1, 7, 4093 * 8, 4093 * 8 + 3])
    def test_sizes_may_be_odd(self, tmp_path: Path, count: int) -> None:
        one = self.mapped(tmp_path, count, torch.uint8)
        writes = HostWrites([one, torch.empty(0)])
        one.numpy()[count - 1] = 7
        assert writes.look() == {id(one)}
        other = one.clone()
        assert same_bytes(one, other)
        other[count - 1] = 8
        assert not same_bytes(one, other)
