"""What devices let go of when they have had no jobs for a while."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coresident import _core
from coresident.errors import InvalidDeviceError, InvalidTypeError, InvalidValueError

# Seconds until what streams still use is tried again.
_AGAIN = 0.5


@dataclass(frozen=True)
class IdlePolicy:
    """What a device lets go of when it has had no job for a while.

    Attributes:
        vram: Seconds without a job after which the weights leave the device's memory; ``None``
            never.
        ram: Seconds after which the weights that nobody uses leave the host's memory too, once that
            long has passed for every device that is served; ``None`` never. Not less than ``vram``.
        after_cancel: Whether the weights leave the device at once after a job that was cancelled.

    Raises:
        InvalidTypeError: a time is no number.
        InvalidValueError: it is negative or not finite, or ``ram`` is less than ``vram``.
    """

    vram: float | None = None
    ram: float | None = None
    after_cancel: bool = False

    def __post_init__(self) -> None:
        for name in ("vram", "ram"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
                given = type(seconds).__name__
                raise InvalidTypeError(f"{name} is a number of seconds or None, not {given}")
            if not 0 <= seconds < math.inf:
                raise InvalidValueError(f"{name} must be 0 or more seconds, not {seconds}")
        if not isinstance(self.after_cancel, bool):
            given = type(self.after_cancel).__name__
            raise InvalidTypeError(f"after_cancel is True or False, not {given}")
        if self.ram is not None and (self.vram is None or self.ram < self.vram):
            raise InvalidValueError(
                f"ram is {self.ram} and vram is {self.vram}: weights leave the device first"
            )


def policies(
    given: IdlePolicy | Mapping[Any, IdlePolicy] | None, devices: list[_core.Device]
) -> dict[_core.Device, IdlePolicy]:
    """The policy of each device that has one.

    Raises:
        InvalidTypeError: it is neither a policy nor a mapping of devices to policies.
        InvalidDeviceError: a device is none of those.
    """
    if given is None:
        return {}
    if isinstance(given, IdlePolicy):
        return dict.fromkeys(devices, given)
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise InvalidTypeError(f"idle is an IdlePolicy, or one for each device, not {kind}")
    found = {}
    for name, policy in given.items():
        [device] = _core.devices([name])
        if device not in devices:
            known = ", ".join(map(str, devices))
            raise InvalidDeviceError(f"idle has {device}, which is not served: {known}")
        if not isinstance(policy, IdlePolicy):
            raise InvalidTypeError(f"the policy of {device} is a {type(policy).__name__}")
        found[device] = policy
    return found


class Idleness:
    """When which device has been without jobs for long enough. Without a clock of its own.

    Args:
        policies: By device.
        devices: All that are served.
        free_vram: Lets go of what one device has; returns how many bytes are still there, because
            streams use them, and have to go later.
        free_ram: Lets go of what nobody uses on the host.
        now: The time, in seconds.
    """

    def __init__(
        self,
        policies: Mapping[_core.Device, IdlePolicy],
        devices: list[_core.Device],
        free_vram: Callable[[_core.Device], int | None],
        free_ram: Callable[[], object],
        now: float,
    ) -> None:
        self._policies = dict(policies)
        self._free_vram = free_vram
        self._free_ram = free_ram
        self._lock = threading.Lock()
        # Since when each has been idle; ``None`` while it has a job.
        self._since: dict[_core.Device, float | None] = dict.fromkeys(devices, now)
        self._emptied: set[_core.Device] = set()
        self._host_emptied = False
        # When to try once more where something was in use.
        self._again: dict[_core.Device, float] = {}

    def begins(self, device: _core.Device) -> None:
        """A job begins there."""
        with self._lock:
            self._since[device] = None
            self._emptied.discard(device)
            self._again.pop(device, None)
            self._host_emptied = False

    def ends(self, device: _core.Device, now: float, *, cancelled: bool) -> None:
        """A job has ended there."""
        policy = self._policies.get(device)
        free = cancelled and policy is not None and policy.after_cancel
        with self._lock:
            self._since[device] = now
            if free:
                self._emptied.add(device)
        if free:
            self._free(device, now, now)

    def look(self, now: float) -> float | None:
        """Lets go of what is due. Returns when there may be more to do; ``None`` if not before
        the next job."""
        devices, host, due = dict[_core.Device, float | None](), False, list[float]()
        with self._lock:
            for device, policy in self._policies.items():
                since = self._since[device]
                if since is None or policy.vram is None or device in self._emptied:
                    continue
                if since + policy.vram <= now:
                    self._emptied.add(device)
                    devices[device] = since
                else:
                    due.append(since + policy.vram)
            for device, at in list(self._again.items()):
                if at <= now:
                    del self._again[device]
                    devices[device] = self._since[device]
                else:
                    due.append(at)
            when = self._host_is_due()
            if when is not None and not self._host_emptied:
                if when <= now:
                    host = self._host_emptied = True
                else:
                    due.append(when)
        due += [now + _AGAIN for device, since in devices.items() if self._free(device, since, now)]
        if host and self._host_is_idle():
            self._free_ram()
        return min(due, default=None)

    def _free(self, device: _core.Device, since: float | None, now: float) -> bool:
        """Lets go of what a device has, unless a job has begun there meanwhile. Returns whether
        that has to be tried once more."""
        with self._lock:
            # Letting go of another one may have taken long.
            if self._since[device] != since:
                return False
        if not self._free_vram(device):
            return False
        with self._lock:
            if self._since[device] is not None:
                self._again[device] = now + _AGAIN
        return True

    def _host_is_idle(self) -> bool:
        """Whether no job has begun since its memory was due."""
        with self._lock:
            return self._host_emptied

    def _host_is_due(self) -> float | None:
        """When every device will have been idle for as long as its policy says."""
        times = list[float]()
        for device, since in self._since.items():
            policy = self._policies.get(device)
            if since is None or policy is None or policy.ram is None:
                return None
            times.append(since + policy.ram)
        return max(times, default=None)


class IdleTimer(threading.Thread):
    """The one thread that looks when something is due, and sleeps otherwise."""

    def __init__(self, idleness: Idleness, on_error: Callable[[BaseException], object]) -> None:
        super().__init__(name="coresident idle", daemon=True)
        self._idleness = idleness
        self._on_error = on_error
        self._changed = threading.Condition()
        self._looks = True
        self._over = False

    def run(self) -> None:
        """Looks until it is stopped."""
        while True:
            try:
                due = self._idleness.look(time.monotonic())
            except BaseException as error:  # of whoever lets go
                self._on_error(error)
                due = None
            with self._changed:
                if not self._looks and not self._over:
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
                self._looks = False
                if self._over:
                    return

    def look_again(self) -> None:
        """Something has changed."""
        with self._changed:
            self._looks = True
            self._changed.notify()

    def stop(self) -> None:
        """Ends it."""
        with self._changed:
            self._over = True
            self._changed.notify()
