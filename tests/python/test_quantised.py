"""Quantised weights: shared, resident and streamed as the packed bytes that they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coresident as co
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "gguf", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
from coresident.torch import subclasses  # noqa: E402
from coresident.torch.activations import Activations  # noqa: E402
from coresident.torch.packing import Packing  # noqa: E402
from coresident.torch.structure import Structure  # noqa: E402
from tiny_models import write  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

PAGE = 2 << 20
SIDE = 512
BLOCKS, LAYERS = 8, 7


class Wrapper(torch.Tensor):  # type: ignore[misc] # torch's own types are not looked at
    """Tensors that others consist of, by torch's protocol; computed with as what they stand for."""

    _names: tuple[str, ...]

    @classmethod
    def of(cls, shape: Any, dtype: Any, **inner: Any) -> Any:
        device = next(iter(inner.values())).device
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        vars(made).update(inner)
        return made

    def __tensor_flatten__(self) -> Any:
        return list(self._names), {"dtype": self.dtype}

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, context: Any, size: Any, stride: Any) -> Any:
        return cls.of(size, context["dtype"], **inner)

    def dequantised(self) -> Any:
        raise NotImplementedError

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default) and (
            kwargs.get("dtype") in (None, args[0].dtype)
        ):
            kwargs.pop("dtype", None)
            inner = {n: func(getattr(args[0], n), **kwargs) for n in cls._names}
            return cls.of(args[0].shape, args[0].dtype, **inner)
        args, kwargs = pytree.tree_map_only(Wrapper, lambda t: t.dequantised(), (args, kwargs))
        return func(*args, **kwargs)


class Nibbles(Wrapper):
    """Numbers of 0 to 15, two in a byte."""

    _names = ("packed",)

    def dequantised(self) -> Any:
        return torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(-2)


class Rows(Wrapper):
    """Rows of whole numbers, with a scale for each."""

    _names = ("numbers", "scale")

    def dequantised(self) -> Any:
        return self.numbers.to(torch.float32) * self.scale


class Scales:
    """How to read numbers."""

    def __init__(self, scale: Any) -> None:
        self.scales = [scale]


class Bytes(torch.nn.Parameter):  # type: ignore[misc] # as above
    """Has the numbers itself, and in its attributes how to read them."""


class BytesLinear(torch.nn.Linear):  # type: ignore[misc] # as above
    def forward(self, x: Any) -> Any:
        [scale] = self.weight.state.scales
        weight = self.weight.to(torch.float32).as_subclass(torch.Tensor) * scale
        return torch.nn.functional.linear(x, weight, self.bias)


def rows() -> Any:
    layer = torch.nn.Linear(SIDE, SIDE)
    scale = torch.rand(SIDE, 1) * 5e-3
    numbers = torch.randint(-127, 128, (SIDE, SIDE)).to(torch.int8)
    layer.weight = torch.nn.Parameter(
        Rows.of((SIDE, SIDE), torch.float32, numbers=numbers, scale=scale), False
    )
    return layer


