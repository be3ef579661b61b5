"""Budgets: what is granted, to whom next, who is asked to give, and what the errors say."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from conftest import run_script, spawn, until

GIB = 2**30


def of(limit: int | str, **more: Any) -> co.Budget:
    """A ledger alone: nobody looks at the memory of this machine."""
    return co.Budget("ram", limit, **{"probe": False, **more})


class Memory:
    """A memory of which the test says what is free; calling it is the probe."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self) -> int:
        return self.free


# Granting


def test_what_fits_to_the_byte_is_granted_and_one_byte_more_is_not() -> None:
    budget = of(10)
    first = budget.reserve(9)
    assert budget.try_reserve(2) is None
    last = budget.reserve(1)
    assert (budget.used, budget.free, budget.peak) == (10, 0, 10)
    first.release()
    last.release()
    assert (budget.used, budget.free, budget.peak) == (0, 10, 10)


def test_a_reservation_is_released_once_by_whoever_does_it() -> None:
    budget = of("1GiB")
    with budget.reserve("512MiB", purpose="unet") as reservation:
        assert (reservation.nbytes, reservation.released) == (GIB // 2, False)
        assert reservation.budget is budget
        spawn(reservation.release).join()
        assert (reservation.nbytes, reservation.released) == (0, True)
        again = budget.reserve(GIB)
        reservation.release()
        assert budget.used == GIB
    assert budget.used == GIB
    again.release()
    with pytest.raises(co.ReleasedError, match="released already"), again:
        pass


def test_nobody_overtakes_who_waits_unless_he_only_tries() -> None:
    budget = of(10)
    held = budget.reserve(8)
    order: list[str] = []

    def take(size: int, name: str) -> None:
        with budget.reserve(size, timeout=20):
            order.append(name)

    # Both never fit at once: the second can only come when the first has gone.
    large = spawn(lambda: take(9, "large"))
    until(lambda: len(budget.status().waiting) == 1)
    small = spawn(lambda: take(2, "small"))
    until(lambda: len(budget.status().waiting) == 2)
    tried = budget.try_reserve(2)
    assert tried is not None
    assert order == []
    tried.release()
    held.release()
    large.join()
    small.join()
    assert order == ["large", "small"]
    assert budget.used == 0


def test_growing_shrinking_and_splitting_keep_the_sum() -> None:
    budget = of(100)
    whole = budget.reserve(10)
    whole.grow(30, timeout=0)
    whole.fill(35)
    part = whole.split(15)
    assert (whole.nbytes, whole.filled, part.nbytes, part.filled) == (25, 25, 15, 10)
    part.shrink(6)
    assert budget.used == 34
    with pytest.raises(co.InvalidValueError, match="has 9 bytes: shrinking by takes at most that"):
        part.shrink(10)
    with pytest.raises(co.BudgetTimeoutError):
        whole.grow(70, timeout=0)
    assert (whole.nbytes, budget.used) == (25, 34)
    whole.release()
    part.release()
    for call in (whole.shrink, whole.split, whole.fill, whole.grow):
        with pytest.raises(co.ReleasedError):
            call(1)
    assert budget.used == 0


def test_a_reservation_moves_to_another_budget_or_stays() -> None:
    ram, vram = of(10), of(4)
    reservation = ram.reserve(6, purpose="unet")
    with pytest.raises(co.BudgetExceededError, match="can never have 6 B"):
        reservation.move_to(vram)
    assert (reservation.budget, ram.used, vram.used) == (ram, 6, 0)
    reservation.shrink(2)
    reservation.move_to(vram, timeout=0)
    assert (reservation.budget, ram.used, vram.used) == (vram, 0, 4)
    assert [user.holder for user in vram.status().holders] == ['"unet"']
    with reservation:
        pass
    assert vram.used == 0
    with pytest.raises(co.ReleasedError):
        reservation.move_to(ram)


# Limits


def test_host_memory_has_a_limit_of_its_own_choice() -> None:
    budget = co.Budget("ram")
    assert budget.total is not None
    assert budget.limit == min(max(budget.total // 2 - 2 * GIB, 4 * GIB), budget.total)
    assert co.Budget("RAM", "50%").limit == pytest.approx(budget.total / 2, abs=1)
    assert budget.free <= budget.limit


def test_a_device_has_all_of_its_memory_unless_told() -> None:
    (device,) = co.virtual_devices(1, memory="8GiB")
    assert co.Budget(device).limit == 8 * GIB
    budget = co.Budget(device, "50%", headroom="1GiB")
    assert (budget.name, budget.limit, budget.headroom) == ("virtual:0", 4 * GIB, GIB)
    with pytest.raises(co.BudgetExceededError):
        co.Budget(device, headroom="1GiB").reserve("7.5GiB")


def test_a_container_limits_what_a_share_is_of() -> None:
    limits = [path.read_text().strip() for path in Path("/sys/fs/cgroup").glob("memory.max")]
    total = co.Budget("ram").total
    assert total is not None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert total <= physical
    assert all(limit == "max" or total <= int(limit) for limit in limits)


def test_a_limit_changes_while_bytes_are_held() -> None:
    budget = of(10)
    held = budget.reserve(8)
    budget.limit = 4
    assert (held.nbytes, budget.free) == (8, 0)
    waiting = spawn(lambda: budget.reserve(4, timeout=20).release())
    until(lambda: budget.status().waiting)
    budget.limit = "12B"
    waiting.join()
    budget.headroom = "1KiB"
    assert budget.headroom == 1024
    held.release()


def test_who_can_never_be_served_below_a_new_limit_is_turned_away() -> None:
    budget = of(10)
    held = budget.reserve(10)
    waiting = spawn(lambda: budget.reserve(6))
    until(lambda: budget.status().waiting)
    budget.limit = 5
    with pytest.raises(co.BudgetExceededError, match="ram can never have 6 B: its limit is 5 B"):
        waiting.join()
    held.release()


# Evictors


def test_evictors_give_in_order_of_priority_no_more_than_is_missing() -> None:
    budget = of(100)
    caches = {name: [budget.reserve(size) for size in (20, 20)] for name in ("late", "early")}
    asked: list[tuple[str, int]] = []

    def evictor(name: str) -> Any:
        def evict(missing: int) -> None:
            asked.append((name, missing))
            while missing > 0 and caches[name]:
                reservation = caches[name].pop()
                missing -= reservation.nbytes
                reservation.release()

        return evict

    late, early = evictor("late"), evictor("early")
    budget.add_evictor(late, priority=1)
    budget.add_evictor(early, priority=-1)
    with budget.reserve(50):
        assert asked == [("early", 30)]
    with budget.reserve(80):
        assert asked[1:] == [("early", 20), ("late", 20)]
    assert budget.remove_evictor(late)
    assert not budget.remove_evictor(late)
    assert len(caches["late"]) == 1
    caches["late"][0].release()


def test_an_evictor_may_do_anything_but_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_value))
    budget = of(10)
    held = [budget.reserve(10)]

    def fails(_missing: int) -> None:
        raise ZeroDivisionError

    def nested(_missing: int) -> None:
        # Not called again for this one.
        with pytest.raises(co.BudgetTimeoutError):
            budget.reserve(1, timeout=0)

    def gives(_missing: int) -> None:
        gc.collect()
        budget.status()
        held.pop().release()

    for evictor in (fails, nested, gives):
        budget.add_evictor(evictor)
    budget.reserve(5, timeout=20).release()
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_ctrl_c_in_an_evictor_ends_the_wait() -> None:
    budget = of(10)
    held = budget.reserve(10).hand_over()

    def interrupted(_missing: int) -> None:
        raise KeyboardInterrupt

    budget.add_evictor(interrupted)
    with pytest.raises(KeyboardInterrupt):
        budget.reserve(5)
    assert budget.remove_evictor(interrupted)
    assert budget.status().waiting == []
    with pytest.raises(co.BudgetTimeoutError):
        budget.reserve(5, timeout=0)
    held.release()


def test_what_is_released_while_it_moves_stays_released() -> None:
    ram, vram = of(100), of(10)
    for _ in range(20):
        held, moving = vram.reserve(10).hand_over(), ram.reserve(5)

        def move(reservation: co.Reservation = moving) -> None:
            with contextlib.suppress(co.ReleasedError):
                reservation.move_to(vram, timeout=20)

        mover = spawn(move)
        until(lambda: vram.status().waiting)
        releasers = [spawn(held.release), spawn(moving.release)]
        for thread in [mover, *releasers]:
            thread.join()
        assert moving.released
        assert (ram.used, vram.used) == (0, 0)


def test_who_waits_asks_again_what_came_to_be_evictable() -> None:
    budget = of(10)
    held = budget.reserve(10)
    kept: list[co.Reservation] = []
    budget.add_evictor(lambda _missing: kept.pop().release() if kept else None)
    waiting = spawn(lambda: budget.reserve(5, timeout=20).release())
    until(lambda: budget.status().waiting)
    kept.append(held)
    waiting.join()


# What others have


def test_what_others_take_is_not_granted_and_what_is_filled_is_not_charged_twice() -> None:
    (device,) = co.virtual_devices(1, memory=100)
    memory = Memory(100)
    budget = co.Budget(device, headroom=10, probe=memory)
    ours = budget.reserve(40)
    ours.fill(40)
    memory.free = 40
    budget.look()
    assert (budget.free, budget.status().outside) == (30, 20)
    assert budget.try_reserve(31) is None
    budget.reserve(30, timeout=0).release()
    ours.release()
    assert budget.free == 70


def test_who_waits_for_others_outside_goes_when_they_have_gone() -> None:
    (device,) = co.virtual_devices(1, memory=100)
    memory = Memory(30)
    budget = co.Budget(device, probe=memory)
    waiting = spawn(lambda: budget.reserve(50, timeout=20))
    until(lambda: budget.status().waiting)
    memory.free = 50
    with waiting.join() as reservation:
        assert reservation.nbytes == 50


def test_a_probe_that_fails_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_value))

    def fails() -> int:
        raise OSError("the driver is gone")

    budget = of(10, probe=fails)
    budget.look()
    budget.reserve(10).release()
    assert str(seen[0]) == "the driver is gone"
    assert of(10, probe=lambda: None).free == 10


