"""The command line: ``coresident demo``, ``coresident devices``, ``coresident trace``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import Any, NoReturn

import coresident as co
from coresident import demo, trace

_OTHERWISE = "else the accelerators there are, or two virtual devices"
_MEMORY = "of each virtual device, such as 8MiB; less than needed has weights come and go"
_FILE = "a trace, or a recorded timeline, as JSON"
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
    again.add_argument("files", nargs="+", type=Path, metavar="FILE", help=_FILE)
    names = ", ".join(trace.POLICIES)
    again.add_argument("--policy", metavar="NAME", help=names + ", or all; else the one that ran")
    again.add_argument("--lookahead", type=int, metavar="JOBS", help="jobs known: 2 for a trace")
    again.add_argument("--device", metavar="NAME", help="which one of a recorded timeline")
    again.add_argument("--json", action="store_true", help="an object for each line of the table")
    told = actions.add_parser("hints", help="what would have spared copies, proved by replay")
    told.add_argument("files", nargs="+", type=Path, metavar="FILE", help=_FILE)
    told.add_argument("--device", metavar="NAME", help="which one of a recorded timeline")
    told.add_argument("--policy", metavar="NAME", help="of a trace: who served it")
    told.add_argument("--lookahead", type=int, metavar="JOBS", help="of a trace: jobs known: 2")
    told.add_argument("--memory", metavar="BYTES", help="of a trace: what the device really has")
    told.add_argument("--json", action="store_true", help="an object for each hint")
    where = actions.add_parser("explain", help="where bytes and time went in a recorded timeline")
    where.add_argument("file", type=Path, metavar="FILE", help="a recorded timeline")
    where.add_argument("--svg", type=Path, metavar="OUT", help="a file for the picture")
    options = vars(parser.parse_args(arguments))
    try:
        command = options.pop("command")
        if command == "devices":
            return _list_devices(**options)
        if command == "trace":
            action = options.pop("action")
            actions_by_name: dict[str, Callable[..., int]] = {
                "replay": _replay,
                "hints": _hints,
                "explain": _explain,
            }
            return actions_by_name[action](**options)
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


def _replay(
    files: list[Path], policy: str | None, lookahead: int | None, device: str | None, json: bool
) -> int:
    names = trace.POLICIES if policy == "all" else [policy]
    if not json:
        print(f"{'trace':<24} {'policy':<16} {'moved':>11} {'least':>11} {'multiple':>9}")
    for file in files:
        for name in names:
            done = trace.replay(file, policy=name, lookahead=lookahead, device=device)
            if json:
                fields = "name", "policy", "lookahead", "bytes_moved", "bound", "multiple"
                print(dumps({field: getattr(done, field) for field in fields}))
            else:
                moved, bound = done.bytes_moved / 2**30, done.bound / 2**30
                row = f"{done.name:<24} {done.policy:<16} {moved:>7.1f} GiB {bound:>7.1f} GiB"
                print(f"{row} {done.multiple:>9.3f}")
    return 0


def _hints(files: list[Path], json: bool, **options: Any) -> int:
    for file in files:
        found = trace.hints(file, **options)
        for hint in found:
            if json:
                fields = (
                    *("kind", "device", "component", "components", "copies", "bytes", "seconds"),
                    *("share", "spared", "advice"),
                )
                told = {field: getattr(hint, field) for field in fields}
                print(dumps({"file": str(file), **told, "text": str(hint)}))
            else:
                print(f"{file.name}: {hint}")
        if not found and not json:
            print(f"{file.name}: no hint: no change of one setting is known to spare copies")
    return 0


def _explain(file: Path, svg: Path | None) -> int:
    explained = trace.explain(file)
    print(explained)
    if svg is not None:
        explained.save_svg(svg, title=file.stem)
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
