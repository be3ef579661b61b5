"""Bytes reserved and given back, next to a ledger from one condition."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import coresident as co
import pytest
from peers import ConditionLedger

GIB = 2**30


@contextmanager
def held(budget, reservations):
    """The budget, of which so many have something."""
    with ExitStack() as stack:
        for _ in range(reservations):
            stack.enter_context(budget.reserve(1))
        yield budget


def pairs(timed, budget, reservations):
    def loop(calls):
        for _ in calls:
            with budget.reserve(4096):
                pass

    with held(budget, reservations):
        timed(loop)


@pytest.mark.benchmark(group="reserve and release")
class TestReserve:
    @pytest.mark.parametrize("reservations", [0, 2000])
    def test_ours_budget(self, timed, reservations):
        pairs(timed, co.Budget("ram", GIB, probe=False), reservations)

    @pytest.mark.parametrize("reservations", [0, 2000])
    def test_ours_budget_that_looks_at_the_memory(self, timed, reservations):
        pairs(timed, co.Budget("ram", GIB), reservations)

    @pytest.mark.parametrize("reservations", [0, 2000])
    def test_peer_condition_ledger(self, timed, reservations):
        ledger = ConditionLedger(GIB)
        for number in range(reservations):
            ledger.take(number, 1)

        def loop(calls):
            for _ in calls:
                with ledger.reserve("one", 4096):
                    pass

        timed(loop)


@pytest.mark.benchmark(group="what is used")
class TestQuery:
    @pytest.mark.parametrize("reservations", [1, 200, 2000])
    def test_ours_used(self, timed, reservations):
        budget = co.Budget("ram", GIB, probe=False)

        def loop(calls):
            for _ in calls:
                budget.used  # noqa: B018 - that is what is timed

        with held(budget, reservations):
            timed(loop)

    @pytest.mark.parametrize("reservations", [1, 200, 2000])
    def test_peer_sum_of_all(self, timed, reservations):
        ledger = ConditionLedger(GIB)
        for number in range(reservations):
            ledger.take(number, 1)

        def loop(calls):
            for _ in calls:
                ledger.used()

        timed(loop)