# Errors


def test_a_timeout_says_who_has_the_rest() -> None:
    budget = of("8GiB")
    weights = spawn(lambda: budget.reserve("6GiB", purpose="flux")).join()
    rest = budget.reserve("1GiB")
    with pytest.raises(co.BudgetTimeoutError) as caught:
        budget.reserve("3GiB", timeout=0.01)
    error = caught.value
    assert str(error) == (
        "timed out after 0.01 s waiting for 3 GiB of ram, where 1 GiB of 8 GiB are free; "
        "\"flux\" has 6 GiB, thread 'MainThread' has 1 GiB"
    )
    assert (error.budget, error.asked, error.free, error.limit, error.timeout) == (
        "ram",
        3 * GIB,
        GIB,
        8 * GIB,
        0.01,
    )
    assert isinstance(error, MemoryError)
    assert isinstance(error, TimeoutError)
    weights.release()
    rest.release()


def test_waiting_for_ones_own_bytes_is_a_deadlock_unless_they_are_handed_over() -> None:
    budget = of(10)
    held = budget.reserve(6)
    with pytest.raises(co.DeadlockError, match="which it holds itself"):
        budget.reserve(5, timeout=20)
    held.hand_over()
    with pytest.raises(co.BudgetTimeoutError):
        budget.reserve(5, timeout=0.01)
    held.release()


