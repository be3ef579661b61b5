"""Weights: one map of a file, seen as tensors without a copy."""

from __future__ import annotations

import gc
import json
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

import coresident as co
import numpy
import pytest
from conftest import run_script, spawn

# How numpy calls what it has.
NUMPY_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], padding: int = 0) -> Path:
    """Writes a safetensors file by hand; ``padding`` spaces end its header."""
    header, end = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
        end += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + padding)
    data = (content for _, _, content in tensors.values())
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *data]))
    return path


def maps_of(path: Path) -> int:
    """How often this process has the file mapped."""
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    numbers = numpy.arange(6, dtype="float32")
    return write(
        tmp_path / "model.safetensors",
        {"weight": ("F32", [2, 3], numbers.tobytes()), "bias": ("I8", [3], b"\x01\x02\xff")},
    )


@pytest.mark.parametrize(("dtype", "name"), NUMPY_TYPES.items())
def test_numpy_sees_every_type_it_has(tmp_path: Path, dtype: str, name: str) -> None:
    expected = numpy.arange(6).astype(name).reshape(3, 2)
    path = write(tmp_path / "one.safetensors", {"a": (dtype, [3, 2], expected.tobytes())})
    tensor = co.WeightStore().open("one", path)["a"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (name, (3, 2), expected.nbytes)
    array = numpy.from_dlpack(tensor)
    assert array.dtype == expected.dtype
    assert numpy.array_equal(array, expected)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    tensors = {"none": ("F32", [0, 3], b""), "one": ("F64", [], struct.pack("<d", 2.5))}
    weights = co.WeightStore().open("small", write(tmp_path / "small.safetensors", tensors))
    assert numpy.from_dlpack(weights["none"]).shape == (0, 3)
    assert numpy.from_dlpack(weights["one"])[()] == 2.5


def test_weights_are_a_mapping(model: Path) -> None:
    with co.WeightStore().open("model", model) as weights:
        assert isinstance(weights, Mapping)
        assert (weights.key, weights.path, weights.nbytes, len(weights)) == ("model", model, 27, 2)
        assert list(weights) == weights.keys() == ["weight", "bias"]
        assert [tensor.dtype for tensor in weights.values()] == ["float32", "int8"]
        assert dict(weights).keys() == dict(weights.items()).keys() == {"weight", "bias"}
        assert "bias" in weights
        assert "scale" not in weights
        assert 3 not in weights
        assert weights.get("scale") is None
        assert weights.get("scale", 7) == 7
        assert weights.get("bias").shape == (3,)
        assert repr(weights) == '<Weights "model": 2 tensors, 27 B>'
        assert repr(weights["weight"]) == "<Tensor float32 [2, 3]>"


def test_all_who_open_a_key_share_one_map_and_nothing_is_copied(model: Path) -> None:
    store, start = co.WeightStore(), threading.Barrier(8)

    def take() -> co.Weights:
        start.wait(20)
        return store.open("model", model)

    opened = [thread.join() for thread in [spawn(take) for _ in range(8)]]
    arrays = [numpy.from_dlpack(weights["weight"]) for weights in opened]
    assert len({array.__array_interface__["data"][0] for array in arrays}) == 1
    assert maps_of(model) == 1
    (status,) = store.status()
    assert (status.key, status.nbytes, status.holders) == ("model", 27, 16)
    for weights in opened:
        weights.release()
    (status,) = store.status()
    assert status.holders == 8, "the arrays still have it"
    del arrays
    gc.collect()
    assert store.status() == []
    assert maps_of(model) == 0


def test_released_weights_are_told_and_their_tensors_stay(model: Path) -> None:
    weights = co.WeightStore().open("model", model)
    tensor = weights["bias"]
    weights.release()
    weights.release()
    assert weights.released
    assert repr(weights) == '<Weights "model" released>'
    for use in (
        lambda: weights["bias"],
        lambda: weights.nbytes,
        lambda: weights.metadata,
        lambda: "bias" in weights,
        lambda: weights.get("bias"),
        lambda: list(weights),
        lambda: len(weights),
        weights.keys,
        weights.values,
        weights.items,
        weights.__enter__,
    ):
        with pytest.raises(co.ReleasedError, match='the weights "model" has been released'):
            use()
    assert numpy.from_dlpack(tensor).tolist() == [1, 2, -1]


def test_a_copy_is_the_callers_own(model: Path) -> None:
    tensor = co.WeightStore().open("model", model)["weight"]
    copy = numpy.from_dlpack(tensor, copy=True)
    copy += 1
    assert numpy.array_equal(copy, numpy.from_dlpack(tensor) + 1)


def test_a_tensor_that_is_not_aligned_is_copied_unless_that_is_refused(tmp_path: Path) -> None:
    expected = numpy.arange(5, dtype="float64")
    tensors = {"a": ("F64", [5], expected.tobytes())}
    path = write(tmp_path / "old.safetensors", tensors, padding=3)
    tensor = co.WeightStore().open("old", path)["a"]
    assert numpy.array_equal(numpy.from_dlpack(tensor), expected)
    assert numpy.from_dlpack(tensor).__array_interface__["data"][0] % 8 == 0
    with pytest.raises(BufferError, match="not aligned in its file: it can only be copied"):
        numpy.from_dlpack(tensor, copy=False)


def test_a_consumer_that_asks_for_what_cannot_be_is_told(model: Path) -> None:
    tensor = co.WeightStore().open("model", model)["weight"]
    assert tensor.__dlpack_device__() == (1, 0)
    with pytest.raises(
        BufferError, match=r"host memory, .* not on \(2, 1\): take the tensor first"
    ):
        tensor.__dlpack__(dl_device=(2, 1))
    for wrong in ({"max_version": "1.0"}, {"dl_device": 3}, {"copy": "yes"}):
        with pytest.raises(TypeError):
            tensor.__dlpack__(**wrong)
    # A capsule that nobody takes lets go of the file.
    for version in (None, (1, 0), (9, 9)):
        assert "dltensor" in repr(tensor.__dlpack__(max_version=version))
    del tensor
    gc.collect()
    assert maps_of(model) == 0


def test_names_that_are_not_there(model: Path) -> None:
    weights = co.WeightStore().open("model", model)
    with pytest.raises(co.TensorNotFoundError) as error:
        weights["weigth"]
    assert str(error.value) == (
        'there is no tensor "weigth" in "model", which has "weight", "bias"'
    )
    assert isinstance(error.value, KeyError)
    assert (error.value.name, error.value.key) == ("weigth", "model")
    assert error.value.near == ["weight", "bias"]
    with pytest.raises(co.InvalidTypeError, match="the name of a tensor is a text, not int"):
        weights[3]


def test_what_cannot_be_opened(model: Path, tmp_path: Path) -> None:
    store = co.WeightStore()
    with pytest.raises(co.WeightsFileNotFoundError, match="No such file") as absent:
        store.open("a", tmp_path / "absent.safetensors")
    assert isinstance(absent.value, FileNotFoundError)
    assert absent.value.path == tmp_path / "absent.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(co.WeightsFileError, match="has no weights in it"):
        store.open("a", tmp_path / "empty")
    (tmp_path / "text").write_text("a text, which is no header")
    with pytest.raises(co.MalformedWeightsError, match="is not a safetensors file") as malformed:
        store.open("a", str(tmp_path / "text"))
    assert malformed.value.path == tmp_path / "text"
    for key in ("", " ", "/flux", "flux/"):
        with pytest.raises(co.InvalidValueError, match="a key is a text such as"):
            store.open(key, model)
    with pytest.raises(co.InvalidTypeError, match="key is a text, not NoneType"):
        store.open(None, model)
    with pytest.raises(co.InvalidTypeError, match="path is a text or a path, not int"):
        store.open("a", 3)
    assert store.status() == []


def test_a_key_never_changes_what_it_stands_for(model: Path, tmp_path: Path) -> None:
    store = co.WeightStore()
    before = store.open("model", model)
    other = write(tmp_path / "other.safetensors", {"bias": ("I8", [1], b"\x09")})
    difference = r'"bias" is int8 \[3\] there, not int8 \[1\]: release that first'
    with pytest.raises(co.WeightsInUseError, match=difference):
        store.open("model", other)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(model.read_bytes())
    with pytest.raises(co.WeightsInUseError, match=r"it stands for .*model\.safetensors"):
        store.open("model", copy)
    os.replace(other, model)
    with pytest.raises(co.WeightsInUseError, match=difference) as error:
        store.open("model", model)
    assert (error.value.key, error.value.path) == ("model", model)
    assert numpy.from_dlpack(before["bias"]).tolist() == [1, 2, -1]
    before.release()
    assert numpy.from_dlpack(store.open("model", model)["bias"]).tolist() == [9]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_reads_what_is_open_and_opens_with_a_store_of_its_own(model: Path) -> None:
    script = f"""
        import os, warnings
        import coresident as co, numpy
        warnings.simplefilter("ignore", DeprecationWarning)
        store = co.WeightStore()
        weights = store.open("model", {str(model)!r})
        if (child := os.fork()) == 0:
            assert numpy.from_dlpack(weights["bias"]).tolist() == [1, 2, -1]
            try:
                store.open("model", {str(model)!r})
            except co.ForkedError:
                assert len(co.WeightStore().open("model", {str(model)!r})) == 2
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    done = run_script(script)
    assert (done.stdout, done.stderr) == ("7\n", "")
