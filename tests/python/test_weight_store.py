"""The weight store: where weights come from, who shares them, what they cost, and when they go."""

from __future__ import annotations

import ctypes
import gc
import math
import mmap
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coresident as co
import numpy
import pytest
from conftest import measured, run_script, spawn, until
from numpy.typing import NDArray
from test_weights import write

MIB = 2**20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(
        tmp_path / "model.safetensors",
        {"weight": ("F32", [2, 3], numpy.arange(6, dtype="float32").tobytes())},
    )


def big(path: Path, mebibytes: int) -> Path:
    """A file of so many mebibytes, in tensors of one each."""
    content = os.urandom(MIB)
    tensors = {f"block.{n}": ("U8", [MIB], content) for n in range(mebibytes)}
    return write(path, tensors)


def limited(limit: int | str) -> co.Budget:
    return co.Budget("ram", limit, probe=False)


def value(tensor: co.Tensor) -> NDArray[Any]:
    return numpy.from_dlpack(tensor)


# Where weights come from


def test_a_gguf_file_is_what_its_own_library_reads(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="comes with the test extra, and not installed here")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    random = numpy.random.default_rng(0)
    plain = random.standard_normal((3, 5)).astype("float32")
    rows = random.standard_normal((4, 256)).astype("float32")
    writer.add_tensor("plain", plain)
    writer.add_tensor("half", plain.astype("float16"))
    packed_types = ["Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"]
    written = []
    for name in packed_types:
        kind = gguf.GGMLQuantizationType[name]
        try:
            packed = gguf.quants.quantize(rows, kind)
        except NotImplementedError:
            # The library packs not every type that it unpacks: any bytes do.
            shape = gguf.quant_shape_to_byte_shape(rows.shape, kind)
            packed = random.integers(0, 255, shape, dtype="uint8")
        writer.add_tensor(name, packed, raw_dtype=kind)
        written.append(name)
    writer.add_uint32("answer", 42)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    weights = co.WeightStore().open("flux", path)
    assert weights.metadata["general.architecture"] == "flux"
    assert weights.metadata["answer"] == "42"
    assert written == packed_types
    read = gguf.GGUFReader(path)
    assert sorted(weights) == sorted(tensor.name for tensor in read.tensors)
    for tensor in read.tensors:
        ours = weights[tensor.name]
        assert numpy.array_equal(value(ours), tensor.data)
        plainly = tensor.tensor_type.name in ("F32", "F16")
        assert ours.packing == (
            None if plainly else (tensor.tensor_type.name, int(tensor.tensor_type))
        )
    unpacked = gguf.quants.dequantize(value(weights["Q8_0"]), gguf.GGMLQuantizationType.Q8_0)
    assert numpy.abs(unpacked - rows).max() < 0.05


