"""Functions of which each thread can have another one, and names that change everywhere."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Switch:
    """A function in whose stead each thread can have another one.

    Libraries that put a function of theirs into somebody else's module or class for a while put it
    there for every thread, and two that do it at once leave it there for good. While it is
    installed, a switch stands there instead, and each thread says for itself what it leads to.

    Args:
        name: The name of the function.
        owners: The modules or classes that have it. All must have the same.
    """

    def __init__(self, name: str, *owners: Any) -> None:
        self._name = name
        self._owners = owners
        self._local = threading.local()
        self.original: Callable[..., Any] = vars(owners[0])[name]
        original, local = self.original, self._local

        @functools.wraps(original)
        def switched(*args: Any, **kwargs: Any) -> Any:
            return getattr(local, "function", original)(*args, **kwargs)

        self._switched = switched

    @property
    def current(self) -> Callable[..., Any]:
        """What it leads to in this thread."""
        return getattr(self._local, "function", self.original)

    @contextmanager
    def leading_to(self, function: Callable[..., Any]) -> Iterator[None]:
        """Leads to another function, in this thread alone, until the block ends."""
        before = getattr(self._local, "function", None)
        self._local.function = function
        try:
            yield
        finally:
            if before is None:
                del self._local.function
            else:
                self._local.function = before

    def install(self) -> None:
        """Puts the switch where the function was."""
        for owner in self._owners:
            setattr(owner, self._name, self._switched)

    def uninstall(self) -> None:
        """Puts the function back."""
        for owner in self._owners:
            if vars(owner).get(self._name) is self._switched:
                setattr(owner, self._name, self.original)


@contextmanager
def turned(switches: Iterable[tuple[Switch, Callable[..., Any]]]) -> Iterator[None]:
    """Each switch leads to its function, in this thread alone, until the block ends."""
    with ExitStack() as stack:
        for switch, function in switches:
            stack.enter_context(switch.leading_to(function))
        yield


class Swaps:
    """Objects in whose stead there are others, under every name that any module has for them."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Any, str, Any, Any]] = []

    def add(self, owner: Any, name: str, new: Any) -> None:
        """``new`` is to stand for what ``owner`` has under this name."""
        self._wanted.append((owner, name, vars(owner)[name], new))

    def install(self) -> None:
        """Makes all of them."""
        _exchange(self._wanted)

    def uninstall(self) -> None:
        """Undoes all of them, also in modules that were imported since."""
        _exchange([(owner, name, new, old) for owner, name, old, new in self._wanted])


def _exchange(pairs: list[tuple[Any, str, Any, Any]]) -> None:
    """Puts one object where another is: under a name of an owner, and of every module."""
    for owner, name, there, other in pairs:
        if vars(owner).get(name) is there:
            setattr(owner, name, other)
    other_of = {id(there): other for _, _, there, other in pairs}
    for module, name, value in _names_everywhere():
        if id(value) in other_of:
            setattr(module, name, other_of[id(value)])


def _names_everywhere() -> Iterator[tuple[Any, str, Any]]:
    """What every module has under every name, but for this package: it uses the originals."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("coresident."):
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                yield module, attribute, value
