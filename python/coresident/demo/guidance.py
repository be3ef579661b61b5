"""Classifier-free guidance: two calls of the UNet for each step, on one device or on two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import coresident as co


class GuidedUNet(Module):  # type: ignore[misc] # torch's own types are not looked at
    """A UNet as a pipeline calls it, with a batch of two: the unguided half and the guided one.

    Always calls the model once for each half. A batch of two on one device gives other bits than
    two batches of one, so that images would depend on how many devices there are.

    Args:
        home: The device that the caller has leased.
        models: The model on ``home``, and on one more device if the halves are to run at once.
        workers: Runs the unguided half on that device.
        watch: A context manager around each call, told its device.
        cancel: A token that ends the wait for the other half.
    """

    def __init__(
        self,
        home: co.Device,
        models: Mapping[co.Device, Any],
        workers: co.WorkerPool,
        watch: Callable[[co.Device], Any],
        cancel: co.CancelToken,
    ) -> None:
        super().__init__()
        self.home_model = models[home]
        self._home = home
        # In a plain dict, so that moving this module does not move the other device's.
        self._models = dict(models)
        self._workers = workers
        self._watch = watch
        self._cancel = cancel

    @property
    def config(self) -> Any:
        """What the pipeline asks for the model's shape."""
        return self.home_model.config

    @property
    def device(self) -> torch.device:
        """Where its inputs are, and its outputs."""
        return self.home_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its parameters."""
        return self.home_model.dtype

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **rest: Any
    ) -> tuple[Tensor]:
        """The noise that the model sees.

        Args:
            sample: Latents ``(batch, channels, height, width)``.
            timestep: The step, a scalar.
            encoder_hidden_states: The encoded texts ``(batch, tokens, width)``.
            **rest: Passed on.

        Returns:
            A tuple of one tensor shaped as ``sample``.
        """
        devices = list(self._models)
        calls = [
            partial(self._half, one, timestep, text, rest)
            for one, text in zip(sample.split(1), encoder_hidden_states.split(1), strict=True)
        ]
        if len(devices) == len(calls) == 2:
            other = next(device for device in devices if device != self._home)
            unguided, guided = (partial(calls[0], other), partial(calls[1], self._home))
            found = self._workers.scatter(
                {other: unguided, self._home: guided}, cancel=self._cancel
            )
            noise = [found[other], found[self._home]]
        else:
            noise = [call(self._home) for call in calls]
        return (torch.cat([part.to(sample.device) for part in noise]),)

    def _half(
        self,
        sample: Tensor,
        timestep: Tensor,
        text: Tensor,
        rest: dict[str, Any],
        device: co.Device,
    ) -> Tensor:
        # Not to ``model.device``: diffusers walks through all modules to tell it.
        inputs = (tensor.to(device.torch_name) for tensor in (sample, timestep, text))
        with self._watch(device):
            noise: Tensor = self._models[device](*inputs, **{**rest, "return_dict": False})[0]
            return noise