def test_what_transformers_and_diffusers_save_is_opened_by_its_folder(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="an extra, not installed here")
    torch = pytest.importorskip("torch", reason="an extra, not installed here")
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    vae.save_pretrained(tmp_path / "one")
    vae.save_pretrained(tmp_path / "several", max_shard_size="200KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    store = co.WeightStore()
    for name in ("one", "several"):
        weights = store.open(name, tmp_path / name)
        state = vae.state_dict()
        assert sorted(weights) == sorted(state)
        assert all(torch.equal(torch.from_dlpack(weights[key]), state[key]) for key in state)
        assert weights.path == tmp_path / name


def test_a_pipelines_folder_says_to_open_its_parts() -> None:
    digits = Path(co.__file__).parent / "digits"
    with pytest.raises(co.WeightsFileError, match="is a whole pipeline: open its parts") as caught:
        co.WeightStore().open("digits", digits)
    assert caught.value.path == digits
    assert len(co.WeightStore().open("digits/unet", digits / "unet")) == 286


def test_a_private_copy_is_its_own(model: Path) -> None:
    store = co.WeightStore()
    weights = store.open("model", model, copy=True)
    model.write_bytes(b"something else")
    array = value(weights["weight"])
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array.ctypes.data % 64 == 0
    assert weights.kinds == {"slab": 24}
    assert store.stats() == {"mapped": 0, "slab": 24, "foreign": 0, "pinned": 0, "spare": 0}
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 7


# Sharing what is in memory


@pytest.mark.parametrize("copy", [False, True])
def test_arrays_of_numpy_are_shared_as_they_lie(copy: bool) -> None:
    whole = numpy.arange(24, dtype="int32").reshape(2, 3, 4)
    arrays = {
        "whole": whole,
        "strided": whole[:, ::2, 1:],
        "transposed": whole.T,
        "reversed": whole[::-1, :, ::-1],
        "broadcast": numpy.broadcast_to(whole[:1, :1], (5, 1, 4)),
        "scalar": numpy.array(7.5),
        "empty": numpy.empty((0, 3), dtype="float16"),
        "complex": numpy.array([1 + 2j], dtype="complex128"),
    }
    shared = co.WeightStore().share("arrays", arrays, copy=copy)
    assert list(shared) == list(arrays)
    for name, array in arrays.items():
        tensor = shared[name]
        assert tensor.shape == array.shape
        assert numpy.array_equal(value(tensor), array)
        assert numpy.array_equal(numpy.from_dlpack(tensor, copy=True), array)
        if array.size and name != "broadcast":
            same = value(tensor).ctypes.data == array.ctypes.data
            assert same is not copy
    assert shared.path is None
    if copy:
        assert set(shared.kinds) == {"slab"}
        whole[:] = 0
        assert value(shared["whole"]).sum() == sum(range(24))
    else:
        assert shared.nbytes == whole.nbytes + 8 + 16, "views of one memory count once"
        assert set(shared.kinds) == {"foreign"}


def test_what_is_shared_keeps_the_arrays_and_lets_them_go() -> None:
    array = numpy.ones(10)
    gone = weakref.ref(array)
    store = co.WeightStore()
    shared = store.share("array", {"a": array})
    view = value(shared["a"])
    del array
    shared.release()
    assert gone() is not None
    del view
    gc.collect()
    assert gone() is None


def test_who_shares_the_same_again_gets_what_is_there() -> None:
    store = co.WeightStore()
    first, second = ({"a": numpy.full(3, n, dtype="float32")} for n in (1, 2))
    one = store.share("clip", first)
    other = store.share("clip", second)
    assert value(other["a"]).tolist() == [1, 1, 1]
    assert one.version == other.version
    for tensors, difference in [
        ({"a": numpy.zeros(3, dtype="float16")}, r'"a" is float32 \[3\] there, not float16 \[3\]'),
        ({"a": numpy.zeros(4, dtype="float32")}, r'"a" is float32 \[3\] there, not float32 \[4\]'),
        ({"b": numpy.zeros(3, dtype="float32")}, '"b" is not there'),
        ({}, "it has 1 tensors there, not 0"),
    ]:
        with pytest.raises(co.WeightsInUseError, match=difference):
            store.share("clip", tensors)


class Refusing:
    """Says where it is, and gives nothing."""

    def __init__(self, device: tuple[int, int]) -> None:
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **_: object) -> object:
        raise BufferError("not today")


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (3, '"a" cannot be shared'),
        (numpy.array(["text"]), '"a" cannot be shared'),
        (numpy.zeros(3, dtype="datetime64[s]"), '"a" cannot be shared'),
        (Refusing((1, 0)), "not today"),
        (Refusing((99, 0)), '"a" cannot be shared'),
    ],
)
def test_what_cannot_be_shared_is_named(tensor: object, why: str) -> None:
    store = co.WeightStore()
    with pytest.raises(co.UnshareableTensorError, match=why) as caught:
        store.share("key", {"fine": numpy.zeros(1), "a": tensor})
    assert caught.value.name == "a"
    assert store.status() == []


