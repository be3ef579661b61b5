"""What happens to tensors of a streamed model while they are away, in host memory.

A block's tensors are on the device while it is called, and whoever computes with them then computes
there. Some models also compute with them outside: they call a part of a block, or hand its weight
to a function. So those that are away are of a class of their own, which torch asks before it
computes: within a call of the model, or beside what is on the device, their block is visited for
that one operation, and what would be a view of them is a copy. Nobody else pays for that: those
that are there are of torch's own classes.

Always, and wherever an interrupt comes: whoever is of such a class is in host memory.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from coresident.torch.untraced import untraced

if TYPE_CHECKING:
    from coresident.torch.streamed import Streamed

# Who has which tensor, by its ``id``.
_STREAMED: weakref.WeakValueDictionary[int, Streamed] = weakref.WeakValueDictionary()

# What is told of a tensor wherever it is, or read on the host anyway.
_TOLD = {
    *("__set__", "__format__", "__len__", "__hash__", "__deepcopy__", "__reduce_ex__"),
    *("size", "stride", "dim", "ndimension", "numel", "nelement", "element_size", "get_device"),
    *("is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_shared", "is_pinned"),
    *("is_inference", "is_set_to", "is_same_size", "storage_offset", "has_names", "result_type"),
    *("untyped_storage", "storage", "_typed_storage", "data_ptr", "requires_grad_", "cpu"),
    *("numpy", "__array__", "tolist", "item", "register_hook"),
}
# Attributes that are tensors.
_VIEWS = {"T", "mT", "H", "mH", "real", "imag", "data"}


_NOT_IN_A_GRAPH = (
    "this weight is streamed, and comes for an operation outside of its block's call, which no "
    "graph around it can do. Compile without fullgraph=True, or use stream=False"
)


class _Away:
    @classmethod
    @untraced
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_told(func, args, kwargs):
            if torch.compiler.is_dynamo_compiling():
                torch._dynamo.graph_break(msg=_NOT_IN_A_GRAPH)
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            for tensor in tensors:
                if type(tensor) in _HERE and (streamed := _STREAMED.get(id(tensor))) is not None:
                    # What is written through an alias has to be seen, and a copy would not be.
                    for_writing = streamed.writable and _is_alias(func)
                    if not for_writing and streamed.computes(tensors):
                        # Others may be away, too.
                        return streamed.compute(tensor, lambda: func(*args, **kwargs))
                    break
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


@untraced
def _is_told(func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _VIEWS
    return name in _TOLD or (name == "type" and len(args) == 1 and not kwargs)


@untraced
def _is_alias(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") == "data"
    return name == "detach"


class _AwayTensor(_Away, torch.Tensor):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(self), copy.deepcopy(self.detach(), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return repr(self.detach())


class _AwayParameter(_Away, torch.nn.Parameter):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = torch.nn.Parameter(self.detach().clone(), self.requires_grad)
        return memo[id(self)]

    def __repr__(self) -> str:
        return repr(torch.nn.Parameter(self.detach(), self.requires_grad))


_GONE = {torch.Tensor: _AwayTensor, torch.nn.Parameter: _AwayParameter}
_HERE = {away: kind for kind, away in _GONE.items()}
for _kind, _away in _GONE.items():
    # What is shown of them.
    _away.__name__ = _away.__qualname__ = _kind.__name__


@untraced
def arrive(tensors: Iterable[torch.Tensor]) -> None:
    """Has tensors be of torch's own classes: before they are pointed to the device."""
    for tensor in tensors:
        if (kind := _HERE.get(type(tensor))) is not None:
            tensor.__class__ = kind


@untraced
def depart(tensors: Iterable[torch.Tensor]) -> None:
    """Has tensors be away: once they were pointed to host memory."""
    for tensor in tensors:
        # What has a class of its own keeps it.
        if (away := _GONE.get(type(tensor))) is not None:
            tensor.__class__ = away


def begin(streamed: Streamed, tensors: list[torch.Tensor]) -> None:
    """Says who has these tensors come, which are away."""
    for tensor in tensors:
        _STREAMED[id(tensor)] = streamed
    depart(tensors)


def end(tensors: list[torch.Tensor]) -> None:
    """Says that nobody has them come any more."""
    arrive(tensors)
    for tensor in tensors:
        _STREAMED.pop(id(tensor), None)
