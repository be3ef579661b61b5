"""Weights had, looked at and opened, next to safetensors and to a refcount under a lock."""

from __future__ import annotations

import json
import struct

import coresident as co
import numpy
import pytest
from peers import CountedStore

safetensors = pytest.importorskip("safetensors", reason="comes with the test extra")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two thousand tensors of 64 bytes."""
    header = {
        f"block.{n}.weight": {
            "dtype": "F32",
            "shape": [4, 4],
            "data_offsets": [64 * n, 64 * n + 64],
        }
        for n in range(2000)
    }
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64 * 2000))
    return path


@pytest.mark.benchmark(group="acquire and release")
class TestAcquire:
    def test_ours_acquire(self, timed, model):
        store = co.WeightStore()
        _kept = store.open("model", model)

        def loop(calls):
            for _ in calls:
                store.acquire("model").release()

        timed(loop)

    def test_peer_refcount_under_a_lock(self, timed, model):
        store = CountedStore()
        store.put("model", object())

        def loop(calls):
            for _ in calls:
                with store.acquire("model"):
                    pass

        timed(loop)


@pytest.mark.benchmark(group="a view of a tensor")
class TestView:
    def test_ours_tensor(self, timed, model):
        weights = co.WeightStore().open("model", model)

        def loop(calls):
            for _ in calls:
                weights["block.77.weight"]

        timed(loop)

    def test_ours_in_numpy(self, timed, model):
        weights = co.WeightStore().open("model", model)

        def loop(calls):
            for _ in calls:
                numpy.from_dlpack(weights["block.77.weight"])

        timed(loop)

    def test_peer_get_tensor(self, timed, model):
        with safetensors.safe_open(model, "numpy") as weights:

            def loop(calls):
                for _ in calls:
                    weights.get_tensor("block.77.weight")

            timed(loop)


@pytest.mark.benchmark(group="open 2,000 tensors")
class TestOpen:
    def test_ours_open(self, timed_call, model):
        timed_call(lambda: co.WeightStore().open("model", model).release())

    def test_peer_safe_open(self, timed_call, model):
        def run():
            with safetensors.safe_open(model, "numpy") as weights:
                weights.keys()

        timed_call(run)


@pytest.mark.benchmark(group="acquire and release on 4 threads, 99th percentile")
class TestAcquireAmongFour:
    def test_ours_acquire_among_4(self, timed_p99, model):
        store = co.WeightStore()
        _kept = store.open("model", model)
        timed_p99(lambda: store.acquire("model").release())

    def test_peer_refcount_among_4(self, timed_p99, model):
        store = CountedStore()
        store.put("model", object())

        def acquire():
            with store.acquire("model"):
                pass

        timed_p99(acquire)


@pytest.mark.benchmark(group="2,000 tensors to torch")
class TestToTorch:
    def test_ours_first_state_dict(self, benchmark, model):
        torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
        assert torch
        store = co.WeightStore()
        _kept = store.open("model", model)
        benchmark.extra_info.update(calls=1, figure="median")
        # Each round has weights of its own, which nobody has asked before.
        setup = lambda: ((store.acquire("model"),), {})  # noqa: E731
        benchmark.pedantic(lambda weights: weights.state_dict() and None, setup=setup, rounds=200)

    def test_ours_next_state_dict(self, timed_call, model):
        pytest.importorskip("torch", reason="torch is an extra, and not installed here")
        store = co.WeightStore()
        first = store.open("model", model)
        _kept = first.state_dict()
        timed_call(lambda: store.acquire("model").state_dict())

    def test_peer_from_dlpack_each(self, timed_call, model):
        torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
        weights = co.WeightStore().open("model", model)
        names = weights.keys()
        timed_call(lambda: {name: torch.from_dlpack(weights[name]) for name in names})

    def test_peer_get_tensor_each(self, timed_call, model):
        pytest.importorskip("torch", reason="torch is an extra, and not installed here")
        with safetensors.safe_open(model, "pt") as weights:
            names = list(weights.keys())
            timed_call(lambda: {name: weights.get_tensor(name) for name in names})


@pytest.mark.benchmark(group="release")
class TestRelease:
    @pytest.mark.parametrize("copy", [False, True], ids=["mapped", "slab"])
    def test_ours_release_of_a_large_one(self, benchmark, tmp_path_factory, copy):
        path = tmp_path_factory.mktemp("large") / "model.safetensors"
        save = pytest.importorskip("safetensors.numpy", reason="comes with the test extra")
        save.save_file({"a": numpy.ones(300 << 20, "uint8")}, path)
        store = co.WeightStore(budget=co.Budget("ram", "2GiB", probe=False))

        def setup():
            store.invalidate("model")
            weights = store.open("model", path, copy=copy)
            weights.prefetch()
            # Only this holder has them.
            store.invalidate("model")
            return (weights,), {}

        benchmark.extra_info.update(calls=1, figure="median")
        benchmark.pedantic(lambda weights: weights.release(), setup=setup, rounds=20)
