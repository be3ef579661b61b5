"""Hints of a runtime: looked for from time to time, given once each, and silenced."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from coresident import _core
from coresident.errors import CoresidentError, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    import logging

_KINDS = tuple(_core.hint_kinds())
# After so many uses of models on a device a look costs little beside them.
_LOOKS = frozenset(10**power * each for power in range(2, 9) for each in (1, 3))
# What closes a runtime is not held up for longer than a replay of so many requests takes.
_AT_CLOSE = 300


class _Look(threading.Thread):
    """Looks once, beside whoever uses models. Who exits waits for what it is telling, no more."""

    def __init__(self, hints: Hints) -> None:
        super().__init__(name="coresident hints", daemon=True)
        self._hints = hints
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tells = self._refused = False
        self.over = threading.Event()

    def run(self) -> None:
        """Looks, and tells what it finds unless the interpreter exits by then."""
        try:
            found = self._hints.look()
            with self._lock:
                self._tells = not (self._refused or _finishing)
            if self._tells:
                self._hints.tell(found)
        finally:
            self.over.set()
            _looks.discard(self)

    def finish(self) -> None:
        """Has it tell nothing any more, after what it is telling."""
        if self._pid != os.getpid():
            return  # It has not been forked with us.
        with self._lock:
            self._refused = True
        if self._tells:
            self.over.wait()


_looks: set[_Look] = set()
_finishing = False


def finish_all() -> None:
    """No look begins any more, and none writes to a log: the interpreter exits."""
    global _finishing
    _finishing = True
    for look in tuple(_looks):
        look.finish()


def _log() -> logging.Logger:
    # Not with the package: it does nothing when it is imported.
    import logging

    return logging.getLogger("coresident.hints")


def _is_wanted() -> bool:
    import logging

    return _log().isEnabledFor(logging.WARNING)


class Hints:
    """What would have spared copies on a runtime's devices.

    Args:
        timeline: What has happened there.
        on: Whether to look for them without being asked.
    """

    def __init__(self, timeline: _core.Timeline, *, on: bool) -> None:
        self._timeline = timeline
        self._on = on
        self._lock = threading.Lock()
        self._uses: dict[_core.Device, int] = {}
        self._look: _Look | None = None
        self._given: set[tuple[str, str]] = set()
        self._silenced: set[tuple[str | None, str | None]] = set()

    def used(self, device: _core.Device) -> None:
        """A model was used on a device: now and then it is time to look, in another thread."""
        if not self._on:
            return
        with self._lock:
            uses = self._uses[device] = self._uses.get(device, 0) + 1
        if uses not in _LOOKS or _finishing or not _is_wanted():
            return
        with self._lock:
            if self._look is not None and not self._look.over.is_set():
                return
            look = self._look = _Look(self)
        _looks.add(look)
        try:
            look.start()
        except RuntimeError:
            # No thread is to be had: there is another time.
            look.over.set()
            _looks.discard(look)

    def give(self) -> None:
        """Logs those that were not given before, of the last requests: a runtime is closed."""
        if self._on and _is_wanted():
            self.tell(self.look(_AT_CLOSE))

    def look(self, requests: int | None = None) -> list[_core.Hint]:
        """Those that there are now. Nobody has asked, and is told of errors."""
        try:
            return self.found(requests)
        except CoresidentError:
            return []

    def tell(self, hints: list[_core.Hint]) -> None:
        """Logs those that were not given before."""
        for hint in hints:
            cause = (hint.kind, hint.device)
            with self._lock:
                new = cause not in self._given
                self._given.add(cause)
            if new:
                _log().warning("%s", hint)

    def found(self, requests: int | None = None) -> list[_core.Hint]:
        """Those that there are now, by the last requests of devices, but for what was silenced."""
        recording = self._timeline.recording()
        devices = recording.requested()
        hints = [hint for name in devices for hint in recording.hints_on(name, requests)]
        with self._lock:
            silenced = set(self._silenced)
        return [
            hint
            for hint in hints
            if not any(
                kind in (None, hint.kind) and component in (None, hint.component)
                for kind, component in silenced
            )
        ]

    def silence(self, kind: str | None, component: str | None) -> None:
        """Gives no hints of a kind, or about a component, or both."""
        for name, given in (("kind", kind), ("component", component)):
            if given is not None and not isinstance(given, str):
                raise InvalidTypeError(f"{name} is a text, not {type(given).__name__}")
        if kind is not None and kind not in _KINDS:
            raise InvalidValueError(f"kind is one of {', '.join(_KINDS)}, not {kind!r}")
        with self._lock:
            self._silenced.add((kind, component))
