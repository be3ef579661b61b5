"""Cancel tokens: raised once, seen at once."""

from __future__ import annotations

import threading

import coresident as co
import pytest
from conftest import spawn


def test_a_token_is_cancelled_once_and_keeps_the_first_reason() -> None:
    token = co.CancelToken()
    assert not token.cancelled
    assert token.reason is None
    token.raise_if_cancelled()
    assert token.cancel("first")
    assert not token.cancel("second")
    assert token.cancelled
    assert token.reason == "first"
    assert repr(token) == "<CancelToken cancelled: first>"
    with pytest.raises(co.CancelledError, match="cancelled: first") as error:
        token.raise_if_cancelled()
    assert error.value.reason == "first"


def test_everyone_who_waits_is_woken() -> None:
    token = co.CancelToken()
    ready = threading.Barrier(5)

    def wait() -> bool:
        ready.wait(20)
        return token.wait()

    threads = [spawn(wait) for _ in range(4)]
    ready.wait(20)
    token.cancel()
    assert all(thread.join() for thread in threads)


def test_waiting_can_time_out() -> None:
    token = co.CancelToken()
    assert token.wait(0) is False
    assert token.wait(0.01) is False
    token.cancel()
    assert token.wait(0) is True
    assert token.wait() is True


def test_there_is_no_current_token_outside_a_task() -> None:
    assert co.current_cancel_token() is None
