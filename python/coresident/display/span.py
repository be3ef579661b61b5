"""A piece of work on one device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import coresident as co


@dataclass(frozen=True)
class Span:
    """A piece of work on one device.

    Attributes:
        device: The device's name.
        user: For whom.
        job: What for, in a word or two.
        stage: The part of the job, such as ``'unet'``.
        start: Seconds since the timeline began.
        end: Seconds since the timeline began.
        borrowed: Whether the device was lent for it.
        number: Tells jobs of the same name apart.
        cancelled: Whether the job was cancelled in it.

    Raises:
        InvalidValueError: ``start`` and ``end`` are not finite and in this order.
    """

    device: str
    user: str
    job: str
    stage: str
    start: float
    end: float
    borrowed: bool = False
    number: int = 0
    cancelled: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.start <= self.end < math.inf:
            raise co.InvalidValueError(
                f"a span from {self.start} to {self.end}: it has to end, and not before it starts"
            )
