"""Ctrl-C, fork and the end of the interpreter: a clear error or a clean end, never a hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import run_script

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

# What each script blocks in, with somebody else holding what it wants.
BLOCKED = {
    "lease": "pool.lease('virtual:0')",
    "any lease": "pool.lease()",
    "read": "lock.read()",
    "write": "lock.write()",
    "ticket": "workers.post('virtual:0', gate.wait).result()",
    "future": "workers.submit('virtual:0', gate.wait).result()",
    "run": "workers.run('virtual:0', gate.wait)",
    "scatter": "workers.scatter({'virtual:0': gate.wait})",
    "close": "(workers.post('virtual:0', gate.wait), workers.close())",
    "token": "co.CancelToken().wait()",
}

SETTING = """
import signal, sys, threading, time
import coresident as co
pool, lock = co.DevicePool(co.virtual_devices(1)), co.LoadLock()
workers = co.WorkerPool(co.virtual_devices(1))
gate, held = threading.Event(), threading.Event()
def hold():
    with pool.lease("virtual:0"), lock.write():
        held.set()
        gate.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
"""


@pytest.mark.parametrize("blocked", BLOCKED.values(), ids=BLOCKED)
def test_ctrl_c_ends_a_blocked_wait_and_leaves_no_trace(blocked: str) -> None:
    script = SETTING + textwrap.dedent(f"""
        sent = []
        def interrupt():
            time.sleep(0.2)
            sent.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            {blocked}
        except KeyboardInterrupt:
            print("interrupted after", time.monotonic() - sent[0])
        gate.set()
        holder.join()
        with pool.lease("virtual:0", timeout=5), lock.write(timeout=5):
            print("free")
        workers.close(timeout=5)
        """)
    done = run_script(script)
    assert done.stderr == ""
    interrupted, free = done.stdout.splitlines()
    assert interrupted.startswith("interrupted after")
    assert free == "free"


def test_a_signal_handler_runs_during_a_wait_and_the_wait_goes_on() -> None:
    done = run_script(
        SETTING
        + textwrap.dedent("""
        def on_alarm(*_):
            print("handled")
            gate.set()
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pool.lease("virtual:0", timeout=20):
            print("leased")
        """)
    )
    assert (done.stdout, done.stderr, done.returncode) == ("handled\nleased\n", "", 0)


def test_a_real_ctrl_c_ends_a_script_at_once() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SETTING + "try:\n    print('ready', flush=True)\n    pool.lease('virtual:0')\n"
            "finally:\n    gate.set()\n",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


FORKED_CALLS = {
    "lease": "pool.lease('virtual:1')",
    "lease by a waiter": "pool.lease('virtual:0', timeout=1)",
    "borrow": "pool.borrow()",
    "reconfigure": "pool.reconfigure(['virtual:0'])",
    "pool status": "pool.status()",
    "read": "lock.read()",
    "write": "lock.write(timeout=1)",
    "lock status": "lock.status()",
    "post": "workers.post('virtual:0', int)",
    "submit": "workers.submit('virtual:0', int)",
    "run": "workers.run('virtual:0', int)",
    "scatter": "workers.scatter({'virtual:0': int})",
    "worker status": "workers.status()",
    "ticket": "ticket.result()",
    "cancel": "ticket.cancel()",
    "future": "future.result()",
    "done": "ticket.done()",
    "cancelled": "ticket.cancelled()",
    "running": "ticket.running()",
    "wait for a token": "token.wait(timeout=1)",
    "wait with a token": "co.DevicePool(co.virtual_devices(1)).lease(cancel=token)",
    "restart": "workers.restart('virtual:0')",
    "enter a lease": "lease.__enter__()",
    "hand over a lease": "lease.hand_over()",
    "enter a guard": "guard.__enter__()",
}


@needs_fork
def test_a_forked_child_gets_a_clear_error_instead_of_a_hang() -> None:
    calls = "\n".join(
        f"    attempt({name!r}, lambda: {call})" for name, call in FORKED_CALLS.items()
    )
    done = run_script(
        SETTING
        + textwrap.dedent("""
        import gc, os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        workers.run("virtual:0", int)
        ticket = workers.post("virtual:0", gate.wait)
        kept = co.DevicePool(co.virtual_devices(1))
        lease = kept.lease()
        future = workers.submit("virtual:0", int)
        guard = co.LoadLock().read()
        token = co.CancelToken()
        sys.stdout.flush()
        def attempt(name, call):
            try:
                call()
                print(name, "did not fail")
            except co.ForkedError as error:
                assert "made in process" in str(error), error
        if (child := os.fork()) == 0:
        """)
        + calls
        + textwrap.dedent("""
            # What is held stays with the parent; letting go of it here does nothing, and says nothing.
            assert co.current_device() is None
            lease.release()
            guard.release()
            del lease, guard
            gc.collect()
            workers.close()
            pool.close()
            assert repr(ticket) == "<Ticket of another process>"
            assert token.cancel("the child's") and token.cancelled and token.reason is None
            # The child makes its own.
            own, own_lock = co.DevicePool(co.virtual_devices(1)), co.LoadLock()
            with own.lease() as lease, own_lock.write():
                try:
                    own.lease()
                except co.DeadlockError:
                    print("the child's own work")
            with co.WorkerPool(co.virtual_devices(1)) as fresh:
                print(fresh.run("virtual:0", pow, 2, 3))
            sys.stdout.flush()
            os._exit(0)
        """).replace("\n", "\n    ")
        + textwrap.dedent("""
        _, status = os.waitpid(child, 0)
        print("child ended with", os.waitstatus_to_exitcode(status))
        assert not lease.released
        assert not token.cancelled
        lease.release()
        guard.release()
        gate.set()
        holder.join()
        with pool.lease("virtual:0", timeout=5):
            print("the parent goes on")
        assert ticket.result(5)
        """)
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "the child's own work",
        "8",
        "child ended with 0",
        "the parent goes on",
    ]


ENDINGS = {
    "a thread waits for what the main thread holds": """
        lease = pool.lease()
        def wait():
            with pool.lease():
                print("served")
        threading.Thread(target=wait).start()
        """,
    "a daemon thread waits for ever": """
        lease = pool.lease()
        def wait():
            other.lease()
        other = co.DevicePool(co.virtual_devices(1))
        kept = other.lease().hand_over()
        threading.Thread(target=wait, daemon=True).start()
        print("served")
        """,
    "daemon threads wait with timeouts that end while the interpreter does": """
        import atexit
        other = co.DevicePool(co.virtual_devices(1))
        kept = other.lease().hand_over()
        def wait(n):
            while True:
                try:
                    other.lease(timeout=0.001 * n)
                except co.WaitTimeoutError:
                    pass
        for n in range(1, 9):
            threading.Thread(target=wait, args=(n,), daemon=True).start()
        atexit.register(time.sleep, 0.1)
        print("served")
        """,
    "tasks are queued": """
        for n in range(50):
            workers.post("virtual:0", time.sleep, 0.001)
        workers.post("virtual:0", print, "served")
        """,
    "a worker waits for what the main thread holds": """
        lease = pool.lease()
        def work():
            with pool.lease():
                print("served")
        workers.post("virtual:0", work)
        """,
    "an event loop waits in another thread": """
        import asyncio
        other = co.DevicePool(co.virtual_devices(1))
        kept = other.lease().hand_over()
        async def main():
            await other.lease_async()
        threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
        while not other.status()[0].waiting:
            pass
        print("served")
        """,
    "daemon threads use everything there is": """
        lock, two = co.LoadLock(), co.virtual_devices(2)
        shared, pair = co.DevicePool(two), co.WorkerPool(two)
        def use():
            while True:
                try:
                    with shared.lease(), shared.borrow(), lock.read():
                        pair.scatter({"virtual:0": int, "virtual:1": int})
                        pair.submit("virtual:0", int).result()
                    shared.lease("virtual:7")
                except (co.DeviceNotFoundError, RuntimeError):  # no thread starts in an ending process
                    pass
        for n in range(6):
            threading.Thread(target=use, daemon=True).start()
        pair.run("virtual:0", int)
        print("served")
        """,
    "daemon threads make pools and event loops": """
        import asyncio
        def make():
            while True:
                own, its_workers = co.DevicePool(co.virtual_devices(1)), co.WorkerPool(["virtual:0"])
                async def main():
                    async with own.lease_async():
                        return await its_workers.post("virtual:0", int)
                try:
                    asyncio.run(main())
                    made.set()
                except (co.ClosedError, RuntimeError):  # no thread starts in an ending process
                    return
        made = threading.Event()
        for n in range(4):
            threading.Thread(target=make, daemon=True).start()
        made.wait()
        print("served")
        """,
    "daemon threads await, borrow and drop what runs code when it goes": """
        import asyncio
        lock, pair = co.LoadLock(), co.DevicePool(co.virtual_devices(2))
        class Slow:
            def __del__(self):
                time.sleep(0.0001)
        async def main():
            done = workers.post("virtual:0", int)
            while True:
                pair.borrow().release()
                await done
                await asyncio.sleep(0)
        def drop():
            while True:
                workers.post("virtual:0", Slow).join()
        def ignoring(function):
            def run():
                try:
                    function()
                except (co.ClosedError, RuntimeError):
                    pass
            return run
        workers.run("virtual:0", int)
        for target in (lambda: asyncio.run(main()), drop) * 3:
            threading.Thread(target=ignoring(target), daemon=True).start()
        print("served")
        """,
    "a daemon thread's own task waits": """
        other = co.DevicePool(co.virtual_devices(1))
        kept = other.lease().hand_over()
        def wait():
            with pool.lease():
                workers.run("virtual:0", other.lease)
        threading.Thread(target=wait, daemon=True).start()
        while not other.status()[0].waiting:
            pass
        print("served")
        """,
    "a thread makes a pool when the main one is through": """
        def late():
            threading.main_thread().join()
            co.WorkerPool(co.virtual_devices(1)).post("virtual:0", print, "served")
        if sys.version_info[:2] == (3, 12):  # it starts no thread then, and says so
            print("served")
        else:
            threading.Thread(target=late).start()
        """,
    "a task makes a pool of its own": """
        entered = threading.Event()
        def work():
            entered.set()
            time.sleep(0.05)  # the main thread is past its last line by now
            try:
                co.WorkerPool(co.virtual_devices(1)).post("virtual:0", print, "served")
            except RuntimeError:  # CPython 3.12 starts no thread then, and says so
                assert sys.version_info[:2] == (3, 12)
                print("served")
        workers.post("virtual:0", work)
        entered.wait()
        """,
    "everything is idle": """
        workers.run("virtual:0", int)
        print("served")
        """,
    "nothing was closed and an error ends the script": """
        lease = pool.lease()
        workers.post("virtual:0", print, "served")
        sys.excepthook = lambda *_: None
        raise SystemExit(0)
        """,
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_the_interpreter_ends_cleanly_while(ending: str) -> None:
    script = """
        import sys, threading, time
        import coresident as co
        pool, workers = co.DevicePool(co.virtual_devices(1)), co.WorkerPool(co.virtual_devices(1))
        gate = threading.Event()
        """
    for _ in range(3):
        done = run_script(textwrap.dedent(script) + textwrap.dedent(ending), timeout=20)
        assert (done.stdout, done.stderr, done.returncode) == ("served\n", "", 0)


def test_exit_callbacks_may_join_threads_that_wait_whenever_they_were_registered() -> None:
    script = """
        import atexit, threading
        def end():
            pool.close()
            waiting.join()
            print("joined")
        atexit.register(end)
        import coresident as co
        pool = co.DevicePool(co.virtual_devices(1))
        kept = pool.lease().hand_over()
        def wait():
            try:
                pool.lease()
            except co.ClosedError:
                print("told")
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while not pool.status()[0].waiting:
            pass
        """
    done = run_script(script, timeout=20)
    assert (done.stdout, done.stderr, done.returncode) == ("told\njoined\n", "", 0)


def test_subinterpreters_are_refused() -> None:
    interpreters = pytest.importorskip("_xxsubinterpreters", reason="another name since 3.13")
    script = f"""
        import {interpreters.__name__} as interpreters
        import coresident as co
        other = interpreters.create()
        try:
            interpreters.run_string(other, "import coresident")
        except interpreters.RunFailedError as error:
            print(error)
        interpreters.destroy(other)
        print(len(co.virtual_devices(2)))
        """
    done = run_script(script)
    # From 3.12 on CPython itself refuses it.
    assert re.search("ImportError.* (not in subinterpreter 1|loading in subinterp)", done.stdout)
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == ("2", "", 0)


@needs_fork
def test_children_of_a_busy_process_work_as_any_other() -> None:
    script = """
        import os, threading, warnings
        import coresident as co
        warnings.simplefilter("ignore", DeprecationWarning)
        pool, workers = co.DevicePool(co.virtual_devices(4)), co.WorkerPool(co.virtual_devices(16))
        workers.scatter(dict.fromkeys(map(str, workers.devices), int))
        stop = threading.Event()
        def hammer():
            while not stop.is_set():
                with pool.lease():
                    workers.post("virtual:3", int).result()
        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(60):
            if (child := os.fork()) == 0:
                own, its_workers = co.DevicePool(co.virtual_devices(2)), co.WorkerPool(["virtual:0"])
                with own.lease() as lease, own.borrow() as spare:
                    assert its_workers.submit("virtual:0", pow, 2, 3).result(20) == 8
                    refused = 0
                    for call in (pool.lease, pool.status, lambda: workers.run("virtual:0", int)):
                        try:
                            call()
                        except co.ForkedError:
                            refused += 1
                os._exit(refused)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        stop.set()
        for thread in threads:
            thread.join()
        print("served")
        """
    done = run_script(script, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("served\n", "", 0)


@needs_fork
def test_forked_children_end_as_cleanly_as_their_parent() -> None:
    script = """
        import multiprocessing, os, sys, threading, time, warnings
        import coresident as co
        warnings.simplefilter("ignore", DeprecationWarning)
        def busy():
            workers = co.WorkerPool(co.virtual_devices(1))
            def use():
                while True:
                    try:
                        workers.submit("virtual:0", int).result()
                    except (co.ClosedError, RuntimeError):
                        return
            for _ in range(4):
                threading.Thread(target=use, daemon=True).start()
            workers.run("virtual:0", int)
        codes = []
        for _ in range(5):
            if (child := os.fork()) == 0:
                busy()
                sys.exit(7)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        process = multiprocessing.get_context("fork").Process(target=busy)
        process.start()
        process.join(20)
        codes.append(process.exitcode)
        print(codes)
        """
    done = run_script(script, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[7, 7, 7, 7, 7, 0]\n", "", 0)


@needs_fork
def test_a_task_that_forks_runs_no_other_task_in_the_child() -> None:
    script = """
        import os, warnings
        import coresident as co
        warnings.simplefilter("ignore", DeprecationWarning)
        workers = co.WorkerPool(co.virtual_devices(1))
        forked = workers.post("virtual:0", os.fork)
        others = [workers.post("virtual:0", os.write, 1, b"once ") for _ in range(3)]
        child = forked.result()
        for other in others:
            other.result()
        os.waitpid(child, 0)
        os.write(1, b"served")
        """
    done = run_script(script)
    assert (done.stdout, done.stderr, done.returncode) == ("once once once served", "", 0)


@needs_fork
def test_a_signal_handler_that_forks_leaves_no_child_in_the_wait() -> None:
    done = run_script(
        SETTING
        + textwrap.dedent("""
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        children = []
        def on_alarm(*_):
            children.append(os.fork())
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        mine = co.DevicePool(co.virtual_devices(1))
        try:
            with mine.lease():
                workers.run("virtual:0", lambda: pool.lease("virtual:0", timeout=1))
        except co.ForkedError:
            gate.set()
            sys.exit(7)
        except co.WaitTimeoutError:
            print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
        gate.set()
        """)
    )
    assert (done.stdout, done.stderr, done.returncode) == ("7\n", "", 0)


def test_ctrl_c_while_the_interpreter_waits_for_a_task_ends_it() -> None:
    script = """
        import threading, time
        import coresident as co
        workers = co.WorkerPool(co.virtual_devices(1))
        started = threading.Event()
        def endless():
            started.set()
            while True:
                time.sleep(0.01)
        workers.post("virtual:0", endless)
        started.wait()
        print("ready", flush=True)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(100):
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    assert process.returncode is not None
    assert process.returncode in (0, 1, 120, -signal.SIGINT), stderr
    assert "Fatal" not in stderr
