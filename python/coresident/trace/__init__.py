"""What devices were asked for and what was moved: recorded timelines, replays, hints.

A :class:`~coresident.Timeline` records while a program runs; :func:`load` reads what it has saved.
:func:`replay` has a policy serve what was asked for once more, :func:`hints` tells what would have
spared copies, and :func:`explain` where bytes and time went.

All of them take a recorded timeline, or a trace, which is simpler JSON: ``{"name": ...,
"capacity_bytes": ..., "requests": [{"job": ..., "component": ..., "bytes": ...,
"working_bytes": ...}, ...]}``. Serving a request needs all bytes of its component on the device,
beside those of working memory. The host has all weights, so that only bytes that come cost.
"""

from __future__ import annotations

from coresident._core import Hint, Recording, Replayed
from coresident.trace.explaining import Explanation, explain
from coresident.trace.reading import load
from coresident.trace.replaying import POLICIES, hints, replay

__all__ = [
    "POLICIES",
    "Explanation",
    "Hint",
    "Recording",
    "Replayed",
    "explain",
    "hints",
    "load",
    "replay",
]
