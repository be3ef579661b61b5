"""What threads that load models do to each other, each as a function that tells the damage.

Every one of them pauses one thread in the middle of what a library does, and lets another one work.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from interleave import Steps, interleave

Damage = str | None


def within(context: Callable[[], Any]) -> Steps:
    """Enters a context, stays in it for a step, and leaves."""
    with context():
        yield
    yield


def inside(context: Callable[[], Any], work: Callable[[], Any]) -> Any:
    """What comes of some work while another thread is in a context."""

    def worker() -> Steps:
        return work()
        yield

    found = interleave("ab", a=within(context), b=worker())["b"]
    if isinstance(found, BaseException):
        raise found
    return found


def after_overlapping(context: Callable[[], Any], work: Callable[[], Any]) -> Any:
    """What comes of some work after two threads have left a context in the order of entering it."""
    interleave("abab", a=within(context), b=within(context))
    return work()


def told(damaged: bool, damage: str) -> Damage:
    return damage if damaged else None


def empty_weights() -> Any:
    from accelerate import init_empty_weights

    return init_empty_weights()


def peft_empty_weights() -> Any:
    from peft.utils.integrations import init_empty_weights

    return init_empty_weights()


def half_precision() -> Any:
    from transformers.modeling_utils import local_torch_dtype

    return local_torch_dtype(torch.float16)


def assign() -> bool:
    module = torch.nn.Linear(2, 2)
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)
    return module.weight.is_meta


def new_module_is_meta() -> bool:
    return torch.nn.Linear(2, 2).weight.is_meta


# The hazards


def a_module_made_while_another_thread_builds_without_weights(folder: Path) -> Damage:
    return told(inside(empty_weights, new_module_is_meta), "its parameters are on the meta device")


def tensors_assigned_while_another_thread_builds_without_weights(folder: Path) -> Damage:
    return told(inside(empty_weights, assign), "its parameters are on the meta device")


def a_module_made_after_two_threads_have_built_without_weights(folder: Path) -> Damage:
    return told(after_overlapping(empty_weights, new_module_is_meta), "modules are meta for good")


def a_module_made_while_an_adapter_is_put_in(folder: Path) -> Damage:
    return told(inside(peft_empty_weights, new_module_is_meta), "its parameters are on meta")


def a_module_made_after_two_adapters_were_put_in(folder: Path) -> Damage:
    return told(after_overlapping(peft_empty_weights, new_module_is_meta), "meta for good")


def a_build_without_weights_while_a_layer_of_peft_skips_it(folder: Path) -> Damage:
    def build() -> bool:
        with peft_empty_weights():
            return new_module_is_meta()

    from peft.utils.integrations import _skip_init_on_device

    return told(not inside(_skip_init_on_device, build), "its parameters take memory")


def a_tensor_made_while_another_thread_builds_in_half_precision(folder: Path) -> Damage:
    return told(inside(half_precision, lambda: torch.zeros(1).dtype) != torch.float32, "it is half")


def a_tensor_made_after_two_threads_have_built_in_half_precision(folder: Path) -> Damage:
    found = after_overlapping(half_precision, lambda: torch.zeros(1).dtype)
    return told(found != torch.float32, "everything is half for good")


def a_tensor_made_after_a_model_of_diffusers_could_not_be_built(folder: Path) -> Damage:
    from diffusers import UNet2DModel

    class Broken(UNet2DModel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        Broken.from_pretrained(folder / "unet", torch_dtype=torch.float16)
    return told(torch.zeros(1).dtype != torch.float32, "everything is half for good")


def values_given_while_another_thread_builds_without_values(folder: Path) -> Damage:
    from diffusers.models.modeling_utils import no_init_weights

    def filled() -> bool:
        tensor = torch.zeros(1)
        torch.nn.init.constant_(tensor, 7.0)
        return tensor.item() == 7.0

    return told(not inside(no_init_weights, filled), "it has none")


def values_given_after_diffusers_and_transformers_have_built(folder: Path) -> Damage:
    from diffusers.models.modeling_utils import no_init_weights
    from transformers.initialization import guard_torch_init_functions

    before = torch.nn.init.normal_
    interleave("abab", a=within(no_init_weights), b=within(guard_torch_init_functions))
    return told(torch.nn.init.normal_ is not before, "torch.nn.init is another one for good")


def tied_weights_while_another_thread_loads(folder: Path) -> Damage:
    from transformers import T5EncoderModel
    from transformers.initialization import no_tie_weights

    def load() -> bool:
        model = T5EncoderModel.from_pretrained(folder / "t5")
        return model.encoder.embed_tokens.weight.is_meta

    return told(inside(no_tie_weights, load), "a tied weight is on the meta device")


def tied_weights_after_two_threads_have_loaded(folder: Path) -> Damage:
    from transformers import PreTrainedModel
    from transformers.initialization import no_tie_weights

    before = PreTrainedModel.tie_weights
    found = after_overlapping(no_tie_weights, lambda: PreTrainedModel.tie_weights)
    return told(found is not before, "weights are never tied again")


def numbers_on_meta_while_another_thread_loads(folder: Path) -> Damage:
    from transformers.initialization import meta_device_safe_creation_ops

    def make() -> bool:
        with torch.device("meta"):
            return torch.linspace(0, 1, 3).is_meta

    return told(not inside(meta_device_safe_creation_ops, make), "they are on the CPU")


def numbers_on_meta_after_two_threads_have_loaded(folder: Path) -> Damage:
    from transformers.initialization import meta_device_safe_creation_ops

    before = torch.linspace
    found = after_overlapping(meta_device_safe_creation_ops, lambda: torch.linspace)
    return told(found is not before, "torch.linspace is another one for good")


def numbers_on_meta_after_the_first_load(folder: Path) -> Damage:
    from transformers.initialization import meta_device_safe_creation_ops

    torch.utils._device._device_constructors.cache_clear()
    with meta_device_safe_creation_ops(), torch.device("meta"):
        torch.zeros(1)
    with torch.device("meta"):
        return told(not torch.linspace(0, 1, 3).is_meta, "they are on the CPU for good")


def a_device_map_checked_after_two_were_not(folder: Path) -> Damage:
    import accelerate.big_modeling
    from transformers.integrations.accelerate import skip_device_map_check

    before = accelerate.big_modeling.check_device_map
    interleave("abab", a=within(skip_device_map_check), b=within(skip_device_map_check))
    now = accelerate.big_modeling.check_device_map
    return told(now is not before, "device maps are never checked again")


HAZARDS = [
    value
    for value in list(globals().values())
    if callable(value)
    and getattr(value, "__module__", "") == __name__
    and getattr(value, "__annotations__", {}).get("folder") == "Path"
]


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """Whatever is left changed in the libraries is as before afterwards."""
    import accelerate.big_modeling
    import peft.utils.integrations
    import transformers.initialization as init
    from transformers import PreTrainedModel

    places: list[tuple[Any, str]] = [
        (torch.nn.Module, "register_parameter"),
        (torch, "linspace"),
        (PreTrainedModel, "tie_weights"),
        (PreTrainedModel, "init_weights"),
        (accelerate.big_modeling, "check_device_map"),
    ]
    for module in init.TORCH_MODULES_TO_PATCH:
        names = init.TORCH_INIT_FUNCTIONS
        places += [
            (sys.modules[module], name) for name in names if name in vars(sys.modules[module])
        ]
    before = [(owner, name, vars(owner)[name]) for owner, name in places]
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        torch.set_default_dtype(torch.float32)
        # It may have been made while torch.linspace was another function.
        torch.utils._device._device_constructors.cache_clear()
        with contextlib.suppress(AttributeError):
            del peft.utils.integrations._init_on_device._skip


def leftovers() -> list[str]:
    """What is not as torch and the libraries have it, by name."""
    from transformers import PreTrainedModel

    found = []
    for owner, name in [(torch.nn.Module, "register_parameter"), (PreTrainedModel, "tie_weights")]:
        if vars(owner)[name].__qualname__ != f"{owner.__name__}.{name}":
            found.append(name)
    if torch.linspace.__name__ != "linspace" or hasattr(torch.linspace, "__closure__"):
        found.append("linspace")
    for name in ("normal_", "uniform_", "zeros_", "kaiming_uniform_"):
        if getattr(torch.nn.init, name).__module__ != "torch.nn.init":
            found.append(f"init.{name}")
    if torch.zeros(1).dtype != torch.float32:
        found.append("default dtype")
    return found
