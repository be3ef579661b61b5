"""Weights as torch sees them: with types that numpy does not have."""

from __future__ import annotations

import gc
import json
import struct
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import coresident as co
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
save = pytest.importorskip("safetensors.torch", reason="comes with the test extra")


@pytest.fixture
def everything(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A tensor of every type that torch and safetensors share, written by safetensors."""
    tensors = {}
    for dtype in save._TYPES.values():
        size = 8 * dtype.itemsize
        high = 2 if dtype == torch.bool else 250
        content = torch.randint(0, high, (4, size), dtype=torch.uint8)
        tensors[str(dtype)] = content.view(dtype)
    save.save_file(tensors, tmp_path / "everything.safetensors", metadata={"format": "pt"})
    return tensors, tmp_path / "everything.safetensors"


def test_every_type_is_seen_bit_by_bit_without_a_copy(everything: Any) -> None:
    tensors, path = everything
    weights = co.WeightStore().open("everything", path)
    assert weights.metadata == {"format": "pt"}
    assert len(weights) == len(tensors) >= 15
    for name, expected in tensors.items():
        seen, again = torch.from_dlpack(weights[name]), torch.from_dlpack(weights[name])
        assert (seen.dtype, seen.shape) == (expected.dtype, expected.shape)
        assert f"torch.{weights[name].dtype}" == name
        assert seen.data_ptr() == again.data_ptr()
        assert torch.equal(seen.view(torch.uint8), expected.view(torch.uint8))
        own = torch.from_dlpack(weights[name], copy=True)
        assert own.data_ptr() != seen.data_ptr()
        assert torch.equal(own.view(torch.uint8), expected.view(torch.uint8))


def test_a_module_runs_on_the_map_itself(tmp_path: Path) -> None:
    reference = torch.nn.Linear(8, 4)
    save.save_file(reference.state_dict(), tmp_path / "linear.safetensors")
    weights = co.WeightStore().open("linear", tmp_path / "linear.safetensors")
    module = torch.nn.Linear(8, 4, device="meta")
    state = weights.state_dict()
    module.load_state_dict(state, assign=True)
    weights.release()
    inputs = torch.randn(3, 8)
    assert torch.equal(module(inputs), reference(inputs))
    assert module.weight.data_ptr() == state["weight"].data_ptr()


@pytest.mark.parametrize("table", [True, False], ids=["table of functions", "capsules"])
def test_a_state_dict_has_what_from_dlpack_gives(
    everything: Any, table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, path = everything
    if not table:
        # As torch before 2.10 is.
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    weights = co.WeightStore().open("everything", path)
    state = weights.state_dict()
    assert list(state) == weights.keys()
    for name, expected in tensors.items():
        seen = torch.from_dlpack(weights[name])
        assert (state[name].dtype, state[name].shape) == (expected.dtype, expected.shape)
        assert state[name].data_ptr() == seen.data_ptr()
        assert torch.equal(state[name].view(torch.uint8), expected.view(torch.uint8))


def test_all_holders_have_the_same_tensors_and_each_a_dict_of_its_own(tmp_path: Path) -> None:
    save.save_file({"a": torch.ones(8)}, tmp_path / "a.safetensors")
    store = co.WeightStore()
    one, other = (store.open("a", tmp_path / "a.safetensors") for _ in range(2))
    state = one.state_dict()
    assert one.state_dict()["a"] is other.state_dict()["a"] is state["a"]
    del state["a"]
    assert list(other.state_dict()) == ["a"]
    kept = weakref.ref(other.state_dict()["a"])
    one.release()
    with pytest.raises(co.ReleasedError, match="released already"):
        one.state_dict()
    assert kept() is not None, "the other one still has them"
    other.release()
    assert kept() is None
    assert store.status() == []


def test_a_new_version_has_tensors_of_its_own(tmp_path: Path) -> None:
    save.save_file({"a": torch.ones(8)}, tmp_path / "a.safetensors")
    store = co.WeightStore()
    old = store.open("a", tmp_path / "a.safetensors")
    retired = old.state_dict()["a"]
    store.invalidate("a")
    new = store.open("a", tmp_path / "a.safetensors")
    assert new.state_dict()["a"].data_ptr() != retired.data_ptr()
    assert old.state_dict()["a"] is retired


def test_threads_that_ask_at_once_get_the_same_tensors(tmp_path: Path) -> None:
    save.save_file({str(n): torch.ones(8) for n in range(300)}, tmp_path / "a.safetensors")
    for _ in range(20):
        store, start = co.WeightStore(), threading.Barrier(4)

        def take(store: co.WeightStore = store, start: threading.Barrier = start) -> Any:
            weights = store.open("a", tmp_path / "a.safetensors")
            start.wait()
            return weights, weights.state_dict()

        with ThreadPoolExecutor(4) as pool:
            taken = [future.result() for future in [pool.submit(take) for _ in range(4)]]
        assert len({id(state["7"]) for _, state in taken}) == 1


def test_a_cycle_through_a_tensor_is_collected(tmp_path: Path) -> None:
    save.save_file({"a": torch.ones(8)}, tmp_path / "a.safetensors")
    weights = co.WeightStore().open("a", tmp_path / "a.safetensors")
    tensor = weights.state_dict()["a"]
    tensor.weights = weights
    gone = weakref.ref(weights)
    del weights, tensor
    gc.collect()
    assert gone() is None


def test_a_state_dict_that_was_asked_for_in_inference_mode_is_good_for_everybody(
    everything: Any,
) -> None:
    _, path = everything
    store = co.WeightStore()
    with torch.inference_mode():
        one = store.open("everything", path)
        assert not one.state_dict()["torch.float32"].is_inference()
        assert torch.is_inference_mode_enabled()
    assert not store.acquire("everything").state_dict()["torch.float32"].is_inference()


def test_a_type_that_torch_does_not_take_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    rows = {
        "good": ("F32", [2], [0, 8]),
        "odd": ("F6_E2M3", [4], [8, 11]),
        "also odd": ("F6_E2M3", [4], [11, 14]),
    }
    header = json.dumps(
        {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in rows.items()}
    ).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(14))
    ram = co.Budget("ram", "1MiB", probe=False)
    store = co.WeightStore(budget=ram)
    with store.open("odd", path) as weights:
        with pytest.raises(BufferError, match='"odd" cannot be exported: ') as caught:
            weights.state_dict()
        assert "\n" not in str(caught.value)
        # Its traceback has torch's frames, and those the tensor.
        del caught
    store.clear()
    assert (ram.used, store.status()) == (0, [])


def test_signs_that_torch_only_notes_are_copied_or_refused() -> None:
    noted = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert noted.is_neg()
    store = co.WeightStore()
    copied = store.share("copied", {"a": noted}, copy=True)
    assert copied.state_dict()["a"].tolist() == [-2.0, 4.0]
    with pytest.raises(co.UnshareableTensorError, match="resolve_neg"):
        store.share("shared", {"a": noted})


def dtypes() -> list[Any]:
    """Every type of torch's, but those of parts of bytes and of its old quantised tensors, and one
    that DLPack does not have.
    """
    parts = {"torch.bcomplex32"} | {
        f"torch.{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)
    }
    everything = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    whole = [dtype for dtype in everything if str(dtype) not in parts]
    return sorted((d for d in whole if not str(d).startswith(("torch.q", "torch.bits"))), key=str)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("copy", [False, True])
def test_a_tensor_of_every_type_is_shared_bit_by_bit(dtype: Any, copy: bool) -> None:
    high = 2 if dtype == torch.bool else 250
    content = torch.randint(0, high, (4, 8 * dtype.itemsize), dtype=torch.uint8).view(dtype)
    tensors = {
        "whole": content,
        "scalar": content[0, 0],
        "empty": content[:0],
        "strided": content[1::2, ::3],
        "transposed": content.T,
    }
    shared = co.WeightStore().share("tensors", tensors, copy=copy)
    for name, expected in tensors.items():
        seen = torch.from_dlpack(shared[name])
        assert (seen.dtype, seen.shape) == (expected.dtype, expected.shape)
        assert f"torch.{shared[name].dtype}" == str(dtype)
        for same in (seen, torch.from_dlpack(shared[name], copy=True)):
            bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (same, expected)]
            assert torch.equal(*bits)
    if not copy:
        assert shared.nbytes == content.nbytes
        assert torch.from_dlpack(shared["whole"]).data_ptr() == content.data_ptr()


def test_a_module_is_shared_with_its_ties_and_without_its_gradients() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    shared = co.WeightStore().share("module", dict(module.named_parameters(remove_duplicate=False)))
    assert shared.nbytes == (16 + 4 + 4) * 4, "the tied weight counts once"
    tied = [torch.from_dlpack(shared[f"{n}.weight"]) for n in (0, 1)]
    assert tied[0].data_ptr() == tied[1].data_ptr() == module[0].weight.data_ptr()
    assert not tied[0].requires_grad


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.zeros(3, device="meta"), "cannot be shared"),
        (torch.eye(3).to_sparse(), "cannot be shared"),
        (torch.zeros(3, dtype=torch.complex64).conj(), "cannot be shared"),
    ],
    ids=["meta", "sparse", "conjugated"],
)
def test_what_has_no_plain_memory_is_named(tensor: Any, why: str) -> None:
    with pytest.raises(co.UnshareableTensorError, match=why) as caught:
        co.WeightStore().share("key", {"odd one": tensor})
    assert caught.value.name == "odd one"


def test_a_shared_tensor_lives_as_long_as_any_of_its_holders() -> None:
    store = co.WeightStore(budget=co.Budget("ram", 10**6, probe=False))
    module = torch.nn.Linear(8, 8)
    state = module.state_dict()
    shared = store.share("linear", state)
    other = torch.nn.Linear(8, 8, device="meta")
    other.load_state_dict({k: torch.from_dlpack(v) for k, v in shared.items()}, assign=True)
    expected = module(torch.ones(8))
    del module, state
    shared.release()
    assert store.clear() == 0
    assert torch.equal(other(torch.ones(8)), expected)
    del other
    assert store.clear() == (64 + 8) * 4
