"""Weights as torch sees them: with types that numpy does not have."""

from __future__ import annotations

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
    state = {name: torch.from_dlpack(tensor) for name, tensor in weights.items()}
    module.load_state_dict(state, assign=True)
    weights.release()
    inputs = torch.randn(3, 8)
    assert torch.equal(module(inputs), reference(inputs))
    assert module.weight.data_ptr() == state["weight"].data_ptr()
