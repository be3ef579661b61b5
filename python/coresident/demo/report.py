"""What the demo shows at its end: tables, and two pictures."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Images
from PIL import ImageDraw
from PIL.Image import Image
from rich.console import Console
from rich.table import Table

import coresident as co
from coresident.demo.memory import Footprint
from coresident.demo.studio import TEXT_ENCODER, UNET, Drawing
from coresident.display import Timeline, grid
from coresident.display._svg import ALARM

MIB = 2**20


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        drawings: In the order of the jobs.
        timeline: Of the jobs.
        again: The first of them, drawn again one after the other on one device.
        alone: The timeline of that, if it tells how fast one device is.
        host_bytes: Of weights in host memory; and with a copy for each device.
        footprints: What ways of loading take, by name; empty if that was not asked for.
        moved: The memory of devices whose weights come and go, after the jobs; else empty.
    """

    drawings: list[Drawing]
    timeline: Timeline
    again: list[Drawing]
    alone: Timeline | None
    host_bytes: tuple[int, int]
    footprints: dict[str, Footprint | None]
    moved: dict[co.Device, co.ArenaStatus]

    @property
    def differing(self) -> list[int]:
        """The numbers, from 1, of the jobs that were drawn again and came out otherwise."""
        pairs = zip(self.drawings, self.again, strict=False)
        return [
            number
            for number, (first, second) in enumerate(pairs, 1)
            if first.image.tobytes() != second.image.tobytes()
        ]

    @property
    def title(self) -> str:
        """What was done, in one line."""
        users = len({drawing.job.user for drawing in self.drawings})
        devices = len(self.timeline.devices)
        cancelled = len(self.drawings) - len(self.done)
        return (
            f"{_count(len(self.done), 'image')} of {_count(users, 'user')} "
            f"on {_count(devices, 'device')} in {self.timeline.seconds:.1f} s"
            + (f", and {cancelled} cancelled" if cancelled else "")
        )

    @property
    def done(self) -> list[Drawing]:
        """Those that were not cancelled."""
        return [drawing for drawing in self.drawings if not drawing.cancelled]


def show(outcome: Outcome, pictures: list[Path], console: Console) -> None:
    """Prints what happened where, what it took, and where the pictures are."""
    drawings, timeline = outcome.done, outcome.timeline
    console.print(_devices(outcome))
    console.print(_users(outcome))
    if outcome.footprints:
        console.print(_memory(outcome.footprints))
    speed = len(drawings) / timeline.seconds
    lines = [
        f"{speed:.2f} images a second; all devices busy at once for "
        f"{timeline.busy_at_once():.0%} of the time",
    ]
    if outcome.alone is not None:
        alone = len(outcome.again) / outcome.alone.seconds
        lines.append(
            f"one after the other on one device: {alone:.2f} images a second; "
            f"together {speed / alone:.2f} times as many"
        )
    elif len(timeline.devices) > 1:
        lines.append(
            "(so small a model keeps Python busier than the cores: more devices draw it no faster; "
            "--preset large does)"
        )
    once, each = outcome.host_bytes
    lines.append(
        f"weights in host memory: {once / MIB:.1f} MiB, whoever uses them; "
        f"a copy for each device would be {each / MIB:.1f} MiB"
    )
    for device, status in outcome.moved.items():
        needed = sum(area.nbytes for area in status.areas)
        lines.append(
            f"{device} has {(device.memory or 0) / MIB:.1f} MiB, for {needed / MIB:.1f} MiB of "
            f"weights and all activations: {status.filled / MIB:.1f} MiB of weights came to it, "
            f"{status.evicted / MIB:.1f} MiB left"
        )
    wrong = ", ".join(map(str, outcome.differing))
    with_room = " with room for everything" if outcome.moved else ""
    lines.append(
        f"the first {_count(len(outcome.again), 'image')} again, alone on one device{with_room}: "
        + (f"DIFFERENT: number {wrong}" if wrong else "identical to the bit")
    )
    lines += [f"wrote {path}" for path in pictures]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _devices(outcome: Outcome) -> Table:
    """Who did what, by device."""
    stages = outcome.timeline.stages()
    table = Table(title=outcome.title, title_justify="left")
    table.add_column("device")
    for column in ("images", "seconds busy", "share", "text borrows", "guidance borrows"):
        table.add_column(column, justify="right")
    for device in outcome.timeline.devices:
        lent = [span.stage for span in stages if span.borrowed and span.device == str(device)]
        table.add_row(
            str(device),
            str(sum(drawing.device == device for drawing in outcome.done)),
            f"{outcome.timeline.busy(device) * outcome.timeline.seconds:.1f}",
            f"{outcome.timeline.busy(device):.0%}",
            str(lent.count(TEXT_ENCODER)),
            str(lent.count(UNET)),
        )
    return table


def _users(outcome: Outcome) -> Table:
    """What each user got, and when."""
    table = Table(title="who waited how long", title_justify="left")
    table.add_column("user")
    for column in ("images", "cancelled", "device seconds", "first after", "last after"):
        table.add_column(column, justify="right")
    for user in dict.fromkeys(drawing.job.user for drawing in outcome.drawings):
        own = [drawing for drawing in outcome.drawings if drawing.job.user == user]
        ends = [drawing.finished for drawing in own if not drawing.cancelled]
        table.add_row(
            user,
            str(len(ends)),
            str(len(own) - len(ends)),
            f"{sum(drawing.seconds for drawing in own):.1f}",
            f"{min(ends):.1f} s" if ends else "",
            f"{max(ends):.1f} s" if ends else "",
        )
    return table


def _memory(footprints: dict[str, Footprint | None]) -> Table:
    """What ways of loading take."""
    table = Table(title="host memory of the weights, all devices together", title_justify="left")
    table.add_column("how they are loaded")
    table.add_column("proportional (PSS)", justify="right")
    table.add_column("of it anonymous", justify="right")
    for name, footprint in footprints.items():
        if footprint is None:
            table.add_row(name, "not measured", "")
        else:
            figures = (footprint.proportional, footprint.anonymous)
            table.add_row(name, *(f"{figure / MIB:,.0f} MiB" for figure in figures))
    return table


def save(outcome: Outcome, folder: Path) -> list[Path]:
    """Writes the images as one PNG and the timeline as an SVG, each whole or not at all.

    Raises:
        OSError: if they cannot be written.
    """
    pages = grid(
        [_crossed(one.image) if one.cancelled else one.image for one in outcome.drawings],
        [
            (one.job.subject, f"{one.job.user}, cancelled" if one.cancelled else one.job.user)
            for one in outcome.drawings
        ],
        outcome.title,
    )
    png = io.BytesIO()
    pages.save(png, "PNG")
    pictures = {
        folder / "images.png": png.getvalue(),
        folder / "timeline.svg": outcome.timeline.svg(outcome.title).encode(),
    }
    for path, content in pictures.items():
        part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    return list(pictures)


def _crossed(image: Image) -> Image:
    """How far an image had come that nobody wants any more."""
    size, (middle, arm) = (96, 96), (48, 9)
    faint = Images.blend(image.convert("RGB").resize(size), Images.new("RGB", size, "white"), 0.55)
    pen = ImageDraw.Draw(faint)
    disc = (middle - 2 * arm, middle - 2 * arm, middle + 2 * arm, middle + 2 * arm)
    pen.ellipse(disc, fill="white", outline=ALARM, width=2)
    for side in (-1, 1):
        ends = (middle - arm, middle - side * arm, middle + arm, middle + side * arm)
        pen.line(ends, fill=ALARM, width=4)
    return faint


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
