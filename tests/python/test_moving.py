"""Models on devices whose memory comes to other addresses each time: what `test_residence.py` asks."""

from __future__ import annotations

from collections.abc import Iterator

import coresident as co
import pytest
from conftest import spawn

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

import coresident.torch as ct  # noqa: E402
from test_residence import (  # noqa: E402, F401 # asked here too
    PAGE,
    blocks,
    test_a_call_that_is_made_once_more_finds_its_arguments_as_they_were,
    test_a_closed_model_leaves_the_device_when_its_last_user_does,
    test_a_full_device_is_tried_once_more_after_everything_unused_has_left,
    test_a_model_of_a_higher_priority_stays,
    test_a_residence_can_be_released_by_another_thread,
    test_a_residence_that_is_forgotten_leaves_a_module_that_can_be_used,
    test_inside_the_weights_are_on_the_device_and_outside_in_host_memory,
    test_parameters_come_back_whatever_was_put_in_their_place,
    test_releasing_the_replica_ends_its_residence,
    test_stray_writes_on_the_device_are_named_and_undone,
    test_the_second_failure_tells_what_was_needed_and_what_was_there,
    test_two_threads_may_call_one_module,
    test_what_a_module_returns_can_be_used_after_its_weights_have_left,
    test_what_is_written_between_two_stays_on_the_device_is_there_in_the_second,
    test_whatever_is_returned_has_no_views_of_weights,
    test_when_all_fits_nothing_moves,
    test_who_uses_a_model_that_another_has_written_to_has_it_whole_again,
    test_working_memory_is_reserved_with_the_weights_and_given_back,
    x,
)


@pytest.fixture
def house() -> Iterator[co.Runtime]:
    """One device of eight pages."""
    devices = co.virtual_devices(1, memory=8 * PAGE, jitter=11, moving=True)
    with co.Runtime(devices) as made:
        yield made


def test_threads_that_share_models_find_them_wherever_they_are(house: co.Runtime) -> None:
    [device] = house.devices
    models = [house.load(f"blocks {at}", lambda at=at: blocks(2, seed=at)) for at in range(3)]
    expected = [blocks(2, seed=at)(x()) for at in range(3)]
    places: set[int] = set()

    def job(number: int) -> None:
        for turn in range(20):
            at = (number + turn) % 3
            with models[at].on(device) as module, torch.no_grad():
                places.update(tensor.data_ptr() for tensor in module.state_dict().values())
                assert torch.equal(module(x()), expected[at])

    for thread in [spawn(lambda n=n: job(n), name=f"job {n}") for n in range(2)]:
        thread.join()
    assert len(places) > 9, "three tensors of each come elsewhere by and by"
    status = house.analyze(device)
    assert (status.pinned, status.resident) == (0, house.vram[device].used)


def test_weights_of_ones_own_are_filled_wherever_they_come(house: co.Runtime) -> None:
    [device] = house.devices
    model, other = (house.load(key, lambda: blocks(3)) for key in ("model", "other"))
    doubled = blocks(3)
    with torch.no_grad():
        doubled.layers[0].weight.mul_(2)
    replica = model.replica(device)
    with ct.writable(replica) as module, torch.no_grad():
        module.layers[0].weight.mul_(2)
        for _ in range(3):
            with replica.on():
                assert torch.equal(module(x()), doubled(x()))
            with other.on(device) as plain:
                assert torch.equal(plain(x()), blocks(3)(x()))
    replica.release()
