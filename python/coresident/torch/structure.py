"""The structure of a module, of which replicas are made faster than by `copy.deepcopy`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from coresident.errors import InvalidValueError
from coresident.torch.subclasses import Frame, is_plain, is_same, moves_as_bytes, parts, plain

_ATOMS = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size, type)
# What other libraries' classes may raise when they are copied.
_FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Classes of torch whose objects have weights.
_PACKED = tuple(f"__torch__.torch.classes.{name}." for name in ("quantized", "rnn", "sparse"))
_MAPPINGS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class _Recipe:
    """How to make one part of a replica."""

    kind: type[torch.nn.Module]
    # What all replicas may share.
    shared: dict[str, Any]
    # What is new for each replica, with nothing in it: dicts of hooks, attention processors.
    empty: list[tuple[str, Callable[[], Any]]]
    # Names and places in the list of all tensors, or of all parts; -1 is None.
    parameters: list[tuple[str, int]]
    buffers: list[tuple[str, int]]
    parts: list[tuple[str, int]]
    not_saved: set[str]
    # What has to be copied with everything in it.
    deep: list[tuple[str, Any]]


class Structure:
    """A module without its weights.

    Args:
        module: Where the structure is taken from. Nobody else may use or change it from then on.
        frames: The tensors of classes of their own, by the ``id`` of what stands for them.
        saved: The names in its state dict, if it cannot tell.

    Attributes:
        names: The names of each parameter and each buffer that belongs to the weights: those of one
            tensor together, the first one first. Of a tensor of a class of its own those of the
            plain ones that it consists of.
        packed: Names of parts whose weights torch has packed for the CPU: they are no tensors.
        of_bitsandbytes: Names of tensors that bitsandbytes has packed.
    """

    @classmethod
    def of(cls, module: torch.nn.Module) -> Structure:
        """The structure of a module that stays as it is.

        Raises:
            InvalidValueError: something that the module has cannot be copied.
        """
        saved = module.state_dict(keep_vars=True)
        memo: dict[int, Any] = {}
        wholes: list[torch.Tensor] = []
        for tensor in (*module.parameters(), *saved.values()):
            if isinstance(tensor, torch.Tensor):
                wholes += [] if is_plain(tensor) else [tensor]
                for each in (*(part for _, part in parts(tensor)), tensor):
                    # As its weights will be: the same object wherever it is the same object.
                    own = torch.empty(0, dtype=each.dtype)
                    memo[id(each)] = (
                        torch.nn.Parameter(own, False)
                        if isinstance(each, torch.nn.Parameter)
                        else own
                    )
        try:
            for part in module.modules():
                _remember_tensors(vars(part).values(), memo)
            copied = copy.deepcopy(module, memo)
            frames = {id(memo[id(whole)]): Frame(whole, memo) for whole in wholes}
            structure = cls(copied, frames, set(saved))
            structure._try(wholes, memo)
        except _FAILURES as why:
            kind = type(module).__name__
            raise InvalidValueError(f"{kind} has something that cannot be copied: {why}") from why
        return structure

    def __init__(
        self,
        module: torch.nn.Module,
        frames: dict[int, Frame] | None = None,
        saved: set[str] | None = None,
    ) -> None:
        self._frames = frames or {}
        module.eval().requires_grad_(False)
        self._module = module
        names: dict[int, list[str]] = {}
        self._wholes: list[torch.Tensor] = []
        self._others: list[torch.Tensor] = []
        saved = set(module.state_dict(keep_vars=True)) if saved is None else saved
        everything = [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in everything:
            if id(tensor) not in names:
                names[id(tensor)] = []
                of_weights = isinstance(tensor, torch.nn.Parameter) or name in saved
                (self._wholes if of_weights else self._others).append(tensor)
            names[id(tensor)].append(name)
        found: dict[int, tuple[torch.Tensor, list[str]]] = {}
        for whole in self._wholes:
            frame = self._frames.get(id(whole))
            for suffix, part in [("", whole)] if frame is None else frame.parts:
                named = found.setdefault(id(part), (part, []))[1]
                named += [name + suffix for name in names[id(whole)]]
        self._weights = [tensor for tensor, _ in found.values()]
        self.names = [named for _, named in found.values()]
        self.packed = [name for name, part in module.named_modules() if _is_packed(part)]
        self.of_bitsandbytes = [
            names[id(whole)][0]
            for whole in self._wholes
            if id(whole) in self._frames and self._frames[id(whole)].of_bitsandbytes
        ]
        self._parts = list(module.modules())
        tensors = {id(t): at for at, t in enumerate([*self._wholes, *self._others])}
        parts = {id(part): at for at, part in enumerate(self._parts)}
        self._recipes = [_recipe(part, tensors, parts) for part in self._parts]

    def _try(self, wholes: list[torch.Tensor], memo: dict[int, Any]) -> None:
        """Makes a replica, with tensors of classes of their own around the parts that they have.

        Raises:
            TypeError: one of them has become another one by that.
        """
        own = {id(tensor): tensor for tensor in self._weights}
        for whole in wholes:
            own.update((id(memo[id(part)]), plain(part)) for _, part in parts(whole))
        shells = self.shells()
        self.fill(shells, [own[id(tensor)] for tensor in self._weights], torch.device("cpu"))
        made = {
            id(tensor): new
            for part, shell in zip(self._parts, shells, strict=True)
            for kind in ("_parameters", "_buffers")
            for tensor, new in zip(
                vars(part)[kind].values(), vars(shell)[kind].values(), strict=True
            )
        }
        for whole in wholes:
            if (new := made.get(id(memo[id(whole)]))) is not None and not is_same(new, whole):
                raise TypeError(f"a {type(whole).__name__} is another one around the same tensors")

    @property
    def class_name(self) -> str:
        """The name of the module's class."""
        return type(self._module).__name__

    def tensors(self) -> list[torch.Tensor]:
        """The weights, as they are in the structure, in the order of :attr:`names`."""
        return list(self._weights)

    def buffers_without_values(self) -> list[str]:
        """The names of buffers beside the weights that are on the meta device."""
        lost = {id(tensor) for tensor in self._others if tensor.is_meta}
        buffers = self._module.named_buffers(remove_duplicate=False)
        return [name for name, tensor in buffers if id(tensor) in lost]

    def packed_anew(self, tensors: list[torch.Tensor], target: torch.device) -> str | None:
        """The name of a tensor whose library packs it in another way on a device: of each class,
        the smallest one is tried. ``None`` if there is none.

        Args:
            tensors: The weights, in the order of :attr:`names`.
            target: The device.
        """
        memo: dict[int, Any] = {id(part): part for part in self._parts}
        sizes = {id(own): tensor.nbytes for own, tensor in zip(self._weights, tensors, strict=True)}
        names = {id(own): names[0] for own, names in zip(self._weights, self.names, strict=True)}
        memo.update((id(o), t.detach()) for o, t in zip(self._weights, tensors, strict=True))
        smallest: dict[Any, tuple[int, Frame]] = {}
        for frame in self._frames.values():
            size = sum(sizes[id(part)] for _, part in frame.parts)
            if frame.kinds not in smallest or size < smallest[frame.kinds][0]:
                smallest[frame.kinds] = (size, frame)
        for _, frame in smallest.values():
            if not moves_as_bytes(frame.around(memo), target):
                return names[id(frame.parts[0][1])]
        return None

    def shells(self) -> list[torch.nn.Module]:
        """Modules with nothing in them, for :meth:`fill`; the first one is the whole."""
        return [object.__new__(recipe.kind) for recipe in self._recipes]

    def fill(
        self, parts: list[torch.nn.Module], tensors: list[torch.Tensor], target: torch.device
    ) -> list[torch.Tensor]:
        """Makes modules what those of the structure are, whatever was in them.

        Args:
            parts: What :meth:`shells` has made.
            tensors: The weights, in the order of :attr:`names`.
            target: Where copies of buffers beside the weights are to be.

        Returns:
            The parameters and buffers that the modules have of the weights, in the same order.
        """
        memo: dict[int, Any] = dict(zip(map(id, self._parts), parts, strict=True))
        with torch.inference_mode(False):
            for own, tensor in zip(self._weights, tensors, strict=True):
                memo[id(own)] = (
                    torch.nn.Parameter(tensor, False)
                    if isinstance(own, torch.nn.Parameter)
                    else tensor.detach()
                )
            for own in self._others:
                memo[id(own)] = own.to(target, copy=True)
            for whole in self._wholes:
                if (frame := self._frames.get(id(whole))) is not None:
                    memo[id(whole)] = frame.around(memo)
        made = [memo[id(own)] for own in (*self._wholes, *self._others)]
        # None is at place -1.
        all_tensors, all_parts = [*made, None], [*parts, None]
        for part, recipe in zip(parts, self._recipes, strict=True):
            own = vars(part)
            if own:
                part.__class__ = recipe.kind
                own.clear()
            own.update(recipe.shared)
            for name, make in recipe.empty:
                own[name] = make()
            own["_parameters"] = {name: all_tensors[at] for name, at in recipe.parameters}
            own["_buffers"] = {name: all_tensors[at] for name, at in recipe.buffers}
            own["_modules"] = {name: all_parts[at] for name, at in recipe.parts}
            own["_non_persistent_buffers_set"] = recipe.not_saved.copy()
        if any(recipe.deep for recipe in self._recipes):
            self._copy_the_rest(memo, parts)
        return [memo[id(own)] for own in self._weights]

    def _copy_the_rest(self, memo: dict[int, Any], parts: list[torch.nn.Module]) -> None:
        """Copies what is neither tensor nor module; what it has of these, is the replica's."""
        for part, recipe in zip(parts, self._recipes, strict=True):
            _remember_tensors((value for _, value in recipe.deep), memo)
            for name, value in recipe.deep:
                vars(part)[name] = copy.deepcopy(value, memo)