class DLTensor(ctypes.Structure):
    """As dlpack.h has it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Lying:
    """A producer whose capsule says what it is told to."""

    def __init__(self, shape: list[int], strides: list[int] | None = None, **fields: Any) -> None:
        sizes = ctypes.c_int64 * len(shape)
        self.shape = sizes(*shape)
        self.strides = sizes(*strides) if strides else None
        terms = {"code": 2, "bits": 32, "lanes": 1, "device_type": 1, "data": None, **fields}
        self.memory = ctypes.create_string_buffer(256)
        if terms["data"] == "some":
            terms["data"] = ctypes.addressof(self.memory)
        self.tensor = DLTensor(ndim=len(shape), shape=self.shape, **terms)
        if self.strides:
            self.tensor.strides = self.strides

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **_: object) -> object:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (Lying([4]), "it has elements, but no memory"),
        (Lying([4], data="some", device_type=2), "on another device than its library says"),
        (Lying([-4], data="some"), "cannot be shared"),
        (Lying([4, 4], [2**61, 1], data="some"), "cannot be shared"),
        (Lying([2**40, 2**40], data="some"), "cannot be shared"),
        (Lying([4], data="some", bits=6, code=15), "6 bits are no whole bytes"),
        (Lying([4], data="some", lanes=0), "cannot be shared"),
        (Lying([4], data="some", code=200), "cannot be shared"),
        (Lying([4], data="some", byte_offset=2**64 - 1), "cannot be shared"),
    ],
    ids=[
        "no memory",
        "another device",
        "negative",
        "huge strides",
        "huge",
        "six bits",
        "no lanes",
        "an unknown type",
        "a huge offset",
    ],
)
def test_a_producer_that_lies_is_found_out(lie: Lying, why: str, copy: bool) -> None:
    store = co.WeightStore()
    with pytest.raises(co.UnshareableTensorError, match=why):
        store.share("key", {"lie": lie}, copy=copy)
    assert store.status() == []


def test_what_a_plain_producer_says_is_taken() -> None:
    honest = Lying([2, 3], [3, 1], data="some")
    assert value(co.WeightStore().share("key", {"a": honest})["a"]).tolist() == [[0] * 3] * 2


def test_a_copy_that_no_memory_can_hold_is_refused() -> None:
    huge = numpy.broadcast_to(numpy.zeros(1), (2**44,))
    store = co.WeightStore()
    shared = store.share("huge", {"a": huge})
    with pytest.raises(MemoryError, match="no memory for a copy of 128 TiB"):
        numpy.from_dlpack(shared["a"], copy=True)
    with pytest.raises(co.WeightsMemoryError, match='no memory for a copy of "other"'):
        store.share("other", {"a": huge}, copy=True)
    assert [status.key for status in store.status()] == ["huge"]


class Twice(dict[str, Any]):
    """A mapping that has a name twice."""

    def items(self) -> Any:
        return [("a", numpy.zeros(1)), ("a", numpy.zeros(2))]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("key", Twice(a=1)), co.InvalidValueError, 'there are two tensors "a"'),
        (("key", [1]), co.InvalidTypeError, "tensors is a mapping, not list"),
        (("key", {3: numpy.zeros(1)}), co.InvalidTypeError, "the name of a tensor is a text"),
        ((3, {}), co.InvalidTypeError, "key is a text, not int"),
        (("a/", {}), co.InvalidValueError, "a key is a text such as"),
    ],
)
def test_bad_arguments_share_nothing(
    arguments: tuple[Any, Any], error: type[Exception], message: str
) -> None:
    store = co.WeightStore()
    with pytest.raises(error, match=message):
        store.share(*arguments)
    assert store.status() == []


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        (
            "5",
            co.InvalidTypeError,
            "cost is a number of seconds, not str",
        ),
        (True, co.InvalidTypeError, "not bool"),
        (-1, co.InvalidValueError, "cost must be 0 or more seconds, and finite, not -1"),
        (math.nan, co.InvalidValueError, "not nan"),
        (math.inf, co.InvalidValueError, "not inf"),
        (1e300, co.InvalidValueError, r"not 1e\+300"),
    ],
)
def test_a_cost_that_is_none(cost: Any, error: type[Exception], message: str) -> None:
    store = co.WeightStore()
    with pytest.raises(error, match=message):
        store.share("key", {"a": numpy.zeros(1)}, cost=cost)
    assert store.status() == []


def test_what_takes_long_to_make_again_is_kept_longer() -> None:
    budget = limited(120)
    store = co.WeightStore(budget=budget)
    for key, cost in [("compiled", 60), ("unknown", None), ("never", 1e9)]:
        store.share(key, {"a": numpy.zeros(5)}, cost=cost).release()
    costs = [status.cost for status in store.status()]
    assert 60 <= costs[0] < 61
    assert costs[1] >= 1e9
    assert costs[2] < 1
    with budget.reserve(40):
        assert [status.key for status in store.status()] == ["compiled", "never"]
        with budget.reserve(40):
            assert [status.key for status in store.status()] == ["never"]


# Versions


def test_an_invalidated_key_stays_whole_for_those_who_have_it(model: Path) -> None:
    budget = limited(1000)
    store = co.WeightStore(budget=budget)
    assert store.budget is budget
    old = store.open("flux/vae", model)
    store.open("flux", model).release()
    store.open("fluxus", model).release()
    assert store.invalidate("flux") == 2
    assert old.retired
    with pytest.raises(co.WeightsNotOpenError, match='nothing is open as "flux/vae"'):
        store.acquire("flux/vae")
    new = store.share("flux/vae", {"other": numpy.zeros(2)})
    assert new.version > old.version
    assert value(old["weight"]).sum() == 15
    told = [(status.key, status.retired, status.holders) for status in store.status()]
    assert told == [("flux/vae", True, 1), ("flux/vae", False, 1), ("fluxus", False, 0)]
    assert budget.used == 24 + 16 + 24
    old.release()
    assert budget.used == 16 + 24
    assert store.clear() == 24
    assert budget.used == 16
    assert store.acquire("flux/vae").version == new.version


def test_settings_tell_weights_of_one_key_apart(model: Path) -> None:
    store = co.WeightStore()
    first = store.open("model", model, settings={"dtype": "fp16", "layers": 3})
    again = store.open("model", model, settings={"layers": 3, "dtype": "fp16"})
    assert first.version == again.version
    with pytest.raises(co.WeightsInUseError, match='its setting "dtype" is "fp16" there, not "x"'):
        store.open("model", model, settings={"dtype": "x", "layers": 3})
    with pytest.raises(co.InvalidTypeError, match="settings is a mapping, not list"):
        store.open("model", model, settings=["dtype"])  # type: ignore[arg-type]


# The budget


def test_bytes_are_reserved_once_and_kept_until_they_are_wanted(tmp_path: Path) -> None:
    budget = limited(3 * MIB)
    store = co.WeightStore(budget=budget)
    paths = {name: big(tmp_path / f"{name}.safetensors", 1) for name in "abc"}
    held = [store.open("a", paths["a"]) for _ in range(4)]
    assert budget.used == MIB
    tensor = store.open("b", paths["b"])["block.0"]
    store.open("c", paths["c"]).release()
    assert budget.used == 3 * MIB
    with budget.reserve(MIB // 2, timeout=20):
        assert [status.key for status in store.status()] == ["a", "b"]
    with pytest.raises(co.BudgetTimeoutError) as caught:
        budget.reserve(2 * MIB, timeout=0.05)
    assert '"a" has 1 MiB, "b" has 1 MiB' in str(caught.value)
    for weights in held:
        weights.release()
    del tensor
    gc.collect()
    budget.reserve(3 * MIB, timeout=20).release()
    assert store.status() == []
    with pytest.raises(co.BudgetExceededError, match="ram can never have 4 MiB"):
        store.open("d", big(tmp_path / "d.safetensors", 4))


def test_a_load_that_waits_for_bytes_can_be_given_up(model: Path) -> None:
    budget, token = limited(24), co.CancelToken()
    store = co.WeightStore(budget=budget)
    held = budget.reserve(24).hand_over()
    with pytest.raises(co.BudgetTimeoutError):
        store.open("model", model, timeout=0.01)
    waiting = spawn(lambda: store.open("model", model, cancel=token))
    until(lambda: budget.status().waiting)
    other = spawn(lambda: store.open("model", model).nbytes)
    token.cancel("enough")
    with pytest.raises(co.CancelledError):
        waiting.join()
    until(lambda: budget.status().waiting)
    held.release()
    assert other.join() == 24


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory a process takes")
@pytest.mark.parametrize("copy", [False, True])
def test_what_stats_says_is_what_the_system_accounts(tmp_path: Path, copy: bool) -> None:
    path = big(tmp_path / "big.safetensors", 256)
    measured(
        f"""
        import time
        from pathlib import Path
        import coresident as co
        import numpy as np

        def proportional():
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

        store = co.WeightStore()
        before = proportional()
        holders = [store.open("big", {str(path)!r}, copy={copy}) for _ in range(4)]
        for weights in holders:
            weights.prefetch()
            arrays = [np.from_dlpack(tensor) for tensor in weights.values()]
            assert sum(int(array[::4096].sum()) for array in arrays) > 0
        taken = proportional() - before
        said = store.stats()["slab" if {copy} else "mapped"]
        assert abs(said - (256 << 20)) < 256 << 10, said
        assert abs(taken - said) < said * 0.02, (taken, said)
        del arrays
        for weights in holders:
            weights.release()
        for _ in range(2000):  # the map goes in a thread of the store's
            left = proportional() - before
            if left < 16 << 20:
                break
            time.sleep(0.01)
        assert left < 16 << 20, left
        """
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told to forget a file")
def test_what_is_evicted_is_no_longer_in_the_page_cache(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, check=True)
    if kind.stdout.strip() in (b"tmpfs", b"ramfs"):
        pytest.skip("the files of a tmpfs are in memory alone, and cannot be forgotten")
    path = big(tmp_path / "big.safetensors", 32)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be forgotten
    budget = limited("40MiB")
    store = co.WeightStore(budget=budget)
    weights = store.open("big", path)
    weights.prefetch()
    weights.release()
    pages = path.stat().st_size // mmap.PAGESIZE
    assert cached_pages(path) > 0.9 * pages
    budget.reserve("40MiB", timeout=20).release()
    assert cached_pages(path) < 0.1 * pages


def cached_pages(path: Path) -> int:
    """How many pages of a file the system has in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        start = numpy.frombuffer(mapped, dtype="uint8").ctypes.data
        resident = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE + 1))()
        assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), resident) == 0
    return sum(page & 1 for page in resident)


