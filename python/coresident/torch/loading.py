"""`load`: a model from a folder or a function, once for all who load it."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from coresident import _core
from coresident.errors import (
    BudgetExceededError,
    InvalidTypeError,
    InvalidValueError,
    WeightsInUseError,
    WeightsMemoryError,
    WeightsNotOpenError,
)
from coresident.torch import _folder, subclasses
from coresident.torch.installation import install
from coresident.torch.model import Model
from coresident.torch.packing import warn_of_packed
from coresident.torch.room import Room
from coresident.torch.structure import Structure

log = logging.getLogger("coresident.torch")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Loaded:
    """What weights were loaded from, and the structure of their module."""

    def __init__(self, source: object, files: object, dtype: object, structure: Structure) -> None:
        self.source = source
        self.files = files
        self.dtype = dtype
        self.structure = structure
        self.version = 0

    def difference(self, source: object, files: object, dtype: object) -> str | None:
        """In what it differs from what somebody wants; ``None`` if in nothing."""
        if self.source != source:
            return f"it was loaded from {self.source}, not from {source}"
        if self.dtype != dtype:
            return f"its dtype is {self.dtype or 'that of the file'}, not {dtype or 'that'}"
        return None if self.files == files else f"{source} has changed since it was loaded"


_Found = tuple[_core.Weights, Structure, _Loaded]
_Key = tuple[int, str]
_LOADED: weakref.WeakValueDictionary[_Key, _Loaded] = weakref.WeakValueDictionary()
# Of each process: a forked child must not wait for threads that it does not have.
_LOCKS: dict[int, weakref.WeakKeyDictionary[_core.WeightStore, dict[str, _core.LoadLock]]] = {}
_LOCK = threading.RLock()


def load(
    store: _core.WeightStore,
    key: str,
    source: str | Path | Callable[[], torch.nn.Module],
    *,
    dtype: torch.dtype | None = None,
    room: Room | None = None,
    timeout: float | None = None,
    cancel: _core.CancelToken | None = None,
) -> Model:
    """A model whose weights are in the store: read once, shared by all who load it.

    A folder is mapped: its module is built without reading or initialising weights, and takes the
    tensors of the map. Where the file has not what the module wants, such as another dtype, and for
    a function, the module is loaded by its own library, its tensors are copied to the store, and
    the log says why. Calls :func:`~coresident.torch.install`. Waits for others who load the key,
    for the budget, and for what is copied.

    Quantised weights stay packed: tensors of classes of their own, as those of torchao,
    optimum-quanto and GGUF, are in the store as the plain ones that they consist of, with names
    such as ``layer.weight.qdata``, around which each replica has new ones. What torch itself packs
    for the CPU, as ``quantize_dynamic`` does, is no tensor: replicas share it, no budget counts it,
    and devices with memory of their own refuse it. What bitsandbytes packs in 4 bits can be on GPUs
    alone, which nobody has tried; in 8 bits it is refused. A folder that is quantised is loaded by
    a function that has its library do so.

    Args:
        store: The store.
        key: What the weights are called.
        source: A folder as ``save_pretrained`` of diffusers or transformers writes it, or a
            function that makes the module. The module stays the caller's, as it is.
        dtype: The dtype of the parameters, if it is not to be the file's: half, bfloat16, float or
            double. What the model's library keeps in float32 is kept so. A function has to see to
            it itself.
        room: Where it finds room on devices; a runtime gives its own.
        timeout: Seconds to wait for others who load the key; ``None`` waits for ever.
        cancel: A token that ends the wait.

    Returns:
        The model.

    Raises:
        InvalidTypeError: ``source`` is neither a path nor a function, or makes no module.
        InvalidValueError: the folder is none of a model, or the module is one that cannot be
            shared: in 8 bits of bitsandbytes, or moved about by hooks of accelerate; or the dtype
            is another one.
        WeightsInUseError: the key stands for something else: another folder, function or dtype.
        DeadlockError: the function loads the key that it is to make, or two wait for each other's.
        CoresidentError: as :meth:`coresident.WeightStore.open`.
    """
    if not callable(source) and not isinstance(source, (str, Path)):
        given = type(source).__name__
        message = f"source is a folder, or a function that makes a module, not {given}"
        raise InvalidTypeError(message)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InvalidTypeError(f"dtype is one of torch's, not {type(dtype).__name__}")
    if dtype is not None and dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise InvalidValueError(f"dtype is one of {known}, or None for the file's, not {dtype}")
    install()
    folder = None if callable(source) else Path(source).resolve()
    wanted = (source if folder is None else folder, _files(folder), dtype)
    with _lock_of(store, key).write(timeout=timeout, cancel=cancel):
        if (found := _known(store, key, wanted)) is None:
            if folder is None:
                found = _copied(store, key, source, wanted)  # type: ignore[arg-type]
            else:
                pins = room is not None and room.pins_weights
                found = _of_folder(store, key, folder, wanted, pins=pins)
        return Model(*found, room)


def _lock_of(store: _core.WeightStore, key: str) -> _core.LoadLock:
    with _LOCK:
        locks = _LOCKS.setdefault(os.getpid(), weakref.WeakKeyDictionary())
        return locks.setdefault(store, {}).setdefault(key, _core.LoadLock())


def _files(folder: Path | None) -> list[tuple[str, int, int]] | None:
    """What tells a folder's files from others: names, sizes, times."""
    if folder is None or not folder.is_dir():
        return None
    entries = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in entries]


