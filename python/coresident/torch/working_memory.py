"""How much memory an operation needs beside the weights: measured before, or else estimated."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from coresident.errors import InvalidTypeError, InvalidValueError

try:
    import fcntl
except ImportError:
    # Not on Windows: processes that save at once may lose each other's values there.
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("coresident.torch")

_FORMAT = 1
_MAX_ENTRIES = 4096
# How often, 10 ms apart, another process's saving is looked at before it is no longer waited for.
_TRIES = 100

_Key = tuple[str, str, str]


class _Peak(NamedTuple):
    nbytes: int
    # The second, in UTC, as text that sorts.
    used: str


class WorkingMemory:
    """Measured peaks of working memory, in bytes, by model, part and :func:`signature`.

    The least recently used of more than 4096 are forgotten. All methods may be called from any
    thread, and files are read and written without any lock of this process.

    Args:
        path: A file of JSON that keeps them, and that several processes may share: what others
            have learned meanwhile is merged when one saves, the larger value of two. A file that is
            damaged or of another version is replaced, and one that cannot be read or written is
            done without; the log says so.

    Raises:
        InvalidTypeError: ``path`` is no path.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        if path is not None and not isinstance(path, (str, Path)):
            raise InvalidTypeError(f"path is a str or a Path, not {type(path).__name__}")
        self._path = None if path is None else Path(path).expanduser().absolute()
        # By process: a forked child must not wait for threads that it does not have. A finaliser
        # may ask for a peak in the middle of what is done under the lock.
        self._locks: dict[int, threading.RLock] = {}
        self._peaks: OrderedDict[_Key, _Peak] = OrderedDict()
        self._warned = False
        if self._path is not None:
            try:
                self._merge(self._read(self._path))
            except OSError as why:
                self._warn(f"cannot read the working memory of models: {why}")

    def peak(self, key: str, part: str, signature: str) -> int | None:
        """The most bytes that were measured; ``None`` if nothing was. Does not wait.

        Args:
            key: What the model's weights are called.
            part: A component of it.
            signature: What it is called with.
        """
        with self._lock:
            found = self._peaks.get((key, part, signature))
            if found is None:
                return None
            self._peaks[key, part, signature] = _Peak(found.nbytes, _now())
            self._peaks.move_to_end((key, part, signature))
            return found.nbytes

    def largest(self, key: str) -> int:
        """The most bytes that were measured of any call of a model; 0 without any. Does not wait.

        Args:
            key: What the model's weights are called.
        """
        with self._lock:
            peaks = [peak.nbytes for (of, _, _), peak in self._peaks.items() if of == key]
        return max(peaks, default=0)

    def learn(self, key: str, part: str, signature: str, nbytes: int) -> None:
        """Remembers a measured peak; saves it if it is the largest so far. Waits as :meth:`save`.

        Args:
            key: What the model's weights are called.
            part: A component of it.
            signature: What it was called with.
            nbytes: Bytes at the peak, without the weights.

        Raises:
            InvalidValueError: ``nbytes`` is no number of bytes.
        """
        if not isinstance(nbytes, int) or nbytes < 0:
            raise InvalidValueError(f"nbytes is a number of bytes, not {nbytes!r}")
        before = self.peak(key, part, signature)
        if before is None or nbytes > before:
            with self._lock:
                known = self._peaks.pop((key, part, signature), _Peak(0, ""))
                self._peaks[key, part, signature] = _Peak(max(nbytes, known.nbytes), _now())
            self._merge({})
            self.save()

    def save(self) -> None:
        """Writes the file, with what other processes have written. Nothing without a path.

        Waits for the disk, and up to a second for other processes that save. If it fails, the log
        says so once, and what was learned stays in memory.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self._path.with_name(self._path.name + ".lock")):
                self._merge(self._read(self._path))
                with self._lock:
                    peaks = dict(self._peaks)
                _write(self._path, peaks)
        except OSError as why:
            self._warn(f"cannot save the working memory of models, and goes on without: {why}")
        else:
            self._warned = False

    @property
    def _lock(self) -> threading.RLock:
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _merge(self, others: dict[_Key, _Peak]) -> None:
        with self._lock:
            merged = others
            for key, own in list(self._peaks.items()):
                other = merged.pop(key, own)
                merged[key] = _Peak(max(own.nbytes, other.nbytes), max(own.used, other.used))
            # Those of the same second stay in order, the others' first.
            latest = sorted(merged.items(), key=lambda item: item[1].used)[-_MAX_ENTRIES:]
            self._peaks = OrderedDict(latest)

    def _read(self, path: Path) -> dict[_Key, _Peak]:
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {_FORMAT}")
            return {
                (key, part, signature): _Peak(_bytes(peak["bytes"]), str(peak["used"]))
                for key, parts in content["peaks"].items()
                for part, signatures in parts.items()
                for signature, peak in signatures.items()
            }
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as why:
            log.warning(
                "%s is not used, and will be replaced: %s: %s", path, type(why).__name__, why
            )
            return {}

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(message)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _bytes(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


def _write(path: Path, peaks: dict[_Key, _Peak]) -> None:
    """Replaces the file by one with these, whole or not at all."""
    nested: dict[str, dict[str, dict[str, Any]]] = {}
    for (key, part, signature), peak in peaks.items():
        of_part = nested.setdefault(key, {}).setdefault(part, {})
        of_part[signature] = {"bytes": peak.nbytes, "used": peak.used}
    text = json.dumps({"format": _FORMAT, "peaks": nested}, indent=1, sort_keys=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        new.write_text(text + "\n")
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process does the same, where files can be locked; waits a second at most."""
    with path.open("w") as file:
        locked = False
        for _ in range(_TRIES if fcntl else 0):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                # Some file systems have no locks.
                break
        try:
            yield
        finally:
            # A child that was forked meanwhile has it open too.
            if locked:
                fcntl.flock(file, fcntl.LOCK_UN)


def signature(module: torch.nn.Module, args: Any, kwargs: Any) -> str:
    """What working memory depends on in a call: a text that is the same for calls that are alike.

    Shapes and dtypes of all tensors, in lists, tuples, dicts and dataclasses too, those in dicts in
    the order of their names; the dtype of the module's parameters; and whether it works in tiles or
    slices, if it is one that can. Numbers and texts do not count. Does not wait.

    Args:
        module: The module that is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    first = next(module.parameters(), None)
    parts = ["" if first is None else _dtype(first), ", ".join((*_texts(args), *_texts(kwargs)))]
    flags = []
    if hasattr(module, "use_tiling") or hasattr(module, "use_slicing"):
        flags = [name for name in ("tiling", "slicing") if getattr(module, f"use_{name}", False)]
        processors = (getattr(child, "processor", None) for child in module.modules())
        if any("Sliced" in type(processor).__name__ for processor in processors):
            flags.append("attention slicing")
    return " | ".join(filter(None, (*parts, ", ".join(flags))))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, torch.Tensor):
        shape = "x".join(map(str, value.shape)) or "scalar"
        yield f"{name}{'=' if name else ''}{shape} {_dtype(value)}"
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _texts(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, name)
    elif dataclasses.is_dataclass(value):
        yield from _texts(vars(value), name)
