"""What was asked for once more, served by a policy; and what would have spared copies."""

from __future__ import annotations

from coresident import _core
from coresident._core import Hint, Replayed
from coresident.errors import InvalidTypeError, InvalidValueError
from coresident.trace.reading import Source, read

#: The names of the policies; the first is the default.
POLICIES: tuple[str, ...] = tuple(_core.policies())


def replay(
    trace: Source,
    *,
    policy: str | None = None,
    lookahead: int | None = None,
    device: str | None = None,
) -> Replayed:
    """Has a policy serve a trace on an imagined device.

    At each request of a trace the policy knows what was asked for so far, the rest of the running
    job, and so many jobs after it; never more. In a recorded timeline it finds out about the rest
    of jobs by itself, as it does on a device, and what could be there is what the device's budget
    had at the time. Reads the file, and waits for nothing else.

    Args:
        trace: The path of a file, what is in one, or a timeline.
        policy: One of :data:`POLICIES`; ``None`` for the one that ran, or the first for a trace.
        lookahead: How many jobs are known beside the running one; ``None`` for as many as were
            known then, or 2 for a trace.
        device: Which one of a timeline's devices, if there are several; of a trace nothing else
            than ``None``.

    Returns:
        The bytes moved, the fewest that anybody could have moved who knew all of the trace
        (Belady's rule, by bytes), and how many times that it is.

    Raises:
        InvalidTypeError: an argument is of a wrong type.
        InvalidValueError: it is no trace; something in it could never be served; there is no such
            policy, or no such device in it.
        OSError: the file cannot be read.
        ForkedError: the timeline is another process's.

    Example:
        >>> request = {"job": 0, "component": "unet", "bytes": 8, "working_bytes": 1}
        >>> trace = {"name": "one", "capacity_bytes": 10, "requests": [request]}
        >>> replay(trace).bytes_moved
        8
    """
    source = read(trace)
    _check(policy, device, isinstance(source, str))
    if isinstance(source, str):
        lookahead = 2 if lookahead is None else lookahead
        return _core.replay_trace(source, policy or POLICIES[0], lookahead)
    return source.replay(policy, lookahead, device)


def hints(
    trace: Source,
    *,
    device: str | None = None,
    policy: str | None = None,
    lookahead: int | None = None,
    memory: int | str | None = None,
) -> list[Hint]:
    """What would have spared copies, proved by replaying the trace with it.

    No hint is given if nothing would have helped, if it is not worth it, or if a replay of what was
    does not come to the bytes that were really copied. Takes seconds for thousands of requests.

    Args:
        trace: The path of a file, what is in one, or a timeline.
        device: One of a timeline's devices; ``None`` for all of them.
        policy: Of a trace, which policy is taken to have served it; ``None`` for the first.
        lookahead: Of a trace, how many jobs it is taken to have known; ``None`` for 2.
        memory: Of a trace, the bytes that the device really has; ``None`` if there are no more than
            it says.

    Returns:
        One for each cause, for each device. ``str(hint)`` is a sentence.

    Raises:
        InvalidTypeError: an argument is of a wrong type.
        InvalidValueError: it is no trace; something in it could never be served; there is no such
            policy, or no such device in it; or an argument is not for what was given.
        OSError: the file cannot be read.
        ForkedError: the timeline is another process's.
    """
    source = read(trace)
    _check(policy, device, isinstance(source, str))
    if isinstance(source, str):
        lookahead = 2 if lookahead is None else lookahead
        return _core.trace_hints(source, policy or POLICIES[0], lookahead, memory)
    for name, given in (("policy", policy), ("lookahead", lookahead), ("memory", memory)):
        if given is not None:
            raise InvalidValueError(f"{name} is known of a recorded timeline: leave it out")
    devices = source.requested() if device is None else [device]
    return [hint for name in devices for hint in source.hints_on(name)]


def _check(policy: object, device: object, is_trace: bool) -> None:
    if policy is not None and not isinstance(policy, str):
        given = type(policy).__name__
        raise InvalidTypeError(f"policy is one of {', '.join(POLICIES)}, not {given}")
    if device is not None and not isinstance(device, str):
        raise InvalidTypeError(f"device is the name of one, not {type(device).__name__}")
    if device is not None and is_trace:
        raise InvalidValueError("a trace has one device: leave device out")