def _known(store: _core.WeightStore, key: str, wanted: tuple[Any, Any, Any]) -> _Found | None:
    """The model that somebody has loaded already.

    Raises:
        WeightsInUseError: it is another one.
    """
    loaded = _LOADED.get((id(store), key))
    try:
        weights = store.acquire(key)
    except WeightsNotOpenError:
        return None
    if loaded is None or weights.version != loaded.version:
        # Somebody has it in the store without a module: the store tells whether it is the same.
        weights.release()
        return None
    if difference := loaded.difference(*wanted):
        path = weights.path
        weights.release()
        raise _in_use(key, difference, path)
    return weights, loaded.structure, loaded


def _in_use(key: str, difference: str, path: Path | None) -> WeightsInUseError:
    told = f"the key {key!r} is in use, and {difference}: release that first, or use another key"
    return WeightsInUseError(told, key, path)


def _made(
    store: _core.WeightStore, weights: _core.Weights, structure: Structure, wanted: Any
) -> _Found:
    source, files, dtype = wanted
    loaded = _Loaded(source, files, dtype, structure)
    loaded.version = weights.version
    _LOADED[id(store), weights.key] = loaded
    return weights, structure, loaded


def _of_folder(
    store: _core.WeightStore, key: str, folder: Path, wanted: Any, *, pins: bool
) -> _Found:
    dtype = wanted[2]
    kind = _folder.class_of(folder)
    # Only to look at: nothing is read but the header.
    with _core.WeightStore().open(key, folder) as seen:
        state = seen.state_dict()
        usual = dtype or _usual_dtype(state)
        module = _folder.structure_of(kind, folder, usual)
        kept = _kept_in_float32(module, usual)
        structure = Structure(module)
        why = _difference(structure, state, dtype) or kept
        del state
    if why is None:
        settings = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
        weights = _opened(store, key, folder, settings, pins=pins)
        return _made(store, weights, structure, wanted)
    library = kind.__module__.split(".")[0]
    log.info("%r is loaded by %s itself and copied to the store: %s", key, library, why)
    return _copied(store, key, lambda: _folder.loaded(kind, folder, usual), wanted)


def _opened(
    store: _core.WeightStore, key: str, folder: Path, settings: Mapping[str, object], *, pins: bool
) -> _core.Weights:
    """The weights of a folder: where they can be page-locked, if they are to be and fit there."""
    try:
        store.acquire(key).release()
    except WeightsNotOpenError:
        if pins:
            try:
                return store.open(key, folder, settings=settings, copy=True)
            except (BudgetExceededError, WeightsMemoryError) as error:
                log.info("%r is mapped, and not page-locked: %s", key, error)
            except WeightsInUseError:
                pass  # Somebody has opened it meanwhile, as it is.
    return store.open(key, folder, settings=settings)


def _copied(
    store: _core.WeightStore,
    key: str,
    make: Callable[[], torch.nn.Module],
    wanted: tuple[Any, Any, Any],
) -> _Found:
    """A model of a module that somebody makes."""
    try:
        other = store.acquire(key)
    except WeightsNotOpenError:
        pass
    else:
        path = other.path
        other.release()
        raise _in_use(key, "it was put into the store by somebody else", path)
    began = time.perf_counter()
    module = make()
    cost = time.perf_counter() - began
    _check(module)
    structure = Structure.of(module)
    found = subclasses.named_parts(module)
    # What is tied has one name, or it would be there once for each.
    state = {names[0]: found[names[0]] for names in structure.names}
    warn_of_packed(key, structure)
    weights = store.share(key, state, copy=True, cost=cost)
    return _made(store, weights, structure, wanted)


def _check(module: Any) -> None:
    """Refuses a module that cannot be shared."""
    if not isinstance(module, torch.nn.Module):
        raise InvalidTypeError(f"source made {type(module).__name__}, which is no module of torch")
    for name, part in module.named_modules():
        if hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook"):
            raise InvalidValueError(
                f"{name or 'the module'} has hooks that move its weights (offloading): make it "
                "without, or remove_hook_from_module() first"
            )
    saved = set(module.state_dict(keep_vars=True))
    buffers = [(name, buffer) for name, buffer in module.named_buffers() if name in saved]
    for name, tensor in (*module.named_parameters(), *buffers):
        subclasses.check(name, tensor)


def _difference(
    structure: Structure, state: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> str | None:
    """Why weights are not those of a structure; ``None`` if they are."""
    wanted: set[str] = set()
    for own, names in zip(structure.tensors(), structure.names, strict=True):
        wanted.update(names)
        found = [name for name in names if name in state]
        if not found:
            return f"the file has no {names[0]!r}"
        tensor = state[found[0]]
        if tensor.shape != own.shape:
            there, here = tuple(tensor.shape), tuple(own.shape)
            return f"{found[0]!r} is {there} in the file, and {here} in the module"
        if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
            return f"{found[0]!r} is {tensor.dtype} in the file, and {dtype} is wanted"
        for other in found[1:]:
            if not torch.equal(state[other], tensor):
                return f"{found[0]!r} and {other!r} are tied, and differ in the file"
    if more := sorted(set(state) - wanted):
        return f"the module has no {more[0]!r}"
    if lost := structure.buffers_without_values():
        return f"the buffer {lost[0]!r} has no values"
    return None


def _kept_in_float32(module: torch.nn.Module, dtype: torch.dtype | None) -> str | None:
    """Why a dtype is not that of all parameters."""
    kept = [
        str(name)
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for name in getattr(module, attribute, None) or ()
    ]
    if kept and dtype in (torch.float16, torch.bfloat16):
        return f"{type(module).__name__} keeps {', '.join(sorted(kept))} in float32"
    return None


def _usual_dtype(state: dict[str, torch.Tensor]) -> torch.dtype | None:
    """What most of the numbers are, of those that torch can have as the default."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in state.values():
        if tensor.dtype in _DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None