def test_a_cycle_through_a_lease_and_a_budget_is_found() -> None:
    pool, budget = co.DevicePool(co.virtual_devices(1)), of(10)
    bytes_held = budget.reserve(10)
    leased = threading.Event()

    def other() -> None:
        with pool.lease():
            leased.set()
            budget.reserve(1, timeout=20).release()

    thread = spawn(other)
    leased.wait(20)
    until(lambda: budget.status().waiting)
    with pytest.raises(co.DeadlockError, match=re.escape("1 B of ram")):
        pool.lease(timeout=20)
    bytes_held.release()
    thread.join()


def test_a_cancel_ends_the_wait_and_leaves_the_line() -> None:
    budget, token = of(1), co.CancelToken()
    held = budget.reserve(1)
    waiting = spawn(lambda: budget.reserve(1, cancel=token))
    until(lambda: budget.status().waiting)
    token.cancel("enough")
    with pytest.raises(co.CancelledError, match="waiting for 1 B of ram: enough"):
        waiting.join()
    assert budget.status().waiting == []
    held.release()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("nowhere",), co.InvalidDeviceError, "unknown device type"),
        (("cuda:9",), co.DeviceNotFoundError, "there is no cuda:9"),
        ((3,), co.InvalidTypeError, "a device is given by its name"),
        (("ram", "much"), co.InvalidValueError, "write bytes such as '12GiB', or a share"),
        (("ram", "0%"), co.InvalidValueError, "more than 0% and at most 100%"),
        (("ram", "101%"), co.InvalidValueError, "more than 0% and at most 100%"),
        (("ram", 0.5), co.InvalidTypeError, "a limit is a number of bytes or a text"),
        (("ram", -1), co.InvalidValueError, "between 0 and 2\\*\\*64 - 1 bytes"),
        (("virtual:0", "50%"), co.InvalidValueError, "how much memory virtual:0 has is not known"),
        (("virtual:0",), co.InvalidValueError, "how much memory virtual:0 has is not known"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        co.Budget(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.reserve(-1), co.InvalidValueError, "between 0 and"),
        (lambda b: b.reserve(2**64), co.InvalidValueError, "between 0 and"),
        (lambda b: b.reserve(1.5), co.InvalidTypeError, "number of bytes"),
        (lambda b: b.reserve("a lot"), co.InvalidValueError, "is not a number of bytes"),
        (lambda b: b.reserve(1, purpose=3), co.InvalidTypeError, "purpose is a text, not int"),
        (lambda b: b.reserve(1, timeout=-1), co.InvalidValueError, "timeout must be 0 or more"),
        (lambda b: b.reserve(1, cancel=3), co.InvalidTypeError, "cancel takes a CancelToken"),
        (lambda b: b.reserve(11), co.BudgetExceededError, "ram can never have 11 B"),
        (lambda b: b.try_reserve(2**64 - 1), co.BudgetExceededError, "can never have"),
        (lambda b: b.add_evictor(3), co.InvalidTypeError, "an evictor is a function"),
        (lambda b: setattr(b, "limit", None), co.InvalidTypeError, "a limit is a number"),
        (lambda b: setattr(b, "headroom", "x"), co.InvalidValueError, "not a number of bytes"),
        (lambda b: of(1, probe=3), co.InvalidTypeError, "probe is a function"),
        (lambda b: of(1, probe=True), co.InvalidTypeError, "probe is a function"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    call: Any, error: type[Exception], message: str
) -> None:
    budget = of(10)
    with pytest.raises(error, match=message):
        call(budget)
    assert (budget.used, budget.limit, budget.headroom) == (0, 10, 0)


# Threads, collection, processes


@pytest.mark.timeout(120)
def test_a_thousand_threads_leave_the_ledger_at_zero() -> None:
    ram, vram = of(1000), of(400)
    kept: list[co.Reservation] = []

    def evict(_missing: int) -> None:
        if random.random() < 0.2:
            raise RuntimeError("an injected failure")
        try:
            kept.pop().release()
        except IndexError:
            pass

    ram.add_evictor(evict)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        held: list[co.Reservation] = []
        for _ in range(8):
            try:
                choice = dice.randrange(6)
                if choice < 2:
                    held.append(ram.reserve(dice.randrange(300), timeout=dice.random() / 100))
                elif choice == 2 and held:
                    held.append(held[-1].split(held[-1].nbytes // 2))
                elif choice == 3 and held:
                    held[-1].grow(dice.randrange(50), timeout=dice.random() / 100)
                elif choice == 4 and held:
                    held[-1].move_to(vram, timeout=dice.random() / 100)
                elif choice == 5 and (spare := ram.try_reserve(dice.randrange(60))):
                    kept.append(spare.hand_over())
            except (co.BudgetExceededError, co.DeadlockError):
                pass
            assert ram.used <= 1000
            assert vram.used <= 400
        for reservation in held:
            reservation.release()

    hook, sys.unraisablehook = sys.unraisablehook, lambda _unraisable: None
    try:
        for wave in range(0, 1000, 50):
            for thread in [spawn(lambda n=wave + n: work(n)) for n in range(50)]:  # type: ignore[misc]
                thread.join()
    finally:
        sys.unraisablehook = hook
    for reservation in kept:
        reservation.release()
    for budget in (ram, vram):
        status = budget.status()
        assert (status.used, status.holders, status.waiting) == (0, [], [])


def test_a_forgotten_reservation_gives_its_bytes_back_and_says_so() -> None:
    budget = of("1GiB")
    with pytest.warns(ResourceWarning, match=r"the reservation of 256 MiB of ram was never"):
        budget.reserve("256MiB")
    assert budget.used == 0


def test_a_budget_and_its_evictor_that_hold_each_other_are_collected() -> None:
    class Cache:
        def __init__(self) -> None:
            self.budget = of(10, probe=self.free)
            self.budget.add_evictor(self.evict)

        def free(self) -> int:
            return 10

        def evict(self, missing: int) -> None: ...

    gone = weakref.ref(Cache())
    gc.collect()
    assert gone() is None


def test_a_reservation_stays_when_its_thread_ends() -> None:
    budget = of(10)
    reservation = spawn(lambda: budget.reserve(6)).join()
    assert budget.used == 6
    reservation.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_gets_an_error_instead_of_a_hang() -> None:
    ended = run_script(
        """
        import os, sys
        import coresident as co

        budget = co.Budget("ram", 10, probe=False)
        held = budget.reserve(5)
        child = os.fork()
        if not child:
            for call in (lambda: budget.reserve(1), budget.status, lambda: held.grow(1),
                         lambda: held.__enter__(), budget.look, lambda: budget.used,
                         lambda: budget.free, lambda: budget.limit, lambda: budget.peak):
                try:
                    call()
                except co.ForkedError:
                    continue
                os._exit(1)
            held.release()
            os._exit(0 if (held.nbytes, held.released) == (0, True) else 2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert budget.used == 5
        held.release()
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_interpreter_ends_while_threads_wait_for_bytes() -> None:
    ended = run_script(
        """
        import threading, time
        import coresident as co

        budget = co.Budget("ram", 10)
        budget.add_evictor(lambda missing: time.sleep(0))
        held = budget.reserve(10)
        held.hand_over()
        for _ in range(4):
            threading.Thread(target=budget.reserve, args=(5,), daemon=True).start()
        while len(budget.status().waiting) < 4:
            pass
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_status_tells_who_has_bytes_and_who_waits() -> None:
    budget = of("3GiB", headroom=0)
    small, large = budget.reserve("1GiB"), budget.reserve("2GiB", purpose="flux")
    waiting = spawn(lambda: budget.reserve(1, timeout=20).release(), "late")
    until(lambda: budget.status().waiting)
    status = budget.status()
    assert [(user.holder, user.nbytes) for user in status.holders] == [
        ('"flux"', 2 * GIB),
        ("thread 'MainThread'", GIB),
    ]
    assert [(user.holder, user.nbytes) for user in status.waiting] == [("thread 'late'", 1)]
    assert status.holders[0].seconds >= 0
    assert repr(status).startswith('<Budget ram: 0 B of 3 GiB free; held by "flux" with 2 GiB')
    assert repr(budget) == "<Budget ram: 3 GiB of 3 GiB>"
    assert repr(small) == "<Reservation of 1 GiB of ram>"
    small.release()
    large.release()
    waiting.join()
    assert repr(small) == "<Reservation of ram released>"
