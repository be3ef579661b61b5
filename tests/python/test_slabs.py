"""Slabs: what the system says of them, and what forked children see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import coresident as co
import numpy as np
import pytest
from conftest import measured

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

ram = co.Budget("ram", "128MiB", probe=False)
store = co.WeightStore(budget=ram)
for megabytes in (60, 100, 30, 29):
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
    measured(BOOKED)


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


@linux
def test_a_slab_that_was_filled_while_the_process_forked_is_never_filled_again() -> None:
    source = """
import os, threading
import numpy as np
loaded, before = threading.Event(), threading.Event()
# Runs after what the library does before a fork: the youngest of these runs first.
os.register_at_fork(before=lambda: (before.set(), loaded.wait()))
import coresident as co
store = co.WeightStore(budget=co.Budget("ram", "64MiB", probe=False))
ones, twos = ({"a": np.full(1 << 20, n, "uint8")} for n in (1, 2))
taken = []

def load():
    before.wait()
    taken.append(np.from_dlpack(store.share("model", ones, copy=True)["a"]))
    loaded.set()

thread = threading.Thread(target=load)
thread.start()
(asked, ask), (told, tell) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.read(asked, 1)
    os.write(tell, bytes([int(taken[0].min()), int(taken[0].max())]))
    os._exit(0)
thread.join()
taken.clear()
store.invalidate("model")
filled = store.share("next", twos, copy=True)
os.write(ask, b"!")
assert os.read(told, 2) == bytes([1, 1])
os.waitpid(child, 0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", source], check=True, timeout=60)


def test_a_copy_that_no_machine_can_hold_is_refused_at_once() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
    store = co.WeightStore()
    endless = torch.zeros(1, dtype=torch.uint8).expand(1 << 45)
    with pytest.raises(co.WeightsMemoryError, match='no memory for a copy of "x"') as caught:
        store.share("x", {"a": endless}, copy=True)
    assert caught.value.key == "x"
    assert store.status() == []


def test_small_copies_hold_no_files() -> None:
    measured(
        """
        import os
        import coresident as co
        import numpy as np

        store = co.WeightStore(budget=co.Budget("ram", "64MiB", probe=False))
        before = os.listdir("/dev/fd")
        kept = [store.share(str(n), {"a": np.ones(4)}, copy=True) for n in range(100)]
        assert len(os.listdir("/dev/fd")) == len(before), (before, os.listdir("/dev/fd"))
        assert all(np.from_dlpack(weights["a"]).sum() == 4 for weights in kept)
        """
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "complex128"])
def test_what_is_not_contiguous_is_copied_in_pieces_of_the_right_elements(dtype: str) -> None:
    plain = np.random.default_rng(7).integers(0, 250, (40, 50, 60, 70)).astype(dtype)
    views = {
        "turned": plain.T,
        "strided": plain[::3, 1:, ::-2, 5::4],
        "swapped": plain.swapaxes(1, 3),
        "one row": plain[3, :, 7, ::7],
        "scalar": plain[1, 2, 3, 4:5].reshape(()),
        "broadcast": np.broadcast_to(plain[0, 0, 0], (300, 400, 70)),
    }
    shared = co.WeightStore().share("views", views, copy=True)
    for name, expected in views.items():
        assert np.array_equal(np.from_dlpack(shared[name]), expected), name
