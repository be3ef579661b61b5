"""The bench itself, small and on a virtual device: that every figure is there."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is an extra, and not installed here")

import coresident.torch as ct

BENCH = Path(__file__).parents[2] / "benches/gpu.py"
OURS = "coresident with half of that"
FIGURES = [
    "a plain copy from pinned memory",
    "64 tensors, 8 MiB in memory, pin='all'",
    "1900 tensors, 8 MiB in memory, pin='all'",
    "1900 tensors, 8 MiB in a cached file, pin='staging'",
    "a resident block of 40 tensors",
    "a block of 10 MiB that comes",
    "a round of three models of 4 MiB",
    "two workers with a stream each",
    OURS,
    "model offload, without a limit",
    "resident, without a limit",
    "diffusers' group offload",
]


@pytest.mark.skipif(
    os.environ.get("CORESIDENT_TEST_DEVICE") != "virtual",
    reason="python tests/gpu runs the bench itself on a GPU",
)
def test_the_bench_tells_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="one of the figures is its")
    out = tmp_path / "table.md"
    small = ["--mib", "8", "--transformer-gib", "0.04", "--layers", "8", "--tokens", "4"]
    command = [sys.executable, str(BENCH), "--device", "virtual", *small, "--rounds", "1"]
    env = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--steps", "2", "--out", str(out)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = out.read_text().splitlines()[4:]
    for figure in FIGURES:
        [row] = [row for row in rows if figure in row]
        # What can never fit is told so, where models are not streamed.
        streams = "stream" in inspect.signature(ct.Model.on).parameters
        if figure == OURS and not streams:
            assert "BudgetExceededError" in row, row
        else:
            assert row.split("|")[2].strip()[0].isdigit(), row
