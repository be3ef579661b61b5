"""The picture of devices' memory over time, as SVG."""

from __future__ import annotations

from dataclasses import dataclass, field

from coresident import _core
from coresident.display._svg import ALARM, FAINT, FONT, INK, LETTER, escape, text

WIDTH, LEFT, RIGHT = 1120, 168, 24
TOP, GAP = 92, 30
MEMORY, USES, COPIES = 104, 20, 20
COLOURS = (
    "#2563eb",
    "#f59e0b",
    "#059669",
    "#db2777",
    "#7c3aed",
    "#0891b2",
    "#84cc16",
    "#dc2626",
    "#a16207",
    "#475569",
)
# Wider bars than this are told apart, narrower ones are drawn as one.
LEAST = 0.7
SAMPLES = 900


@dataclass
class Lane:
    """What is shown of one device.

    Attributes:
        device: Its name.
        limit: Bytes of its budget; 0 if they are not known.
        copied: Bytes copied to it.
        again: Those of them that had been there before.
        share: The share of the time of jobs that copying took.
        hidden: The share of copying of streamed models behind which they computed.
        uses: Who used it from when to when, in seconds.
        visits: Whose block computed from when to when, of how many bytes.
        stalls: Whose block waited for a copy from when to when.
        copies: What was copied from when to when, how many bytes, and why.
        changes: By how many bytes what is resident of whom changed, in order of time.
    """

    device: str
    limit: int = 0
    copied: int = 0
    again: int = 0
    share: float | None = None
    hidden: float | None = None
    uses: list[tuple[str, float, float]] = field(default_factory=list)
    visits: list[tuple[str, float, float, int]] = field(default_factory=list)
    stalls: list[tuple[str, float, float]] = field(default_factory=list)
    copies: list[tuple[str, float, float, int, str]] = field(default_factory=list)
    changes: list[tuple[float, str, int]] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """When something happens."""
        spans = [(begun, ended) for _, begun, ended in self.uses]
        for streamed in (self.copies, self.visits, self.stalls):
            spans += [(begun, ended) for _, begun, ended, *_ in streamed]
        spans += [(at, at) for at, *_ in self.changes]
        return [time for span in spans for time in span]


def draw(lanes: list[Lane], seconds: float, title: str) -> str:
    """The picture, of the time in which something happened.

    Args:
        lanes: The devices.
        seconds: How long the timeline lasted.
        title: What stands above.
    """
    times = [time for lane in lanes for time in lane.times]
    start, end = (min(times), max(times)) if times else (0.0, seconds)
    scale = (WIDTH - LEFT - RIGHT) / (end - start) if end > start else 0.0
    names: dict[str, int] = {}
    for lane in lanes:
        for name, *_ in sorted(lane.copies, key=lambda copy: copy[1]):
            names.setdefault(name, len(names))
        for name, *_ in lane.uses:
            names.setdefault(name, len(names))
    stalls = any(lane.stalls for lane in lanes)
    legend, top = _legend(list(names), any(lane.again for lane in lanes), stalls)
    height = MEMORY + USES + COPIES + 12
    foot = top + len(lanes) * (height + GAP) - (GAP if lanes else 0)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {foot + 40:.0f}' {FONT}>",
        "<defs><pattern id='again' width='6' height='6' patternUnits='userSpaceOnUse' "
        "patternTransform='rotate(45)'><rect width='2.4' height='6' fill='#fff' opacity='.5'/>"
        "</pattern></defs>",
        f"<rect width='{WIDTH}' height='{foot + 40:.0f}' rx='8' fill='#fff'/>",
        text(24, 32, title or "what was in the devices' memory", 16, weight=600),
        *legend,
        *_axis(end - start, scale, top, foot),
    ]
    for number, lane in enumerate(lanes):
        parts += _lane(lane, top + number * (height + GAP), start, end, scale, names)
    return "\n".join([*parts, "</svg>", ""])


def _colour(name: str, names: dict[str, int]) -> str:
    return COLOURS[names.get(name, 0) % len(COLOURS)]


