"""Models in the store, and a replica of each on every device."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
import tiny_models  # noqa: E402

NAMES = ["unet", "unet2", "vae", "qwen", "clip", "t5"]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return tiny_models.models()


@pytest.fixture(scope="module")
def folder(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        model.half().save_pretrained(folder / f"{name}-half")
        model.float()
    return tiny_models.write(folder)


@pytest.fixture
def store() -> co.WeightStore:
    return co.WeightStore(budget=co.Budget("ram", "1GiB", probe=False))


@pytest.fixture
def unet(store: co.WeightStore, folder: Path) -> Iterator[ct.Model]:
    with ct.load(store, "unet", folder / "unet2") as model:
        yield model


@pytest.mark.parametrize(("pin", "kind"), [("all", "slab"), ("staging", "mapped")])
def test_what_is_to_be_page_locked_lies_in_memory_of_the_stores_own(
    folder: Path, pin: str, kind: str
) -> None:
    with co.Runtime(co.virtual_devices(1), pin=pin) as runtime:
        with runtime.load("unet", folder / "unet2"):
            [status] = runtime.weights.status()
            assert list(status.kinds) == [kind]
            assert status.locked == 0


def test_where_there_is_no_room_for_a_copy_weights_are_mapped(folder: Path) -> None:
    with co.WeightStore().open("seen", folder / "unet2") as mapped:
        nbytes = mapped.nbytes
    with co.WeightStore().open("seen", folder / "unet2", copy=True) as copied:
        assert copied.nbytes > nbytes, "tensors are further apart in a copy"
    with co.Runtime(co.virtual_devices(1), pin="all") as runtime:
        runtime.ram.limit = nbytes
        for _ in range(2):  # what is there is good enough for who comes later
            with runtime.load("unet", folder / "unet2"):
                [status] = runtime.weights.status()
                assert list(status.kinds) == ["mapped"]


def test_what_others_have_opened_otherwise_is_good_enough(folder: Path) -> None:
    with co.Runtime(co.virtual_devices(1), pin="all") as runtime:
        with runtime.weights.open("unet", folder / "unet2"):
            runtime.load("unet", folder / "unet2").close()
        runtime.weights.clear()
        runtime.load("unet", folder / "unet2").close()
        with runtime.weights.open("unet", folder / "unet2") as weights:
            assert list(weights.kinds) == ["slab"]


def content(module: Any) -> dict[str, Any]:
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name
        assert torch.equal(tensor, other[name]), name


def images_of(module: Any, seed: int = 0) -> Any:
    """What the small conditional UNet makes of some noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    words = torch.randn(1, 5, 8, generator=generator)
    with torch.no_grad():
        return module(noise, 3, words).sample


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["", "-half"], ids=["float32 file", "float16 file"])
@pytest.mark.parametrize("name", NAMES)
def test_a_replica_is_what_the_library_loads(
    name: str, kind: str, dtype: Any, made: dict[str, Any], folder: Path, store: co.WeightStore
) -> None:
    path = folder / f"{name}{kind}"
    wanted = dtype or (torch.float16 if kind else torch.float32)
    option = "torch_dtype" if hasattr(made[name], "load_config") else "dtype"
    expected = type(made[name]).from_pretrained(path, **{option: wanted}).eval()
    with ct.load(store, name, path, dtype=dtype) as model, model.replica("cpu") as replica:
        assert_same(content(replica.module), content(expected))
        assert type(replica.module) is type(expected)
        is_frozen = hasattr(expected, "load_config")
        modes = [(part.training, type(part)) for part in replica.module.modules()]
        assert modes == [(part.training, type(part)) for part in expected.modules()]
        assert not any(p.requires_grad or p.is_meta for p in replica.module.parameters())
        assert replica.module.state_dict().keys() == expected.state_dict().keys()
        configs = [
            dict(module.config.items() if is_frozen else module.config.to_dict())
            for module in (replica.module, expected)
        ]
        assert configs[0] == configs[1]


