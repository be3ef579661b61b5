"""Packages that replace themselves when they are imported: who waited for it gets the right one.

A package of diffusers or transformers puts another object in its place in `sys.modules`, which
imports its parts when they are asked for. A thread that waits for the import meanwhile gets the
first object, in which there is nothing, and keeps it for good.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from coresident.torch._switch import Swaps


def replace(utils: ModuleType, swaps: Swaps) -> None:
    """What a lazy module replaces leads to it from then on."""
    lazy = utils._LazyModule
    original = vars(lazy)["__init__"]

    @functools.wraps(original)
    def made(self: ModuleType, name: str, *args: Any, **kwargs: Any) -> None:
        original(self, name, *args, **kwargs)
        replaced = sys.modules.get(name)
        if type(replaced) is ModuleType:
            vars(replaced).setdefault("__getattr__", functools.partial(getattr, self))

    swaps.add(lazy, "__init__", made)
