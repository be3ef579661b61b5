"""A heavier pipeline of random weights: what it draws means nothing, what it costs is real."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from coresident.demo import DIGITS

BYTES = 400_000_000
WIDTH = 512


@contextmanager
def random_weights() -> Iterator[Path]:
    """A pipeline of 400 MB that draws 256 pixels square, in a folder for the time of the block.

    Raises:
        OSError: if there is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="coresident-", ignore_cleanup_errors=True) as temporary:
        free = shutil.disk_usage(temporary).free
        if free < 1.1 * BYTES:
            raise OSError(
                errno.ENOSPC,
                f"the large preset needs {BYTES / 1e6:.0f} MB in {Path(temporary).parent}, "
                f"and {free / 1e6:.0f} MB are free: set TMPDIR to another folder",
            )
        folder = Path(temporary) / "large"
        _pipeline().save_pretrained(folder)
        yield folder


def _pipeline() -> StableDiffusionPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(DIGITS / "tokenizer")
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=DDIMScheduler.from_pretrained(DIGITS / "scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(128, 256, 512),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=32,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=256,
    )
