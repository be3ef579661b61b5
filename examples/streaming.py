"""A diffusers transformer that is larger than its device: ``python examples/streaming.py``.

The device is a virtual one, whose bus is as slow as is said. Prints what stays, what is streamed,
how long steps take beside those of the same model where it fits, and which share of copying is
hidden behind computing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import coresident as co
import torch
from diffusers import FluxTransformer2DModel


def transformer() -> Any:
    """One of 100 MiB, with random weights."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=12,
        axes_dims_rope=(8, 12, 12),
        joint_attention_dim=64,
        pooled_projection_dim=64,
    ).eval()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--bandwidth", default="1GiB", help="of the bus, a second")
    given = parser.parse_args()
    tokens = 128
    inputs = {
        "hidden_states": torch.randn(1, tokens, 16),
        "encoder_hidden_states": torch.randn(1, 16, 64),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(16, 3),
        "return_dict": False,
    }
    print(f"{'device':>10} {'stays':>10} {'streams':>10} {'step':>10} {'hidden':>7}  same bits")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        transformer().save_pretrained(folder)
        expected = None
        for memory in ("512MiB", "128MiB", "96MiB", "64MiB", "48MiB"):
            [device] = co.virtual_devices(1, memory=memory, bandwidth=given.bandwidth)
            with co.Runtime([device]) as runtime:
                residence = runtime.load("flux", folder).on(device)
                with residence as module:
                    module(**inputs)
                    began = time.perf_counter()
                    for _ in range(given.steps):
                        output = module(**inputs)[0]
                    step = (time.perf_counter() - began) / given.steps
                    status = residence.streaming
            expected = output if expected is None else expected
            stays = "all" if status is None else f"{(status.resident + status.kept) >> 20} MiB"
            streams = "0" if status is None else f"{status.streamed >> 20} MiB"
            hidden = "" if status is None else f"{status.hidden:.0%}"
            same = torch.equal(output, expected)
            print(
                f"{memory:>10} {stays:>10} {streams:>10} {step * 1e3:>7.0f} ms {hidden:>7}  {same}"
            )


if __name__ == "__main__":
    main()