def _lane(
    lane: Lane, top: float, start: float, end: float, scale: float, names: dict[str, int]
) -> list[str]:
    parts = [text(24, top + 15, lane.device, 14, weight=600)]
    told = [f"{_core.size(lane.copied)} copied"]
    if lane.again:
        told.append(f"{_core.size(lane.again)} again")
    if lane.share is not None:
        told.append(f"{lane.share:.0%} of job time")
    if lane.hidden is not None:
        told.append(f"{lane.hidden:.0%} of it hidden")
    parts += [text(24, top + 34 + 16 * row, line, 12, INK) for row, line in enumerate(told)]
    parts += _area(lane, top, start, end, scale, names)
    uses, copies = top + MEMORY + 6, top + MEMORY + USES + 12
    parts.append(text(LEFT - 10, uses + 14, "used by", 11, FAINT, anchor="end"))
    parts.append(text(LEFT - 10, copies + 14, "copied", 11, FAINT, anchor="end"))
    for row, high in ((uses, USES), (copies, COPIES)):
        parts.append(_box(LEFT, row, WIDTH - LEFT - RIGHT, high, "#f3f4f6"))
    bars = sorted(lane.uses, key=lambda use: use[1])
    for name, begun, ended in _merged([(n, b, e, "") for n, b, e in bars], scale):
        left, wide = LEFT + (begun - start) * scale, max((ended - begun) * scale, LEAST)
        shown = _box(left, uses, wide, USES, _colour(name, names), 0.85)
        label = name if len(name) * LETTER < wide - 8 else name.rsplit("/", 1)[-1]
        if len(label) * LETTER < wide - 8:
            shown += text(left + wide / 2, uses + 14, label, 11, "#fff", anchor="middle")
        about = f"{name}, used for {ended - begun:.3f} s"
        parts.append(f"<g><title>{escape(about)}</title>{shown}</g>")
    parts += _blocks(lane, uses, start, scale, names)
    for name, begun, ended, nbytes, cause in lane.copies:
        left, wide = LEFT + (begun - start) * scale, max((ended - begun) * scale, LEAST)
        shown = _box(left, copies, wide, COPIES, _colour(name, names))
        if cause == "came back":
            shown += _box(left, copies, wide, COPIES, "url(#again)")
        about = f"{name}: {_core.size(nbytes)} copied in {ended - begun:.3f} s, {cause}"
        parts.append(f"<g><title>{escape(about)}</title>{shown}</g>")
    return parts


def _blocks(lane: Lane, top: float, start: float, scale: float, names: dict[str, int]) -> list[str]:
    """Blocks of streamed models that computed, and where they waited for their copies."""
    parts = []
    for number, (name, begun, ended, nbytes) in enumerate(lane.visits):
        left, wide = LEFT + (begun - start) * scale, max((ended - begun) * scale, LEAST)
        shown = _box(left, top, wide, USES, _colour(name, names))
        if number % 2:
            shown += _box(left, top, wide, USES, "#fff", 0.3)
        about = f"{name}: a block of {_core.size(nbytes)} computed for {ended - begun:.4f} s"
        parts.append(f"<g><title>{escape(about)}</title>{shown}</g>")
    for name, begun, ended in lane.stalls:
        left, wide = LEFT + (begun - start) * scale, max((ended - begun) * scale, LEAST)
        shown = _box(left, top, wide, USES, "#fff") + _box(left, top, wide, USES, ALARM, 0.9)
        about = f"{name}: a block waited {ended - begun:.4f} s for its copy"
        parts.append(f"<g><title>{escape(about)}</title>{shown}</g>")
    return parts


def _merged(
    bars: list[tuple[str, float, float, str]], scale: float
) -> list[tuple[str, float, float]]:
    """Bars of one name that touch each other in the picture, as one."""
    merged: list[tuple[str, float, float]] = []
    for name, begun, ended, _ in bars:
        if merged and merged[-1][0] == name and (begun - merged[-1][2]) * scale < LEAST:
            merged[-1] = (name, merged[-1][1], max(ended, merged[-1][2]))
        else:
            merged.append((name, begun, ended))
    return merged


