"""The picture of a timeline, as SVG."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape as escape_markup

from coresident.display.span import Span

WIDTH, LEFT, RIGHT = 1080, 130, 20
TOP, LANE, BAR = 64, 56, 40
FONT = "font-family='system-ui, sans-serif'"
INK, FAINT = "#1f2937", "#9ca3af"
# Hue and saturation by user; lightness, in per cent, by stage.
HUES = ("215,75%", "28,85%", "150,50%", "330,60%", "265,50%", "190,70%", "55,70%", "0,65%")
LIGHTNESS = (32, 62, 82, 48, 72)
LETTER = 6.2
ALARM = "#dc2626"
# Pixels that a bar needs for a pattern to be seen on it.
NARROW = 10


# What XML has no way to write.
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(words: str) -> str:
    """The words as XML has them, whatever is in them."""
    return escape_markup(UNWRITABLE.sub("\ufffd", words))


def draw(
    lanes: list[tuple[str, float, list[Span]]], start: float, seconds: float, title: str
) -> str:
    """The picture.

    Args:
        lanes: The name of each device, the share of the time in which it was busy, and its spans.
        start: Where the time axis begins, in seconds.
        seconds: How long it is.
        title: What stands above.
    """
    spans = sorted((span for *_, lane in lanes for span in lane), key=lambda span: span.start)
    users = sorted({span.user for span in spans})
    stages = list(dict.fromkeys(span.stage for span in spans))
    scale = (WIDTH - LEFT - RIGHT) / seconds if seconds else 0.0
    foot = TOP + LANE * len(lanes)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {foot + 34}' {FONT}>",
        "<defs><pattern id='lent' width='7' height='7' patternUnits='userSpaceOnUse' "
        "patternTransform='rotate(45)'><rect width='2' height='7' fill='#000' opacity='.28'/>"
        "</pattern></defs>",
        f"<rect width='{WIDTH}' height='{foot + 34}' rx='8' fill='#fff'/>",
        text(20, 27, title, 15, weight=600),
        *_legend(
            users,
            stages,
            any(span.borrowed for span in spans),
            any(span.cancelled for span in spans),
        ),
        *_axis(seconds, scale, foot),
    ]
    marks: list[str] = []
    for row, (device, busy, own) in enumerate(lanes):
        top = TOP + LANE * row + (LANE - BAR) / 2
        parts.append(text(20, top + 18, device, 13, weight=600))
        parts.append(text(20, top + 34, f"{busy:.0%} busy", 11, INK))
        for span in own:
            left = LEFT + (span.start - start) * scale
            wide = max((span.end - span.start) * scale, 1.5)
            look = users.index(span.user), stages.index(span.stage)
            parts.append(_bar(span, left, top, wide, *look))
            if span.cancelled:
                marks.append(_cross(left + wide, top + BAR / 2, 7))
            if span.borrowed and wide < NARROW:
                marks.append(
                    _pin(left + wide / 2, top - 1, f"hsl({_hue(look[0])},{LIGHTNESS[0]}%)")
                )
    # Over all bars, also those beside them.
    return "\n".join([*parts, *marks, "</svg>", ""])


def _bar(span: Span, left: float, top: float, wide: float, user: int, stage: int) -> str:
    fill = f"hsl({_hue(user)},{_lightness(stage)}%)"
    ink = INK if _lightness(stage) > 70 else "#fff"
    place = f"x='{left:.1f}' y='{top:.0f}' width='{wide:.1f}' height='{BAR}'"
    how = " on a borrowed device" if span.borrowed else ""
    how += ", cancelled" if span.cancelled else ""
    about = f"{span.user}: {span.job}, {span.stage}{how}, {span.end - span.start:.3f} s"
    shape = f"<rect {place} fill='{fill}' stroke='#fff' stroke-width='.6'/>"
    if span.borrowed:
        shape += f"<rect {place} fill='url(#lent)'/>"
    for line, words in enumerate((span.user, span.job)):
        if len(words) * LETTER < wide - 4:
            shape += text(left + wide / 2, top + 17 + 14 * line, words, 11, ink, anchor="middle")
    return f"<g><title>{escape(about)}</title>{shape}</g>"


def _pin(x: float, foot: float, fill: str) -> str:
    """Points at a bar that is too narrow to show how it looks."""
    return f"<path d='M{x:.1f} {foot:.1f}l-5 -8h10z' fill='{fill}'/>"


def _hue(user: int) -> str:
    return HUES[user % len(HUES)]


def _cross(x: float, y: float, arm: float) -> str:
    """A cross on a white disc, where something was cut short."""
    top, foot = y - arm / 2, y + arm / 2
    lines = (
        f"<path d='M{x - side:.1f} {top:.1f}L{x + side:.1f} {foot:.1f}' "
        f"stroke='{ALARM}' stroke-width='2.2' stroke-linecap='round'/>"
        for side in (arm / 2, -arm / 2)
    )
    disc = f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{arm:.1f}' fill='#fff' stroke='{ALARM}'/>"
    return disc + "".join(lines)


def _axis(seconds: float, scale: float, foot: float) -> list[str]:
    """Lines at round seconds, about ten of them."""
    parts = []
    ideal = seconds / 10
    tick = next((t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if t >= ideal), ideal)
    for number in range(int(seconds / tick) + 1 if tick else 0):
        x = LEFT + number * tick * scale
        parts.append(
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{TOP - 4}' y2='{foot + 4}' stroke='#e5e7eb'/>"
        )
        parts.append(text(x, foot + 20, f"{number * tick:g} s", 11, FAINT, anchor="middle"))
    return parts


def _legend(users: list[str], stages: list[str], lent: bool, cancelled: bool) -> list[str]:
    entries = [(f"hsl({_hue(n)},62%)", user) for n, user in enumerate(users[:8])]
    entries += [(f"hsl(0,0%,{_lightness(n)}%)", stage) for n, stage in enumerate(stages)]
    entries += [("url(#lent)", "borrowed device")] if lent else []
    parts, x = [], 20.0
    for fill, words in entries:
        parts.append(f"<rect x='{x:.0f}' y='39' width='12' height='12' rx='2' fill='{fill}'/>")
        parts.append(text(x + 17, 49, words, 12))
        x += 17 + len(words) * 7 + 14
        if fill == "url(#lent)":
            parts.append(_pin(x - 10, 49, INK))
            x += 12
    if cancelled:
        parts += [_cross(x + 7, 45, 7), text(x + 19, 49, "cancelled", 12)]
    return parts


def _lightness(stage: int) -> int:
    return LIGHTNESS[stage % len(LIGHTNESS)]


def text(
    x: float,
    y: float,
    words: str,
    size: int,
    fill: str = INK,
    *,
    weight: int = 400,
    anchor: str = "start",
) -> str:
    """Words in a picture."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' "
        f"text-anchor='{anchor}' fill='{fill}'>{escape(words)}</text>"
    )
