"""transformers' way of building models: for one thread."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from coresident.torch._default_dtype import default_dtype
from coresident.torch._switch import Swaps, Switch


def replace(
    init: ModuleType,
    utils: ModuleType,
    initialisers: dict[str, Switch],
    methods: dict[str, Switch],
    swaps: Swaps,
) -> None:
    """The contexts in which models are built change no other thread.

    Follows transformers' `initialization.py` and `modeling_utils.py`.
    """

    @contextmanager
    def guard_torch_init_functions() -> Iterator[None]:
        with ExitStack() as stack:
            for name in init.TORCH_INIT_FUNCTIONS:
                stack.enter_context(initialisers[name].leading_to(vars(init)[name]))
            yield

    @contextmanager
    def no_init_weights() -> Iterator[None]:
        with ExitStack() as stack:
            for name in init.TORCH_INIT_FUNCTIONS:
                stack.enter_context(initialisers[name].leading_to(_nothing))
            stack.enter_context(methods["init_weights"].leading_to(_nothing))
            yield

    @contextmanager
    def no_tie_weights() -> Iterator[None]:
        with methods["tie_weights"].leading_to(_nothing):
            yield

    @contextmanager
    def meta_device_safe_creation_ops() -> Iterator[None]:
        with _LinspaceOnHost():
            yield

    @contextmanager
    def local_torch_dtype(
        dtype: torch.dtype, model_class_name: str | None = None
    ) -> Iterator[None]:
        if not dtype.is_floating_point:
            what = (
                f"{model_class_name} cannot be built" if model_class_name else "nothing can be made"
            )
            raise ValueError(f"{what} with {dtype} as the default: it is no floating-point dtype")
        with default_dtype(dtype):
            yield

    for function in (
        guard_torch_init_functions,
        no_init_weights,
        no_tie_weights,
        meta_device_safe_creation_ops,
    ):
        swaps.add(init, function.__name__, function)
    swaps.add(utils, "local_torch_dtype", local_torch_dtype)
    # The original was made with the original context.
    guarded = vars(utils.PreTrainedModel)["initialize_weights"]
    swaps.add(
        utils.PreTrainedModel, "initialize_weights", _within(guard_torch_init_functions, guarded)
    )


def _within(context: Callable[[], Any], decorated: Any) -> Callable[..., Any]:
    """What a context manager decorates, in another context."""
    function = decorated.__wrapped__

    @functools.wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        with context():
            return function(*args, **kwargs)

    return within


class _LinspaceOnHost(TorchFunctionMode):
    """Has `torch.linspace` make numbers, also where all else is on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Leaves a tensor or a model as it is."""