def _area(
    lane: Lane, top: float, start: float, end: float, scale: float, names: dict[str, int]
) -> list[str]:
    """What is resident of whom, one above the other, below the limit."""
    order = [name for name in names if any(name == changed for _, changed, _ in lane.changes)]
    resident = dict.fromkeys(order, 0)
    columns: list[tuple[float, dict[str, int]]] = [(start, dict(resident))]
    least = (end - start) / SAMPLES if end > start else 0.0
    for at, name, nbytes in lane.changes:
        resident[name] = max(0, resident[name] + nbytes)
        if at - columns[-1][0] < least and len(columns) > 1:
            columns[-1] = (columns[-1][0], dict(resident))
        else:
            columns.append((at, dict(resident)))
    columns.append((end, dict(resident)))
    peak = max((sum(column.values()) for _, column in columns), default=0)
    # Room for a line of text above.
    most = max(peak, lane.limit) * 1.2 or 1
    foot = top + MEMORY
    high = MEMORY / most
    parts = [_box(LEFT, top, WIDTH - LEFT - RIGHT, MEMORY, "#f9fafb")]
    below = [0.0] * len(columns)
    for name in order:
        upper = [low + column[name] for low, (_, column) in zip(below, columns, strict=True)]
        there, back = [], []
        for place, (at, _) in enumerate(columns):
            x = LEFT + (at - start) * scale
            if place:
                there.append(f"{x:.1f},{foot - upper[place - 1] * high:.1f}")
                back.append(f"{x:.1f},{foot - below[place - 1] * high:.1f}")
            there.append(f"{x:.1f},{foot - upper[place] * high:.1f}")
            back.append(f"{x:.1f},{foot - below[place] * high:.1f}")
        about = f"{name}: {_core.size(max(column[name] for _, column in columns))} at most"
        parts.append(
            f"<g><title>{escape(about)}</title><polygon points='{' '.join(there + back[::-1])}' "
            f"fill='{_colour(name, names)}' opacity='.8'/></g>"
        )
        below = upper
    if lane.limit:
        y = foot - lane.limit * high
        parts.append(
            f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='{INK}' "
            "stroke-dasharray='5 4' stroke-width='1'/>"
        )
        limit = f"limit {_core.size(lane.limit)}"
        parts.append(text(WIDTH - RIGHT - 6, y - 5, limit, 11, INK, anchor="end"))
    return parts


def _box(left: float, top: float, wide: float, high: float, fill: str, opacity: float = 1) -> str:
    faded = f" opacity='{opacity:g}'" if opacity < 1 else ""
    place = f"x='{left:.1f}' y='{top:.1f}' width='{wide:.1f}' height='{high}'"
    return f"<rect {place} fill='{fill}'{faded}/>"


def _axis(seconds: float, scale: float, top: float, foot: float) -> list[str]:
    """Lines at round seconds, about ten of them."""
    ideal = seconds / 10
    power = 10.0**-9
    while power * 10 <= ideal:
        power *= 10
    tick = next((power * each for each in (1, 2, 5, 10) if power * each >= ideal), ideal)
    parts: list[str] = []
    if seconds <= 0:
        return parts
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1000.0)
    for number in range(int(seconds / tick) + 1):
        x = LEFT + number * tick * scale
        parts.append(
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top - 6:.0f}' y2='{foot + 6:.0f}' "
            "stroke='#e5e7eb'/>"
        )
        shown = f"{number * tick * factor:.6g} {unit}"
        parts.append(text(x, foot + 24, shown, 11, FAINT, anchor="middle"))
    return parts


def _legend(names: list[str], again: bool, stalls: bool) -> tuple[list[str], float]:
    """What the colours mean, in as many lines as that takes; and where the lanes begin."""
    entries = [(COLOURS[number % len(COLOURS)], name) for number, name in enumerate(names[:24])]
    if len(names) > len(entries):
        entries.append(("#fff", f"and {len(names) - len(entries)} others"))
    parts, x, y = [], 24.0, 50.0
    entries += [("again", "copied again")] if again else []
    entries += [(ALARM, "waits for a copy")] if stalls else []
    for fill, name in entries:
        shown = name if len(name) <= 40 else name[:39] + "…"
        wide = 17 + len(shown) * 6.8 + 18
        if x + wide > WIDTH - RIGHT and x > 24:
            x, y = 24.0, y + 20
        parts.append(_box(x, y, 12, 12, COLOURS[-1] if fill == "again" else fill))
        if fill == "again":
            parts.append(_box(x, y, 12, 12, "url(#again)"))
        parts.append(text(x + 17, y + 10, shown, 12))
        x += wide
    return parts, y + 34
