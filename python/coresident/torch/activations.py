"""`Activations`: how many bytes a thread's operations have made and not freed, on the CPU."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import enable_reentrant_dispatch
from torch.utils import _python_dispatch as dispatch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _Watched(weakref.ref[Any]):
    """A storage that counts, until it is freed."""

    __slots__ = ("counted_by", "key", "nbytes")
    counted_by: Activations
    key: int
    nbytes: int


# What watches storages must last as long as they do, though nobody has their mode any more.
_WATCHED: dict[int, _Watched] = {}


class _Telling(threading.local):
    # Whose totals this thread has still to tell, while it tells one.
    postponed: list[Activations] | None = None


_TELLING = _Telling()


class Activations(TorchDispatchMode):
    """Counts, while it is entered, the bytes of the storages that this thread's operations make.

    Each storage counts once, from the operation that made it until it is freed, also if that is
    after the block and in another thread. Views, what is done in place, and storages that were
    there before add nothing. Only the CPU's memory counts, and neither what an operation uses
    within itself, nor tensors made of Python's or numpy's data, nor what ``resize_`` adds, nor what
    compiled code makes. Keeps nothing alive; results are what they are without it, but for what
    autocast does within operations such as ``bilinear``. May be entered again, also within itself,
    by one thread at a time.

    With ``resize`` it imitates a device whose memory is bounded, and then nobody waits for anybody:

    - Storages are freed wherever their last reference goes, by garbage collection also in the
      middle of this code. Who frees one appends its bytes to a deque, which is atomic. Only one
      adds up what is in there; who comes in between does not wait, but leaves it to the first. A
      total that is read meanwhile may be too high, but never too low.
    - ``resize`` is called without any lock: by two threads at once, if they free at once, and then
      perhaps with the older total last. So each change sets a new mark, and who has told a total
      tells again if the mark is not that of before: the last that is told is right.
    - ``resize`` is not called within itself for what is freed in there, but after it.

    Args:
        resize: Called with the bytes that are live whenever they become more or fewer, by the
            thread that makes or frees them. Tells whether the device has room for so many; if it
            has not, the bytes of before are still reserved. As garbage collection frees, it must
            not wait for what is held by somebody who allocates, nor raise.

    Attributes:
        peak: The most bytes that were live at once, counted after each operation.

    Raises:
        torch.OutOfMemoryError: from an operation that ``resize`` has no room for. What it made is
            dropped, and the total is what it was.
        RuntimeError: on entering, while another thread has entered.
    """

    # They come like other operations, or else torch refuses to run them.
    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled stays so: not compiled, it would be computed in another way."""
        return True

    def __init__(self, resize: Callable[[int], bool] | None = None) -> None:
        super().__init__()
        self.peak = 0
        self._resize = resize
        self._entered: list[int] = []
        self._storages: dict[int, _Watched] = {}
        # Only the thread that has entered writes it.
        self._made = 0
        # Only who has the lock writes it, which nobody ever waits for.
        self._freed = 0
        self._adding_up = threading.Lock()
        self._just_freed: deque[int] = deque()
        self._mark = object()

    @property
    def live(self) -> int:
        """Bytes of the storages that count and are not freed. Does not wait."""
        while True:
            try:
                # In this order: nothing that is freed twice, and all that was made of it.
                freed = self._freed
                freed += sum(tuple(self._just_freed))
                return self._made - freed
            except RuntimeError:
                # Somebody has appended in the middle.
                continue

    def __enter__(self) -> Activations:
        thread = threading.get_ident()
        # First, and then looked at: of two that do so at once, one is the first.
        self._entered.append(thread)
        if self._entered[0] != thread:
            self._entered.remove(thread)
            raise RuntimeError("another thread counts with these Activations: make others for each")
        # Not as torch enters: it notes for all threads that one is in a mode, and two that leave
        # in the order in which they came leave that noted for good.
        dispatch._push_mode(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        dispatch._pop_mode()
        self._entered.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            # What it makes of its parts comes here again.
            return NotImplemented
        kwargs = kwargs or {}
        # A subclass of tensors may want it whole.
        if not types and torch.is_inference_mode_enabled() and _is_composite(func):
            # Autocast is off in here, but torch has it on for the parts, unless it has converted
            # the whole.
            converted = _has_kernel(func, torch._C.DispatchKey.AutocastCPU)
            autocast = torch._C._DisableAutocast() if converted else nullcontext()
            with enable_reentrant_dispatch(), autocast, self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        out = func(*args, **kwargs)
        made = self._watch(out, args, kwargs)
        if made:
            asked = sum(watched.nbytes for watched in made)
            if not self._grow(asked, made):
                # A traceback shows this frame, and would keep it.
                del out
                raise torch.OutOfMemoryError(
                    f"out of memory: {func} asked for {asked} bytes, where {self.live} bytes of "
                    "activations are live: the virtual device is full"
                )
        return out

    def _watch(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Watched]:
        """Watches the storages that an operation has made."""
        made: list[_Watched] = []
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, (list, tuple)):
                made += self._watch(tensor, args, kwargs)
            elif isinstance(tensor, torch.Tensor) and (storage := _storage_of(tensor)) is not None:
                key = storage._cdata
                known = self._storages.get(key)
                # Another thread may be about to forget one that had this address before.
                if known is not None and known() is storage:
                    continue
                if _is_in(key, args) or _is_in(key, kwargs.values()):
                    continue
                if storage.device.type == "cpu" and (nbytes := storage.nbytes()):
                    watched = _Watched(storage, _is_freed)
                    watched.counted_by, watched.key, watched.nbytes = self, key, nbytes
                    self._storages[key] = _WATCHED[id(watched)] = watched
                    made.append(watched)
        return made

    def _grow(self, asked: int, made: list[_Watched]) -> bool:
        """Counts what was made, or forgets it if there is no room. Returns whether there is."""
        self._made += asked
        live = self.live
        granted = False
        try:
            self._mark = object()
            granted = self._told()
        finally:
            if granted:
                self.peak = max(self.peak, live)
            else:
                for watched in made:
                    del _WATCHED[id(watched)]
                    self._forget(watched)
                self._made -= asked
                self._mark = object()
                self._told()
        return granted

    def _take_off(self, watched: _Watched) -> None:
        """Counts a storage no more: it was just freed, by any thread, anywhere."""
        self._forget(watched)
        self._just_freed.append(watched.nbytes)
        self._mark = object()
        if self._resize is None:
            return
        if _TELLING.postponed is None:
            self._told()
        else:
            _TELLING.postponed.append(self)

    def _forget(self, watched: _Watched) -> None:
        if self._storages.get(watched.key) is watched:
            self._storages.pop(watched.key, None)

    def _told(self) -> bool:
        """Tells the total, and those that change meanwhile. Returns whether there is room."""
        if _TELLING.postponed is not None:
            # An operation within somebody else's `resize`, which needs to know.
            return self._tell()
        postponed = _TELLING.postponed = []
        try:
            return self._tell()
        finally:
            _TELLING.postponed = None
            for other in set(postponed):
                other._told()

    def _tell(self) -> bool:
        while True:
            self._add_up()
            mark = self._mark
            granted = self._resize is None or self._resize(self.live)
            if self._mark is mark:
                return granted

    def _add_up(self) -> None:
        while self._just_freed and self._adding_up.acquire(blocking=False):
            try:
                # Nobody else takes any out.
                while self._just_freed:
                    self._freed += self._just_freed.popleft()
            finally:
                self._adding_up.release()
            # Who has read the total meanwhile may have read too much.
            self._mark = object()


def _is_freed(watched: _Watched) -> None:
    # Unless there was no room for it.
    if _WATCHED.pop(id(watched), None) is not None:
        watched.counted_by._take_off(watched)


@functools.cache
def _has_kernel(func: OpOverload, key: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _is_composite(func: Any) -> bool:
    """Whether it is made of other operations. In inference mode it comes in one piece all the same,
    though the parts may need far more memory than what comes of it."""
    return isinstance(func, OpOverload) and _has_kernel(func, _COMPOSITE)


def _storage_of(tensor: torch.Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        # Sparse tensors and their like have none.
        return None


def _is_in(key: int, values: Iterable[Any]) -> bool:
    """Whether a storage was there before, as that of an argument."""
    for value in values:
        if isinstance(value, torch.Tensor):
            storage = _storage_of(value)
            if storage is not None and storage._cdata == key:
                return True
        elif isinstance(value, (list, tuple)) and _is_in(key, value):
            return True
    return False
