"""Payloads as JSON."""

from __future__ import annotations

import json


def text(value: object) -> str:
    """What JSON says of a value, strictly: what it could not give back is refused."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
