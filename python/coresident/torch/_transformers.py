"""transformers' way of building models: for one thread."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from coresident.torch._default_dtype import default_dtype
from coresident.torch._diffusers import nothing
from coresident.torch._switch import Swaps, Switch, turned

log = logging.getLogger("coresident.torch")


def replace(
    init: ModuleType,
    utils: ModuleType,
    initialisers: dict[str, Switch],
    methods: dict[str, Switch],
    swaps: Swaps,
) -> None:
    """The contexts in which models are built change no other thread.

    Follows transformers' `initialization.py` and `modeling_utils.py`.
    """

    @contextmanager
    def guard_torch_init_functions() -> Iterator[None]:
        names = init.TORCH_INIT_FUNCTIONS
        with turned((initialisers[name], vars(init)[name]) for name in names):
            yield

    @contextmanager
    def no_init_weights() -> Iterator[None]:
        switches = [initialisers[name] for name in init.TORCH_INIT_FUNCTIONS]
        with turned((switch, nothing) for switch in (*switches, methods["init_weights"])):
            yield

    @contextmanager
    def no_tie_weights() -> Iterator[None]:
        with methods["tie_weights"].leading_to(nothing):
            yield

    @contextmanager
    def meta_device_safe_creation_ops() -> Iterator[None]:
        with _LinspaceOnHost():
            yield

    @contextmanager
    def local_torch_dtype(
        dtype: torch.dtype, model_class_name: str | None = None
    ) -> Iterator[None]:
        if not dtype.is_floating_point:
            what = (
                f"{model_class_name} cannot be built" if model_class_name else "nothing can be made"
            )
            raise ValueError(f"{what} with {dtype} as the default: it is no floating-point dtype")
        with default_dtype(dtype):
            yield

    patching = threading.RLock()
    patches = importlib.import_module("transformers.monkey_patching")
    original = patches.apply_patches

    @contextmanager
    def apply_patches() -> Iterator[None]:
        if not patches.get_patch_mapping():
            yield
            return
        if not patching.acquire(blocking=False):
            log.info(
                "a model of transformers waits for another one to be built: classes are replaced "
                "(register_patch_mapping), which they are for the whole process"
            )
            patching.acquire()
        try:
            names = _classes_of_transformers()
            try:
                with original():
                    yield
            finally:
                # The original does not, if building fails.
                for module, name, value in names:
                    setattr(module, name, value)
        finally:
            patching.release()

    swaps.add(patches, "apply_patches", apply_patches)
    for function in (
        guard_torch_init_functions,
        no_init_weights,
        no_tie_weights,
        meta_device_safe_creation_ops,
    ):
        swaps.add(init, function.__name__, function)
    swaps.add(utils, "local_torch_dtype", local_torch_dtype)
    # The original was made with the original context.
    guarded = vars(utils.PreTrainedModel)["initialize_weights"]
    swaps.add(
        utils.PreTrainedModel, "initialize_weights", _within(guard_torch_init_functions, guarded)
    )


def _classes_of_transformers() -> list[tuple[ModuleType, str, type]]:
    """What every module of transformers has under the name of a class."""
    return [
        (module, name, value)
        for module_name, module in list(sys.modules.items())
        if module_name.startswith("transformers.")
        for name, value in list(getattr(module, "__dict__", {}).items())
        if isinstance(value, type)
    ]


def forget_constructors() -> None:
    """Has torch find anew which functions make tensors on the device of a block.

    It keeps what it has found first: while a model is built `torch.linspace` is transformers' own,
    and with torch's, numbers are on the CPU for good.
    """
    found = getattr(torch.utils._device, "_device_constructors", None)
    if found is not None:
        found.cache_clear()


def replace_in_dispatch(integrations: ModuleType, check_device_map: Switch, swaps: Swaps) -> None:
    """A check that transformers skips for some models is skipped in this thread alone.

    Follows transformers' `integrations/accelerate.py`.
    """

    @contextmanager
    def skip_device_map_check() -> Iterator[None]:
        with check_device_map.leading_to(nothing):
            yield

    swaps.add(integrations, "skip_device_map_check", skip_device_map_check)


def _within(context: Callable[[], Any], decorated: Any) -> Callable[..., Any]:
    """What context managers decorate, without gradients and in another context."""
    function = inspect.unwrap(decorated)

    @functools.wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), context():
            return function(*args, **kwargs)

    return within


class _LinspaceOnHost(TorchFunctionMode):
    """Has `torch.linspace` make numbers, also where all else is on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)
