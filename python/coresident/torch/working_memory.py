"""How much memory an operation needs beside the weights: measured before, or else estimated."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
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
            for key, own in self._peaks.items():
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


# How many of its widest feature maps a VAE has room for; `estimate` says where it is from.
_MAPS = 8.6
# How much of its output is kept beside a tile: tiles, which overlap, their rows, and the whole.
_KEPT = 4
# In configurations of decoders that make fewer channels before they enlarge, not after.
_FEWER_FIRST = {"spatio_temporal_scaling", "temporal_expansions", "upsample_match_channel"}


def estimate(module: Any, part: str, args: Any, kwargs: Any) -> int | None:
    """Working memory of a VAE's encoder or decoder, as long as nobody has measured it.

    Room for 8.6 of the widest feature maps: those with the resolution of the pixels, or deeper ones
    that have so many more channels. It is what InvokeAI has found on GPUs, with what the allocator
    and cuDNN take: 2200 elements per pixel to decode with the VAEs of SD and SDXL, which have 256
    channels there, and 1100 to encode, where they have 128. ComfyUI takes 2178 and 1767. What is
    live at once (:class:`~coresident.torch.activations.Activations`) are 3 to 8 such maps. Where
    convolutions keep and pad the frames of a video, one frame more is counted, and then it is 3 to
    8 there too; compare InvokeAI's 2900 for one frame of Qwen's and Wan's VAEs, which is 3300 here,
    and ComfyUI's 7000 for four, here 8300. For all VAEs in the tests it is at least what is
    measured, and at most four times that. For inference, with attention that keeps no score matrix.

    Args:
        module: A VAE of diffusers, with ``encoder``, ``decoder`` and the channels of their blocks
            in its configuration.
        part: ``"encoder"`` or ``"decoder"``.
        args: What that child is called with.
        kwargs: The same, by name.

    Returns:
        Bytes beside the weights; ``None`` for everything else. Does not wait.
    """
    call = _call(module, part, args, kwargs)
    return None if call is None else call.peak(call.height, call.width)


def tiled(module: Any, part: str, args: Any, kwargs: Any) -> int | None:
    """The :func:`estimate` of the same call, were the VAE's tiling enabled.

    For one tile, and the output of all tiles for those frames that are in the call.

    Args:
        module: As for :func:`estimate`, like the others.
        part: ``"encoder"`` or ``"decoder"``.
        args: What that child is called with.
        kwargs: The same, by name.

    Returns:
        Bytes beside the weights; ``None`` if there is no estimate, if the VAE has no tiling or has
        it enabled, or if a tile is not smaller than the whole. Does not wait.
    """
    call = _call(module, part, args, kwargs)
    if call is None or getattr(module, "use_tiling", True):
        return None
    height, width = (_tile(module, part, side, call.scale) for side in ("height", "width"))
    if not height or not width or (height >= call.height and width >= call.width):
        return None
    kept = math.ceil(_KEPT * call.output * call.height * call.width)
    return call.peak(min(height, call.height), min(width, call.width)) + kept


class _Call(NamedTuple):
    """A call of a VAE's encoder or decoder."""

    # Of the input; and how many pixels high and wide one of its elements is.
    height: int
    width: int
    scale: float
    # Bytes for each of height times width: of the widest feature map, and of what comes out.
    widest: float
    output: float

    def peak(self, height: int, width: int) -> int:
        return math.ceil(_MAPS * self.widest * height * width)


def _call(vae: Any, part: str, args: Any, kwargs: Any) -> _Call | None:
    """What is known of a call; ``None`` if it is none of an encoder or decoder."""
    config, child = getattr(vae, "config", None), getattr(vae, part, None)
    x = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
    if part not in ("encoder", "decoder") or child is None or x is None or x.dim() not in (4, 5):
        return None
    # What wavelets do to the resolution, a configuration does not tell.
    if not isinstance(config, Mapping) or "patch_type" in config:
        return None
    channels = _channels(config, part)
    if not channels:
        return None
    patch = config["patch_size"] if isinstance(config.get("patch_size"), int) else 1
    scale = _number(vae, "scale_factor_spatial", "spatial_compression_ratio")
    scale = scale or 2 ** (len(channels) - 1)
    halvings = math.log2(max(1, scale / patch))
    frames = x.shape[2] if x.dim() == 5 else 1
    if part == "decoder":
        grid, output = scale / patch, 3.0 * scale**2
        frames *= _frames(vae, kwargs, frames) if x.dim() == 5 else 1
        shuffles = config.get("upsample_block_type") == "pixel_shuffle"
        if not shuffles and not _FEWER_FIRST.intersection(config):
            channels = [max(pair) for pair in zip(channels, [*channels[1:], 0], strict=True)]
        if any(hasattr(module, "conv_y") for module in child.modules()):
            # Norms that enlarge the latents to the size of each map.
            channels = [number + x.shape[1] for number in channels]
    else:
        # Means and variances, and what is computed of those.
        output = 3 * (_number(vae, "latent_channels", "z_dim") or 0) / scale**2
        # It makes the patches itself, or is given them.
        grid, scale = 1 / (_number(child, "patch_size") or 1), 1
    widest = max(number / 4 ** min(level, halvings) for level, number in enumerate(channels))
    parameter = next(child.parameters(), x)
    frame = x.shape[0] * max(x.element_size(), parameter.element_size())
    # One more is what convolutions of video keep and pad.
    widest *= frame * (frames + (x.dim() == 5)) * grid**2
    return _Call(x.shape[-2], x.shape[-1], scale, widest, output * frame * frames)


def _channels(config: Mapping[str, Any], part: str) -> list[int]:
    """The channels of a part's blocks, from the pixels on; none if they are not known."""
    direction = "down" if part == "encoder" else "up"
    for name in (f"{part}_block_out_channels", f"{direction}_block_out_channels"):
        if found := config.get(name):
            return list(found)
    if found := config.get("block_out_channels"):
        return list(found)
    base = config.get(f"{part}_base_dim") or config.get("base_dim") or config.get("channels")
    return [base * factor for factor in config.get("dim_mult") or config.get("ch_mult") or ()]


def _number(owner: Any, *names: str) -> int | None:
    """The first of these that there is, in a configuration or as an attribute."""
    config = getattr(owner, "config", {})
    found = (config.get(name) or getattr(owner, name, None) for name in names)
    return next((number for number in found if isinstance(number, int)), None)


def _frames(vae: Any, kwargs: Mapping[str, Any], latents: int) -> int:
    """How many frames a decoder makes of each frame of latents."""
    caches = [kwargs[name] for name in ("feat_cache", "conv_cache") if name in kwargs]
    if latents == 1 and caches and all(kept is None for kept in caches[0] or ()):
        # The first one is not made more.
        return 1
    if ratio := _number(vae, "scale_factor_temporal", "temporal_compression_ratio"):
        return ratio
    if halved := vae.config.get("temperal_downsample"):
        return int(2 ** sum(halved))
    of_pixels = _number(vae, "num_sample_frames_batch_size") or 1
    return of_pixels // (_number(vae, "num_latent_frames_batch_size") or 1)


def _tile(vae: Any, part: str, side: str, scale: float) -> int | None:
    """The height or width of a tile, of the input of a part."""
    kinds = [("latent", 1.0)] if part == "decoder" else []
    for kind, divisor in (*kinds, ("sample", scale)):
        for name in (side, "size"):
            size = getattr(vae, f"tile_{kind}_min_{name}", None)
            if size:
                return int((size[0] if isinstance(size, (list, tuple)) else size) // divisor)
    return None
