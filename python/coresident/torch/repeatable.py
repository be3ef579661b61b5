"""Calls that can be made once more: what they have changed of their arguments is put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

# What has no state that a call could change, or none that matters.
_ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device),
    *(torch.Size, torch.Generator, torch.nn.Module, type),
)


class Arguments:
    """The lists, dicts and sets in some arguments, as they are now.

    Attributes:
        repeatable: Whether there is nothing else that a call could have changed, such as the cache
            of a language model.
    """

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.repeatable = True
        self._saved: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        self._save((args, kwargs))

    def _save(self, value: Any) -> None:
        if isinstance(value, _ATOMS) or callable(value) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, (list, set)):
            self._saved.append((value, value.copy()))
            items: Any = value
        elif isinstance(value, Mapping):
            if hasattr(value, "update"):
                self._saved.append((value, dict(value)))
            items = value.values()
        elif isinstance(value, (tuple, frozenset)):
            items = value
        else:
            self.repeatable = False
            return
        for item in items:
            self._save(item)

    def restore(self) -> None:
        """Puts back what they had in them."""
        for value, before in self._saved:
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.update(before)


def owned(output: Any, views: Any) -> Any:
    """An output without views of what leaves later: those are copied, in place where that can be.

    Args:
        output: What a call has returned: tensors, and what has tensors in it.
        views: Has a method ``has``, which tells whether a tensor is such a view.
    """
    if isinstance(output, torch.Tensor):
        return output.clone() if views.has(output) else output
    if isinstance(output, tuple):
        own = [owned(item, views) for item in output]
        if all(one is other for one, other in zip(own, output, strict=True)):
            return output
        return type(output)(*own) if hasattr(output, "_fields") else type(output)(own)
    if isinstance(output, list):
        for at, item in enumerate(output):
            if (own := owned(item, views)) is not item:
                output[at] = own
    elif isinstance(output, Mapping):
        for name in list(output):
            if (own := owned(output[name], views)) is not output[name]:
                output[name] = own  # type: ignore[index] # what cannot be written raises
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            value = getattr(output, field.name, None)
            if (own := owned(value, views)) is not value:
                object.__setattr__(output, field.name, own)
    return output
