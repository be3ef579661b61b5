"""Weights that are packed for one kind of device, which others must not have."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from coresident import _core
from coresident.errors import InvalidDeviceError
from coresident.torch.structure import Structure

log = logging.getLogger("coresident.torch")

# So many names are told.
_SHOWN = 3


class Packing:
    """On which devices the weights of a model are the same bytes.

    Args:
        key: What the weights are called.
        structure: The structure of its module.
        order: Under which name the weights have each tensor of the structure.
    """

    def __init__(self, key: str, structure: Structure, order: list[str]) -> None:
        self._key = key
        self._structure = structure
        self._order = order
        # The types of devices that were found to be such.
        self._suited = {"cpu"}

    def check(self, device: _core.Device, state: Mapping[str, torch.Tensor]) -> None:
        """Refuses a device on which they would be others. The first time it moves one tensor of
        each class of its own to such a device, as its library does.

        Args:
            device: The device.
            state: The weights, in host memory.

        Raises:
            InvalidDeviceError: it is one.
        """
        target = torch.device(device.torch_name)
        if self._structure.packed and (device.paged or target.type != "cpu"):
            raise InvalidDeviceError(
                f"{self._key!r} has weights that torch has packed for the CPU "
                f"({_told(self._structure.packed)}), as quantize_dynamic does: they are no "
                f"tensors, and {device} has memory of its own, where they cannot be. Quantise "
                "with torchao or optimum-quanto, or use a device that uses host memory"
            )
        if self._structure.of_bitsandbytes and target.type == "cpu":
            raise InvalidDeviceError(
                f"{self._key!r} has weights of bitsandbytes "
                f"({_told(self._structure.of_bitsandbytes)}), whose layers pack them anew, where "
                f"they are, when they compute on the CPU, as {device} does: others that share them "
                "would know nothing of it. Use a GPU, or quantise with torchao or optimum-quanto"
            )
        if target.type in self._suited:
            return
        with torch.inference_mode(False), torch.no_grad():
            tensors = [state[name] for name in self._order]
            other = self._structure.packed_anew(tensors, target)
        if other is not None:
            raise InvalidDeviceError(
                f"{other} of {self._key!r} is packed for the CPU, and its library would pack it in "
                f"another way for {device}: load a model that is packed for no kind of device"
            )
        self._suited.add(target.type)


def warn_of_packed(key: str, structure: Structure) -> None:
    """Says in the log that weights are no tensors, if some are none."""
    if structure.packed:
        log.warning(
            "%r has weights that torch has packed for the CPU (%s): they are no tensors, so that "
            "no budget counts them, and only devices that use host memory can have them",
            *(key, _told(structure.packed)),
        )


def _told(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
