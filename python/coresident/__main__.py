"""The command line: ``coresident demo``, ``coresident devices``, ``coresident trace replay``."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import coresident as co
from coresident import demo, trace

_OTHERWISE = "else the accelerators there are, or two virtual devices"
_MEMORY = "of each virtual device, such as 8MiB; less than needed has weights come and go"
_PRESETS = "digits, or large: 400 MB of random weights"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="coresident", description=co.__doc__)
    parser.add_argument("--version", action="version", version=co.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("devices", help="what this machine has")
    listing.add_argument("wanted", nargs="*", help="names to check; all of them without any")
    shown = commands.add_parser("demo", help="several users' images, drawn on several devices")
    shown.add_argument("--devices", metavar="NAMES", help="by commas, or auto; " + _OTHERWISE)
    shown.add_argument("--jobs", type=int, metavar="N", help="images: 20, or 4 large ones")
    shown.add_argument("--users", type=int, metavar="N", default=3, help="whose they are: 3")
    shown.add_argument("--steps", type=int, metavar="N", help="of each image: 20, or 6 if large")
    shown.add_argument("--split", action="store_true", help="guidance on two devices at once")
    shown.add_argument("--device-memory", metavar="BYTES", help=_MEMORY)
    shown.add_argument("--preset", choices=("digits", "large"), default="digits", help=_PRESETS)
    shown.add_argument("--out", type=Path, metavar="DIR", default=demo.OUT, help="of the pictures")
    traced = commands.add_parser("trace", help="what devices were asked for, and what was moved")
    actions = traced.add_subparsers(dest="action", required=True)
    again = actions.add_parser("replay", help="what a policy would have moved, beside the least")
    again.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a trace, as JSON")
    names = ", ".join(trace.POLICIES)
    again.add_argument(
        "--policy", default=trace.POLICIES[0], metavar="NAME", help=names + ", or all"
    )
    again.add_argument("--lookahead", type=int, default=2, metavar="JOBS", help="jobs known: 2")
    again.add_argument("--json", action="store_true", help="an object for each line of the table")
    options = vars(parser.parse_args(arguments))
    try:
        command = options.pop("command")
        if command == "devices":
            return _list_devices(**options)
        if command == "trace":
            return _replay(
                options["files"], options["policy"], options["lookahead"], options["json"]
            )
        return _demo(demo.Options(**options))
    except (co.CoresidentError, OSError, ImportError) as error:
        print(f"coresident: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _interrupted()


def _demo(options: demo.Options) -> int:
    devices = demo.check(options)
    with _ended_by_ctrl_c():
        demo.load()
    return demo.run(options, devices)


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Has Ctrl-C end the process at once, unless somebody else handles or ignores it.

    An exception is no way to end an import: libraries catch it and go on.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: _interrupted())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted() -> NoReturn:
    """Ends the process as the signal does when nobody handles it, which shells know.

    Without the second that Python takes to put torch away.
    """
    # The signal may have come in the middle of a print, which cannot be entered again.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise SystemExit(130)


def _sentence(error: Exception) -> str:
    """The error without the number that an ``OSError`` puts before it."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _list_devices(wanted: list[str]) -> int:
    for device in co.devices(wanted or "auto"):
        print(f"{device.name:<12} {device.label}")
    return 0


def _replay(files: list[Path], policy: str, lookahead: int, as_json: bool) -> int:
    names = trace.POLICIES if policy == "all" else [policy]
    if not as_json:
        print(f"{'trace':<24} {'policy':<16} {'moved':>11} {'least':>11} {'multiple':>9}")
    for file in files:
        for name in names:
            done = trace.replay(file, policy=name, lookahead=lookahead)
            if as_json:
                fields = "name", "policy", "lookahead", "bytes_moved", "bound", "multiple"
                print(json.dumps({field: getattr(done, field) for field in fields}))
            else:
                moved, bound = done.bytes_moved / 2**30, done.bound / 2**30
                row = f"{done.name:<24} {done.policy:<16} {moved:>7.1f} GiB {bound:>7.1f} GiB"
                print(f"{row} {done.multiple:>9.3f}")
    return 0


def run() -> NoReturn:
    """The command as it is called from a shell."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())


if __name__ == "__main__":
    run()
