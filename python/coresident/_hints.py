"""Hints of a runtime: looked for from time to time, given once each, and silenced."""

from __future__ import annotations

import threading

from coresident import _core
from coresident.errors import CoresidentError, InvalidTypeError, InvalidValueError

_KINDS = tuple(_core.hint_kinds())
# After so many uses of models on a device a look costs little beside them.
_LOOKS = frozenset(10**power * each for power in range(2, 9) for each in (1, 3))


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
        self._given: set[tuple[str, str]] = set()
        self._silenced: set[tuple[str | None, str | None]] = set()

    def used(self, device: _core.Device) -> None:
        """A model was used on a device: now and then it is time to look."""
        if not self._on:
            return
        with self._lock:
            uses = self._uses[device] = self._uses.get(device, 0) + 1
        if uses in _LOOKS:
            self.give()

    def give(self) -> None:
        """Logs those that were not given before."""
        # Not with the package: it does nothing when it is imported.
        import logging

        log = logging.getLogger("coresident.hints")
        if not self._on or not log.isEnabledFor(logging.WARNING):
            return
        try:
            found = self.found()
        except CoresidentError:
            # Nobody has asked: whoever asks is told.
            return
        for hint in found:
            cause = (hint.kind, hint.device)
            with self._lock:
                new = cause not in self._given
                self._given.add(cause)
            if new:
                log.warning("%s", hint)

    def found(self) -> list[_core.Hint]:
        """Those that there are now, but for what was silenced."""
        recording = self._timeline.recording()
        hints = [hint for name in recording.requested() for hint in recording.hints_on(name)]
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