def test_a_file_is_mapped_and_another_dtype_is_converted_once(
    store: co.WeightStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ct.load(store, "mapped", folder / "unet") as mapped:
        assert list(mapped.weights.kinds) == ["mapped"]
    caplog.set_level(logging.INFO, "coresident.torch")
    with (
        ct.load(store, "half", folder / "unet", dtype=torch.float16) as half,
        ct.load(store, "half", folder / "unet", dtype=torch.float16) as again,
    ):
        assert list(half.weights.kinds) == ["slab"]
        assert again.weights.version == half.weights.version
        [record] = caplog.records
        assert "and torch.float16 is wanted" in record.getMessage()
        with pytest.raises(co.WeightsInUseError, match=r"its dtype is torch\.float16"):
            ct.load(store, "half", folder / "unet", dtype=torch.bfloat16)
        one, other = half.replica("cpu"), again.replica("cpu")
        pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        one.release(), other.release()


def test_tied_weights_are_one_parameter(store: co.WeightStore, folder: Path) -> None:
    with ct.load(store, "t5", folder / "t5") as model:
        replica = model.replica("cpu")
        module = replica.module
        assert module.shared.weight is module.encoder.embed_tokens.weight
        assert set(module.state_dict()) >= {"shared.weight", "encoder.embed_tokens.weight"}
        replica.release()


def test_what_is_loaded_twice_or_by_threads_at_once_is_read_once(
    store: co.WeightStore, folder: Path
) -> None:
    start, calls = threading.Barrier(4), []

    def make() -> Any:
        from diffusers import UNet2DModel

        calls.append(threading.get_ident())
        return UNet2DModel.from_pretrained(folder / "unet")

    def load() -> ct.Model:
        start.wait()
        return ct.load(store, "made", make)

    models = [thread.join() for thread in [spawn(load) for _ in range(4)]]
    assert len(calls) == 1
    assert len({model.weights.version for model in models}) == 1
    replicas = [model.replica("cpu") for model in models]
    for replica in replicas[1:]:
        assert_same(content(replica.module), content(replicas[0].module))
    for model in models:
        model.close()
    for replica in replicas:
        replica.release()


def test_replicas_share_memory_and_nothing_else(unet: ct.Model) -> None:
    devices = co.virtual_devices(2)
    one, other = (unet.replica(device) for device in devices)
    canonical = unet.weights.state_dict()
    for replica in (one, other):
        for name, parameter in replica.module.named_parameters():
            assert torch.equal(parameter, canonical[name])
            assert parameter.data_ptr() != canonical[name].data_ptr()
    parts = [{id(part) for part in replica.module.modules()} for replica in (one, other)]
    assert parts[0].isdisjoint(parts[1])
    processors = [set(map(id, r.module.attn_processors.values())) for r in (one, other)]
    assert processors[0].isdisjoint(processors[1])
    handle = one.module.register_forward_hook(lambda *_: pytest.fail("a hook of the other one"))
    images_of(other.module)
    handle.remove()
    one.module.to(torch.float64)
    assert all(parameter.dtype == torch.float32 for parameter in other.module.parameters())
    assert torch.equal(images_of(other.module), images_of(unet.replica("cpu").module))


def test_shared_parameter_objects_are_why_a_deep_copy_will_not_do() -> None:
    first = torch.nn.Linear(2, 2)
    memo = {id(parameter): parameter for parameter in first.parameters()}
    second = copy.deepcopy(first, memo)
    first.to(torch.float64)
    assert second.weight.dtype == torch.float64, "one move moves all clones"


def test_replicas_run_at_the_same_time_and_make_the_same_images(unet: ct.Model) -> None:
    start = threading.Barrier(4)
    expected = images_of(unet.replica("cpu").module)

    def run(device: str) -> Any:
        with unet.replica(device) as replica:
            start.wait()
            return images_of(replica.module)

    found = [spawn(lambda: run("cpu")) for _ in range(4)]
    assert all(torch.equal(thread.join(), expected) for thread in found)


def test_the_weights_of_a_released_replica_are_used_again_in_a_new_module(unet: ct.Model) -> None:
    def places(replica: ct.Replica) -> list[int]:
        return [parameter.data_ptr() for parameter in replica.module.parameters()]

    with unet.replica("cpu") as first, unet.replica("cpu") as second:
        assert set(places(first)).isdisjoint(places(second)), "both are in use"
        before = places(first)
    assert first.release() == []
    again = [unet.replica("cpu") for _ in range(3)]
    assert sum(places(replica) == before for replica in again) == 1
    assert all(replica.module is not first.module for replica in again)
    first.release()
    assert places(unet.replica("cpu")) != before, "a second release gives nothing back"
    with pytest.raises(co.ReleasedError, match="has been released already"):
        first.written()


LEFT_BEHIND: dict[str, Any] = {
    "half": lambda module: module.half(),
    "another parameter": lambda module: setattr(
        module.conv_in, "weight", torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    ),
    "a hook": lambda module: module.register_forward_hook(lambda *_: pytest.fail("a hook")),
    "training": lambda module: module.train(),
    "gradients": lambda module: module.requires_grad_(True),
    "a layer": lambda module: setattr(module, "mid_block", torch.nn.Identity()),
    "configuration": lambda module: module.register_to_config(sample_size=99),
    "processors": lambda module: module.set_attn_processor(
        __import__("diffusers").models.attention_processor.AttnProcessor()
    ),
}


@pytest.mark.parametrize("leave", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_nothing_that_one_user_leaves_behind_reaches_the_next(unet: ct.Model, leave: Any) -> None:
    with unet.replica("cpu") as replica:
        expected, before = images_of(replica.module), content(replica.module)
    with unet.replica("cpu") as replica:
        leave(replica.module)
    with unet.replica("cpu") as replica:
        assert_same(content(replica.module), before)
        assert torch.equal(images_of(replica.module), expected)
        assert not replica.module.training
        assert not any(p.requires_grad for p in replica.module.parameters())
        assert replica.module.config.sample_size == 8


def test_a_key_stands_for_one_folder_one_function_and_one_state_of_the_files(
    store: co.WeightStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        shutil.copytree(folder / "unet", path)
    half = ct.load(store, "half", paths[0], dtype=torch.float16)
    for other in (paths[1], lambda: torch.nn.Linear(2, 2)):
        with pytest.raises(co.WeightsInUseError, match=r"it was loaded from .*one, not from"):
            ct.load(store, "half", other, dtype=torch.float16)
    monkeypatch.chdir(tmp_path)
    assert (
        ct.load(store, "half", "one", dtype=torch.float16).weights.version == half.weights.version
    )
    (paths[0] / "config.json").write_text((paths[0] / "config.json").read_text() + " ")
    with pytest.raises(co.WeightsInUseError, match="has changed since it was loaded"):
        ct.load(store, "half", paths[0], dtype=torch.float16)
    made: list[int] = []

    def second() -> Any:
        made.append(1)
        return torch.nn.Linear(2, 2)

    first = ct.load(store, "made", lambda: torch.nn.Linear(2, 2))
    with pytest.raises(co.WeightsInUseError):
        ct.load(store, "made", second)
    kept = store.share("theirs", {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    with pytest.raises(co.WeightsInUseError, match="put into the store by somebody else") as told:
        ct.load(store, "theirs", second)
    assert (told.value.key, made) == ("theirs", [])
    kept.release(), first.close(), half.close()


def test_a_module_that_a_function_gives_stays_as_it_is(store: co.WeightStore) -> None:
    mine = torch.nn.Linear(3, 3)
    before = content(mine)
    with ct.load(store, "mine", lambda: mine) as model, model.replica("cpu") as replica:
        assert_same(content(replica.module), before)
        replica.module.weight.data.zero_()
        assert_same(content(mine), before)
        assert mine.training
        assert mine.weight.requires_grad
        with ct.writable(replica):
            pass
        assert replica.written() == []


def test_who_makes_a_key_and_asks_for_it_meanwhile_is_told(
    store: co.WeightStore, folder: Path
) -> None:
    with pytest.raises(co.DeadlockError):
        ct.load(store, "own", lambda: ct.load(store, "own", folder / "unet").replica("cpu").module)
    inside = threading.Barrier(2)

    def make(other: str) -> Any:
        inside.wait(20)
        with ct.load(store, other, lambda: torch.nn.Linear(2, 2)):
            return torch.nn.Linear(2, 2)

    jobs = [
        spawn(lambda k=k, o=o: ct.load(store, k, lambda: make(o)).close())
        for k, o in (("a", "b"), ("b", "a"))
    ]
    told = []
    for job in jobs:
        try:
            job.join()
        except co.DeadlockError as error:
            told.append(error)
    assert len(told) == 1


WRITES: dict[str, Any] = {
    "in place": lambda parameter: parameter.add_(1),
    "data": lambda parameter: parameter.data.mul_(2),
    "copy_": lambda parameter: parameter.copy_(torch.zeros_like(parameter)),
    "numpy": lambda parameter: parameter.detach().numpy().__setitem__(0, 7),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stray_write_stays_in_its_replica_and_is_named(unet: ct.Model, write: Any) -> None:
    name = "conv_in.bias"
    expected = images_of(unet.replica("cpu").module)
    replica, other = unet.replica("cpu"), unet.replica("cpu")
    with torch.no_grad():
        write(replica.module.get_parameter(name))
    assert not torch.equal(images_of(replica.module), expected)
    assert torch.equal(images_of(other.module), expected)
    with pytest.warns(ct.StrayWriteWarning, match="written to: conv_in.bias;") as told:
        assert replica.release() == [name]
    assert told[0].filename == __file__
    modules = [unet.replica("cpu").module for _ in range(3)]
    assert all(torch.equal(images_of(module), expected) for module in modules)
    assert other.release() == []


def test_a_writable_replica_is_what_it_was_afterwards(unet: ct.Model) -> None:
    replica, other = unet.replica("cpu"), unet.replica("cpu")
    expected, before = images_of(replica.module), content(replica.module)
    parts = [type(part) for part in replica.module.modules()]
    with pytest.raises(ZeroDivisionError), ct.writable(replica) as module:
        for parameter in module.parameters():
            parameter.data.mul_(1.5)
        module.conv_in.weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
        module.mid_block = torch.nn.Identity()
        module.register_forward_hook(lambda *_: None)
        module.train()
        module.conv_out.requires_grad_(True)
        assert torch.equal(images_of(other.module), expected)
        raise ZeroDivisionError
    assert [type(part) for part in replica.module.modules()] == parts
    assert_same(content(replica.module), before)
    assert torch.equal(images_of(replica.module), expected)
    assert not replica.module.training
    assert not any(p.requires_grad for p in replica.module.parameters())
    assert not replica.module._forward_hooks
    with ct.writable(replica), pytest.raises(co.InvalidValueError, match="is writable already"):
        ct.writable(replica).__enter__()
    assert replica.release() == other.release() == []
    with pytest.raises(co.ReleasedError):
        ct.writable(replica).__enter__()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda module: module.conv_in.weight.copy_(torch.ones(8, 4, 3, 3, requires_grad=True)),
        lambda module: setattr(module.conv_in.bias, "data", torch.zeros(3)),
        lambda module: module.conv_in.weight.register_hook(lambda grad: None),
        lambda module: module.add_module("more", torch.nn.Linear(2, 2)),
        lambda module: delattr(module, "mid_block"),
    ],
)
def test_whatever_is_done_to_a_writable_replica_is_undone(unet: ct.Model, spoil: Any) -> None:
    with torch.inference_mode():
        replica = unet.replica("cpu")
    before = content(replica.module)
    with ct.writable(replica) as module:
        module.requires_grad_(True)
        with torch.set_grad_enabled(True):
            spoil(module) if "copy_" not in spoil.__code__.co_names else spoil(
                module.requires_grad_(False)
            )
    assert_same(content(replica.module), before)
    assert replica.release() == []


def lora_of(folder: Path, seed: int) -> dict[str, Any]:
    """A LoRA as diffusers saves it."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet2")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    state = get_peft_model_state_dict(unet)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def test_each_device_has_its_own_lora_over_one_host_copy(unet: ct.Model, folder: Path) -> None:
    adapters = [lora_of(folder, seed) for seed in (1, 2)]
    canonical = {n: t.clone() for n, t in unet.weights.state_dict().items()}

    def alone(adapter: dict[str, Any]) -> Any:
        with unet.replica("cpu") as replica, ct.lora(replica, adapter) as module:
            return images_of(module)

    plain = images_of(unet.replica("cpu").module)
    expected = [alone(adapter) for adapter in adapters]
    assert not torch.equal(expected[0], expected[1])
    assert not torch.equal(expected[0], plain)
    inside = threading.Barrier(2)

    def job(device: co.Device, adapter: dict[str, Any]) -> Any:
        with unet.replica(device) as replica:
            with ct.lora(replica, adapter) as module:
                inside.wait(20)
                image = images_of(module)
                inside.wait(20)
            return image, images_of(replica.module)

    devices = co.virtual_devices(2)
    jobs = [spawn(lambda d=d, a=a: job(d, a)) for d, a in zip(devices, adapters, strict=True)]
    for thread, image in zip(jobs, expected, strict=True):
        found, without = thread.join()
        assert torch.equal(found, image)
        assert torch.equal(without, plain)
    assert_same(unet.weights.state_dict(), canonical)


def test_a_lora_fused_into_the_weights_stays_in_its_replica(unet: ct.Model, folder: Path) -> None:
    replica, other = unet.replica("cpu"), unet.replica("cpu")
    plain = images_of(other.module)
    with ct.lora(replica, lora_of(folder, 3)) as module:
        expected = images_of(module)
        module.fuse_lora()
        assert torch.allclose(images_of(module), expected, atol=1e-5)
        assert torch.equal(images_of(other.module), plain)
    assert torch.equal(images_of(replica.module), plain)
    assert replica.release() == other.release() == []


def test_a_lora_fused_into_shared_tensors_is_why_replicas_have_their_own(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    one, other = (UNet2DConditionModel.from_pretrained(folder / "unet2") for _ in range(2))
    other.load_state_dict(one.state_dict(), assign=True)
    plain = images_of(other)
    one.load_lora_adapter(lora_of(folder, 3), prefix=None)
    one.fuse_lora()
    assert not torch.equal(images_of(other), plain), "another user's image is garbled"


def test_a_lora_is_as_strong_as_it_is_told(unet: ct.Model, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    adapter = lora_of(folder, 4)
    save_file(adapter, tmp_path / "lora.safetensors")
    with unet.replica("cpu") as replica:
        plain = images_of(replica.module)
        # As pipelines save them.
        with ct.lora(replica, {f"unet.{n}": t for n, t in adapter.items()}) as module:
            prefixed = images_of(module)
        with ct.lora(replica, adapter) as module:
            assert torch.equal(images_of(module), prefixed)
        with ct.lora(replica, tmp_path / "lora.safetensors", scale=0.0) as module:
            assert torch.allclose(images_of(module), plain, atol=1e-6)
        with ct.lora(replica, tmp_path / "lora.safetensors", scale=0.5) as module:
            half = images_of(module)
        with ct.lora(replica, adapter) as module:
            assert not torch.allclose(images_of(module), half, atol=1e-4)
        assert torch.equal(images_of(replica.module), plain)


def test_the_key_is_invalidated_and_a_new_load_is_another_version(
    store: co.WeightStore, folder: Path
) -> None:
    old = ct.load(store, "unet", folder / "unet")
    replica = old.replica("cpu")
    store.invalidate("unet")
    new = ct.load(store, "unet", folder / "unet")
    assert new.weights.version > old.weights.version
    assert old.weights.retired
    old.close()
    assert replica.release() == []
    with pytest.raises(co.ReleasedError, match="has been closed already"):
        old.replica("cpu")
    old.close()
    new.close()
    store.clear()
    [left] = store.status()
    assert left.retired, "the replica's module has it"
    del old, new, replica
    assert store.status() == []


def test_nothing_is_held_when_all_are_gone(store: co.WeightStore, folder: Path) -> None:
    model = ct.load(store, "unet", folder / "unet")
    with model.replica("cpu") as replica:
        pass
    model.close()
    del model, replica
    store.clear()
    assert (store.status(), store.budget.used if store.budget else 0) == ([], 0)


class TestBadInput:
    def test_a_source_is_a_folder_or_a_function(self, store: co.WeightStore) -> None:
        with pytest.raises(co.InvalidTypeError, match="a function that makes a module, not int"):
            ct.load(store, "x", 7)  # type: ignore[arg-type]
        with pytest.raises(co.InvalidTypeError, match="source made str, which is no module"):
            ct.load(store, "x", lambda: "module")  # type: ignore[arg-type, return-value]
        with pytest.raises(co.InvalidTypeError, match="dtype is one of torch's, not str"):
            ct.load(store, "x", "folder", dtype="float16")  # type: ignore[arg-type]
        assert store.status() == []

    @pytest.mark.parametrize(
        ("config", "why"),
        [
            (None, "config.json cannot be read"),
            ("{", "config.json cannot be read"),
            ("{}", "names no class of transformers"),
            ('{"_class_name": "Nothing"}', r"names no class of diffusers: \['Nothing'\]"),
            ('{"_class_name": "UNet2DModel", "quantization_config": {"quant_method": "x"}}', "x"),
        ],
    )
    def test_a_folder_that_is_none_of_a_model_says_so(
        self, config: str | None, why: str, store: co.WeightStore, tmp_path: Path
    ) -> None:
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(co.InvalidValueError, match=why):
            ct.load(store, "x", tmp_path)
        assert store.status() == []

    def test_what_cannot_be_shared_is_refused_before_it_is(self, store: co.WeightStore) -> None:
        def sparse() -> Any:
            module = torch.nn.Linear(2, 2)
            module.weight = torch.nn.Parameter(module.weight.detach().to_sparse())
            return module

        def hooked() -> Any:
            from accelerate.hooks import ModelHook, add_hook_to_module

            return add_hook_to_module(torch.nn.Linear(2, 2), ModelHook())

        for make, why in [
            (sparse, r"weight is a Parameter \(torch.float32, torch.sparse_coo\)"),
            (hooked, "has hooks that move its weights"),
            (lambda: torch.nn.Linear(2, 2, device="meta"), "weight has no values"),
        ]:
            with pytest.raises(co.InvalidValueError, match=why):
                ct.load(store, "x", make)
        assert store.status() == []

    def test_an_error_of_the_function_is_the_callers_and_leaves_nothing(
        self, store: co.WeightStore
    ) -> None:
        with pytest.raises(ZeroDivisionError):
            ct.load(store, "x", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        with ct.load(store, "x", lambda: torch.nn.Linear(2, 2)) as model:
            assert len(model.weights) == 2

    def test_only_replicas_are_writable(self) -> None:
        with pytest.raises(co.InvalidTypeError, match="only a Replica can be writable, not Linear"):
            ct.writable(torch.nn.Linear(2, 2)).__enter__()  # type: ignore[arg-type]

    def test_a_dtype_that_no_parameters_have_is_refused(self, store: co.WeightStore) -> None:
        for dtype in (torch.int8, torch.complex64):
            with pytest.raises(co.InvalidValueError, match=r"dtype is one of torch\.float16"):
                ct.load(store, "x", "folder", dtype=dtype)

    @pytest.mark.parametrize("adapter", [{}, {"nothing.of.this": torch.ones(2)}])
    def test_what_is_no_lora_for_the_model_is_refused(self, unet: ct.Model, adapter: Any) -> None:
        with unet.replica("cpu") as replica:
            with pytest.raises(co.InvalidValueError, match="this is no LoRA for UNet2DCondition"):
                ct.lora(replica, adapter).__enter__()
            assert replica.written() == []

    def test_a_lora_of_another_component_is_refused(self, unet: ct.Model, folder: Path) -> None:
        adapter = {f"text_encoder.{n}": t for n, t in lora_of(folder, 1).items()}
        with unet.replica("cpu") as replica, pytest.raises(co.InvalidValueError):
            ct.lora(replica, adapter, prefix="unet").__enter__()

    def test_a_model_without_adapters_says_so(self, store: co.WeightStore) -> None:
        with (
            ct.load(store, "x", lambda: torch.nn.Linear(2, 2)) as model,
            model.replica("cpu") as replica,
            pytest.raises(co.InvalidValueError, match="Linear has no load_lora_adapter"),
        ):
            ct.lora(replica, {}).__enter__()

    def test_a_device_that_is_not_there_is_refused(self, unet: ct.Model) -> None:
        with pytest.raises(co.DeviceNotFoundError):
            unet.replica("cuda:99")


def test_modules_with_lists_hooks_and_buffers_of_their_own_are_copied_whole(
    store: co.WeightStore,
) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])
            self.order = [self.layers[1], self.layers[0]]
            self.known = {"bias": self.layers[0].bias}
            self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)
            self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
            self.register_parameter("nothing", None)
            self.hooked = 0
            self.register_forward_pre_hook(Odd.count_calls)

        def count_calls(self, _inputs: Any) -> None:
            self.hooked += 1

        def forward(self, x: Any) -> Any:
            for layer in self.order:
                x = layer(x) * self.scale + self.known["bias"]
            return x

    odd = Odd()
    expected = odd(torch.ones(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ct.load(store, "odd", lambda: copy.deepcopy(odd)) as model:
            one, other = model.replica("cpu"), model.replica("cpu")
            assert torch.equal(one.module(torch.ones(1, 2)), expected)
            assert one.module.order[1] is one.module.layers[0]
            assert one.module.known["bias"] is one.module.layers[0].bias
            assert one.module.nothing is None
            one.module.scale.zero_()
            assert other.module.scale.item() == 3.0
            assert (one.module.hooked, other.module.hooked) == (odd.hooked + 1, odd.hooked)
            assert one.release() == other.release() == []
