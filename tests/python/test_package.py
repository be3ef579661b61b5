"""The package as a whole: what importing it does, and what the README shows."""

from __future__ import annotations

import re
from pathlib import Path

import coresident as co
import pytest
from conftest import run_script

ROOT = Path(__file__).parents[2]


def test_importing_does_no_work() -> None:
    done = run_script("""
        import sys, threading
        import coresident
        heavy = {"torch", "asyncio", "concurrent.futures", "numpy", "logging"} & set(sys.modules)
        assert not heavy, heavy
        assert threading.active_count() == 1
        print(coresident.__version__)
        """)
    assert (done.stdout, done.stderr) == (f"{co.__version__}\n", "")


def test_the_version_is_the_crates() -> None:
    cargo = (ROOT / "Cargo.toml").read_text()
    assert f'version = "{co.__version__}"' in cargo


def test_every_public_name_is_documented_in_the_reference() -> None:
    stub = (ROOT / "python/coresident/_core.pyi").read_text()
    for name in co.__all__:
        value = getattr(co, name)
        if getattr(value, "__module__", "").startswith("coresident.") and value.__doc__:
            continue
        defined = re.search(
            rf'^(class|def) {name}\b.*?(?:\n    """|\n\nclass|\Z)', stub, re.S | re.M
        )
        assert name == "__version__" or (defined and '"""' in defined.group()), name


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readme_runs_as_written(number: int) -> None:
    done = run_script(BLOCKS[number])
    assert done.returncode == 0, done.stderr


def test_a_runtime_owns_one_of_each() -> None:
    with co.Runtime(co.virtual_devices(2)) as runtime:
        with runtime.pool.lease("virtual:0"), runtime.load_lock.read():
            assert runtime.workers.run("virtual:0", co.current_device) == runtime.devices[0]
        assert repr(runtime) == "<Runtime virtual:0, virtual:1>"
    for call in (runtime.pool.lease, lambda: runtime.workers.post("virtual:0", int)):
        try:
            call()
        except co.ClosedError:
            continue
        raise AssertionError("a closed runtime took work")
