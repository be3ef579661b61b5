"""A diffusers pipeline on every device, its weights once in host memory."""

from __future__ import annotations

import copy
import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import StableDiffusionPipeline
from torch.nn import Module
from transformers import CLIPTokenizer

import coresident as co

MODULES = ("text_encoder", "unet", "vae")


class SharedPipeline:
    """The modules of a pipeline, one replica for each device of a runtime.

    On devices that use host memory, the parameters of every replica are the mapped files
    themselves; on others they are copied once from there.

    Args:
        runtime: Whose devices, weights, load lock and workers are used.
        folder: A Stable Diffusion pipeline as ``save_pretrained`` writes it.
    """

    def __init__(self, runtime: co.Runtime, folder: Path) -> None:
        self._runtime = runtime
        self._folder = folder
        index = json.loads((folder / "model_index.json").read_text())
        self._classes = {
            part: getattr(import_module(index[part][0]), index[part][1])
            for part in (*MODULES, "scheduler")
        }
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self._scheduler = self._classes["scheduler"].load_config(folder / "scheduler")
        self.weights = {
            part: runtime.weights.open(f"{folder.name}/{part}", _file_of_weights(folder / part))
            for part in MODULES
        }
        self._replicas: dict[co.Device, dict[str, Module]] = runtime.workers.scatter(
            {device: partial(self._load, device) for device in runtime.devices}
        )

    def module(self, part: str, device: co.Device) -> Any:
        """The replica of ``'text_encoder'``, ``'unet'`` or ``'vae'`` on a device."""
        return self._replicas[device][part]

    def on(self, device: co.Device, **parts: Module) -> StableDiffusionPipeline:
        """A pipeline for one job: the device's modules, and what jobs must not share.

        Schedulers count steps, and tokenizers set their padding, in themselves: two jobs that
        share one spoil each other's images without an error.

        Args:
            device: Whose modules it has.
            **parts: Modules to be used instead.
        """
        pipe = StableDiffusionPipeline(
            **{**self._replicas[device], **parts},
            tokenizer=copy.deepcopy(self._tokenizer),
            scheduler=self._classes["scheduler"].from_config(self._scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def host_bytes(self) -> tuple[int, int]:
        """Bytes of weights in host memory; and those of a copy there for each device."""
        mapped = [torch.from_dlpack(tensor) for w in self.weights.values() for tensor in w.values()]
        parameters = [
            parameter
            for modules in self._replicas.values()
            for module in modules.values()
            for parameter in module.parameters()
        ]
        on_host = [tensor for tensor in (*mapped, *parameters) if tensor.device.type == "cpu"]
        distinct = {tensor.data_ptr(): tensor.nbytes for tensor in on_host}
        return sum(distinct.values()), sum(tensor.nbytes for tensor in parameters)

    def _load(self, device: co.Device) -> dict[str, Module]:
        return {part: self._replica(part, device) for part in MODULES}

    def _replica(self, part: str, device: co.Device) -> Module:
        # Building without weights patches torch for the whole process: nobody may load meanwhile.
        with self._runtime.load_lock.write(), init_empty_weights(include_buffers=False):
            module = self._structure(part)
        tensors = {name: torch.from_dlpack(tensor) for name, tensor in self.weights[part].items()}
        with self._runtime.load_lock.read():
            module.load_state_dict(tensors, assign=True)
            return module.eval().requires_grad_(False).to(device.torch_name)

    def _structure(self, part: str) -> Module:
        """The module as its configuration says: diffusers' way, or transformers'."""
        kind, folder = self._classes[part], self._folder / part
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))


def _file_of_weights(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise co.InvalidValueError(f"{folder} has {len(files)} files of weights, not one")
    return files[0]
