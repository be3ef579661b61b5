"""Which blocks are being visited, by whom, whatever interrupts that."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from threading import get_ident

from coresident.torch.untraced import untraced

# Who visits, on which stream, whether that goes on, and nothing.
Entry = tuple[int, "int | None", "weakref.ref[Visit]", None]


class Visit:
    """A call that visits a block; to be kept by its frame alone.

    Attributes:
        over: Whether it is over, so that the visit is to end.
        among: The list in which its visit is, if it has begun one.
    """

    __slots__ = ("__weakref__", "among", "over")

    def __init__(self) -> None:
        self.over = False
        self.among: list[Entry] | None = None


class Visits:
    """The visits of a streaming's blocks.

    An interrupt may come between any two steps of the interpreter. So a visit is in its thread's
    list if, and only if, the streaming has it: both become so within one call into C, which nothing
    parts. And it is to end once its call is over, which :class:`Visit` tells also if whoever should
    have ended it was interrupted: then the next one who visits or needs room ends it.

    Args:
        leave: Ends a visit, of which so many pages stay.
    """

    def __init__(self, leave: Callable[[int, int], None]) -> None:
        self._leave = leave
        self._of_threads: dict[int, list[Entry]] = {}

    @untraced
    def own(self) -> list[Entry]:
        """Those of this thread, the innermost one last."""
        own = self._of_threads.get(get_ident())
        return self._of_threads.setdefault(get_ident(), []) if own is None else own

    @untraced
    def all(self) -> list[list[Entry]]:
        """Those of all threads."""
        return list(self._of_threads.values())

    @untraced
    def count(self, block: int) -> int:
        """How many there are of a block."""
        return sum(entry[0] == block for visits in self.all() for entry in visits)

    @untraced
    def is_last(self, entry: Entry) -> bool:
        """Whether nobody else visits the block of a visit."""
        for visits in self._of_threads.copy().values():
            for other in visits:
                if other[0] == entry[0] and other is not entry:
                    return False
        return True

    @untraced
    def end(self, visits: list[Entry], at: int, keep: int) -> None:
        """Ends a visit, of which so many pages stay: what is no longer in the list was left."""
        next(zip(map(visits.pop, (at,)), map(self._leave, (visits[at][0],), (keep,))))  # noqa: B905


@untraced
def entered(
    visit: Visit, block: int, stream: int | None, enter: Callable[[int], None]
) -> Iterator[Entry]:
    """A visit of a block, which begins as it is taken from here: what ``extend`` puts into a list
    was entered."""
    return zip((block,), (stream,), (weakref.ref(visit),), map(enter, (block,)))  # noqa: B905


@untraced
def is_over(entry: Entry) -> bool:
    """Whether a visit is to end, since its call is over."""
    visit = entry[2]()
    return visit is None or visit.over
