"""Traces of what devices were asked for, replayed: what would have been moved.

A trace is JSON: ``{"name": ..., "capacity_bytes": ..., "requests": [{"job": ..., "component": ...,
"bytes": ..., "working_bytes": ...}, ...]}``. Serving a request needs all bytes of its component
on the device, beside those of working memory. The host has all weights, so that only bytes that
come cost anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coresident import _core
from coresident._core import Replayed
from coresident.errors import InvalidTypeError

__all__ = ["POLICIES", "Replayed", "replay"]

#: The names of the policies; the first is the default.
POLICIES: tuple[str, ...] = tuple(_core.policies())


def replay(
    trace: str | Path | Mapping[str, Any],
    *,
    policy: str = POLICIES[0],
    lookahead: int = 2,
) -> Replayed:
    """Has a policy serve a trace on an imagined device.

    At each request the policy knows what was asked for so far, the rest of the running job, and so
    many jobs after it; never more. Reads the file, and waits for nothing else.

    Args:
        trace: The path of a file, or what is in one.
        policy: One of :data:`POLICIES`.
        lookahead: How many jobs are known beside the running one.

    Returns:
        The bytes moved, the fewest that anybody could have moved who knew all of the trace
        (Belady's rule, by bytes), and how many times that it is.

    Raises:
        InvalidTypeError: an argument is of a wrong type.
        InvalidValueError: it is no trace; something in it could never be served; or there is no
            such policy.
        OSError: the file cannot be read.

    Example:
        >>> request = {"job": 0, "component": "unet", "bytes": 8, "working_bytes": 1}
        >>> trace = {"name": "one", "capacity_bytes": 10, "requests": [request]}
        >>> replay(trace).bytes_moved
        8
    """
    if isinstance(trace, Mapping):
        text = json.dumps(trace)
    elif isinstance(trace, (str, Path)):
        text = Path(trace).read_text(encoding="utf-8")
    else:
        given = type(trace).__name__
        raise InvalidTypeError(f"trace is the path of a file, or what is in one, not {given}")
    return _core.replay_trace(text, policy, lookahead)
