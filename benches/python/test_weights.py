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
