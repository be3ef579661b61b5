"""Replicas that are changed on purpose, and are what they were afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from coresident.errors import InvalidTypeError, InvalidValueError
from coresident.torch.model import Replica


@contextmanager
def writable(replica: Replica) -> Iterator[torch.nn.Module]:
    """Lets a replica's module be changed until the block ends: its parameters written, its parts
    replaced, adapters put in. Then it is what it was, also after an exception.

    In host memory only the pages that are written are copied, and given back in the end. On a
    device with memory of its own, what torch has counted as written is copied from the store
    again; writes through ``.data`` are not counted there. Nobody else sees any of it.

    Args:
        replica: The replica.

    Yields:
        Its module.

    Raises:
        InvalidTypeError: it is no :class:`Replica`.
        ReleasedError: it has been released.
    """
    if not isinstance(replica, Replica):
        raise InvalidTypeError(f"only a Replica can be writable, not {type(replica).__name__}")
    module = replica.module
    before = _Snapshot(module)
    try:
        yield module
    finally:
        before.restore()
        replica._restore()


@contextmanager
def lora(
    replica: Replica,
    adapter: str | Path | Mapping[str, torch.Tensor],
    *,
    scale: float = 1.0,
    prefix: str | None = None,
) -> Iterator[torch.nn.Module]:
    """A LoRA on one replica until the block ends, as diffusers loads it; other replicas have none.

    Args:
        replica: A replica of one of diffusers' models.
        adapter: A safetensors file, or its tensors by name.
        scale: How strong it is.
        prefix: Which of the names are meant, such as ``"unet"``; ``None`` for all.

    Yields:
        The module with its adapter.

    Raises:
        InvalidTypeError: ``replica`` is no :class:`Replica`.
        InvalidValueError: the model takes no adapters.
    """
    with writable(replica) as module:
        if not hasattr(module, "load_lora_adapter"):
            kind = type(module).__name__
            raise InvalidValueError(f"{kind} has no load_lora_adapter(): it takes no LoRA so")
        if isinstance(adapter, Mapping):
            tensors = dict(adapter)
        else:
            from safetensors.torch import load_file

            tensors = load_file(adapter)
        module.load_lora_adapter(tensors, prefix=prefix, adapter_name="coresident")
        module.set_adapters("coresident", scale)
        # What peft adds is in training mode, and wants gradients.
        module.eval().requires_grad_(False)
        yield module


class _Snapshot:
    """What a module is made of, without the values of its weights."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parts = [
            (part, type(part), dict(vars(part)), _copies_of_mappings(part))
            for part in module.modules()
        ]
        self._parameters = [
            (parameter, parameter.data, parameter.requires_grad)
            for parameter in module.parameters()
        ]
        saved = set(module.state_dict(keep_vars=True))
        self._buffers = [
            (buffer, buffer.clone()) for name, buffer in module.named_buffers() if name not in saved
        ]

    def restore(self) -> None:
        for part, kind, attributes, mappings in self._parts:
            part.__class__ = kind
            vars(part).clear()
            vars(part).update(attributes)
            for mapping, content in mappings:
                mapping.clear()
                mapping.update(content)
        for parameter, data, requires_grad in self._parameters:
            parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for buffer, content in self._buffers:
            buffer.copy_(content)


def _copies_of_mappings(part: torch.nn.Module) -> list[tuple[Any, Any]]:
    """The dicts and sets that a module has itself, and what is in them."""
    return [
        (value, value.copy())
        for value in vars(part).values()
        if type(value) in (dict, OrderedDict, set)
    ]
