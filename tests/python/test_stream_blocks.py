"""Areas that are streamed block by block, as those use them who place weights themselves.

Asked of virtual devices here, and of pretended GPUs by `test_cuda.py`.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from typing import Any

import coresident as co
import numpy as np
import pytest
from conftest import spawn, until
from placed import PAGE, PAGES, address_of, bytes_at, device_of, settle

BLOCKS = 6


@dataclass
class House:
    """A device of eight pages: one that stays, six blocks of two, of which each is a number."""

    device: co.Device
    arena: co.Arena
    area: co.Area
    places: dict[str, int]

    def stream(self, **terms: Any) -> co.Streaming:
        return self.area.stream_blocks([[f"block {at}"] for at in range(BLOCKS)], **terms)

    def visit(self, streaming: co.Streaming, block: int, keep: int = 0) -> None:
        """Visits a block, and looks at all of it."""
        streaming.enter(block)
        assert self.is_right(f"block {block}", block + 1, 2 * PAGE)
        assert self.is_right("stays", 99, PAGE)
        streaming.leave(block, keep)

    def is_right(self, name: str, number: int, nbytes: int) -> bool:
        settle(self.device)
        return bool((bytes_at(self.places[name], nbytes) == number).all())

    def is_clean(self) -> bool:
        """Whether nothing is pinned, and the ledger has what there is."""
        status = self.arena.status()
        return status.pinned == 0 and status.resident == self.arena.budget.used


@pytest.fixture
def house() -> House:
    device = device_of(moving=False)
    arena = co.Arena(device, co.Budget(device))
    numbers = {"stays": np.full(PAGE, 99, np.uint8)}
    numbers |= {f"block {at}": np.full(2 * PAGE, at + 1, np.uint8) for at in range(BLOCKS)}
    weights = co.WeightStore().share("model", numbers)
    area = arena.area(weights, list(numbers), groups=list(range(1, BLOCKS + 1)))
    places = {name: address_of(area, name) for name in numbers}
    gc.collect()
    until(lambda: arena.evict() == 0 and arena.status().resident == 0)
    return House(device, arena, area, places)


def test_every_block_is_there_while_it_is_visited(house: House) -> None:
    streaming = house.stream()
    assert streaming.area is house.area
    assert streaming.working_memory is None
    assert streaming.pages_of_blocks() == [2] * BLOCKS
    assert streaming.ends() == [[2]] * BLOCKS
    keep = streaming.plan()
    assert keep is not None
    for turn in range(40):
        block = turn % BLOCKS if turn < 30 else turn * 5 % BLOCKS
        house.visit(streaming, block, keep[block])
        assert house.arena.budget.used <= PAGES * PAGE
    status = streaming.status()
    assert (status.resident, status.blocks) == (PAGE, 2 * BLOCKS * PAGE)
    assert 0 < status.kept == sum(keep) * PAGE < status.blocks
    assert status.streamed == status.blocks - status.kept
    assert status.allotted == (PAGES - 1) * PAGE
    assert status.visits == 40
    assert status.moved > status.blocks
    streaming.close()
    assert house.is_clean()


def grow(streaming: co.Streaming, nbytes: int, leave: int = 0) -> None:
    """Takes so many bytes and no more. While pages come a look at the memory may find less."""
    had = streaming.status().allotted
    until(lambda: streaming.grow(leave) or streaming.status().allotted > had)
    assert streaming.status().allotted == had + nbytes


def test_working_memory_and_what_is_left_to_others(house: House) -> None:
    streaming = house.stream(working_memory=PAGE, leave="2MiB")
    assert streaming.working_memory is not None
    assert streaming.working_memory.nbytes == PAGE
    assert streaming.status().allotted == (PAGES - 3) * PAGE
    streaming.working_memory.release()
    grow(streaming, PAGE, leave=PAGE)
    grow(streaming, PAGE)
    assert streaming.grow("1GiB") == 0
    house.visit(streaming, 3)
    streaming.close()
    assert house.is_clean()


def test_what_it_has_may_become_less_and_more(house: House) -> None:
    streaming = house.stream()
    for block in range(BLOCKS):
        house.visit(streaming, block, 1)
    assert streaming.plan(1) is None
    assert streaming.plan("4MiB") == [0] * BLOCKS
    assert streaming.plan(12 * 2 * PAGE) == [2] * BLOCKS
    for block in range(BLOCKS):
        # One that is about to come keeps it until its next visit is over.
        if not streaming.keep_at_most(block, 0):
            house.visit(streaming, block)
    assert not streaming.keep_at_most(0, 0), "that is no less"
    assert streaming.shrink(3 * PAGE) == 3 * PAGE
    assert streaming.status().allotted == (PAGES - 4) * PAGE
    assert house.arena.budget.used == (PAGES - 3) * PAGE
    for block in range(BLOCKS):
        house.visit(streaming, block)
    assert streaming.shrink(0) == 0
    streaming.enter(2)
    assert streaming.shrink(2**64 - 1) <= 2 * PAGE, "what is visited stays"
    assert house.is_right("block 2", 3, 2 * PAGE)
    with pytest.raises(co.DeviceMemoryError, match="has no room on"):
        streaming.enter(4)
    streaming.leave(2, 0)
    until(lambda: streaming.grow() > 0)
    house.visit(streaming, 4)
    streaming.close()
    assert house.is_clean()


def test_what_has_ended_says_so_and_its_pages_are_everybodys(house: House) -> None:
    streaming = house.stream()
    house.visit(streaming, 0, 2)
    streaming.enter(1)
    streaming.close()
    streaming.close()
    assert house.is_clean()
    with pytest.raises(co.ReleasedError, match="has ended"):
        streaming.enter(0)
    streaming.leave(1, 0)
    assert streaming.grow() == 0
    assert streaming.shrink(PAGE) == 0
    assert not streaming.keep_at_most(0, 0)
    assert streaming.status().kept == 0
    with house.area.fault(house.area.block(["block 0"])):
        assert house.is_right("block 0", 1, 2 * PAGE)


def test_nobody_else_has_pages_of_what_is_streamed(house: House) -> None:
    with (
        house.area.fault(house.area.block(["stays"])),
        pytest.raises(co.InvalidValueError, match="while others use pages of them"),
    ):
        house.stream()
    streaming = house.stream()
    for use in (
        house.area.fault,
        lambda: house.area.fault(house.area.block(["stays"])),
        lambda: house.area.pinned("block 1"),
        house.stream,
    ):
        with pytest.raises(co.InvalidValueError, match="are streamed on"):
            use()
    house.arena.evict()
    house.area.renew()
    for block in range(BLOCKS):
        house.visit(streaming, block)
    streaming.close()
    house.stream().close()
    assert house.is_clean()


def test_one_that_is_forgotten_leaves_nothing(house: House) -> None:
    streaming = house.stream()
    house.visit(streaming, 0)
    streaming.enter(1)
    del streaming
    gc.collect()
    assert house.is_clean()
    house.stream().close()


def test_a_wait_for_the_room_of_others_ends_with_its_timeout(house: House) -> None:
    with house.arena.budget.reserve(6 * PAGE).hand_over():
        for terms, error in (
            ({"timeout": 0.01}, co.BudgetTimeoutError),
            ({"timeout": 0}, co.BudgetTimeoutError),
        ):
            with pytest.raises(error):
                house.stream(**terms)
        assert house.arena.status().pinned == 0
        waiter = spawn(lambda: house.stream(timeout=20))
        until(lambda: house.arena.budget.status().waiting)
    streaming = waiter.join()
    house.visit(streaming, 0)
    streaming.close()
    assert house.is_clean()


def test_several_threads_visit_and_one_ends_it(house: House) -> None:
    streaming = house.stream()
    visits, barrier = [0] * 3, threading.Barrier(3)

    def visit(number: int) -> None:
        barrier.wait()
        for turn in range(number, 10**6):
            try:
                streaming.enter(turn % BLOCKS, timeout=20)
            except co.ReleasedError:
                return
            except co.DeviceMemoryError:
                continue
            streaming.leave(turn % BLOCKS, 0)
            visits[number] += 1

    threads = [spawn(lambda n=n: visit(n)) for n in range(3)]
    until(lambda: min(visits) > 5)
    streaming.close()
    for thread in threads:
        thread.join()
    assert house.is_clean()


def test_what_is_in_no_block_shares_no_page_with_one() -> None:
    device = device_of(moving=False)
    arena = co.Arena(device, co.Budget(device))
    numbers = {"small": np.ones(100, np.uint8), "large": np.ones(3 * PAGE, np.uint8)}
    area = arena.area(co.WeightStore().share("model", numbers))
    with pytest.raises(co.InvalidValueError, match="in no block has a page in common"):
        area.stream_blocks([["large"]])
    area.stream_blocks([["small", "large"]]).close()


def test_nothing_is_streamed_where_memory_moves() -> None:
    device = device_of(moving=True)
    arena = co.Arena(device, co.Budget(device))
    area = arena.area(co.WeightStore().share("model", {"a": np.ones(PAGE, np.uint8)}))
    with pytest.raises(co.InvalidDeviceError, match="no virtual memory management"):
        area.stream_blocks([["a"]])
    area.fault().release()
