"""What ``torch.compile`` leaves as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def untraced(function: _Function) -> _Function:
    """A function whose own code is never compiled, at no cost for its calls; what it calls may be.
    That is what ``torch.compiler.disable(recursive=False)`` does, after importing the compiler."""
    frames: Any = torch._C._dynamo.eval_frame
    code = function.__code__
    if hasattr(frames, "skip_code"):
        frames.skip_code(code)
    elif hasattr(frames, "set_code_exec_strategy"):
        action = frames._FrameAction
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(action.SKIP, action.DEFAULT))
    return function
