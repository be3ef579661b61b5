"""What one model costs in host memory, and how long it takes to come: this library and others.

    python benches/host_memory.py [--gib 3] [--out benches/results/host-memory]

Every figure comes from a process of its own, whose memory Linux accounts for: proportional
(``Pss``), and of that no file's, which cannot be dropped and read again. The file is in the page
cache when a process starts. Writes the table as Markdown and a plot as SVG.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TENSORS = 500
ROLLUP = Path("/proc/self/smaps_rollup")


def memory() -> dict[str, int]:
    """Bytes of this process, and the most that it ever had."""
    lines = [line.split() for line in ROLLUP.read_text().splitlines()[1:]]
    found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    status = Path("/proc/self/status").read_text().split()
    peak = int(status[status.index("VmHWM:") + 1]) * 1024
    own = found["Pss_Anon"] + found["Pss_Shmem"]
    return {"proportional": found["Pss"], "own": own, "peak": peak}


def touch(tensors: list[Any]) -> None:
    """Reads one byte of every page."""
    for tensor in tensors:
        if hasattr(tensor, "view"):
            tensor.view(-1)[::1024].sum()


# Ways to have one model on so many devices: each returns everything that must stay alive.


def coresident(path: Path, devices: int) -> list[Any]:
    import coresident as co

    store = co.WeightStore()
    kept: list[Any] = [store]
    for _ in range(devices):
        weights = store.open("model", path)
        weights.prefetch()
        kept.append([weights, *weights.state_dict().values()])
    return kept


def coresident_copy(path: Path, devices: int) -> list[Any]:
    import coresident as co

    store = co.WeightStore()
    kept: list[Any] = [store]
    for _ in range(devices):
        weights = store.open("model", path, copy=True)
        kept.append([weights, *weights.state_dict().values()])
    return kept


def load_file(path: Path, devices: int) -> list[Any]:
    from safetensors.torch import load_file

    return [list(load_file(path).values()) for _ in range(devices)]


def safe_open_and_clone(path: Path, devices: int) -> list[Any]:
    from safetensors import safe_open

    kept = []
    for _ in range(devices):
        with safe_open(path, "pt") as file:
            kept.append([file.get_tensor(name).clone() for name in file.keys()])  # noqa: SIM118
    return kept


def deepcopy(path: Path, devices: int) -> list[Any]:
    import copy

    from safetensors.torch import load_file

    first = load_file(path)
    return [list(copy.deepcopy(first).values()) for _ in range(devices)]


def torch_load(path: Path, devices: int) -> list[Any]:
    import torch

    return [list(torch.load(path.with_suffix(".pt")).values()) for _ in range(devices)]


WAYS: dict[str, Callable[[Path, int], list[Any]]] = {
    "coresident": coresident,
    "coresident, copy=True": coresident_copy,
    "safetensors load_file each": load_file,
    "load_file, deepcopy each": deepcopy,
    "safe_open and clone each": safe_open_and_clone,
    "torch.load each": torch_load,
}


def measure(way: str, path: Path, devices: int) -> dict[str, float]:
    """What one way takes, in this process."""
    import coresident  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    before = memory()
    started = time.perf_counter()
    kept = WAYS[way](path, devices)
    loaded = time.perf_counter() - started
    for tensors in kept:
        if isinstance(tensors, list):
            touch(tensors)
    after = memory()
    return {
        "seconds": loaded,
        "touched": time.perf_counter() - started,
        "proportional": after["proportional"] - before["proportional"],
        "own": after["own"] - before["own"],
        "peak": after["peak"] - before["peak"],
    }


def in_another_process(path: Path, _devices: int) -> list[Any]:
    source = "import sys, coresident as co; co.WeightStore().open('m', sys.argv[1], copy=True)"
    subprocess.run([sys.executable, "-c", source, str(path)], check=True)
    return []


# Whatever these do to a thread of this process is the machine's doing: the first for comparison.
WATCHED = {**WAYS, "copy=True, in another process": in_another_process}
AGAIN = "coresident, copy=True, slab used again"


def stalls(way: str, path: Path) -> dict[str, float]:
    """The longest that another thread was kept from running Python while one way loads, and how
    often that was more than a millisecond."""
    import coresident as co
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    load = WATCHED.get(way)
    if way == AGAIN:
        store = spare_slab(path)
        load = lambda path, _: [store.open("next", path, copy=True)]  # noqa: E731
    longest, over = [0.0, 0], threading.Event()
    # Two threads that run Python take turns of this length: what is longer, a library has held.
    sys.setswitchinterval(1e-4)

    def watch() -> None:
        last = time.perf_counter()
        while not over.is_set():
            now = time.perf_counter()
            longest[0] = max(longest[0], now - last)
            longest[1] += now - last > 1e-3
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    kept = load(path, 1)
    over.set()
    thread.join()
    assert co
    return {"stall": longest[0], "often": longest[1], "kept": len(kept)}


def spare_slab(path: Path) -> Any:
    """A store with a slab that has held the model, and holds nothing now."""
    import coresident as co

    store = co.WeightStore(budget=co.Budget("ram", 2 * path.stat().st_size, probe=False))
    store.open("model", path, copy=True).release()
    store.invalidate("model")
    return store


def slabs(path: Path) -> dict[str, float]:
    """Seconds to fill a slab with the model: a new one, one that is used again, and the same reads
    into memory that is there already, with nothing of anybody."""
    import numpy

    times: dict[str, float] = {}
    started = time.perf_counter()
    store = spare_slab(path)
    times["new"] = time.perf_counter() - started
    started = time.perf_counter()
    kept = store.open("next", path, copy=True)
    times["again"] = time.perf_counter() - started
    kept.release()
    store.clear()
    buffer = memoryview(numpy.ones(path.stat().st_size, "uint8"))
    with path.open("rb") as file:
        reads = range(0, len(buffer), 8 << 20)

        def read(start: int) -> int:
            return os.preadv(file.fileno(), [buffer[start : start + (8 << 20)]], start)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            started = time.perf_counter()
            assert sum(pool.map(read, reads)) == len(buffer)
            times["raw"] = time.perf_counter() - started
    return times


def at_once(way: str, path: Path, threads: int) -> dict[str, float]:
    """How long it takes so many threads that all want the model at once, and what that takes."""
    import coresident as co
    import safetensors.torch
    import torch  # noqa: F401

    store, start = co.WeightStore(), threading.Barrier(threads + 1)
    kept: list[Any] = []

    def take() -> None:
        start.wait()
        if way == "coresident, copy=True":
            kept.append(store.open("model", path, copy=True))
        else:
            tensors = safetensors.torch.load_file(path)
            kept.append({name: tensor.clone() for name, tensor in tensors.items()})

    all_threads = [threading.Thread(target=take) for _ in range(threads)]
    for thread in all_threads:
        thread.start()
    before = memory()
    started = time.perf_counter()
    start.wait()
    for thread in all_threads:
        thread.join()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "own": memory()["own"] - before["own"]}


def child(task: str, *arguments: object) -> dict[str, float]:
    """Does a task in a process of its own."""
    command = [sys.executable, __file__, "--child", task, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def processes(path: Path, count: int) -> float:
    """Bytes that so many processes take together, each with the model mapped."""
    source = (
        "import sys; sys.path.insert(0, sys.argv[1]); import host_memory as bench;"
        "from pathlib import Path; import torch, coresident; before = bench.memory();"
        "kept = bench.coresident(Path(sys.argv[2]), 1); [bench.touch(t) for t in kept[1:]];"
        "print(flush=True); sys.stdin.readline();"
        "print(bench.memory()['proportional'] - before['proportional'], flush=True);"
        "sys.stdin.readline()"
    )
    command = [sys.executable, "-c", source, str(Path(__file__).parent), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for process in started:
        process.stdout.readline()
    # All have it now. None may end before all have looked: a page counts for those who map it.
    taken = 0
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
        taken += int(process.stdout.readline())
    for process in started:
        process.communicate("\n")
    return taken


def warm(nbytes: int) -> dict[str, float]:
    """Uses so much memory once: what a virtual machine has never used before comes slowly."""
    import numpy

    memory_used = numpy.ones(nbytes, dtype="uint8")
    return {"sum": float(memory_used[::4096].sum())}


def write_model(path: Path, gib: float) -> int:
    """A file of random numbers in 500 tensors, and the same for ``torch.load``."""
    import torch
    from safetensors.torch import save_file

    each = int(gib * 2**30 / TENSORS / 4)
    tensors = {f"blocks.{n}.weight": torch.rand(each) for n in range(TENSORS)}
    save_file(tensors, path)
    torch.save(tensors, path.with_suffix(".pt"))
    return each * 4 * TENSORS


def raw_map_and_touch(path: Path, _devices: int = 1) -> float:
    """Seconds to map the file and read one byte of every page, with nothing of anybody."""
    import mmap

    import numpy

    started = time.perf_counter()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = numpy.frombuffer(mapped, dtype="uint8")[::4096]
        pages.sum()
        seconds = time.perf_counter() - started
        del pages
    return seconds


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    head, *rest = rows
    lines = [head, tuple("---" for _ in head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(results: dict[tuple[str, int], dict[str, float]], nbytes: int, path: Path) -> None:
    """A bar of proportional memory for each way and number of devices."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for place, (devices, colour) in enumerate([(1, "#93c5fd"), (2, "#3b82f6"), (4, "#1e3a8a")]):
        models = [results[way, devices]["proportional"] / nbytes for way in WAYS]
        rows = [row + 0.25 * (place - 1) for row in range(len(WAYS))]
        bars = axes.barh(rows, models, 0.23, color=colour, label=f"{devices} devices")
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(WAYS)), list(WAYS))
    axes.invert_yaxis()
    axes.set(xlabel="proportional memory (PSS), in models", xlim=(0, 4.6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("host-memory"))
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        task, *arguments = options.child
        tasks: dict[str, Callable[..., Any]] = {
            "measure": lambda way, path, n: measure(way, Path(path), int(n)),
            "slabs": lambda path: slabs(Path(path)),
            "stalls": lambda way, path: stalls(way, Path(path)),
            "at_once": lambda way, path, n: at_once(way, Path(path), int(n)),
            "warm": lambda nbytes: warm(int(nbytes)),
            "raw": lambda path: {"seconds": raw_map_and_touch(Path(path))},
        }
        print(json.dumps(tasks[task](*arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        nbytes = write_model(path, options.gib)
        report = show(path, nbytes, options.out)
    print(report)


def show(path: Path, nbytes: int, out: Path) -> str:
    """Runs everything; writes the table and the plot."""
    gib, results = 2**30, {}
    child("warm", 5 * nbytes)
    raw = min(child("raw", path)["seconds"] for _ in range(3))
    rows = [
        (
            "way",
            "devices",
            "seconds",
            "touched",
            "proportional",
            "no file's",
            "peak",
            "proportional, in models",
        )
    ]
    for way in WAYS:
        for devices in (1, 2, 4):
            found = results[way, devices] = child("measure", way, path, devices)
            times = [f"{found[name]:.2f}" for name in ("seconds", "touched")]
            sizes = [f"{found[n] / gib:.2f} GiB" for n in ("proportional", "own", "peak")]
            rows.append(
                (way, str(devices), *times, *sizes, f"{found['proportional'] / nbytes:.3f}")
            )
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    lines = [f"# One model of {nbytes / gib:.2f} GiB in {TENSORS} tensors\n", machine + "\n"]
    lines.append(table(rows))
    lines.append(f"Raw map and touch of the file: {raw:.3f} s.\n")
    together = processes(path, 4)
    lines.append(f"Four processes, each with it mapped: {together / nbytes:.3f} models together.\n")
    times = child("slabs", path)
    filled = [("filling a slab of 1 model", "seconds", "of the speed of the reads alone")]
    for what, name in (("new", "new"), ("used again", "again"), ("the reads alone", "raw")):
        seconds = times[name]
        filled.append((what, f"{seconds:.2f}", f"{times['raw'] / seconds:.0%}"))
    lines.append(table(filled))
    stalled = [("way", "longest stall of another thread", "stalls over 1 ms")]
    for way in (*WATCHED, AGAIN):
        found = child("stalls", way, path)
        stalled.append((way, f"{found['stall'] * 1e3:.1f} ms", f"{found['often']:.0f}"))
    lines.append(table(stalled))
    wanted = [("four threads at once", "seconds", "of one thread's", "no file's, in models")]
    for way in ("coresident, copy=True", "load_file and clone"):
        one, four = (child("at_once", way, path, n) for n in (1, 4))
        ratio = four["seconds"] / one["seconds"]
        models = four["own"] / nbytes
        wanted.append((way, f"{four['seconds']:.2f}", f"{ratio:.2f}", f"{models:.2f}"))
    lines.append(table(wanted))
    report = "\n".join(lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(report)
    plot(results, nbytes, out.with_suffix(".svg"))
    return report


if __name__ == "__main__":
    main()
