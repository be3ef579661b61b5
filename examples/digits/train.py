"""Trains the pipeline that the demo draws with, on a CPU: under an hour on two cores.

python examples/digits/train.py --out python/coresident/digits
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from classifier import recognise, train_classifier
from dataset import WORDS, digits, prompt, vary
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from model import TOKENS, draw, pipeline
from torch import Tensor
from torch.nn import functional

BATCH = 64
# One prompt in so many is empty, so that guidance has something to guide away from.
UNCONDITIONAL = 0.12


def main() -> None:
    """Trains, saves, and says how well it draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--unet-steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    pipe = pipeline()
    images, labels = digits()
    train_vae(pipe, images, options.vae_steps)
    latents, labels = encode(pipe, images, labels)
    train_unet(pipe, latents, labels, options.unet_steps)
    pipe.save_pretrained(options.out, safe_serialization=True)
    report(pipe)


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices, each as often as any other."""
    while True:
        yield from torch.randperm(count, generator=generator).split(BATCH)


def tell(what: str, step: int, steps: int, started: float, loss: float) -> None:
    """Prints the loss now and then."""
    if step % 250 == 0 or step == steps:
        print(f"{what} {step}/{steps}, {time.time() - started:.0f} s: {loss:.4f}", flush=True)


def train_vae(pipe: StableDiffusionPipeline, images: Tensor, steps: int) -> None:
    """Teaches the autoencoder to draw a digit again from 4 x 8 x 8 numbers."""
    vae = pipe.vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    generator = torch.Generator().manual_seed(1)
    started, average = time.time(), 0.0
    for step, chosen in zip(range(1, steps + 1), batches(len(images), generator), strict=False):
        batch = vary(images[chosen], generator)
        posterior = vae.encode(batch).latent_dist
        drawn = vae.decode(posterior.sample()).sample
        loss = (
            functional.l1_loss(drawn, batch)
            + functional.mse_loss(drawn, batch)
            + 1e-5 * posterior.kl().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average += (loss.item() - average) / min(step, 100)
        tell("vae", step, steps, started, average)
    vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(
    pipe: StableDiffusionPipeline, images: Tensor, labels: Tensor, variants: int = 12
) -> tuple[Tensor, Tensor]:
    """Latents of the digits and of variants of them, scaled to one standard deviation."""
    generator = torch.Generator().manual_seed(2)
    varied = [images, *(vary(images, generator) for _ in range(variants))]
    parts = torch.cat(varied).split(256)
    latents = torch.cat([pipe.vae.encode(part).latent_dist.mean for part in parts])
    scale = 1 / latents.std().item()
    pipe.vae.register_to_config(scaling_factor=scale)
    return latents * scale, labels.repeat(len(varied))


def train_unet(pipe: StableDiffusionPipeline, latents: Tensor, labels: Tensor, steps: int) -> None:
    """Teaches the UNet and the text encoder to find a digit in noise. Keeps a running mean."""
    unet, text_encoder = pipe.unet.train(), pipe.text_encoder.train()
    learned = torch.nn.ModuleList([unet, text_encoder])
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    mean = EMAModel(learned.parameters(), decay=0.999)
    scheduler = copy.deepcopy(pipe.scheduler)
    generator = torch.Generator().manual_seed(3)
    started, average = time.time(), 0.0
    for step, chosen in zip(range(1, steps + 1), batches(len(latents), generator), strict=False):
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(0, 1000, (len(clean),), generator=generator)
        noisy = scheduler.add_noise(clean, noise, times)
        target = scheduler.get_velocity(clean, noise, times)
        texts = [
            "" if random.random() < UNCONDITIONAL else prompt(label)
            for label in labels[chosen].tolist()
        ]
        tokens = pipe.tokenizer(
            texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        states = text_encoder(tokens.input_ids).last_hidden_state
        loss = functional.mse_loss(unet(noisy, times, states).sample, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean.step(learned.parameters())
        average += (loss.item() - average) / min(step, 100)
        tell("unet", step, steps, started, average)
    mean.copy_to(learned.parameters())
    learned.eval().requires_grad_(False)


def report(pipe: StableDiffusionPipeline, each: int = 20) -> None:
    """Prints how many of the drawn digits a classifier of real ones recognises."""
    classifier = train_classifier()
    pipe.set_progress_bar_config(disable=True)
    for guidance in (1.0, 2.0, 3.0, 4.0, 6.0):
        right = 0
        for digit, word in enumerate(WORDS):
            drawn = draw(pipe, f"a handwritten {word}", range(each), guidance)
            right += sum(found == digit for found in recognise(classifier, drawn))
        print(f"guidance {guidance}: {right / (10 * each):.0%} recognised", flush=True)


if __name__ == "__main__":
    main()
