"""Replicas that are changed on purpose, and are what they were afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from coresident.errors import InvalidTypeError, InvalidValueError
from coresident.torch.replica import Replica


@contextmanager
def writable(replica: Replica) -> Iterator[torch.nn.Module]:
    """Lets a replica's module be changed until the block ends: its parameters written, its parts
    replaced, adapters put in. Then it is as a new one, also after an exception: what was done to it
    before the block, such as hooks, is gone too, and its parameters are other objects.

    Within :meth:`Replica.on` the device has pages for this replica alone, and what is written there
    is copied to its host memory when that ends.

    Of a model that is streamed, all tensors of blocks are in host memory between the calls of their
    block. Whatever is written there is found before the next call, also if it was through ``.data``
    or numpy: by the system's table of pages, and by sums of what was ever written. What is written
    in a block's own call, as by its hooks, is kept if torch counts it. What torch does not count
    there is found in the first, second, fourth, eighth call and so on, and from then on in each.
    While other blocks are called, ``.data`` and ``detach()`` of its tensors are in host memory.

    Parameters whose ``.data`` is replaced, as by ``module.to()``, stay what they were made, before,
    within and after ``on()``: they are on the device beside the rest, and are not streamed.

    In host memory only the pages that are written are copied, and given back in the end. On a
    device with memory of its own, but without pages, what torch has counted as written is copied
    from the store again; writes through ``.data`` are not counted there. Nobody else sees any of
    it.

    Args:
        replica: The replica.

    Yields:
        Its module.

    Raises:
        InvalidTypeError: it is no :class:`Replica`.
        InvalidValueError: it is writable already: blocks cannot be in one another; or it is on a
            device by :meth:`Replica.on`, which has to be within this.
        ReleasedError: it has been released.
    """
    if not isinstance(replica, Replica):
        raise InvalidTypeError(f"only a Replica can be writable, not {type(replica).__name__}")
    with replica._lock:
        replica._check()
        if replica._writable:
            raise InvalidValueError(f"{replica!r} is writable already: do it all in one block")
        if replica._residing:
            raise InvalidValueError(
                f"{replica!r} is on its device, where others use the same memory: begin "
                "writable() first, and on() within it"
            )
        replica._writable = True
    try:
        yield replica.module
    finally:
        try:
            replica._restore()
        finally:
            replica._writable = False


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
        prefix: Which of the names are meant, such as ``"unet"``; ``None`` for all, without the
            name of a component that all of them have.

    Yields:
        The module with its adapter.

    Raises:
        InvalidTypeError: ``replica`` is no :class:`Replica`.
        InvalidValueError: the model takes no adapters, or this is none for it.
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
        prefix = prefix if prefix is not None else _prefix_of(tensors)
        try:
            module.load_lora_adapter(tensors, prefix=prefix, adapter_name=_NAME)
        except (IndexError, KeyError, ValueError) as why:
            raise _no_lora(module, tensors, str(why)) from why
        if _NAME not in getattr(module, "peft_config", ()):
            raise _no_lora(module, tensors, f"nothing of it is for {prefix!r}")
        module.set_adapters(_NAME, scale)
        # What peft adds is in training mode, and wants gradients.
        module.eval().requires_grad_(False)
        yield module


_NAME = "coresident"
# What diffusers puts before the names of a model's tensors, in files for whole pipelines.
_COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def _prefix_of(tensors: Mapping[str, Any]) -> str | None:
    """The component that all tensors are for."""
    first = {name.split(".")[0] for name in tensors}
    return next((name for name in _COMPONENTS if first == {name}), None)


def _no_lora(module: torch.nn.Module, tensors: Mapping[str, Any], why: str) -> InvalidValueError:
    shown = ", ".join(list(tensors)[:3]) or "nothing"
    kind = type(module).__name__
    return InvalidValueError(f"this is no LoRA for {kind}: {why}; it has {shown}, ...")
