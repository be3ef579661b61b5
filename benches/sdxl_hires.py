"""SDXL with a second, larger pass on one device with a slow bus: ``python benches/sdxl_hires.py``.

Two text encoders, a UNet and a VAE as SDXL has them, of random weights and small, take turns on a
virtual device: encode, denoise, decode, enlarge, denoise, decode; each image has another prompt.
Tells seconds and bytes copied for each image, by the policy of residency, on a device on which all
of it fits and on one on which it does not; beside what it takes when everything is resident for
good. All images are the same to the bit. ``--out`` writes the table as Markdown.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported: threads that spin while they wait are in the way of copies.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import coresident as co
import torch

#: What one image uses, in order.
STAGES = ["sdxl/te1", "sdxl/te2", "sdxl/unet", "sdxl/vae", "sdxl/unet", "sdxl/vae"]
#: Everything is resident for good.
RESIDENT = "everything resident"
PAGE = 2 << 20


@dataclass(frozen=True)
class Scale:
    """How large it is.

    Attributes:
        width: Channels of the first block of the UNet; SDXL has 320.
        text: Dimensions of the two text encoders; SDXL has 768 and 1280.
        layers: Layers of the text encoders; SDXL has 12 and 32.
        transformers: Transformers in each block of the UNet; SDXL has 0, 2 and 10.
        decoder: Channels of the blocks of the VAE; SDXL has 128, 256, 512 and 512.
        latents: Height and width of the latents of the first pass; SDXL has 128.
        steps: Steps of the two passes.
    """

    width: int = 64
    text: tuple[int, int] = (128, 320)
    layers: tuple[int, int] = (4, 10)
    transformers: tuple[int, int, int] = (1, 2, 6)
    decoder: tuple[int, ...] = (16, 32, 64, 64)
    latents: int = 16
    steps: tuple[int, int] = (4, 2)


def modules(scale: Scale) -> dict[str, Callable[[], torch.nn.Module]]:
    """What makes each module, by key."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def clip(at: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=1000,
            hidden_size=scale.text[at],
            intermediate_size=4 * scale.text[at],
            projection_dim=scale.text[at],
            num_hidden_layers=scale.layers[at],
            num_attention_heads=4,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
        )

    widths = (scale.width, 2 * scale.width, 4 * scale.width)

    def unet() -> torch.nn.Module:
        return UNet2DConditionModel(
            sample_size=scale.latents,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=tuple(width // 16 for width in widths),
            transformer_layers_per_block=scale.transformers,
            use_linear_projection=True,
            norm_num_groups=16,
            cross_attention_dim=sum(scale.text),
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=6 * 32 + scale.text[1],
        )

    def vae() -> torch.nn.Module:
        return AutoencoderKL(
            block_out_channels=scale.decoder,
            down_block_types=("DownEncoderBlock2D",) * len(scale.decoder),
            up_block_types=("UpDecoderBlock2D",) * len(scale.decoder),
            latent_channels=4,
            norm_num_groups=16,
            scaling_factor=0.13025,
            force_upcast=False,
        )

    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "sdxl/te1": lambda: CLIPTextModel(clip(0)),
        "sdxl/te2": lambda: CLIPTextModelWithProjection(clip(1)),
        "sdxl/unet": unet,
        "sdxl/vae": vae,
    }

    def seeded(key: str) -> torch.nn.Module:
        torch.manual_seed(zlib.crc32(key.encode()))
        return makers[key]().eval()

    return {key: functools.partial(seeded, key) for key in makers}


class Pipeline:
    """The stages of an image, each with its module on the device for as long as it takes.

    Args:
        runtime: Whose first device it runs on.
        scale: How large it is.
        resident: Whether all modules are there for good.
    """

    def __init__(self, runtime: co.Runtime, scale: Scale, *, resident: bool = False) -> None:
        self._scale = scale
        self._runtime = runtime
        self._replicas = {
            key: runtime.load(key, make).replica(runtime.devices[0])
            for key, make in modules(scale).items()
        }
        self._stay = ExitStack()
        self._resident = resident
        if resident:
            for replica in self._replicas.values():
                self._stay.enter_context(replica.on())

    def close(self) -> None:
        """Lets go of everything."""
        self._stay.close()
        for replica in self._replicas.values():
            replica.release()

    @contextmanager
    def _on(self, name: str) -> Iterator[Any]:
        replica = self._replicas[f"sdxl/{name}"]
        if self._resident:
            yield replica.module
        else:
            with replica.on() as module:
                yield module

    @torch.inference_mode()
    def image(self, prompt: str) -> torch.Tensor:
        """One image."""
        scale = self._scale
        random = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        # With and without the prompt, for guidance.
        tokens = torch.randint(2, 999, (2, 77), generator=random)
        with self._on("te1") as encoder:
            first = encoder(tokens, output_hidden_states=True).hidden_states[-2]
        with self._on("te2") as encoder:
            encoded = encoder(tokens, output_hidden_states=True)
        context = torch.cat([first, encoded.hidden_states[-2]], dim=-1)
        side = scale.latents
        latents = torch.randn(1, 4, side, side, generator=random)
        latents = self._denoise(latents, context, encoded.text_embeds, scale.steps[0], 1.0)
        self._decode(latents)
        larger = torch.nn.functional.interpolate(latents, scale_factor=1.5, mode="bilinear")
        latents = self._denoise(larger, context, encoded.text_embeds, scale.steps[1], 0.5)
        return self._decode(latents)

    def _denoise(
        self, latents: Any, context: Any, pooled: Any, steps: int, strength: float
    ) -> torch.Tensor:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler()
        scheduler.set_timesteps(max(steps, round(steps / strength)))
        timesteps = scheduler.timesteps[-steps:]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(steps))
        latents = scheduler.add_noise(latents, noise, timesteps[:1])
        size = 8 * latents.shape[-1]
        times = torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=torch.float32)
        with self._on("unet") as unet:
            for step in timesteps:
                both = scheduler.scale_model_input(torch.cat([latents] * 2), step)
                added = {"text_embeds": pooled, "time_ids": times}
                noise = unet(both, step, context, added_cond_kwargs=added).sample
                without, along = noise.chunk(2)
                latents = scheduler.step(without + 5 * (along - without), step, latents).prev_sample
        return latents

    def _decode(self, latents: Any) -> torch.Tensor:
        with self._on("vae") as vae:
            return vae.decode(latents / vae.config.scaling_factor).sample


