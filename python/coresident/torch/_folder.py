"""A model as `save_pretrained` of diffusers or transformers writes it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from coresident.errors import InvalidValueError
from coresident.torch._default_dtype import default_dtype
from coresident.torch.installation import without_values

CONFIG = "config.json"


def class_of(folder: Path) -> type[torch.nn.Module]:
    """The class that a folder's configuration names.

    Raises:
        InvalidValueError: the folder has no configuration, or it names no class that is there.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as why:
        message = f"{folder} is no folder of a model: its {CONFIG} cannot be read: {why}"
        raise InvalidValueError(message) from None
    library, names = "diffusers", [config.get("_class_name")]
    if names == [None]:
        library, names = "transformers", config.get("architectures") or []
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise InvalidValueError(
            f"{folder} is quantised ({method}): load it with {library} itself, and give load() a "
            "function that does so"
        )
    for name in names:
        if isinstance(found := getattr(importlib.import_module(library), str(name), None), type):
            return found
    raise InvalidValueError(f"{folder / CONFIG} names no class of {library}: {names}")


def structure_of(
    kind: type[torch.nn.Module], folder: Path, dtype: torch.dtype | None
) -> torch.nn.Module:
    """The module that a folder describes, parameters on the meta device, buffers made."""
    if hasattr(kind, "load_config"):
        with _building(dtype):
            made = kind.from_config(kind.load_config(folder))
        made.register_to_config(_name_or_path=folder)
        return made
    config = kind.config_class.from_pretrained(folder)
    config.name_or_path = str(folder)
    for name in getattr(config, "sub_configs", ()):
        if getattr(config, name, None) is not None:
            getattr(config, name).dtype = dtype
    with _building(dtype):
        made = kind(config)
    # Not while each parameter that is registered becomes another one.
    made.tie_weights()
    _fill_buffers(made)
    if made.can_generate() and (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        made.generation_config = GenerationConfig.from_pretrained(folder)
    return made


def _fill_buffers(model: Any) -> None:
    """Gives buffers that no file has the values that transformers gives them after loading."""
    from transformers import PreTrainedModel

    def fill(part: torch.nn.Module, owner: Any) -> None:
        for child in part.children():
            fill(child, child if isinstance(child, PreTrainedModel) else owner)
        if part._non_persistent_buffers_set:
            owner._init_weights(part)

    with torch.no_grad():
        fill(model, model)


def loaded(kind: type[torch.nn.Module], folder: Path, dtype: torch.dtype | None) -> torch.nn.Module:
    """The module as its own library loads it."""
    name = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    options: dict[str, Any] = {} if dtype is None else {name: dtype}
    return kind.from_pretrained(folder, **options)


@contextmanager
def _building(dtype: torch.dtype | None) -> Iterator[None]:
    with default_dtype(dtype), without_values():
        yield
