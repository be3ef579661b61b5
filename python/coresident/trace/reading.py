"""Traces and recorded timelines, from files and from memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from coresident._core import Recording, Timeline
from coresident.errors import InvalidTypeError

#: A path of a file, what is in one, or a timeline.
Source: TypeAlias = "str | Path | Mapping[str, Any] | Recording | Timeline"


def load(path: str | Path) -> Recording:
    """A timeline from the file that :meth:`coresident.Timeline.save` has written.

    Args:
        path: The path of the file.

    Raises:
        InvalidTypeError: it is no path.
        InvalidValueError: it is no recorded timeline, or one of a later version.
        OSError: the file cannot be read.
    """
    if not isinstance(path, (str, Path)):
        raise InvalidTypeError(f"path is the path of a file, not {type(path).__name__}")
    return Recording.parse(_read(path))


def read(source: Source) -> Recording | str:
    """A recorded timeline, or a trace as text."""
    if isinstance(source, Timeline):
        return source.recording()
    if isinstance(source, Recording):
        return source
    if isinstance(source, Mapping):
        text = json.dumps(source)
    elif isinstance(source, (str, Path)):
        text = _read(source)
    else:
        given = type(source).__name__
        raise InvalidTypeError(
            f"trace is the path of a file, what is in one, or a timeline, not {given}"
        )
    return Recording.parse(text) if Recording.is_meant_by(text) else text


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
