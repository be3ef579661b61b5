"""Many images as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import coresident as co

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

GAP, LINE = 8, 15
MOST_PIXELS = 2**28
INK, PAPER = (31, 41, 55), (255, 255, 255)


def grid(
    images: Sequence[Image],
    captions: Sequence[Sequence[str]],
    title: str = "",
    *,
    columns: int = 10,
    size: int = 96,
) -> Image:
    """Images side by side, each with the lines of its caption below. Does not wait.

    Args:
        images: At least one.
        captions: The lines below each image.
        title: What stands above them all.
        columns: How many images stand in a row.
        size: Width and height of one, in pixels.

    Returns:
        An RGB image.

    Raises:
        InvalidValueError: there is no image, not one caption for each, ``columns`` or ``size`` is
            less than 1, or all of it would be larger than 2**28 pixels.
    """
    from PIL import Image as Images
    from PIL import ImageDraw
    from PIL.ImageFont import load_default

    if not images or len(images) != len(captions):
        raise co.InvalidValueError(
            f"{len(images)} images and {len(captions)} captions: "
            "a grid has at least one image, and a caption for each"
        )
    if columns < 1 or size < 1:
        raise co.InvalidValueError(f"columns={columns}, size={size}: each is at least 1")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    wide, high = size + GAP, size + GAP + LINE * max(map(len, captions))
    top = GAP + (LINE + 2 * GAP if title else 0)
    font, heading = load_default(11), load_default(15)
    width = max(columns * wide + GAP, int(heading.getlength(title)) + 2 * GAP)
    height = top + rows * high
    if width * height > MOST_PIXELS:
        raise co.InvalidValueError(
            f"{len(images)} images of {size} pixels are too much for one: {width} x {height}"
        )
    sheet = Images.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, INK, heading)
    for number, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x = GAP + number % columns * wide
        y = top + number // columns * high
        sheet.paste(image.convert("RGB").resize((size, size), Images.Resampling.BICUBIC), (x, y))
        for row, line in enumerate(lines):
            middle = x + size / 2
            shown = _clipped(line, font, size)
            pen.text((middle, y + size + 2 + LINE * row), shown, INK, font, anchor="ma")
    return sheet


def _clipped(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """As much of one line of text as there is room for."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    fits = next((n for n in range(len(text), 0, -1) if font.getlength(text[:n] + "…") <= width), 0)
    return text[:fits] + "…"