def _remember_tensors(values: Iterable[Any], memo: dict[int, Any]) -> None:
    """Copies tensors that `copy.deepcopy` refuses: those that were computed, as by weight_norm."""
    for value in values:
        if isinstance(value, torch.Tensor) and id(value) not in memo:
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, torch.ScriptObject):
            # One for all: it is only read.
            memo[id(value)] = value


def _is_packed(module: torch.nn.Module) -> bool:
    """Whether weights of its own are packed by torch's quantisation for the CPU."""
    objects = (value for value in vars(module).values() if isinstance(value, torch.ScriptObject))
    return any(value._type().qualified_name().startswith(_PACKED) for value in objects)


def _recipe(module: torch.nn.Module, tensors: dict[int, int], parts: dict[int, int]) -> _Recipe:
    shared: dict[str, Any] = {}
    empty: list[tuple[str, Callable[[], Any]]] = []
    deep: list[tuple[str, Any]] = []
    for name, value in vars(module).items():
        if name in _MAPPINGS or name == "_non_persistent_buffers_set":
            continue
        if _is_atom(value) or isinstance(value, torch.ScriptObject):
            shared[name] = value
        elif _has_nothing(value):
            kind = type(value)
            empty.append((name, kind if issubclass(kind, dict) else partial(kind.__new__, kind)))
        else:
            deep.append((name, value))
    parameters, buffers, children = (
        [(n, -1 if v is None else where[id(v)]) for n, v in vars(module)[kind].items()]
        for kind, where in zip(_MAPPINGS, (tensors, tensors, parts), strict=True)
    )
    not_saved = set(vars(module)["_non_persistent_buffers_set"])
    return _Recipe(type(module), shared, empty, parameters, buffers, children, not_saved, deep)


def _has_nothing(value: Any) -> bool:
    """Whether it is an empty dict, or an object without any state."""
    kind: Any = type(value)
    if kind in (dict, OrderedDict):
        return not value
    usual = kind.__new__ is object.__new__ and kind.__reduce_ex__ is object.__reduce_ex__
    return usual and getattr(value, "__dict__", None) == {} and not hasattr(value, "__deepcopy__")


def _is_atom(value: Any) -> bool:
    # The configuration of diffusers' modules refuses every change.
    return (
        isinstance(value, _ATOMS)
        or type(value).__name__ == "FrozenDict"
        or (isinstance(value, (tuple, frozenset)) and all(_is_atom(item) for item in value))
    )