class Run:
    """Images on a device of its own.

    Args:
        policy: What stays there.
        memory: Bytes that it has.
        scale: How large all of it is.
        bandwidth: How many bytes a second its bus copies; ``None`` for as many as there can be.

    Attributes:
        seconds: Of each image.
        copied: Bytes that were copied for each.
        images: The images.
    """

    def __init__(
        self, policy: str, memory: int, scale: Scale, *, bandwidth: int | None = None
    ) -> None:
        [self._device] = co.virtual_devices(1, memory=memory, bandwidth=bandwidth)
        resident = policy == RESIDENT
        self._runtime = co.Runtime([self._device], policy="look-ahead" if resident else policy)
        self._pipeline = Pipeline(self._runtime, scale, resident=resident)
        self.seconds: list[float] = []
        self.copied: list[int] = []
        self.images: list[torch.Tensor] = []

    def make(self) -> None:
        """Makes one more image."""
        before, began = self._runtime.analyze(self._device).filled, time.perf_counter()
        with self._runtime.pool.lease(self._device):
            self.images.append(self._pipeline.image(f"a photograph, number {len(self.images)}"))
        self.seconds.append(time.perf_counter() - began)
        self.copied.append(self._runtime.analyze(self._device).filled - before)

    def close(self) -> None:
        """Lets go of everything."""
        self._pipeline.close()
        self._runtime.close()


def run(policy: str, memory: int, images: int, scale: Scale) -> Run:
    """Makes images."""
    made = Run(policy, memory, scale)
    for _ in range(images):
        made.make()
    made.close()
    return made


def weights(scale: Scale) -> dict[str, int]:
    """Bytes of the pages of each module."""
    sizes = {}
    for key, make in modules(scale).items():
        state = make().state_dict().values()
        nbytes = sum(tensor.numel() * tensor.element_size() for tensor in state)
        sizes[key] = -(-nbytes // PAGE) * PAGE
    return sizes


def table(images: int, scale: Scale, bandwidth: int) -> list[str]:
    """A row for each policy and device, as Markdown."""
    sizes = weights(scale)
    everything = sum(sizes.values())
    # As a card has beside the weights for what is computed, or less than the weights.
    devices = {
        "everything fits": 3 * everything,
        "all but the second encoder fit": everything - sizes["sdxl/te2"] + (48 << 20),
    }
    runs = {
        ("everything fits", RESIDENT): Run(RESIDENT, 3 * everything, scale, bandwidth=bandwidth)
    }
    for device, memory in devices.items():
        for policy in ("look-ahead", "lru", "always-evict"):
            runs[device, policy] = Run(policy, memory, scale, bandwidth=bandwidth)
    # In turns, so that whatever else the machine does is shared by all.
    for _ in range(images):
        for made in runs.values():
            made.make()
    reference = runs["everything fits", RESIDENT]
    least = statistics.median(reference.seconds[1:])
    lines = [
        "| device | policy | seconds per image | copied per image | beside everything resident |",
        "|---|---|---|---|---|",
    ]
    for (device, policy), made in runs.items():
        made.close()
        assert all(map(torch.equal, made.images, reference.images)), "the images differ"
        # The first one brings everything, and measures what calls need.
        seconds = statistics.median(made.seconds[1:])
        copied = statistics.mean(made.copied[1:]) / 2**20
        lines.append(
            f"| {device} | {policy} | {seconds:.2f} | {copied:.0f} MiB | {seconds / least:.2f} x |"
        )
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6, help="how many of each, at least 2")
    parser.add_argument("--bandwidth", type=int, default=256, help="of the bus, in MiB a second")
    parser.add_argument("--out", type=Path, help="a file for the table, as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = table(max(2, options.images), Scale(), options.bandwidth << 20)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
