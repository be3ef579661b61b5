"""Small models of diffusers and transformers, with random weights, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def models() -> dict[str, Any]:
    """Makes one of each, in about a second."""
    from diffusers import (
        AutoencoderKL,
        QwenImageTransformer2DModel,
        UNet2DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    return {
        "unet": UNet2DModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        ),
        "unet2": attentive_unet(),
        "vae": AutoencoderKL(
            sample_size=16,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "qwen": QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
        "clip": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=50,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=0,
                eos_token_id=1,
            )
        ),
        "t5": T5EncoderModel(
            T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2)
        ),
    }


def write(folder: Path) -> Path:
    """Writes all of them into folders of their own."""
    for name, model in models().items():
        model.save_pretrained(folder / name)
    return folder


def attentive_unet() -> Any:
    """A UNet with attention, of random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def autoencoder(*channels: int, layers: int = 1) -> Any:
    """A VAE as that of Stable Diffusion, with so many channels in its blocks."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    ).eval()


def flux() -> Any:
    """Flux's transformer, of some megabytes."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=4,
        axes_dims_rope=(16, 24, 24),
        joint_attention_dim=16,
        pooled_projection_dim=16,
    ).eval()


def flux_inputs() -> dict[str, Any]:
    """What :func:`flux` is called with."""
    return {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(3, 3),
        "return_dict": False,
    }