def nibbles() -> Any:
    layers = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE), torch.nn.Linear(SIDE, SIDE))
    for layer in layers:
        packed = torch.randint(0, 256, (SIDE, SIDE // 2)).to(torch.uint8)
        numbers = Nibbles.of((SIDE, SIDE), torch.uint8, packed=packed)
        layer.weight = torch.nn.Parameter(
            Rows.of((SIDE, SIDE), torch.float32, numbers=numbers, scale=torch.rand(SIDE, 1) * 5e-3),
            False,
        )
    return layers


def own_bytes() -> Any:
    layer = BytesLinear(SIDE, SIDE)
    weight = Bytes(torch.randint(-127, 128, (SIDE, SIDE)).to(torch.int8), False)
    weight.state = Scales(torch.rand(SIDE, 1) * 5e-3)
    layer.weight = weight
    return layer


def gguf() -> Any:
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    numbers = (torch.randn(SIDE, SIDE) * 5e-2).numpy()
    layer = GGUFLinear(SIDE, SIDE, bias=True, compute_dtype=torch.float32)
    packed = torch.from_numpy(np.array(gguf.quants.quantize(numbers, kind)))
    layer.weight = GGUFParameter(packed, quant_type=kind)
    return layer


class Block(torch.nn.Module):  # type: ignore[misc] # as above
    """Layers in less than a page."""

    def __init__(self, layer: Callable[[], Any]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layer() for _ in range(LAYERS))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def tower(layer: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    blocks = [Block(layer) for _ in range(BLOCKS)]
    return torch.nn.Sequential(*blocks).eval().requires_grad_(False)


def torchao(config: str) -> Any:
    pytest.importorskip("torchao", reason="is in .venv/quantisers, which make test has on its path")
    from torchao import quantization

    module = tower(lambda: torch.nn.Linear(SIDE, SIDE))
    quantization.quantize_(module, getattr(quantization, config)())
    return module


def quanto(kind: str) -> Any:
    pytest.importorskip(
        "optimum.quanto", reason="is in .venv/quantisers, which make test has on its path"
    )
    from optimum import quanto

    module = tower(lambda: torch.nn.Linear(SIDE, SIDE))
    quanto.quantize(module, weights=getattr(quanto, kind))
    quanto.freeze(module)
    return module


MAKERS: dict[str, Callable[[], Any]] = {
    "rows": lambda: tower(rows),
    "nibbles": lambda: tower(nibbles),
    "own bytes": lambda: tower(own_bytes),
    "gguf": lambda: tower(gguf),
    "torchao int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao int8 activations": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao float8": lambda: torchao("Float8WeightOnlyConfig"),
    "quanto qint8": lambda: quanto("qint8"),
    "quanto qfloat8": lambda: quanto("qfloat8"),
}


def x(seed: int = 1) -> Any:
    return torch.randn(2, SIDE, generator=torch.Generator().manual_seed(seed))


BLOCK_NAMES = [str(at) for at in range(BLOCKS)]


def packed_bytes(module: Any) -> int:
    saved = module.state_dict()
    buffers = (buffer for name, buffer in module.named_buffers() if name in saved)
    return sum(part.nbytes for part in subclasses.every_part((*module.parameters(), *buffers)))


def runtime(nbytes: int, count: int = 1) -> co.Runtime:
    return co.Runtime(co.virtual_devices(count, memory=nbytes // PAGE * PAGE, jitter=11))


@pytest.fixture(params=MAKERS)
def make(request: Any) -> Callable[[], Any]:
    MAKERS[request.param]()
    return MAKERS[request.param]


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_on_the_host_it_is_what_it_is_without_and_its_packed_bytes_are_there_once(
    make: Callable[[], Any],
) -> None:
    reference = make()
    store = co.WeightStore()
    with ct.load(store, "tower", make) as model:
        [status] = store.status()
        nbytes = packed_bytes(reference)
        padding = 64 * len(model.order)
        assert nbytes <= model.weights.nbytes < nbytes + padding
        assert nbytes <= status.nbytes < nbytes + PAGE
        with model.replica("cpu") as one, model.replica("cpu") as other:
            assert torch.equal(one.module(x()), reference(x()))
            assert torch.equal(other.module(x()), reference(x()))
            assert store.status()[0].nbytes == status.nbytes
            assert one.written() == other.written() == []


def test_its_parameters_and_state_dict_are_those_of_the_unmanaged_module(
    make: Callable[[], Any],
) -> None:
    reference = make()
    with ct.load(co.WeightStore(), "tower", make) as model, model.replica("cpu") as replica:
        module = replica.module
        own, theirs = dict(module.named_parameters()), dict(reference.named_parameters())
        assert {n: type(t) for n, t in own.items()} == {n: type(t) for n, t in theirs.items()}
        assert all(isinstance(tensor, torch.nn.Parameter) for tensor in own.values())
        for name, tensor in own.items():
            pairs = zip(subclasses.parts(tensor), subclasses.parts(theirs[name]), strict=True)
            for (suffix, part), (other_suffix, other) in pairs:
                assert suffix == other_suffix
                assert part.dtype == other.dtype
                assert torch.equal(part.float(), other.float())
        assert list(module.state_dict()) == list(reference.state_dict())
        again = make()
        again.load_state_dict(module.state_dict())
        assert torch.equal(again(x()), reference(x()))


def test_devices_have_its_packed_bytes_and_share_one_host_copy(make: Callable[[], Any]) -> None:
    expected = make()(x())
    with runtime(64 << 20, 2) as house:
        model = house.load("tower", make)
        held = house.ram.used
        for device in house.devices:
            with (residence := model.on(device)) as module:
                assert residence.streaming is None
                assert torch.equal(module(x()), expected)
            resident = house.analyze(device).resident
            assert model.weights.nbytes <= resident < model.weights.nbytes + PAGE
            assert torch.equal(model.replica(device).module(x()), expected)
        assert house.ram.used == held


def test_it_streams_through_half_of_its_packed_bytes(make: Callable[[], Any]) -> None:
    expected = make()(x())
    nbytes = packed_bytes(make())
    with runtime(nbytes // 2) as house:
        model, [device] = house.load("tower", make), house.devices
        for _ in range(2):
            with (residence := model.on(device, blocks=BLOCK_NAMES)) as module:
                for _ in range(3):
                    assert torch.equal(module(x()), expected)
                status = residence.streaming
                assert status is not None
                assert 0 < status.streamed <= status.blocks <= BLOCKS * PAGE
        assert house.vram[device].used <= nbytes // 2


def test_wrappers_of_wrappers_of_quanto_are_put_together_as_they_were() -> None:
    # To compute with them quanto compiles an extension.
    reference = quanto("qint4")
    with ct.load(co.WeightStore(), "tower", lambda: quanto("qint4")) as model:
        assert "0.layers.0.weight._data._data" in model.order
        with model.replica("cpu") as replica:
            one, other = (m[0].layers[0].weight for m in (replica.module, reference))
            assert type(one) is type(other)
            assert type(one._data) is type(other._data)
            pairs = zip(subclasses.parts(one), subclasses.parts(other), strict=True)
            assert all(torch.equal(part, its) for (_, part), (_, its) in pairs)


def test_what_is_written_on_purpose_is_seen_by_that_replica_alone() -> None:
    expected = tower(rows)(x())
    with runtime(64 << 20) as house:
        model, [device] = house.load("tower", lambda: tower(rows)), house.devices
        changed = tower(rows)
        changed[0].layers[0].weight.numbers.zero_()
        with model.replica(device) as replica:
            with ct.writable(replica) as module:
                module[0].layers[0].weight.numbers.zero_()
                assert torch.equal(module(x()), changed(x()))
                with replica.on():
                    assert torch.equal(module(x()), changed(x()))
                with replica.on(stream=True):
                    assert torch.equal(module(x()), changed(x()))
            with replica.on() as module:
                assert torch.equal(module(x()), expected)
        with model.on(device) as module:
            assert torch.equal(module(x()), expected)


def test_a_stray_write_is_found_and_named_by_the_part_that_was_written() -> None:
    with ct.load(co.WeightStore(), "tower", lambda: tower(own_bytes)) as model:
        replica = model.replica("cpu")
        replica.module[0].layers[0].weight.state.scales[0].zero_()
        replica.module[1].layers[0].weight.fill_(1)
        with pytest.warns(ct.StrayWriteWarning, match="2 parameters"):
            assert replica.release() == [
                "0.layers.0.weight.state.scales.0",
                "1.layers.0.weight",
            ]


@pytest.mark.parametrize("layer", [rows, own_bytes, gguf])
def test_an_adapter_works_as_on_the_unmanaged_module(layer: Callable[[], Any]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    def adapted(module: Any) -> Any:
        torch.manual_seed(5)
        config = LoraConfig(
            target_modules=["0.layers.0", "3.layers.4"], init_lora_weights=False, r=4
        )
        with torch.enable_grad():
            inject_adapter_in_model(config, module)
        return module.eval().requires_grad_(False)

    expected = adapted(tower(layer))(x())
    with runtime(64 << 20) as house:
        model, [device] = house.load("tower", lambda: tower(layer)), house.devices
        with model.replica(device) as replica:
            with ct.writable(replica) as module:
                adapted(module)
                assert torch.equal(module(x()), expected)
                for stream in (False, True):
                    with replica.on(stream=stream):
                        assert torch.equal(module(x()), expected)
            assert torch.equal(replica.module(x()), tower(layer)(x()))


def test_tied_weights_stay_tied_and_are_there_once() -> None:
    def tied() -> Any:
        torch.manual_seed(0)
        first, second = rows(), rows()
        second.weight = first.weight
        return torch.nn.Sequential(first, second).eval().requires_grad_(False)

    with runtime(16 << 20) as house:
        model, [device] = house.load("tied", tied), house.devices
        assert model.weights.nbytes == packed_bytes(tied())
        with model.on(device) as module:
            assert module[0].weight is module[1].weight
            assert torch.equal(module(x()), tied()(x()))


def test_a_wrapper_tells_on_which_device_its_parts_are() -> None:
    weight = tower(nibbles)[0].layers[0][0].weight
    subclasses.say_where([weight], torch.device("cuda:0"))
    assert weight.device == weight.numbers.device == torch.device("cuda:0")
    assert weight.scale.device == torch.device("cpu"), "is pointed there by others"
    subclasses.say_where([weight], torch.device("cpu"))
    assert torch.equal(weight.dequantised(), tower(nibbles)[0].layers[0][0].weight.dequantised())


def test_what_a_wrapper_makes_of_its_parts_is_working_memory() -> None:
    layer = rows()
    with Activations() as activations:
        layer(x())
    assert activations.peak >= 2 * SIDE * SIDE * 4, "the numbers as floats, and scaled"


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamically_quantised_weights_are_shared_where_host_memory_is_used_and_refused_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def make() -> Any:
        module = tower(lambda: torch.nn.Linear(SIDE, SIDE))
        return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear})

    expected = make()(x())
    with runtime(64 << 20) as house, caplog.at_level(logging.WARNING, "coresident.torch"):
        model = house.load("tower", make)
        assert "0.layers.0._packed_params" in caplog.text
        assert "no budget counts them" in caplog.text
        with pytest.raises(co.InvalidDeviceError, match=r"packed for the CPU .*torchao"):
            model.on(house.devices[0])
        with model.replica("cpu") as one, model.replica("cpu") as other:
            assert torch.equal(one.module(x()), expected)
            packed, also = (each.module[0].layers[0]._packed_params for each in (one, other))
            assert packed._packed_params is also._packed_params


class Opaque(Rows):
    """Does not tell of what it consists."""

    @property
    def __tensor_flatten__(self) -> Any:  # type: ignore[override] # it has none
        raise AttributeError("__tensor_flatten__")


class Wavering(Rows):
    """Comes out of its parts as another one."""

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, context: Any, size: Any, stride: Any) -> Any:
        return Rows.of(size, context["dtype"], **inner)


class Repacked(Rows):
    """Is packed in another way on another device."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.ops.aten._to_copy.default:
            return Rows.__torch_dispatch__.__func__(Rows, func, types, args, kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


class Params4bit(torch.nn.Parameter):  # type: ignore[misc] # as above
    """As that of bitsandbytes."""

    quant_state: Any = None

    def to(self, *args: Any, **kwargs: Any) -> Any:
        made = Params4bit(torch.nn.Parameter.to(self.data, *args, **kwargs), False)
        made.quant_state = SimpleNamespace(absmax=self.quant_state.absmax.to(*args, **kwargs))
        return made


class Int8Params(torch.nn.Parameter):  # type: ignore[misc] # as above
    """As that of bitsandbytes."""


Params4bit.__module__ = Int8Params.__module__ = "bitsandbytes.nn.modules"


def four_bits(**state: Any) -> Any:
    layer = torch.nn.Linear(SIDE, SIDE)
    weight = Params4bit(torch.zeros(SIDE * SIDE // 2, 1).to(torch.uint8), False)
    weight.quant_state = SimpleNamespace(absmax=torch.ones(SIDE), **state) if state else None
    layer.weight = weight
    return layer


def test_four_bits_of_bitsandbytes_are_shared_and_refused_where_its_layers_change_them() -> None:
    elsewhere: Any = SimpleNamespace(torch_name="meta", paged=False)

    def make() -> Any:
        return four_bits(blocksize=64)

    with runtime(16 << 20) as house:
        model = house.load("layer", make)
        assert model.order == ["weight", "weight.quant_state.absmax", "bias"]
        for device in ("cpu", house.devices[0]):
            with pytest.raises(co.InvalidDeviceError, match=r"'layer' has weights of bitsandbytes"):
                model.replica(device)
        structure, state = Structure.of(make()), subclasses.named_parts(make())
        Packing("layer", structure, model.order).check(elsewhere, state)


def of_class(kind: Any) -> Any:
    torch.manual_seed(0)
    layer = rows()
    if issubclass(kind, Rows):
        parts = {"numbers": layer.weight.numbers, "scale": layer.weight.scale}
        weight = torch.nn.Parameter(kind.of((SIDE, SIDE), torch.float32, **parts), False)
    else:
        weight = kind(torch.zeros(SIDE, SIDE), False)
    layer.weight = weight
    return layer


@pytest.mark.parametrize(
    ("make_refused", "why"),
    [
        (lambda: of_class(Opaque), "weight is a Opaque .* nor tells of which it consists"),
        (lambda: of_class(Wavering), "a Wavering is another one around the same tensors"),
        (lambda: of_class(Int8Params), "bitsandbytes take the numbers out of their weights"),
        (four_bits, "weight is a Params4bit that is not packed yet"),
        (lambda: four_bits(packing_format_for_cpu=True), "packed anew when it computed on the CPU"),
        (lambda: torch.nn.LazyLinear(3), "no values yet: call the module once"),
    ],
    ids=["opaque", "wavering", "eight bits", "unpacked", "packed anew", "lazy"],
)
def test_what_cannot_be_shared_is_refused_with_the_reason(
    make_refused: Callable[[], Any], why: str
) -> None:
    store = co.WeightStore()
    with pytest.raises(co.InvalidValueError, match=why):
        ct.load(store, "layer", make_refused)
    assert store.status() == []


def test_what_its_library_packs_in_another_way_is_refused_on_that_device() -> None:
    elsewhere: Any = SimpleNamespace(torch_name="meta", paged=False)
    for make_layer in (rows, gguf, lambda: of_class(Repacked)):
        module = make_layer().eval()
        structure, state = Structure.of(module), subclasses.named_parts(module)
        packing = Packing("layer", structure, [names[0] for names in structure.names])
        if make_layer in (rows, gguf):
            packing.check(elsewhere, state)
            continue
        with pytest.raises(co.InvalidDeviceError, match=r"weight.numbers of 'layer' is packed"):
            packing.check(elsewhere, state)


def test_a_model_that_transformers_quantises_while_it_loads_it_is_what_it_is(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torchao", reason="is in .venv/quantisers, which make test has on its path")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import CLIPTextModel, TorchAoConfig

    write(tmp_path)

    def make() -> Any:
        quantised = TorchAoConfig(Int8WeightOnlyConfig())
        return CLIPTextModel.from_pretrained(tmp_path / "clip", quantization_config=quantised)

    tokens = torch.arange(8)[None]
    reference = make().eval()
    assert any(type(tensor).__name__ == "Int8Tensor" for tensor in reference.parameters())
    with runtime(16 << 20) as house, house.load("clip", make).on(house.devices[0]) as module:
        assert torch.equal(module(tokens)[0], reference(tokens)[0])
