"""`HostWrites`: what was written in a replica's own host memory, by whomever and however."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch

from coresident.torch.untraced import untraced

# Of an entry of ``/proc/self/pagemap``: the page is in memory, or in swap; and it is the file's.
_THERE = np.uint64(3 << 62)
_OF_FILE = np.uint64(1 << 61)
_ENTRY = 8
# What lies apart by no more is read at once.
_NEAR = 16
# Sums are of as many columns, which no row of a matrix has: what changes places is seen.
_COLUMNS = 4093

Sum = tuple[torch.Tensor, torch.Tensor]


class HostWrites:
    """Looks for what was written in private maps of a file. A page that was written is no longer
    the file's, which the system tells; of tensors in such pages sums are compared.

    Args:
        tensors: Row-major tensors in host memory.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        # Of those that have pages of their own.
        self._sums: dict[int, Sum] = {}
        page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
        placed = []
        for tensor in tensors:
            if tensor.nbytes:
                start = tensor.data_ptr()
                placed.append((start // page, -(-(start + tensor.nbytes) // page), tensor))
        placed.sort(key=lambda one: one[:2])
        # Stretches of pages, with what lies in them.
        self._stretches: list[tuple[int, int, list[tuple[int, int, torch.Tensor]]]] = []
        for first, end, tensor in placed:
            if self._stretches and first <= self._stretches[-1][1] + _NEAR:
                start, before, inside = self._stretches.pop()
                self._stretches.append((start, max(before, end), [*inside, (first, end, tensor)]))
            else:
                self._stretches.append((first, end, [(first, end, tensor)]))
        self.look()

    @untraced
    def look(self) -> set[int]:
        """The ``id`` of each tensor that was written since this was called before, or noted. Does
        not wait, but reads what was ever written."""
        written: set[int] = set()
        for tensor in self._touched():
            before, now = self._sums.get(id(tensor)), checksum(tensor)
            if before is None or not all(map(torch.equal, before, now)):
                written.add(id(tensor))
                self._sums[id(tensor)] = now
        return written

    @untraced
    def note(self, tensor: torch.Tensor) -> None:
        """Says that what is in a tensor now is known."""
        self._sums[id(tensor)] = checksum(tensor)

    @untraced
    def _touched(self) -> Iterable[torch.Tensor]:
        """Those that have pages of their own."""
        touched: list[torch.Tensor] = []
        try:
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        except OSError:
            # Where the system does not tell, all of them may.
            return [tensor for *_, inside in self._stretches for *_, tensor in inside]
        try:
            for start, end, inside in self._stretches:
                count = end - start
                entries = np.frombuffer(
                    os.pread(pagemap, count * _ENTRY, start * _ENTRY), np.uint64
                )
                own = ((entries & _THERE) != 0) & ((entries & _OF_FILE) == 0)
                if len(own) < count:
                    touched += [tensor for *_, tensor in inside]
                elif own.any():
                    touched += [
                        t for first, to, t in inside if own[first - start : to - start].any()
                    ]
        finally:
            os.close(pagemap)
        return touched


@untraced
def checksum(tensor: torch.Tensor) -> Sum:
    """What two row-major tensors of the same bytes have in common, and hardly ever others."""
    flat = _flat(tensor)
    whole = flat.numel() // (_COLUMNS * 8) * (_COLUMNS * 8)
    words = flat[:whole].view(torch.int64)
    return words.view(-1, _COLUMNS).sum(0), flat[whole:].clone()


@untraced
def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the bytes of two row-major tensors are the same, on whatever devices."""
    one, other = _flat(one).to(other.device), _flat(other)
    whole = one.numel() // 8 * 8
    # A word at a time is several times as fast as a byte.
    if whole and not torch.equal(one[:whole].view(torch.int64), other[:whole].view(torch.int64)):
        return False
    return bool(torch.equal(one[whole:], other[whole:]))


@untraced
def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    # Where a word cannot begin, they are copied to where it can.
    return flat if flat.storage_offset() % 8 == 0 else flat.clone()
