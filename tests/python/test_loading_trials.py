"""Random trials: threads that load, move and patch models break without, and never with."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="torch is an extra, and not installed here")
for library in ("accelerate", "diffusers", "peft", "transformers"):
    pytest.importorskip(library, reason="comes with the test extra")

import coresident.torch as ct  # noqa: E402
import loading_trials  # noqa: E402
import tiny_models  # noqa: E402

# `make trials` runs 200 of each.
TRIALS = int(os.environ.get("CORESIDENT_TRIALS", "12"))


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[loading_trials.Trials]:
    ct.install().uninstall()
    with loading_trials.quiet():
        yield loading_trials.Trials(tiny_models.write(tmp_path_factory.mktemp("models")))


def test_without_it_models_break_and_the_process_stays_changed(
    trials: loading_trials.Trials,
) -> None:
    broken = left = 0
    for mix in loading_trials.MIXES:
        outcome = trials.run(mix, 4, TRIALS)
        broken, left = broken + outcome.broken, left + outcome.left
        if broken and left:
            return
    pytest.fail(f"{broken} were broken, and {left} times something was left changed")


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("mix", loading_trials.MIXES)
def test_with_it_nothing_breaks_and_nothing_is_left(
    mix: str, threads: int, trials: loading_trials.Trials
) -> None:
    installation = ct.install()
    try:
        outcome = trials.run(mix, threads, TRIALS)
    finally:
        installation.uninstall()
    assert (outcome.broken, outcome.left) == (0, 0), dict(outcome.how)
