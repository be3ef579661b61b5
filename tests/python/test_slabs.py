"""Slabs: what the system says of them, and what forked children see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import coresident as co
import numpy as np
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and memfd are Linux's")

BOOKED = """
import sys
from pathlib import Path
import coresident as co
import numpy as np

def resident():
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            ours = "memfd:coresident" in line
        elif words[0] == "Rss:" and ours:
            total += int(words[1]) * 1024
    return total

ram = co.Budget("ram", "1GiB", probe=False)
store = co.WeightStore(budget=ram)
for megabytes in (60, 100, 30, 31):
    store.share("model", {"a": np.ones(megabytes << 20, "uint8")}, copy=True).release()
    used = store.stats()["slab"]
    assert used == ram.used == megabytes << 20
    assert abs(resident() - used) <= used / 100, (resident(), used)
    store.invalidate("model")
    spare = store.stats()["spare"]
    assert (spare, store.stats()["slab"]) == (used, 0)
    assert abs(resident() - spare) <= spare / 100, (resident(), spare)
store.clear()
assert resident() == ram.used == 0
"""


@linux
def test_what_is_booked_is_what_the_system_counts() -> None:
    subprocess.run([sys.executable, "-c", BOOKED], check=True)


@linux
def test_a_slab_that_a_forked_child_may_read_is_never_filled_again() -> None:
    store = co.WeightStore(budget=co.Budget("ram", "64MiB", probe=False))
    ones, twos = ({"a": np.full(1 << 20, n, "uint8")} for n in (1, 2))
    tensor = np.from_dlpack(store.share("model", ones, copy=True)["a"])
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(asked, 1)
        os.write(tell, bytes([int(tensor.min()), int(tensor.max())]))
        os._exit(0)
    try:
        del tensor
        store.invalidate("model")
        assert store.stats()["spare"] == 1 << 20
        filled = store.share("next", twos, copy=True)
        assert store.stats()["spare"] == 0
        os.write(ask, b"!")
        assert os.read(told, 2) == bytes([1, 1])
        assert np.from_dlpack(filled["a"]).min() == 2
    finally:
        os.waitpid(child, 0)
        for end in (asked, ask, told, tell):
            os.close(end)


@linux
def test_a_forked_child_lets_go_of_slabs_without_touching_its_parents_store() -> None:
    store = co.WeightStore(budget=co.Budget("ram", "64MiB", probe=False))
    weights = store.share("model", {"a": np.ones(1 << 20, "uint8")}, copy=True)
    store.invalidate("model")
    child = os.fork()
    if child == 0:
        weights.release()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert np.from_dlpack(weights["a"]).sum() == 1 << 20
    weights.release()
    assert store.stats() == {"mapped": 0, "slab": 0, "foreign": 0, "pinned": 0, "spare": 1 << 20}


def test_writing_into_a_slab_ends_the_process_and_not_the_weights(tmp_path: Path) -> None:
    source = """
import coresident as co, numpy as np, ctypes
store = co.WeightStore()
weights = store.share("model", {"a": np.ones(4096, "uint8")}, copy=True)
ctypes.memset(np.from_dlpack(weights["a"]).ctypes.data, 0, 1)
"""
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True)
    assert ended.returncode < 0 or ended.returncode > 128
