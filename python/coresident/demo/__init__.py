"""The main job: real text-to-image jobs of several users, at once on several devices.

``python -m coresident demo`` runs it. How it is made is the example to learn from:

- :mod:`.pipeline`: a diffusers pipeline on every device, its weights once in host memory;
- :mod:`.guidance`: the two halves of classifier-free guidance, on one device or on two;
- :mod:`.studio`: the jobs: a queue, the handler that draws one image, borrows, cancelling;
- :mod:`.large`: a heavier model, and what its weights cost in host memory;
- :mod:`.report`: what is shown.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import coresident as co

DIGITS = Path(co.__file__).parent / "digits"
OUT = Path("coresident-demo")
NEEDED = ("torch", "diffusers", "transformers", "accelerate", "PIL", "rich")


@dataclass(frozen=True)
class Options:
    """What the demo is to do.

    Attributes:
        devices: Names, by commas; ``None`` takes the accelerators there are, else two virtual ones.
        jobs: How many images, 1 to 1000; ``None`` for the preset's number.
        users: How many users there are, 1 to 1000. The first has a big batch; of ten jobs or more
            the last one is cancelled half-way.
        steps: Denoising steps of a job, 1 to 1000; ``None`` for the preset's number.
        split: Whether the two halves of guidance run on two devices.
        device_memory: Bytes that each device has for weights and activations, or a text such as
            ``'8MiB'``: less than the pipeline needs has weights come and go. ``None`` has devices
            use host memory, if they are virtual.
        preset: ``'digits'``, the trained model, or ``'large'``, 400 MB of random weights.
        out: The folder for the pictures.
    """

    devices: str | None = None
    jobs: int | None = None
    users: int = 3
    steps: int | None = None
    split: bool = False
    device_memory: int | str | None = None
    preset: Literal["digits", "large"] = "digits"
    out: Path = OUT


def run(options: Options, devices: list[co.Device] | None = None) -> int:
    """Runs the jobs, shows them, and checks two of them against a serial run.

    Args:
        options: What to do.
        devices: What :func:`check` has returned, if it has been called.

    Returns:
        The exit status: 0, or 1 if the serial run drew something else.

    Raises:
        CoresidentError: for devices that are not there, or options that cannot be meant.
        OSError: if the folder for the pictures cannot be written.
        ImportError: if torch, diffusers or rich is missing.
    """
    devices = check(options) if devices is None else devices
    load()
    from coresident.demo import show

    return show.run(options, devices)


def check(options: Options) -> list[co.Device]:
    """Finds whatever can be wrong before anything is loaded. Raises as :func:`run`.

    Returns:
        The devices: those that are named, else the accelerators, else two virtual ones.
    """
    for name in ("jobs", "users", "steps"):
        number = getattr(options, name)
        if number is None and name != "users":
            continue
        if not isinstance(number, int) or isinstance(number, bool):
            raise co.InvalidTypeError(f"{name} is a whole number, not {number!r}")
        if not 1 <= number <= 1000:
            raise co.InvalidValueError(f"{name} is {number}: it can be 1 to 1000")
    if options.preset not in ("digits", "large"):
        raise co.InvalidValueError(f"preset is 'digits' or 'large', not {options.preset!r}")
    if not (options.devices is None or isinstance(options.devices, str)):
        raise co.InvalidTypeError(f"devices are names, by commas, not {options.devices!r}")
    if not isinstance(options.out, Path):
        raise co.InvalidTypeError(f"out is a Path, not {options.out!r}")
    devices = _devices(options.devices, options.device_memory)
    if options.split and len(devices) < 2:
        raise co.InvalidDeviceError(
            f"splitting the guidance needs two devices, and {devices[0]} is the only one: "
            "name two, such as virtual:0,virtual:1"
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the demo needs {', '.join(missing)}, which is not installed: "
            "pip install 'coresident[diffusers]'"
        )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.out):
            pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"the pictures cannot be written to {options.out}: {error.strerror}; "
            "name another folder",
        ) from error
    return devices


def load() -> None:
    """Imports torch and diffusers; takes seconds."""
    # What spins in OpenMP takes the cores from other devices' workers; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "torch" not in sys.modules:
        print("importing torch and diffusers ...", flush=True)
    importlib.import_module("coresident.demo.show")


def _devices(names: str | None, memory: int | str | None) -> list[co.Device]:
    if names is not None:
        chosen = co.devices(names if names.strip().lower() == "auto" else names.split(","))
    else:
        found = co.devices("auto")
        chosen = co.virtual_devices(2) if found[0].type == "cpu" else found
    if memory is None:
        return chosen
    bounded = [device for device in chosen if device.type == "virtual"]
    if len(bounded) < len(chosen):
        other = next(device for device in chosen if device not in bounded)
        raise co.InvalidDeviceError(
            f"device_memory is that of virtual devices, and {other} has its own: name virtual "
            "devices, such as virtual:0,virtual:1"
        )
    all_of_them = co.virtual_devices(1 + max(device.index for device in bounded), memory=memory)
    return [all_of_them[device.index] for device in bounded]
