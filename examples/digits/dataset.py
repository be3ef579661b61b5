"""Scikit-learn's handwritten digits, as a text-to-image model sees them."""

from __future__ import annotations

import random

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SIZE = 32
MARGIN = 2
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = (
    "a handwritten {}",
    "a handwritten digit {}",
    "handwritten {}",
    "the digit {}",
    "the number {}",
    "{}",
)


def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits and what they are.

    Returns:
        Images ``(count, 3, SIZE, SIZE)`` of white strokes on black, -1 to 1; labels ``(count,)``.
    """
    bundled = load_digits()
    small = torch.from_numpy(bundled.images).float().div(16).unsqueeze(1)
    inside = SIZE - 2 * MARGIN
    large = functional.interpolate(
        small, size=(inside, inside), mode="bicubic", align_corners=False
    )
    # Enlarged eight by eight pixels are a blur: a steep curve makes a pen's stroke of it.
    strokes = torch.sigmoid((functional.pad(large, [MARGIN] * 4) - 0.42) * 14)
    return strokes.mul(2).sub(1).expand(-1, 3, -1, -1).contiguous(), torch.tensor(bundled.target)


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """The same digits, a little turned, slanted, resized and moved."""
    count = len(images)

    def uniform(most: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * most

    angle, slant, size = uniform(0.12), uniform(0.12), 1 + uniform(0.08)
    rows = [
        torch.stack([angle.cos() / size, slant - angle.sin(), uniform(0.06)], dim=1),
        torch.stack([angle.sin(), angle.cos() / size, uniform(0.06)], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def prompt(label: int) -> str:
    """One of the many ways to ask for a digit, by its word or its figure."""
    return random.choice(PROMPTS).format(random.choice((WORDS[label], str(label))))
