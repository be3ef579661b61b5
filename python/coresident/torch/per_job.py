"""What the jobs of one pipeline must not share."""

from __future__ import annotations

import copy
from typing import Any

from coresident.errors import InvalidTypeError


def per_job(pipe: Any, **components: Any) -> Any:
    """A pipeline for one job: the same modules, and copies of what counts steps or keeps settings.

    Schedulers count steps, tokenizers set their padding and progress bars their position in
    themselves: jobs that share one spoil each other's images, or fail, without a word of why. Costs
    a few hundred microseconds, and a few milliseconds for each large tokenizer. Does not wait.

    Args:
        pipe: One of diffusers' pipelines.
        **components: Components to be used instead, by name, such as ``unet=replica.module``.

    Returns:
        The pipeline, of the same class.

    Raises:
        InvalidTypeError: ``pipe`` is no pipeline of diffusers, or has no component of a name.
    """
    from diffusers import DiffusionPipeline
    from torch.nn import Module

    if not isinstance(pipe, DiffusionPipeline):
        raise InvalidTypeError(f"pipe is a pipeline of diffusers, not {type(pipe).__name__}")
    made = object.__new__(type(pipe))
    own = pipe.components
    for name in components:
        if name not in own:
            known = ", ".join(own)
            raise InvalidTypeError(f"{type(pipe).__name__} has no {name!r}, but {known}")
    for name, value in vars(pipe).items():
        if isinstance(value, DiffusionPipeline):
            # One that is made of others, such as a prior and a decoder.
            inner = {key: new for key, new in components.items() if key in value.components}
            value = per_job(value, **inner)
        elif name in own:
            value = value if isinstance(value, Module) else copy.deepcopy(value)
        elif isinstance(value, (dict, list, set)):
            value = copy.copy(value)
        vars(made)[name] = value
    if components:
        made.register_modules(**components)
    return made
