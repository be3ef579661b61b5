"""A diffusers pipeline on every device, its weights once in host memory."""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch.nn import Module
from transformers import CLIPTokenizer

import coresident as co
from coresident.torch import Replica, Residence, per_job

MODULES = ("text_encoder", "unet", "vae")


class SharedPipeline:
    """The modules of a pipeline, one replica for each device of a runtime.

    On devices that use host memory, the parameters of every replica are maps of the same files; on
    others they come there from these files for as long as they are used, and stay while there is
    room.

    Args:
        runtime: Whose devices, weights and workers are used.
        folder: A Stable Diffusion pipeline as ``save_pretrained`` writes it.
    """

    def __init__(self, runtime: co.Runtime, folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        library, name = index["scheduler"]
        self._scheduler = getattr(import_module(library), name).from_pretrained(
            folder / "scheduler"
        )
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self._models = {
            part: runtime.load(f"{folder.name}/{part}", folder / part) for part in MODULES
        }
        self._replicas: dict[co.Device, dict[str, Replica]] = runtime.workers.scatter(
            {device: partial(self._replicate, device) for device in runtime.devices}
        )
        self._pipes = {device: self._pipe(device) for device in runtime.devices}

    def key(self, part: str) -> str:
        """What the weights of a part are called."""
        return self._models[part].key

    def module(self, part: str, device: co.Device) -> Any:
        """The replica of ``'text_encoder'``, ``'unet'`` or ``'vae'`` on a device."""
        return self._replicas[device][part].module

    def on(self, device: co.Device, **parts: Module) -> StableDiffusionPipeline:
        """A pipeline for one job: the device's modules, and a scheduler and a tokenizer of its own.

        Args:
            device: Whose modules it has.
            **parts: Modules to be used instead.
        """
        return per_job(self._pipes[device], **parts)

    def resident(
        self, part: str, device: co.Device, cancel: co.CancelToken | None = None
    ) -> Residence:
        """Has the weights of a part on a device until the block ends; waits for room.

        Args:
            part: ``'text_encoder'``, ``'unet'`` or ``'vae'``.
            device: Which device, held by the caller.
            cancel: A token that ends the wait.
        """
        return self._replicas[device][part].on(cancel=cancel)

    def host_bytes(self) -> tuple[int, int]:
        """Bytes of weights in host memory; and those of a copy there for each device."""
        parameters = [
            parameter
            for replicas in self._replicas.values()
            for replica in replicas.values()
            for parameter in replica.module.parameters()
        ]
        once = sum(model.weights.nbytes for model in self._models.values())
        return once, sum(parameter.nbytes for parameter in parameters)

    def _replicate(self, device: co.Device) -> dict[str, Replica]:
        return {part: model.replica(device) for part, model in self._models.items()}

    def _pipe(self, device: co.Device) -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline(
            **{part: self.module(part, device) for part in MODULES},
            tokenizer=self._tokenizer,
            scheduler=self._scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
