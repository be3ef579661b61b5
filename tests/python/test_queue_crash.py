"""What SIGKILL leaves of a durable queue, at random instants; ``make crashes`` kills it more often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL here")
def test_nothing_that_was_acknowledged_is_lost_however_the_process_is_killed(
    tmp_path: Path,
) -> None:
    # In a process of its own, which forks those that are killed and has no other threads.
    script = Path(__file__).with_name("queue_crash.py")
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "8", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'rounds': 8" in done.stdout
