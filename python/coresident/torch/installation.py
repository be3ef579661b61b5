"""`install`: threads that load models no longer change each other's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from coresident.errors import CoresidentError
from coresident.torch import _accelerate, _default_dtype, _diffusers, _lazy, _transformers
from coresident.torch._switch import Swaps, Switch, turned

log = logging.getLogger("coresident.torch")

# The releases that this was read from and tested with: from, and up to but without.
KNOWN = {
    "torch": ((2, 15), (2, 16)),
    "accelerate": ((1, 15), (1, 16)),
    "diffusers": ((0, 42), (0, 43)),
    "transformers": ((5, 23), (5, 25)),
    "peft": ((0, 21), (0, 22)),
}


class Installation:
    """What :func:`install` has changed.

    Attributes:
        versions: The release of each library that was found.
        unknown: Those of them whose release this library was not tested with.
    """

    def __init__(self) -> None:
        self.versions = {name: version for name in KNOWN if (version := _version(name))}
        self.unknown = [name for name in self.versions if not _is_known(name, self.versions[name])]
        self._swaps = Swaps()
        self._switches: list[Switch] = []
        self._without_values: list[tuple[Switch, Callable[..., Any]]] = []

    def uninstall(self) -> None:
        """Undoes everything. Models that are being loaded meanwhile are as they were without.

        Again without effect.
        """
        global _installed
        with _LOCK:
            if _installed is not self:
                return
            self._undo()
            _installed = None

    def _undo(self) -> None:
        self._swaps.uninstall()
        for switch in self._switches:
            switch.uninstall()

    def _apply(self) -> None:
        register_parameter = self._switch("register_parameter", torch.nn.Module)
        on_meta = _accelerate.on(torch.device("meta"), register_parameter.original)
        self._without_values.append((register_parameter, on_meta))
        self._swaps.add(torch, "get_default_dtype", _default_dtype.get_default_dtype)
        self._swaps.add(torch, "set_default_dtype", _default_dtype.set_default_dtype)
        if (big_modeling := self._find("accelerate.big_modeling")) is not None:
            _accelerate.replace(big_modeling, register_parameter, self._swaps)
        if (integrations := self._find("peft.utils.integrations")) is not None:
            _accelerate.replace_in_peft(integrations, register_parameter, self._swaps)
        modeling = self._find("diffusers.models.modeling_utils")
        initialization = self._find("transformers.initialization")
        initialisers = self._initialisers(modeling, initialization)
        self._without_values += [(switch, _diffusers.nothing) for switch in initialisers.values()]
        if modeling is not None:
            _diffusers.replace(modeling, initialisers, self._swaps)
        if initialization is not None:
            utils = importlib.import_module("transformers.modeling_utils")
            names = ("init_weights", "tie_weights")
            methods = {name: self._switch(name, utils.PreTrainedModel) for name in names}
            self._without_values.append((methods["init_weights"], _diffusers.nothing))
            _transformers.replace(initialization, utils, initialisers, methods, self._swaps)
            _transformers.forget_constructors()
            if big_modeling is not None:
                check = self._switch("check_device_map", big_modeling)
                integrations = importlib.import_module("transformers.integrations.accelerate")
                _transformers.replace_in_dispatch(integrations, check, self._swaps)
        for lazy in ("diffusers.utils.import_utils", "transformers.utils.import_utils"):
            if (found := self._find(lazy)) is not None:
                _lazy.replace(found, self._swaps)
        for switch in self._switches:
            switch.install()
        self._swaps.install()

    def _find(self, module: str) -> ModuleType | None:
        """A module, if its library is there."""
        return importlib.import_module(module) if module.split(".")[0] in self.versions else None

    def _switch(self, name: str, *owners: type | ModuleType) -> Switch:
        for owner in owners:
            function = vars(owner)[name]
            if function.__name__ != name:
                raise CoresidentError(
                    f"{owner.__name__}.{name} is {function.__module__}.{function.__qualname__} "
                    "now: a model is being loaded, or two that were loaded at once have left it "
                    "there. Call install() before any model is loaded"
                )
        switch = Switch(name, *owners)
        self._switches.append(switch)
        return switch

    def _initialisers(
        self, modeling: ModuleType | None, initialization: ModuleType | None
    ) -> dict[str, Switch]:
        """A switch for each of torch's functions that give parameters their first values."""
        names: set[str] = set()
        modules = ["torch.nn.init"]
        if modeling is not None:
            names |= set(modeling.TORCH_INIT_FUNCTIONS)
        if initialization is not None:
            names |= set(initialization.TORCH_INIT_FUNCTIONS)
            modules += initialization.TORCH_MODULES_TO_PATCH
        owners = [importlib.import_module(name) for name in dict.fromkeys(modules)]
        return {
            name: self._switch(name, *(owner for owner in owners if name in vars(owner)))
            for name in sorted(names)
        }


_LOCK = threading.Lock()
_installed: Installation | None = None


def install() -> Installation:
    """Makes loading models safe in threads: what diffusers, transformers, accelerate and peft
    change in torch while they build a model, they change for the thread that builds it.

    Without it they change `torch.nn.Module.register_parameter`, the default dtype, `torch.nn.init`,
    `tie_weights` and `torch.linspace` for the whole process, and threads that load or move models
    meanwhile get parameters without data, or of another dtype; some of it stays for good. With it
    no load waits for another and no move for a load.

    The default dtype of a thread that builds is kept by a mode of torch, which does not see what
    the constructor ``torch.Tensor(...)`` itself makes: that has the dtype of the process. Kernels
    that are chosen for a while (``attention_backend``, ``sdpa_kernel``) and DeepSpeed ZeRO-3 are
    not covered.

    Call it once, before models are loaded. Imports those of the four libraries that are installed.
    Does not wait.

    Returns:
        What was changed; the same if it is called again.

    Raises:
        CoresidentError: a model is being loaded, or the process is spoilt already.
    """
    global _installed
    with _LOCK:
        if _installed is None:
            installation = Installation()
            for name in installation.unknown:
                (first, end) = (".".join(map(str, release)) for release in KNOWN[name])
                log.warning(
                    "%s %s is not known: this was tested with %s up to, not including, %s",
                    name,
                    installation.versions[name],
                    first,
                    end,
                )
            try:
                installation._apply()
            except BaseException:
                installation._undo()
                raise
            _installed = installation
        return _installed


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that this thread makes have parameters on the meta device until the block ends; their
    buffers are made."""
    with turned(install()._without_values):
        yield


def _version(library: str) -> str | None:
    if importlib.util.find_spec(library) is None:
        return None
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_known(library: str, version: str) -> bool:
    first, end = KNOWN[library]
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    return first <= release < end
