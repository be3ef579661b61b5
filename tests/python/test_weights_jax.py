"""Tensors of jax, shared and taken back, with types that numpy does not have."""

from __future__ import annotations

import coresident as co
import pytest

jax = pytest.importorskip("jax", reason="comes with the test extra")


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float32", "int32", "bool"])
def test_arrays_of_jax_are_shared_and_taken_back_without_a_copy(dtype: str, copy: bool) -> None:
    content = jax.numpy.arange(12).reshape(3, 4).astype(dtype)
    arrays = {"whole": content, "scalar": content[1, 2], "empty": content[:0], "turned": content.T}
    shared = co.WeightStore().share("arrays", arrays, copy=copy)
    for name, expected in arrays.items():
        assert (shared[name].dtype, shared[name].shape) == (dtype, expected.shape)
        seen = jax.dlpack.from_dlpack(shared[name])
        assert seen.dtype == expected.dtype
        assert (seen == expected).all()
    seen = jax.dlpack.from_dlpack(shared["whole"])
    same = seen.unsafe_buffer_pointer() == content.unsafe_buffer_pointer()
    assert same is not copy
