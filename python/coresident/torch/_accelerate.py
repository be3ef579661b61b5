"""accelerate's and peft's way of building modules on another device: for one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from coresident.torch._switch import Swaps, Switch


def replace(big_modeling: ModuleType, register_parameter: Switch, swaps: Swaps) -> None:
    """`init_on_device`, on which `init_empty_weights` rests, changes no other thread.

    Follows accelerate's `big_modeling.py`.
    """
    from accelerate.utils import parse_flag_from_env

    @contextmanager
    def init_on_device(device: torch.device, include_buffers: bool | None = None) -> Iterator[None]:
        if include_buffers is None:
            include_buffers = parse_flag_from_env("ACCELERATE_INIT_INCLUDE_BUFFERS", False)
        if include_buffers:
            # A mode of torch, which is the thread's own.
            with torch.device(device):
                yield
            return
        with register_parameter.leading_to(on(device, register_parameter.current)):
            yield

    swaps.add(big_modeling, "init_on_device", init_on_device)


def replace_in_peft(integrations: ModuleType, register_parameter: Switch, swaps: Swaps) -> None:
    """The same for peft's copy of it, in `peft/utils/integrations.py`, which some layers skip."""
    skipping = threading.local()
    original = integrations._init_on_device

    @contextmanager
    def _init_on_device(
        device: torch.device, include_buffers: bool | None = None
    ) -> Iterator[None]:
        if include_buffers:
            # Nothing in peft does so.
            with original(device, include_buffers):
                yield
            return
        skipped = lambda: getattr(skipping, "skip", False)  # noqa: E731
        with register_parameter.leading_to(on(device, register_parameter.current, skipped)):
            yield

    @contextmanager
    def _skip_init_on_device() -> Iterator[None]:
        before = getattr(skipping, "skip", False)
        skipping.skip = True
        try:
            yield
        finally:
            skipping.skip = before

    swaps.add(integrations, "_init_on_device", _init_on_device)
    swaps.add(integrations, "_skip_init_on_device", _skip_init_on_device)


def on(
    device: torch.device,
    register: Callable[..., None],
    skipped: Callable[[], bool] = lambda: False,
) -> Callable[..., None]:
    """Registers a parameter, and moves it to the device: as a new one of its class."""

    def register_parameter(
        module: torch.nn.Module, name: str, param: torch.nn.Parameter | None
    ) -> None:
        register(module, name, param)
        registered = module._parameters.get(name)
        if registered is None or skipped():
            return
        attributes = dict(vars(registered))
        # No argument of the constructor, but transformers' own note.
        noted = {key: attributes.pop(key) for key in ("_is_hf_initialized",) if key in attributes}
        attributes["requires_grad"] = registered.requires_grad
        moved = type(registered)(registered.to(device), **attributes)
        vars(moved).update(noted)
        module._parameters[name] = moved

    return register_parameter
