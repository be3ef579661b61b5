"""`Model`: weights in the store, and a module on every device that shares them."""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from coresident import _core
from coresident.errors import (
    InvalidTypeError,
    InvalidValueError,
    ReleasedError,
    WeightsNotOpenError,
)
from coresident.torch import _folder
from coresident.torch.installation import install
from coresident.torch.structure import Structure

log = logging.getLogger("coresident.torch")


class StrayWriteWarning(UserWarning):
    """Parameters of a replica were written: nobody else sees it, and it is not used again."""


class Model:
    """A model whose weights are in a store, once, and of which each device has a replica.

    Made by :func:`load`. All methods may be called from any thread.

    Attributes:
        weights: Its weights in the store.
    """

    def __init__(self, weights: _core.Weights, loaded: _Loaded) -> None:
        self.weights = weights
        loaded.version = weights.version
        self._loaded = loaded
        self._structure = loaded.structure
        self._state = weights.state_dict()
        # Under which name the weights have each tensor of the structure.
        self._order = [_first(names, self._state) for names in self._structure.names]
        copies = set(weights.private().copies())
        self._copies = [at for at, name in enumerate(self._order) if name in copies]
        self._lock = threading.Lock()
        self._idle: dict[_core.Device, list[Replica]] = {}
        self._closed = False

    @property
    def key(self) -> str:
        """The key under which the store has the weights."""
        return self.weights.key

    def replica(self, device: Any) -> Replica:
        """A module on a device, with parameters over the weights of the store.

        On the CPU and on virtual devices that use host memory its parameters are a private map: the
        same memory, until somebody writes them. On a device with memory of its own they are copied
        there from the store. A replica that was released is given again. Does not wait for others.

        Args:
            device: A device, or its name.

        Returns:
            The replica, to be used with ``with`` or released.

        Raises:
            InvalidDeviceError: there is no such device.
            ReleasedError: the model has been closed.
        """
        [device] = _core.devices([device])
        with self._lock:
            if self._closed:
                raise ReleasedError(f"the model {self.key!r} has been closed already")
            idle = self._idle.get(device)
            replica = idle.pop() if idle else None
        return replica._taken() if replica else Replica(self, device)

    def close(self) -> None:
        """Lets go of the weights and of the replicas that nobody uses. Again without effect.

        Replicas in use stay whole until they are released.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        del idle
        self._state = {}
        self.weights.release()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.key!r}: {self._structure.class_name}>"

    def _give_back(self, replica: Replica) -> None:
        with self._lock:
            if not self._closed:
                self._idle.setdefault(replica.device, []).append(replica)


class Replica:
    """A module on one device. Made by :meth:`Model.replica`, and to be used by one job at a time.

    Attributes:
        device: The device.
        module: The module, in eval mode, its parameters without gradients.
    """

    def __init__(self, model: Model, device: _core.Device) -> None:
        self.device = device
        self._model = model
        self._private: _core.PrivateWeights | None = None
        structure, self._canonical = model._structure, model._state
        target = torch.device(device.torch_name)
        if target.type == "cpu":
            self._private = model.weights.private()
            state = self._private.state_dict()
            tensors = [state[name] for name in model._order]
            self._copies = [(at, tensors[at]) for at in model._copies]
        else:
            tensors = [self._canonical[name].to(target) for name in model._order]
            self._copies = list(enumerate(tensors))
        self.module = structure.replica(tensors, lambda buffer: buffer.to(target, copy=True))
        # Of what is no part of a map, only torch tells whether it was written.
        self._versions = [tensor._version for _, tensor in self._copies]
        self._released = False

    def written(self) -> list[str]:
        """The names of parameters and buffers that are no longer what the weights are.

        On a device with memory of its own only what torch has counted is found: writes through
        ``.data`` or another library are not. Does not wait.
        """
        changed = set(self._private.changed()) if self._private else set()
        names = self._model._structure.names
        order = enumerate(self._model._order)
        written = [at for at, name in order if name in changed] if changed else []
        counted = zip(self._copies, self._versions, strict=True)
        written += [at for (at, tensor), before in counted if tensor._version != before]
        return [names[at][0] for at in written]

    def _restore(self) -> None:
        """Makes the weights what they were."""
        if self._private is not None:
            self._private.restore()
        for number, (at, tensor) in enumerate(self._copies):
            if tensor._version != self._versions[number]:
                with torch.no_grad():
                    tensor.copy_(self._canonical[self._model._order[at]])
                self._versions[number] = tensor._version

    def release(self) -> list[str]:
        """Gives the module back for others to use. Again without effect.

        If its weights were written, it is not used again, and a :class:`StrayWriteWarning` names
        them: nobody else's weights have changed, but what this replica has computed since may be
        wrong.

        Returns:
            The names of what was written.
        """
        if self._released:
            return []
        self._released = True
        written = self.written()
        if written:
            shown = ", ".join(written[:5]) + (", ..." if len(written) > 5 else "")
            count = "1 parameter" if len(written) == 1 else f"{len(written)} parameters"
            warnings.warn(
                f"{count} of {self._model.key!r} on {self.device} written to: {shown}; nobody "
                "else's have changed. Do it within writable() if it is meant",
                StrayWriteWarning,
                stacklevel=2,
            )
        else:
            self._model._give_back(self)
        return written

    def _taken(self) -> Replica:
        self._released = False
        return self

    def __enter__(self) -> Replica:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<Replica of {self._model.key!r} on {self.device}{state}>"


class _Loaded:
    """What is known of weights that somebody has loaded."""

    def __init__(self, source: object, settings: dict[str, str], structure: Structure) -> None:
        self.source = source
        self.settings = settings
        self.structure = structure
        self.version = 0


_LOADED: weakref.WeakValueDictionary[tuple[int, str], _Loaded] = weakref.WeakValueDictionary()
_LOCKS: weakref.WeakKeyDictionary[_core.WeightStore, dict[str, threading.Lock]]
_LOCKS = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def load(
    store: _core.WeightStore,
    key: str,
    source: str | Path | Callable[[], torch.nn.Module],
    *,
    dtype: torch.dtype | None = None,
) -> Model:
    """A model whose weights are in the store: read once, shared by all who load it.

    A folder is mapped: its module is built without reading or initialising weights, and takes the
    tensors of the map. Where the file has not what the module wants, such as another dtype, and for
    a function, the module is loaded by its own library, its tensors are copied to the store, and
    the log says why. Calls :func:`~coresident.torch.install`. Waits for others who load the key,
    for the budget, and for what is copied.

    Args:
        store: The store.
        key: What the weights are called.
        source: A folder as ``save_pretrained`` of diffusers or transformers writes it, or a
            function that makes the module.
        dtype: The dtype of the parameters, if it is not to be the file's. What the model's library
            keeps in float32 is kept so. A function has to see to it itself.

    Returns:
        The model.

    Raises:
        InvalidTypeError: ``source`` is neither a path nor a function, or makes no module.
        InvalidValueError: the folder is none of a model, or the module is one that cannot be
            shared: quantised, or moved about by hooks of accelerate.
        WeightsInUseError: the key stands for something else, such as another dtype.
        CoresidentError: as :meth:`coresident.WeightStore.open`.
    """
    if not callable(source) and not isinstance(source, (str, Path)):
        given = type(source).__name__
        message = f"source is a folder, or a function that makes a module, not {given}"
        raise InvalidTypeError(message)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InvalidTypeError(f"dtype is one of torch's, not {type(dtype).__name__}")
    install()
    settings = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    source = source if callable(source) else Path(source)
    with _LOCK:
        lock = _LOCKS.setdefault(store, {}).setdefault(key, threading.Lock())
    with lock:
        if (model := _known(store, key, source, settings)) is None:
            if callable(source):
                model = _copied(store, key, source, settings, source)
            else:
                model = _of_folder(store, key, source, dtype, settings)
            _LOADED[id(store), key] = model._loaded
        return model


def _known(
    store: _core.WeightStore, key: str, source: object, settings: dict[str, str]
) -> Model | None:
    """The model that somebody has loaded already."""
    loaded = _LOADED.get((id(store), key))
    if loaded is None or (loaded.source, loaded.settings) != (source, settings):
        # Of another source or with other settings: the store tells the difference.
        return None
    try:
        weights = store.acquire(key)
    except WeightsNotOpenError:
        return None
    if weights.version != loaded.version:
        weights.release()
        return None
    return Model(weights, loaded)


def _of_folder(
    store: _core.WeightStore,
    key: str,
    folder: Path,
    dtype: torch.dtype | None,
    settings: dict[str, str],
) -> Model:
    kind = _folder.class_of(folder)
    # Only to look at: nothing is read but the header.
    with _core.WeightStore().open(key, folder) as seen:
        state = seen.state_dict()
        usual = dtype or _usual_dtype(state)
        structure = Structure(_folder.structure_of(kind, folder, usual))
        why = _difference(structure, state, dtype) or _kept_in_float32(kind, usual)
        del state
    if why is None:
        weights = store.open(key, folder, settings=settings)
        return Model(weights, _Loaded(folder, settings, structure))
    library = kind.__module__.split(".")[0]
    log.info("%r is loaded by %s itself and copied to the store: %s", key, library, why)
    return _copied(store, key, lambda: _folder.loaded(kind, folder, usual), settings, folder)


def _copied(
    store: _core.WeightStore,
    key: str,
    make: Callable[[], torch.nn.Module],
    settings: dict[str, str],
    source: object,
) -> Model:
    """A model of a module that somebody makes."""
    module = make()
    _check(module)
    state = module.state_dict(keep_vars=True)
    weights = store.share(key, state, settings=settings, copy=True)
    del state
    return Model(weights, _Loaded(source, settings, Structure(_emptied(module))))


def _emptied(module: torch.nn.Module) -> torch.nn.Module:
    """The module with the same parameters, but without their memory."""
    saved = module.state_dict(keep_vars=True)
    for tensor in (*module.parameters(), *saved.values()):
        tensor.data = tensor.data.new_empty(0)
    return module


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
    for name, parameter in module.named_parameters():
        if type(parameter) is not torch.nn.Parameter or type(parameter.data) is not torch.Tensor:
            kind = type(parameter.data if type(parameter) is torch.nn.Parameter else parameter)
            raise InvalidValueError(
                f"{name} is a {kind.__name__}: parameters that are quantised or otherwise not "
                "plain tensors cannot be shared"
            )
        if parameter.is_meta:
            raise InvalidValueError(f"{name} has no values: it is on the meta device")


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
    if more := sorted(set(state) - wanted):
        return f"the module has no {more[0]!r}"
    if lost := structure.buffers_without_values():
        return f"the buffer {lost[0]!r} has no values"
    return None


def _kept_in_float32(kind: type[torch.nn.Module], dtype: torch.dtype | None) -> str | None:
    """Why a dtype is not that of all parameters."""
    kept = getattr(kind, "_keep_in_fp32_modules", None)
    kept = kept or getattr(kind, "_keep_in_fp32_modules_strict", None)
    if kept and dtype in (torch.float16, torch.bfloat16):
        return f"{kind.__name__} keeps {', '.join(map(str, kept))} in float32"
    return None


def _usual_dtype(state: dict[str, torch.Tensor]) -> torch.dtype | None:
    """What most of the numbers are, of those that torch can have as the default."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in state.values():
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _first(names: list[str], state: dict[str, Any]) -> str:
    return next(name for name in names if name in state)
