"""`BlockTensors`: where the tensors of a streamed block are, and whose.

Who owns what a tensor shows, its ``data``:

- **Before and after** ``on()`` it is the replica's own host memory.
- **Between visits** it is that too, but for tensors whose pages stay: those are on the device.
  Within ``writable`` none stays there, so that whatever is written between visits, and however, is
  written in host memory, where it can be found.
- **Within a visit** it is the pages. What is written there is copied to host memory when the visit
  ends, and before the pages may leave.
- **Whatever else it is, is the caller's**: ``tensor.data = other``, as ``module.to(...)`` does.
  That is brought to the device once, is never pointed elsewhere, and is no longer streamed.

Host memory has what is right between visits, so that pages which were filled before it was written
are written once more, at the next visit.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from coresident.torch import away
from coresident.torch.host_writes import HostWrites, Sum, checksum, same_bytes
from coresident.torch.subclasses import is_plain
from coresident.torch.untraced import untraced

_WHERE = torch.Tensor.data_ptr
_STRIDE = torch.Tensor.stride
_KIND = attrgetter("dtype", "shape")
_DTYPE = attrgetter("dtype")
_VERSION = attrgetter("_version")
_IS_SET_TO = torch.Tensor.is_set_to


class BlockTensor(NamedTuple):
    """A tensor of the module, the same in its pages and in host memory, and how many pages of the
    block have to stay so that it stays."""

    own: torch.Tensor
    view: torch.Tensor
    host: torch.Tensor
    end: int

    @untraced
    def is_view(self) -> bool:
        """Whether it is in its pages."""
        return is_same_memory(self.own, self.view)

    @untraced
    def is_host(self) -> bool:
        """Whether it is in host memory, where it was given to it."""
        return is_same_memory(self.own, self.host)


class BlockTensors:
    """The tensors of one block. Whoever calls it has a lock, and the block's pages where they are
    touched.

    Args:
        tensors: These, in the order of their pages.
        writable: Whether pages are filled from that host memory, and it is to have all that is
            written.

    Attributes:
        own: Those that come and go, at first.
    """

    def __init__(self, tensors: Iterable[BlockTensor], writable: bool) -> None:
        self._writable = writable
        everything = list(tensors)
        # How many, the first ones, are on the device now, and how many may be: more if an interrupt
        # came between.
        self._there = self._perhaps = 0
        # The caller's: its device is looked after, and nothing else.
        self._theirs = [one for one in everything if not one.is_host()]
        ours = [one for one in everything if one.is_host()]
        self._arrange(ours, [one.own._version for one in ours])
        self.own = self._own
        # Others answer for themselves what they are asked, and take longer.
        self._is_plain = all(map(is_plain, self._own))
        # Of which host memory has what their pages were not filled with, by their ``id`` there.
        self._newer: dict[int, BlockTensor] = {}
        self._host_writes = HostWrites(one.host for one in ours) if writable else None
        # Of what a visit has found in its pages, where that is compared when it ends.
        self._found: dict[int, Sum] = {}
        self._visits = 0
        self._writes_uncounted = False

    def _arrange(self, tensors: list[BlockTensor], versions: list[int]) -> None:
        self._tensors, self._versions = tensors, versions
        self._own = [one.own for one in tensors]
        self._views = [one.view for one in tensors]
        self._hosts = [one.host for one in tensors]
        self._at_view = list(map(_WHERE, self._views))
        self._at_host = list(map(_WHERE, self._hosts))
        self._as_given = self._read(self._hosts)
        self._ends = [one.end for one in tensors]

    @staticmethod
    @untraced
    def _read(tensors: list[torch.Tensor]) -> list[Any]:
        """How they read their memory."""
        return list(zip(map(_STRIDE, tensors), map(_KIND, tensors), strict=True))

    @untraced
    def come(self) -> None:
        """Points all to their pages, with what was written in host memory."""
        if self._is_plain:
            return self._come()
        with torch._C.DisableTorchFunctionSubclass():
            return self._come()

    @untraced
    def go(self, keep: int) -> None:
        """Points those to host memory that are not in the first pages, so many; within ``writable``
        all of them."""
        if self._is_plain:
            return self._go(keep)
        with torch._C.DisableTorchFunctionSubclass():
            return self._go(keep)

    @untraced
    def _come(self) -> None:
        for theirs in self._theirs:
            _move(theirs)
        there = self._there
        if there == len(self._own):
            return
        own = self._own[there:] if there else self._own
        self._perhaps = len(self._own)
        away.arrive(own)
        unmoved = list(map(_WHERE, own)) == self._at_host[there:]
        # The same memory read otherwise is looked for where somebody has a right to that.
        if not unmoved or (self._writable and self._read(own) != self._as_given[there:]):
            self._let_go([t for t in self._tensors[there:] if not t.is_host() and not t.is_view()])
            own = self._own[there:]
        self._look_for_writes(there)
        for tensor, view in zip(own, self._views[there:], strict=True):
            tensor.data = view
        self._there = len(self._own)
        if self._newer:
            self._renew(there)
        if self._writable and self._is_compared():
            self._found = {id(one.host): checksum(one.view) for one in self._tensors}

    @untraced
    def _go(self, keep: int) -> None:
        if list(map(_WHERE, self._own[: self._perhaps])) != self._at_view[: self._perhaps]:
            self._take_back()
        stays = 0 if self._writable else bisect.bisect_right(self._ends, keep)
        if stays >= self._perhaps:
            return
        self._keep(stays)
        self._there = min(self._there, stays)
        own = self._own[stays : self._perhaps]
        for tensor, host in zip(own, self._hosts[stays : self._perhaps], strict=True):
            tensor.data = host
        away.depart(own)
        self._perhaps = stays

    @untraced
    def keep_writes(self) -> None:
        """Copies what was written in pages to host memory, if that is meant."""
        if self._writable:
            self._keep(0)

    @untraced
    def _look_for_writes(self, first: int) -> None:
        """Finds what was written in host memory."""
        versions = list(map(_VERSION, self._own[first:] if first else self._own))
        if versions != self._versions[first:]:
            known = zip(self._tensors[first:], versions, self._versions[first:], strict=True)
            self._newer.update((id(one.host), one) for one, now, before in known if now != before)
            self._versions[first:] = versions
        if self._host_writes is not None and (written := self._host_writes.look()):
            some = [one for one in self._tensors[first:] if id(one.host) in written]
            self._newer.update((id(one.host), one) for one in some)

    @untraced
    def _renew(self, first: int) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for one in self._tensors[first:]:
                if id(one.host) in self._newer:
                    one.view.copy_(one.host)
        if self._writable:
            # From now on pages are filled with it; without that, with the weights, at each visit.
            self._newer.clear()

    @untraced
    def _keep(self, first: int) -> None:
        """Copies what was written in pages to host memory."""
        versions = list(map(_VERSION, self._own[first : self._there]))
        found, self._found = self._found, {}
        if not found and versions == self._versions[first : self._there]:
            return
        if versions and self._views[first].is_cuda:
            # Whoever takes pages away is on another stream than what has written there.
            torch.cuda.synchronize(self._views[first].device)
        with torch.inference_mode(False), torch.no_grad():
            for at, version in enumerate(versions, first):
                one, counted = self._tensors[at], version != self._versions[at]
                if not counted:
                    before = found.get(id(one.host))
                    if before is None or all(map(torch.equal, before, checksum(one.view))):
                        continue
                self._writes_uncounted |= not counted
                one.host.copy_(one.view)
                self._versions[at] = version
                if self._host_writes is None:
                    self._newer[id(one.host)] = one
                else:
                    self._host_writes.note(one.host)

    @untraced
    def _is_compared(self) -> bool:
        """Whether a visit that begins is compared when it ends: who writes what is not counted
        mostly does so from the first one on, or from some later one."""
        self._visits += 1
        return self._writes_uncounted or self._visits & (self._visits - 1) == 0

    @untraced
    def _take_back(self) -> None:
        """Points those to their pages again that a visit has replaced by the same bytes, as casts
        for the time of a call do; what else it has put there is the caller's."""
        theirs = []
        for one in self._tensors[: self._perhaps]:
            if one.is_view() or one.is_host():
                continue
            if _is_alike(one.own, one.view) and same_bytes(one.own, one.view):
                one.own.data = one.view
            else:
                theirs.append(one)
        self._let_go(theirs)

    @untraced
    def _let_go(self, theirs: list[BlockTensor]) -> None:
        """Has no more to do with tensors that are the caller's, but that they are on the device."""
        gone = {id(one.host) for one in theirs}
        for one in theirs:
            if one.own.untyped_storage().data_ptr() == one.view.untyped_storage().data_ptr():
                # Of pages that leave.
                with torch.inference_mode(False):
                    one.own.data = one.own.data.clone()
            _move(one)
            self._newer.pop(id(one.host), None)
        self._theirs += theirs
        self._there -= sum(id(one.host) in gone for one in self._tensors[: self._there])
        self._perhaps -= sum(id(one.host) in gone for one in self._tensors[: self._perhaps])
        stay = [
            (one, version)
            for one, version in zip(self._tensors, self._versions, strict=True)
            if id(one.host) not in gone
        ]
        self._arrange([one for one, _ in stay], [version for _, version in stay])


@untraced
def is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are the same memory, read in the same way."""
    with torch._C.DisableTorchFunctionSubclass():
        return _is_alike(one, other) and one.data_ptr() == other.data_ptr()


def elsewhere(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> set[int]:
    """Places of those that are not the same memory, read in the same way, as their others."""
    with torch._C.DisableTorchFunctionSubclass():
        # Mostly all are, of which it is told in one go.
        with suppress(NotImplementedError, RuntimeError):
            kinds, wanted = map(_DTYPE, tensors), map(_DTYPE, others)
            if all(map(_IS_SET_TO, tensors, others)) and list(kinds) == list(wanted):
                return set()
        pairs = enumerate(zip(tensors, others, strict=True))
        return {at for at, (one, other) in pairs if not is_same_memory(one, other)}


@untraced
def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.layout == torch.strided
        and (one.dtype, one.device) == (other.dtype, other.device)
        and (one.shape, one.stride()) == (other.shape, other.stride())
    )


@untraced
def _move(theirs: BlockTensor) -> None:
    """Has a tensor of the caller's on the device."""
    if theirs.own.device != theirs.view.device:
        with torch.inference_mode(False):
            theirs.own.data = theirs.own.data.to(theirs.view.device)
