"""`Around`: what stands around the calls of a streamed block."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from coresident.errors import InvalidValueError
from coresident.torch.repeatable import owned
from coresident.torch.untraced import untraced
from coresident.torch.visits import Visit

if TYPE_CHECKING:
    from coresident.torch.streamed import Streamed

_NOT_IN_A_GRAPH = (
    "the weights of this block are streamed: they come before it is called and leave after it, "
    "which no graph around it can do. Compile the blocks, or without fullgraph=True, or use "
    "stream=False"
)


_NOT_EXPORTED = (
    "the weights of this block are streamed, and what is exported has all of them: export a module "
    "that is in host memory, or use stream=False"
)


class Around:
    """A block's call with its coming and going around it. Copies of the module have their own call,
    without that."""

    def __init__(self, streamed: Streamed, block: int, call: Callable[..., Any]) -> None:
        # Others look at its parameters.
        functools.update_wrapper(self, call)
        self._streamed = streamed
        self._block = block
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it within a visit of the block.

        Raises:
            InvalidValueError: gradients are wanted, or it is exported.
            CoresidentError: the block does not come.
        """
        if torch.compiler.is_compiling():
            if not torch.compiler.is_dynamo_compiling():
                raise InvalidValueError(_NOT_EXPORTED)
            torch._dynamo.graph_break(msg=_NOT_IN_A_GRAPH)
        streamed, visit = self._streamed, Visit()
        # Who has kept the way in may come later.
        if streamed.closed:
            return self._call(*args, **kwargs)
        try:
            if not streamed.enter(self._block, visit):
                # Whoever visits it around this looks at what comes out.
                return self._call(*args, **kwargs)
            output = owned(self._call(*args, **kwargs), streamed._place)
        finally:
            # At once: an interrupt may come before it is left.
            visit.over = True
            streamed.leave(visit)
        return without_gradients(output)

    @property
    def __code__(self) -> CodeType:
        # What is compiled has one, as functions have.
        return type(self).__call__.__code__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._call, memo)

    def __reduce__(self) -> Any:
        return self._call.__reduce__()


untraced(Around.__call__)


def without_gradients(output: Any) -> Any:
    """An output, unless it is to be differentiated."""
    if torch.is_grad_enabled() and _wants_gradients(output):
        raise InvalidValueError(
            "a streamed model cannot be differentiated: its weights are gone when gradients "
            "are computed. Call it within torch.no_grad(), or use stream=False"
        )
    return output


def _wants_gradients(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return bool(output.requires_grad)
    if isinstance(output, dict):
        return any(map(_wants_gradients, output.values()))
    return isinstance(output, (list, tuple)) and any(map(_wants_gradients, output))
