"""What SIGKILL leaves of a durable queue, at random instants; ``make crashes`` kills it more often."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import queue_crash


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL here")
def test_nothing_that_was_acknowledged_is_lost_however_the_process_is_killed(
    tmp_path: Path,
) -> None:
    told = queue_crash.rounds(8, tmp_path)
    assert told["begun"] > 0