# Reading ahead


def test_prefetch_tells_how_far_it_is(tmp_path: Path) -> None:
    weights = co.WeightStore().open("big", big(tmp_path / "big.safetensors", 40))
    told: list[tuple[int, int]] = []
    weights.prefetch(threads=3, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == os.path.getsize(tmp_path / "big.safetensors")
    assert told == sorted(told)


def test_what_progress_raises_ends_the_wait(tmp_path: Path) -> None:
    weights = co.WeightStore().open("big", big(tmp_path / "big.safetensors", 4))

    def fails(_done: int, _total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        weights.prefetch(progress=fails)
    token = co.CancelToken()
    token.cancel("enough")
    with pytest.raises(co.CancelledError, match="enough"):
        weights.prefetch(cancel=token)
    for arguments, error in [
        ({"threads": 0}, co.InvalidValueError),
        ({"threads": 1.5}, co.InvalidTypeError),
        ({"progress": 3}, co.InvalidTypeError),
        ({"timeout": -1}, co.InvalidValueError),
    ]:
        with pytest.raises(error):
            weights.prefetch(**arguments)  # type: ignore[arg-type]
    weights.release()
    with pytest.raises(co.ReleasedError):
        weights.prefetch()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_by_progress_is_told_so(tmp_path: Path) -> None:
    path = big(tmp_path / "big.safetensors", 64)
    ended = run_script(
        f"""
        import os, warnings
        import coresident as co
        warnings.simplefilter("ignore", DeprecationWarning)
        weights = co.WeightStore().open("big", {str(path)!r})
        children = []

        def fork(done, total):
            if not children:
                children.append(os.fork())

        try:
            weights.prefetch(threads=2, progress=fork)
        except co.ForkedError:
            os._exit(3)
        if children == [0]:
            os._exit(4)
        _, status = os.waitpid(children[0], 0)
        # The only call may have been the last one, when nothing is waited for any more.
        assert os.waitstatus_to_exitcode(status) in (3, 4), status
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(co.WeightsFileError, match="is neither a file nor a folder"):
        co.WeightStore().open("pipe", tmp_path / "pipe.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a mapped file cannot be cut")
def test_a_file_that_was_cut_is_reported_by_prefetch(tmp_path: Path) -> None:
    path = big(tmp_path / "big.safetensors", 4)
    weights = co.WeightStore().open("big", path)
    os.truncate(path, MIB)
    with pytest.raises(co.WeightsFileError, match="has been cut short since it was opened"):
        weights.prefetch()


def test_other_threads_run_while_weights_are_copied_and_read(tmp_path: Path) -> None:
    path, store = big(tmp_path / "big.safetensors", 200), co.WeightStore()
    steps, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            steps[0] += 1

    counting = spawn(count)
    for number in range(3):
        before = steps[0]
        weights = store.open(f"big/{number}", path, copy=True)
        weights.prefetch()
        assert steps[0] > before
        weights.release()
    done.set()
    counting.join()


# Threads, finalisers, processes


def test_eight_threads_that_open_and_drop_leave_nothing(model: Path, tmp_path: Path) -> None:
    # Room for a retired version in the hands of each, so that none waits for what the others hold.
    budget = limited(8 * 24 + 24 + 30)
    store = co.WeightStore(budget=budget)
    other = write(tmp_path / "other.safetensors", {"bias": ("I8", [30], bytes(30))})

    def work() -> None:
        for number in range(200):
            weights = store.open("model", model)
            array = value(weights["weight"])
            store.open("other", other)
            if number % 10 == 0:
                store.invalidate("model")
            if number % 17 == 0:
                store.clear()
            weights.release()
            assert array.sum() == 15

    for thread in [spawn(work) for _ in range(8)]:
        thread.join()
    gc.collect()
    store.clear()
    assert (budget.used, store.status()) == (0, [])


def test_weights_may_go_in_any_finaliser(model: Path) -> None:
    store = co.WeightStore(budget=limited(10_000))
    seen: list[int] = []

    class Holder:
        def __init__(self) -> None:
            self.weights = store.open("model", model)
            self.shared = store.share("shared", {"a": Noisy()})
            self.itself = self

        def __del__(self) -> None:
            self.weights.release()
            store.open("model", model).release()
            seen.append(len(store.status()))

    class Noisy:
        """A producer whose memory's end runs Python code that uses the store."""

        def __init__(self) -> None:
            self.array = numpy.zeros(3)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

        def __dlpack__(self, **options: Any) -> Any:
            weakref.finalize(self.array, lambda: seen.append(len(store.status())))
            return self.array.__dlpack__(**options)

    def churn() -> None:
        for _ in range(50):
            Holder()
            store.invalidate("shared")
            gc.collect(1)

    for thread in [spawn(churn) for _ in range(4)]:
        thread.join()
    gc.collect()
    assert len(seen) >= 200


@pytest.fixture
def quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_one_load_serves_all_who_come_at_once(tmp_path: Path, quick_switches: None) -> None:
    path = big(tmp_path / "big.safetensors", 64)
    store = co.WeightStore(budget=limited("65MiB"))
    start = threading.Barrier(4)

    def take() -> co.Weights:
        start.wait(20)
        return store.open("big", path, copy=True)

    taken = [thread.join() for thread in [spawn(take) for _ in range(4)]]
    assert len({weights.version for weights in taken}) == 1
    assert {value(weights["block.0"]).ctypes.data for weights in taken} == {
        value(taken[0]["block.0"]).ctypes.data
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_keeps_what_it_sees_and_is_refused_the_rest(model: Path) -> None:
    ended = run_script(
        f"""
        import os, warnings
        import coresident as co, numpy
        warnings.simplefilter("ignore", DeprecationWarning)
        store = co.WeightStore(budget=co.Budget("ram", 10**6, probe=False))
        weights = store.open("model", {str(model)!r})
        array = numpy.from_dlpack(weights["weight"])
        if (child := os.fork()) == 0:
            assert array.sum() == 15
            for call in (lambda: store.acquire("model"), lambda: store.invalidate("model"),
                         store.status, store.clear,
                         lambda: store.share("a", {{"a": numpy.zeros(1)}})):
                try:
                    call()
                except co.ForkedError:
                    continue
                os._exit(1)
            weights.release()
            own = co.WeightStore().open("model", {str(model)!r}, copy=True)
            os._exit(0 if numpy.from_dlpack(own["weight"]).sum() == 15 else 2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert store.budget.used == 24
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_interpreter_ends_with_weights_of_all_kinds_alive(tmp_path: Path) -> None:
    path = big(tmp_path / "big.safetensors", 20)
    ended = run_script(
        f"""
        import coresident as co, numpy, sys, threading
        store = co.WeightStore(budget=co.Budget("ram", "1GiB", probe=False))
        kept = [store.open("a", {str(path)!r}), store.open("b", {str(path)!r}, copy=True),
                store.share("c", {{"c": numpy.zeros(10**6)}})]
        views = [numpy.from_dlpack(next(iter(weights.values()))) for weights in kept]
        sys.modules["kept"] = kept, views
        store.open("d", {str(path)!r}).release()
        threading.Thread(target=lambda: [w.prefetch() for w in kept for _ in range(500)],
                         daemon=True).start()
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_store_and_its_budget_go_together() -> None:
    budget = limited(100)
    store = co.WeightStore(budget=budget)
    store.share("a", {"a": numpy.zeros(5)}).release()
    assert budget.used == 40
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    assert budget.used == 0
    budget.reserve(100, timeout=0).release()


def test_an_evictor_that_holds_weights_does_not_keep_everything() -> None:
    def make() -> weakref.ref[Any]:
        budget, array = limited(1000), numpy.zeros(5)
        weights = co.WeightStore(budget=budget).share("a", {"a": array})
        budget.add_evictor(lambda _missing: weights.release())
        return weakref.ref(array)

    gone = make()
    gc.collect()
    assert gone() is None


def test_what_is_in_memory_is_not_charged_twice(tmp_path: Path) -> None:
    free = [1000]
    (device,) = co.virtual_devices(1, memory=1000)
    budget = co.Budget(device, probe=lambda: free[0])
    store = co.WeightStore(budget=budget)
    path = write(tmp_path / "model.safetensors", {"a": ("U8", [400], bytes(400))})
    weights = store.open("copy", path, copy=True)
    free[0] = 600  # the copy is there
    budget.look()
    assert (budget.used, budget.free) == (400, 600)
    free[0] = 500  # somebody has an array of 100 bytes
    budget.look()
    shared = store.share("array", {"a": numpy.zeros(100, dtype="uint8")})
    assert (budget.used, budget.free, budget.status().outside) == (500, 500, 0)
    weights.release()
    shared.release()


def test_what_a_deadlocked_load_waits_for_is_told(model: Path) -> None:
    budget = limited(24)
    store = co.WeightStore(budget=budget)
    held = budget.reserve(24)
    with pytest.raises(co.DeadlockError, match="24 B of ram"):
        store.open("model", model, timeout=20)
    held.release()
    assert store.open("model", model).nbytes == 24
