"""Private maps of weights: what is written there is found, undone, and nobody else's."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import coresident as co
import numpy as np
import pytest
from conftest import measured

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
save = pytest.importorskip("safetensors.torch", reason="comes with the test extra")


@pytest.fixture(params=["mapped", "slab"])
def weights(request: Any, tmp_path: Path) -> co.Weights:
    """Three small tensors in one page, and two of many pages."""
    tensors = {
        **{f"small.{n}": torch.arange(8.0) + n for n in range(3)},
        **{f"large.{n}": torch.rand(300, 1000) for n in range(2)},
    }
    save.save_file(tensors, tmp_path / "model.safetensors")
    copy = request.param == "slab"
    return co.WeightStore().open("model", tmp_path / "model.safetensors", copy=copy)


def bits(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


WRITES: dict[str, Any] = {
    "in place": lambda tensor: tensor.add_(1),
    "copy_": lambda tensor: tensor.copy_(torch.zeros_like(tensor)),
    "data": lambda tensor: tensor.data.mul_(2).sub_(1),
    "numpy": lambda tensor: np.negative(tensor.numpy() + 1, out=tensor.numpy()),
    "one element": lambda tensor: tensor.view(-1)[-1:].fill_(-1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("name", ["small.1", "large.0"])
def test_what_is_written_stays_private_is_named_and_undone(
    weights: co.Weights, name: str, write: Any
) -> None:
    before = bits(weights.state_dict())
    private, other = weights.private(), weights.private()
    state = private.state_dict()
    assert bits(state) == before
    assert private.changed() == []
    write(state[name])
    assert private.changed() == [name], "its neighbours in the page are what they were"
    assert bits(weights.state_dict()) == bits(other.state_dict()) == before
    assert other.changed() == []
    assert private.restore() == [name]
    assert bits(state) == before, "also through tensors that were there"
    assert private.changed() == private.restore() == []


def test_what_is_written_without_a_change_is_no_change(weights: co.Weights) -> None:
    private = weights.private()
    private.state_dict()["large.1"].mul_(1)
    assert private.changed() == []


def test_all_state_dicts_of_one_private_map_are_the_same_memory(weights: co.Weights) -> None:
    private = weights.private()
    one, other = private.state_dict(), private.state_dict()
    one["small.0"].fill_(3)
    assert other["small.0"].eq(3).all()
    assert one["small.0"] is not other["small.0"]
    numpys = np.from_dlpack(one["small.0"])
    numpys[0] = 4
    assert other["small.0"][0] == 4


def test_a_private_tensor_keeps_its_map_and_the_weights(weights: co.Weights) -> None:
    expected = bits(weights.state_dict())["large.0"]
    tensor = weights.private().state_dict()["large.0"]
    weights.release()
    gc.collect()
    assert tensor.numpy().tobytes() == expected
    tensor.zero_()
    assert tensor.eq(0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory is whose")
@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "slab"])
def test_memory_is_taken_for_what_is_written_and_given_back(copy: bool, tmp_path: Path) -> None:
    save.save_file({"large": torch.rand(300, 1000)}, tmp_path / "model.safetensors")
    measured(
        f"""
        from pathlib import Path
        import coresident as co
        import torch

        def anonymous():
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            [line] = [line for line in lines if line.startswith("Anonymous:")]
            return int(line.split()[1]) * 1024

        torch.set_num_threads(1)
        file = {str(tmp_path / "model.safetensors")!r}
        private = co.WeightStore().open("model", file, copy={copy}).private()
        tensor = private.state_dict()["large"]
        tensor.sum()
        before = anonymous()
        tensor.add_(1)
        assert anonymous() - before >= 1_100_000, anonymous() - before
        private.restore()
        assert anonymous() - before < 400_000, anonymous() - before
        """
    )


def test_what_lies_in_memory_of_others_has_no_private_map() -> None:
    shared = co.WeightStore().share("clip", {"a": torch.ones(3)})
    with pytest.raises(co.WeightsNotMappedError, match="share it with copy=True") as caught:
        shared.private()
    assert caught.value.key == "clip"
    copied = co.WeightStore().share("clip", {"a": torch.ones(3)}, copy=True)
    copied.private().state_dict()["a"].zero_()
    assert copied.state_dict()["a"].sum() == 3
    copied.release()
    with pytest.raises(co.ReleasedError):
        copied.private()
