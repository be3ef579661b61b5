"""diffusers' way of building models: for one thread."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from coresident.torch._default_dtype import default_dtype
from coresident.torch._switch import Swaps, Switch, turned


def replace(utils: ModuleType, initialisers: dict[str, Switch], swaps: Swaps) -> None:
    """Models are built with this thread's default dtype, and without values, in this thread alone.

    Follows diffusers' `models/modeling_utils.py`.
    """

    @contextmanager
    def no_init_weights() -> Iterator[None]:
        with turned((initialisers[name], nothing) for name in utils.TORCH_INIT_FUNCTIONS):
            yield

    swaps.add(utils, "no_init_weights", no_init_weights)
    original = vars(utils.ModelMixin)["from_pretrained"]

    @classmethod  # type: ignore[misc]
    @functools.wraps(original.__func__)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        # What it sets, it does not set back if it fails.
        with default_dtype():
            return original.__func__(cls, *args, **kwargs)

    swaps.add(utils.ModelMixin, "from_pretrained", from_pretrained)


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """Leaves a tensor as it is."""
