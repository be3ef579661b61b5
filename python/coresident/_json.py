"""Payloads as JSON."""

from __future__ import annotations

import json


def text(value: object) -> str:
    """What JSON says of a value; what JSON cannot say, as NaN, is an error."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a character, as file names have them: it is escaped, and comes back as it was.
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text
