"""Several models that are streamed on one device: each has what the others need not keep."""

from __future__ import annotations

from typing import Any

import coresident as co
import pytest
from conftest import until

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

from test_streaming import PAGE, is_clean, layers, runtime, x  # noqa: E402


@pytest.mark.parametrize("turn", range(3))
def test_what_outputs_take_of_a_neighbours_room_comes_from_what_stays_of_the_first(
    turn: int,
) -> None:
    """The device is short of what an output takes, and all that could leave is the neighbour's."""
    with runtime(10) as house, torch.no_grad():
        [device] = house.devices
        one, other = house.load("one", layers), house.load("other", lambda: layers(8, 2, seed=1))
        with (first := one.on(device)) as module:
            kept = [module(x(turn))]
            assert first.streaming is not None
            assert first.streaming.kept > 0
            with other.on(device) as neighbour:
                kept += [neighbour(x(turn)) for _ in range(3)]
                kept += [module(x(turn)), neighbour(x(turn))]
        expected = layers()(x(turn)), layers(8, 2, seed=1)(x(turn))
        for at, output in enumerate(kept):
            assert torch.equal(output, expected[at in (1, 2, 3, 5)])
        del kept, output
        assert is_clean(house)


def test_what_would_fit_alone_is_streamed_beside_what_is_streamed() -> None:
    def small() -> Any:
        return layers(4, 2, seed=2)

    with runtime(10) as house, torch.no_grad():
        [device] = house.devices
        large, fits = house.load("large", layers), house.load("fits", small)
        with (residence := fits.on(device)):
            assert residence.streaming is None, "it has the device to itself"
        with large.on(device) as module:
            module(x())
            with (residence := fits.on(device)) as beside:
                assert residence.streaming is not None
                assert torch.equal(beside(x()), small()(x()))
                assert torch.equal(module(x()), layers()(x()))
        with (residence := fits.on(device)):
            assert residence.streaming is None, "as before"
        assert is_clean(house)


def test_a_wait_that_is_over_is_told_as_one() -> None:
    with runtime(10) as house:
        [device] = house.devices
        large, fits = house.load("large", layers), house.load("fits", lambda: layers(1))
        with house.vram[device].reserve(9 * PAGE).hand_over():
            for model in (large, fits):
                with pytest.raises(co.BudgetTimeoutError, match=r"after 0\.05 s"):
                    model.on(device, timeout=0.05)
        until(lambda: is_clean(house))
