"""What models do with their parts while they are streamed, and what interrupts them."""

from __future__ import annotations

import copy
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import coresident as co
import pytest
from conftest import spawn, until

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import diffusers  # noqa: E402
import transformers  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

PAGE = 2 << 20
SIDE = 1 << 10


def tokens(count: int = 8) -> Any:
    return torch.arange(count)[None]


def random(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Linear(torch.nn.Linear):  # type: ignore[misc] # torch's own types are not looked at
    """Two pages, and a row."""

    def __init__(self) -> None:
        super().__init__(SIDE, SIDE)

    def also(self, x: Any) -> Any:
        return torch.nn.functional.linear(x, self.weight, self.bias)


class Called(torch.nn.Module):  # type: ignore[misc] # as above
    """Has no ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(SIDE, SIDE) / 32)
        self.register_buffer("bias", torch.randn(SIDE))

    def __call__(self, x: Any) -> Any:
        return x @ self.weight + self.bias


class Layers(torch.nn.Module):  # type: ignore[misc] # as above
    def __init__(
        self,
        kind: Callable[[], Any] = Linear,
        how: Callable[[Any, Any], Any] = lambda layer, x: layer(x),
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(kind() for _ in range(8))
        self.how = how

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(self.how(layer, x))
        return x


def x() -> Any:
    return random(2, SIDE)


@pytest.fixture
def house() -> Iterator[co.Runtime]:
    with runtime(10) as made, torch.no_grad():
        yield made


def runtime(pages: int) -> co.Runtime:
    return co.Runtime(co.virtual_devices(1, memory=pages * PAGE, jitter=11))


def is_clean(house: co.Runtime) -> bool:
    return all(house.analyze(device).pinned == 0 for device in house.devices)


class Elsewhere(TorchDispatchMode):  # type: ignore[misc] # as above
    """Which streamed tensors operations have from host memory: on a GPU that is an error."""

    def __init__(self, residence: Any) -> None:
        super().__init__()
        replica = residence._replica
        names, tensors = replica._model.structure.names, replica._tensors.all
        self.names = {tensors[at].data_ptr(): names[at][0] for at in residence._plan.in_blocks}
        self.found: set[str] = set()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] not in ("detach", "alias", "set_"):
            self.operations += 1
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, torch.Tensor) and leaf.data_ptr() in self.names:
                    self.found.add(self.names[leaf.data_ptr()])
        return func(*args, **(kwargs or {}))


def attentive(kind: Any, **options: Any) -> Any:
    return kind(
        num_attention_heads=8, attention_head_dim=32, in_channels=4, num_layers=6, **options
    )


def language(kind: Any, config: Any, **options: Any) -> Any:
    sizes = {"vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 6}
    return kind(config(**(sizes | options)))


HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1024}
ARCHITECTURES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "DiT": (
        lambda: attentive(diffusers.DiTTransformer2DModel, sample_size=8, num_embeds_ada_norm=8),
        lambda: {
            "hidden_states": random(1, 4, 8, 8),
            "timestep": torch.tensor([5]),
            "class_labels": torch.tensor([1]),
        },
    ),
    "Flux": (
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=3,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=8,
            axes_dims_rope=(8, 12, 12),
            joint_attention_dim=64,
            pooled_projection_dim=64,
        ),
        lambda: {
            "hidden_states": random(1, 32, 16),
            "encoder_hidden_states": random(1, 8, 64),
            "pooled_projections": random(1, 64),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(32, 3),
            "txt_ids": torch.zeros(8, 3),
        },
    ),
    "UNet": (
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(64, 192),
            transformer_layers_per_block=(1, 4),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
        ),
        lambda: {
            "sample": random(1, 4, 8, 8),
            "timestep": torch.tensor([5]),
            "encoder_hidden_states": random(1, 8, 64),
        },
    ),
    "VAE": (
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(64, 128, 256),
            layers_per_block=2,
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        lambda: {"sample": random(1, 3, 16, 16)},
    ),
    "Mamba": (
        lambda: language(transformers.MambaModel, transformers.MambaConfig, state_size=8),
        lambda: {"input_ids": tokens()},
    ),
    "Jamba": (
        lambda: language(
            *(transformers.JambaModel, transformers.JambaConfig),
            **HEADS,
            use_mamba_kernels=False,
            num_experts=2,
            attn_layer_period=4,
            attn_layer_offset=2,
        ),
        lambda: {"input_ids": tokens()},
    ),
    "Llama": (
        lambda: language(transformers.LlamaModel, transformers.LlamaConfig, **HEADS),
        lambda: {"input_ids": tokens()},
    ),
    "T5": (
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=512, d_model=256, d_kv=32, d_ff=1024, num_layers=6)
        ),
        lambda: {"input_ids": tokens()},
    ),
    "ConvNext": (
        lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 3, 2])
        ),
        lambda: {"pixel_values": random(1, 3, 32, 32)},
    ),
    "Encoder": (
        lambda: torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True), 8
        ),
        lambda: {"src": random(2, 8, 256)},
    ),
}


def tensors_of(output: Any) -> list[Any]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(output, (dict, tuple, list)):
        return []
    return [each for value in values for each in tensors_of(value)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_operation_has_a_streamed_weight_from_host_memory(name: str) -> None:
    make, inputs = ARCHITECTURES[name]

    def model() -> Any:
        torch.manual_seed(0)
        return make().eval()

    with torch.no_grad():
        # With gradients torch chooses other kernels.
        reference = model().requires_grad_(False)
        expected = tensors_of(reference(**inputs()))
        pages = sum(weight.nbytes for weight in reference.parameters()) // PAGE
        for share in (0.6, 0.8):
            with runtime(int(pages * share)) as house:
                residence = house.load(name, model).on(house.devices[0])
                with residence as module:
                    assert residence.streaming is not None
                    with Elsewhere(residence) as elsewhere:
                        module(**inputs())
                    assert elsewhere.operations > 5
                    assert not elsewhere.found
                    seen = tensors_of(module(**inputs()))
                assert seen
                assert all(map(torch.equal, seen, expected))
                assert is_clean(house)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Called, lambda layer, x: layer(x)),
        (Linear, lambda layer, x: layer.also(x)),
        (Linear, lambda layer, x: torch.nn.functional.linear(x, layer.weight, layer.bias)),
        (Linear, lambda layer, x: x @ layer.weight.T.contiguous() + layer.bias[None]),
        (Linear, lambda layer, x: x @ layer.weight.data.t() + torch.cat([layer.bias.detach()])),
        (
            Linear,
            lambda layer, x: torch.addmm(out=x * 0, input=layer.bias, mat1=x, mat2=layer.weight),
        ),
    ],
)
def test_weights_may_be_used_without_calling_their_block(
    house: co.Runtime, kind: Any, how: Any
) -> None:
    expected = Layers(kind, how)(x())
    residence = house.load("layers", lambda: Layers(kind, how)).on(house.devices[0])
    with residence as module:
        assert residence.streaming is not None
        with Elsewhere(residence) as elsewhere:
            module(x())
        assert not elsewhere.found
        for _ in range(3):
            assert torch.equal(module(x()), expected)
        assert residence.streaming.moved > residence.streaming.blocks
    assert is_clean(house)


def test_gradients_through_a_weight_alone_are_refused(house: co.Runtime) -> None:
    model = house.load("layers", lambda: Layers(Linear, lambda layer, x: layer.also(x)))
    with model.on(house.devices[0]) as module:
        with torch.enable_grad(), pytest.raises(co.InvalidValueError, match="differentiated"):
            module(x().requires_grad_())
        assert torch.equal(module(x()), Layers()(x()))


def test_what_is_asked_of_a_weight_that_is_away_brings_nothing(house: co.Runtime) -> None:
    reference = Layers()
    residence = house.load("layers", Layers).on(house.devices[0])
    with residence as module:
        module(x())
        assert residence.streaming is not None
        before = residence.streaming.visits
        for layer, other in zip(module.layers, reference.layers, strict=True):
            weight = layer.weight
            assert isinstance(weight, torch.nn.Parameter)
            assert (weight.shape, weight.dtype, len(weight)) == (
                other.weight.shape,
                torch.float32,
                SIDE,
            )
            assert repr(weight).startswith("Parameter containing:\ntensor(")
            assert torch.equal(weight, other.weight)
        copied = copy.deepcopy(module.layers)
        again = pickle.loads(pickle.dumps(dict(module.layers.named_parameters())))
        assert residence.streaming.visits == before
        for own in (*copied.parameters(), *again.values()):
            assert type(own) is torch.nn.Parameter
        assert torch.equal(copied[5](x()), reference.layers[5](x()))
        assert torch.equal(again["5.weight"], reference.layers[5].weight)
    assert {type(weight) for weight in module.parameters()} == {torch.nn.Parameter}


def test_a_forward_that_is_replaced_while_streamed_works_ever_after(house: co.Runtime) -> None:
    expected = Layers()(x())
    with house.load("layers", Layers).replica(house.devices[0]) as replica:
        for turn in range(3):
            with (residence := replica.on()) as module:
                assert residence.streaming is not None
                for layer in module.layers if turn == 0 else ():
                    before = layer.forward
                    layer.forward = lambda *args, before=before: before(*args)
                assert torch.equal(module(x()), expected)
                with Elsewhere(residence) as elsewhere:
                    module(x())
                assert not elsewhere.found
            assert torch.equal(replica.module(x()), expected)
    assert is_clean(house)


def test_a_cache_of_diffusers_that_is_enabled_while_streamed_stays() -> None:
    make, inputs = ARCHITECTURES["Flux"]
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 0),
        current_timestep_callback=lambda: 5000,
    )
    with (
        runtime(8) as house,
        torch.no_grad(),
        house.load("flux", make).replica(house.devices[0]) as replica,
    ):
        expected = replica.module(**inputs()).sample
        for turn in range(2):
            with replica.on() as module:
                if turn == 0:
                    module.enable_cache(config)
                assert torch.equal(module(**inputs()).sample, expected)
            assert torch.equal(replica.module(**inputs()).sample, expected)


class Stop(BaseException):
    pass


FILES = ("streamed.py", "visits.py", "away.py", "blocks.py")


def interrupted(line: int, function: Callable[[], Any]) -> bool:
    """Whether something was interrupted at a line of what streams, the so-and-so-many-th one."""
    left = [line]

    def here(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise Stop
        return here

    def calls(frame: Any, event: str, argument: Any) -> Any:
        inside = frame.f_code.co_filename.endswith(FILES)
        return here if inside and "coresident" in frame.f_code.co_filename else None

    sys.settrace(calls)
    try:
        function()
    except Stop:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("how", [lambda layer, x: layer(x), lambda layer, x: layer.also(x)])
def test_an_interrupt_at_any_step_ends_every_visit(house: co.Runtime, how: Any) -> None:
    expected = Layers(Linear, how)(x())
    with house.load("layers", lambda: Layers(Linear, how)).on(house.devices[0]) as module:
        lines, times = 0, 0
        while interrupted(lines + 1, lambda: module(x())):
            lines, times = lines + 3, times + 1
            if times % 10 == 0:
                assert torch.equal(module(x()), expected), lines
        assert times > 50
        for _ in range(2):
            assert torch.equal(module(x()), expected)
    assert is_clean(house)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_interrupt_steps_end_every_visit(house: co.Runtime) -> None:
    def stop(*_: Any) -> None:
        if armed:
            raise Stop

    expected = Layers()(x())
    armed, stopped = False, 0
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with house.load("layers", Layers).on(house.devices[0]) as module:
            for turn in range(60):
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, 1e-4 + turn * 37 % 60 * 1e-4)
                    for _ in range(100):
                        assert torch.equal(module(x()), expected)
                except Stop:
                    stopped += 1
                finally:
                    armed = False
            assert torch.equal(module(x()), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped
    assert is_clean(house)


def test_who_needs_room_ends_what_another_thread_has_left_behind(house: co.Runtime) -> None:
    with house.load("layers", Layers).on(house.devices[0]) as module:
        streamed = module.layers[0].forward._streamed

        def leave_behind(at: int) -> None:
            from coresident.torch.visits import Visit

            streamed.enter(at, Visit())

        for at in range(3):
            spawn(lambda at=at: leave_behind(at)).join()
        for _ in range(2):
            assert torch.equal(module(x()), Layers()(x()))
    assert is_clean(house)


def test_a_weight_that_is_used_alone_is_in_no_graph(house: co.Runtime) -> None:
    def alone() -> Any:
        return Layers(Linear, lambda layer, x: layer.also(x))

    with house.load("layers", alone).on(house.devices[0]) as module:
        whole = torch.compile(module, backend="eager", fullgraph=True)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="this weight is streamed"):
            whole(x())
        torch.compiler.reset()
        assert torch.equal(torch.compile(module, backend="eager")(x()), alone()(x()))
    torch.compiler.reset()


class Stage(torch.nn.Module):  # type: ignore[misc] # as above
    """Eight layers in a list, and one that stands outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Linear() for _ in range(8))
        self.after = Linear()

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.after(x)


