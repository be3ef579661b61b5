"""A text-to-image pipeline of 1.4 million parameters, made of the classes of large ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from dataset import PROMPTS, SIZE, WORDS
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL.Image import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 8
WIDTH = 64
LATENT_CHANNELS = 4


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is the words of our prompts, each one token."""
    figures = [str(figure) for figure in range(10)]
    words = sorted({word for text in PROMPTS for word in text.split() if word != "{}"})
    letters = sorted(set("".join([*words, *WORDS])) | set(figures))
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in [*words, *WORDS]:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=TOKENS)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of CLIP's."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def vae() -> AutoencoderKL:
    """Images to latents of a quarter of their size, and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def unet() -> UNet2DConditionModel:
    """Finds the image in noise, as the text says."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def scheduler() -> DDIMScheduler:
    """Deterministic steps, from pure noise to no noise at all."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pipeline() -> StableDiffusionPipeline:
    """All of it, untrained."""
    words = tokenizer()
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(words),
        tokenizer=words,
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def draw(
    pipe: StableDiffusionPipeline, prompt: str, seeds: Iterable[int], guidance: float
) -> list[Image]:
    """One image per seed, in twenty steps."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        [prompt] * len(generators),
        height=SIZE,
        width=SIZE,
        num_inference_steps=20,
        guidance_scale=guidance,
        generator=generators,
    ).images
