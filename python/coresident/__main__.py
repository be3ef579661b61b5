"""The command line: ``python -m coresident demo`` and ``python -m coresident devices``."""

from __future__ import annotations

import argparse
import sys

import coresident as co
from coresident import _demo


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="coresident", description=co.__doc__)
    parser.add_argument("--version", action="version", version=co.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("devices", help="what this machine has")
    listing.add_argument("wanted", nargs="*", help="names to check; all of them without any")
    demo = commands.add_parser("demo", help="several users' jobs at once on several devices")
    demo.add_argument("--devices", default=None, help="names, by commas; two virtual ones if none")
    demo.add_argument("--jobs", type=_positive, default=9, help="how many jobs (9)")
    demo.add_argument("--users", type=_positive, default=3, help="how many users (3)")
    demo.add_argument("--steps", type=_positive, default=20, help="steps of a job (20)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "devices":
            return _list_devices(options.wanted)
        return _demo.run(_chosen(options.devices), options.jobs, options.users, options.steps)
    except co.CoresidentError as error:
        print(f"coresident: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _chosen(names: str | None) -> list[co.Device]:
    if names is not None:
        return co.devices(names if names.strip().lower() == "auto" else names.split(","))
    found = co.devices("auto")
    return co.virtual_devices(2) if found[0].type == "cpu" else found


def _list_devices(wanted: list[str]) -> int:
    for device in co.devices(wanted or "auto"):
        print(f"{device.name:<12} {device.label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
