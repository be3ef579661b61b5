"""What the tests share: threads whose errors are seen, and waiting for a state instead of for time."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import coresident as co
import pytest

# Before torch is imported: threads of OpenMP that spin while they wait slow a busy machine down
# many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Shells start what runs in the background with it ignored, and all processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


class Spawned(Generic[T]):
    """A thread that runs one function and hands back its value or its error."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # it is raised again in the test
            self._error = error

    def join(self, timeout: float = 20) -> T:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"{self.thread.name} hangs"
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


def spawn(function: Callable[[], T], name: str = "spawned") -> Spawned[T]:
    return Spawned(function, name)


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    """Returns once the condition holds; fails when it never does."""
    pause = threading.Event()
    for _ in range(int(timeout * 1000)):
        if condition():
            return
        pause.wait(0.001)
    pytest.fail("the expected state never came")


def lease_once(pool: co.DevicePool, device: str | None = None, **terms: Any) -> str:
    """Takes a device, gives it back, and tells which it was."""
    with pool.lease(device, **terms) as lease:
        return str(lease.device)


def waiting(pool: co.DevicePool) -> int:
    """How many wait in the pool, for any device."""
    return len({waiter.owner for status in pool.status() for waiter in status.waiting})


def threads_but(known: list[threading.Thread]) -> list[threading.Thread]:
    """The threads that have come since; how many there are would also tell of others that ended."""
    return [thread for thread in threading.enumerate() if thread not in known]


def run_script(
    source: str, timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh interpreter, where warnings about resources are shown."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def measured(source: str) -> None:
    """Runs a script that asserts what the whole process holds, in a process that is only its own."""
    ended = run_script(source)
    assert ended.returncode == 0, ended.stderr


def pretended(package: str, soname: str, folder: Path) -> Path:
    """Builds a library that has the face of a driver's, and puts it into a folder under its name."""
    if shutil.which("cargo") is None:
        pytest.skip(f"cargo, which builds {package}, is not on the PATH")
    # In a folder of its own, or it would wait for whatever cargo builds meanwhile.
    build = ["cargo", "build", "--target-dir", "target/pretended", "--package", package, "--quiet"]
    built = subprocess.run(
        [*build, "--message-format=json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    messages = map(json.loads, built.stdout.splitlines())
    (files,) = (
        message["filenames"]
        for message in messages
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == package
    )
    shutil.copy(next(file for file in files if file.endswith(".so")), folder / soname)
    return folder


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage() -> Iterator[None]:
    """What they have made is not looked through by every ``gc.collect()`` of the tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def pool() -> co.DevicePool:
    """Two unified virtual devices."""
    return co.DevicePool(co.virtual_devices(2))


@pytest.fixture
def lock() -> co.LoadLock:
    return co.LoadLock()


@pytest.fixture
def workers() -> Iterator[co.WorkerPool]:
    pool = co.WorkerPool(co.virtual_devices(2))
    yield pool
    pool.close("cancel", timeout=20)