class Stages(torch.nn.Module):  # type: ignore[misc] # as above
    """Two of them, and what stands in no list at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(4 << 10, SIDE)
        self.stages = torch.nn.ModuleList(Stage() for _ in range(2))

    def forward(self, x: Any) -> Any:
        x = x + self.embedding(torch.tensor([7, 9]))
        for stage in self.stages:
            x = stage(x)
        return x


def test_what_stands_in_no_list_may_come_and_leave_too() -> None:
    expected = Stages()(x())
    with runtime(15) as house, torch.no_grad():
        residence = house.load("stages", Stages).on(house.devices[0])
        with residence as module:
            assert residence.streaming is not None
            for _ in range(3):
                assert torch.equal(module(x()), expected)
        assert is_clean(house)


def test_a_part_is_not_cut_if_that_leaves_more_than_it_takes() -> None:
    class Whole(torch.nn.Module):  # type: ignore[misc] # as above
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("own", torch.zeros(5 << 9, SIDE))
            self.parts = torch.nn.ModuleList(Linear() for _ in range(2))

        forward = Stage.forward

    with runtime(18) as house:
        model = house.load("whole", lambda: torch.nn.ModuleList(Whole() for _ in range(2)))
        with (residence := model.on(house.devices[0])):
            assert residence.streaming is not None
            assert residence.streaming.resident == 0


def test_of_what_is_cut_into_small_parts_only_a_share_of_the_room_stays() -> None:
    class Small(torch.nn.Module):  # type: ignore[misc] # as above
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.Parameter(torch.zeros(SIDE, SIDE // 4))
            self.parts = torch.nn.ModuleList(Linear() for _ in range(2))

        def forward(self, x: Any) -> Any:
            for part in self.parts:
                x = torch.tanh(part(x)) + self.own.sum()
            return x

    with runtime(24) as house, torch.no_grad():
        model = house.load("small", lambda: Layers(Small))
        residence = model.on(house.devices[0])
        with residence as module:
            assert residence.streaming is not None
            assert residence.streaming.resident <= 24 * PAGE // 8
            assert torch.equal(module(x()), Layers(Small)(x()))


def test_a_model_that_cannot_be_streamed_says_what_to_do(house: co.Runtime) -> None:
    [device] = house.devices
    model = house.load("layers", Layers)
    with pytest.raises(
        co.BudgetExceededError, match=r"what stays is in no block, such as 'layers\.\d"
    ):
        model.on(device, blocks=["layers.0"])
    for much in ("19MiB", "1TiB"):
        with pytest.raises(co.BudgetExceededError, match="room for about 14 MiB of working memory"):
            model.on(device, working_memory=much)
    for pages in (5, 12):
        # The first has one part, the second is one.
        large = torch.nn.Sequential(
            torch.nn.Linear(SIDE, pages * SIDE, bias=False), torch.nn.ReLU()
        )
        with pytest.raises(co.BudgetExceededError) as told:
            house.load(f"one of {pages}", lambda large=large: large).on(
                device, working_memory="4MiB"
            )
        assert "'0' has" in str(told.value)
        assert "no parts that could come one by one" in str(told.value)
    with pytest.raises(
        co.BudgetExceededError, match="and Linear has no parts that could come one by"
    ):
        house.load("linear", lambda: torch.nn.Linear(SIDE, 12 * SIDE)).on(device)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.parametrize("pages", [10, 40])
def test_transforms_of_functions_see_the_same(pages: int) -> None:
    with runtime(pages) as house, torch.no_grad():
        residence = house.load("layers", Layers).on(house.devices[0])
        with residence as module:
            for transformed in (
                lambda module: torch.func.vmap(module)(x()[None]),
                lambda module: torch.cat(torch.func.jvp(module, (x(),), (x(),))),
            ):
                assert torch.equal(transformed(module), transformed(Layers().requires_grad_(False)))
            if residence.streaming is None:
                exported = torch.export.export(module, (x(),)).module()
                assert torch.equal(exported(x()), Layers()(x()))
            else:
                with pytest.raises(co.InvalidValueError, match="what is exported has all of them"):
                    torch.export.export(module, (x(),))
            assert torch.equal(module(x()), Layers()(x()))
        until(lambda: is_clean(house))
