"""What a VAE is estimated to need, next to what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
diffusers = pytest.importorskip("diffusers", reason="comes with the test extra")

import tiny_models  # noqa: E402
from coresident.torch.activations import Activations  # noqa: E402
from coresident.torch.vae_memory import estimate, tiled  # noqa: E402


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_models.attentive_unet()


def wan() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=16, num_res_blocks=1)


def wan_of_patches() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def cogvideox() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 32, 64), layers_per_block=1, norm_num_groups=8
    )


def hunyuan_video() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8
    )


def ltx_video() -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=16,
        block_out_channels=(32, 64, 128, 128),
        decoder_block_out_channels=(32, 64, 128, 128),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )


def dc() -> Any:
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(16, 32, 64, 64),
        decoder_block_out_channels=(16, 32, 64, 64),
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
    )


def tiny() -> Any:
    return diffusers.AutoencoderTiny()


# What to make it, and the shapes of images or a video and of their latents.
VAES: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[int, ...]]] = {
    "as SD's": (
        lambda: tiny_models.autoencoder(16, 32, 64, 64, layers=2),
        (1, 3, 128, 128),
        (1, 4, 16, 16),
    ),
    "narrow": (lambda: tiny_models.autoencoder(8, 16), (1, 3, 64, 64), (1, 4, 32, 32)),
    "wide": (lambda: tiny_models.autoencoder(64, 64, 64), (2, 3, 32, 32), (2, 4, 8, 8)),
    "steep": (lambda: tiny_models.autoencoder(8, 32, 128), (1, 3, 64, 64), (1, 4, 16, 16)),
    "flat": (lambda: tiny_models.autoencoder(16), (1, 3, 32, 48), (1, 4, 32, 48)),
    "tiny": (tiny, (1, 3, 64, 64), (1, 4, 8, 8)),
    "DC": (dc, (1, 3, 64, 64), (1, 8, 8, 8)),
    "Wan": (wan, (1, 3, 9, 32, 32), (1, 16, 3, 4, 4)),
    "Wan 2.2": (wan_of_patches, (1, 3, 9, 64, 64), (1, 16, 3, 4, 4)),
    "CogVideoX": (cogvideox, (1, 3, 17, 32, 32), (1, 16, 5, 4, 4)),
    "HunyuanVideo": (hunyuan_video, (1, 3, 9, 32, 32), (1, 16, 3, 4, 4)),
    "LTX-Video": (ltx_video, (1, 3, 9, 64, 64), (1, 16, 2, 2, 2)),
}


def calls_of(vae: Any, part: str, shape: tuple[int, ...]) -> list[tuple[Any, Any, int]]:
    """Of each call of a part when a VAE encodes or decodes: estimates, without tiles and with them,
    and the peak that is measured."""
    child, calls = getattr(vae, part), []
    forward = child.forward

    def measured(*args: Any, **kwargs: Any) -> Any:
        # Before: they change what they are given.
        expected = estimate(vae, part, args, kwargs), tiled(vae, part, args, kwargs)
        with Activations() as counted:
            out = forward(*args, **kwargs)
        calls.append((*expected, counted.peak))
        return out

    child.forward = measured
    sample = torch.zeros(shape, dtype=next(vae.parameters()).dtype)
    with torch.inference_mode():
        (vae.encode if part == "encoder" else vae.decode)(sample)
    child.forward = forward
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VAES)
def test_an_estimate_is_at_least_what_is_measured_and_at_most_four_times_that(
    name: str, dtype: Any
) -> None:
    make, images, latents = VAES[name]
    vae = make().eval().to(dtype)
    for part, shape in (("encoder", images), ("decoder", latents)):
        for expected, _tiled, peak in calls_of(vae, part, shape):
            assert expected is not None
            assert peak <= expected <= 4 * peak, (part, expected / peak)


def test_the_estimate_for_sd_is_what_others_have_measured() -> None:
    with torch.device("meta"):
        vae = tiny_models.autoencoder(128, 256, 512, 512, layers=2).half()
        pixels = 1024 * 1024
        encoding = estimate(vae, "encoder", (torch.empty(1, 3, 1024, 1024).half(),), {})
        decoding = estimate(vae, "decoder", (), {"sample": torch.empty(1, 4, 128, 128).half()})
        batch = estimate(vae, "decoder", (torch.empty(4, 4, 128, 128),), {})
    assert encoding == pytest.approx(1100 * pixels * 2, rel=0.01)
    assert decoding == pytest.approx(2200 * pixels * 2, rel=0.01)
    # In float32, since what it is given is.
    assert batch == pytest.approx(2200 * pixels * 4 * 4, rel=0.01)


def test_there_is_no_estimate_for_anything_else(unet: Any) -> None:
    vae, latents = tiny_models.autoencoder(8, 8), torch.empty(1, 4, 8, 8)
    for module, part, args in (
        (unet, "unet", (latents,)),
        (unet, "decoder", (latents,)),
        (torch.nn.Identity(), "decoder", (latents,)),
        (vae, "quant_conv", (latents,)),
        (vae, "decoder", ()),
        (vae, "decoder", (torch.empty(3, 4),)),
    ):
        assert estimate(module, part, args, {}) is None
        assert tiled(module, part, args, {}) is None


@pytest.mark.parametrize(
    ("name", "images", "latents"),
    [
        ("as SD's", (1, 3, 80, 80), (1, 4, 10, 10)),
        # So large that what comes out is most of it.
        ("narrow", (1, 3, 128, 128), (1, 4, 64, 64)),
        ("tiny", (1, 3, 80, 80), (1, 4, 10, 10)),
        ("DC", (1, 3, 80, 80), (1, 8, 10, 10)),
        ("Wan", (1, 3, 1, 80, 80), (1, 16, 1, 10, 10)),
        ("HunyuanVideo", (1, 3, 5, 48, 48), (1, 16, 2, 6, 6)),
    ],
)
def test_with_tiles_it_is_less_and_as_much_as_is_measured_then(
    name: str, images: tuple[int, ...], latents: tuple[int, ...]
) -> None:
    vae = VAES[name][0]().eval()
    in_latents = 32 * latents[-1] // images[-1]
    for side in ("height", "width"):
        if hasattr(vae, f"tile_sample_min_{side}"):
            setattr(vae, f"tile_sample_min_{side}", 32)
            setattr(vae, f"tile_latent_min_{side}", in_latents)
            setattr(vae, f"tile_sample_stride_{side}", 24)
    if hasattr(vae, "tile_sample_min_size"):
        vae.tile_sample_min_size, vae.tile_latent_min_size = 32, in_latents
    for part, shape in (("encoder", images), ("decoder", latents)):
        vae.disable_tiling()
        [(whole, in_tiles, _peak)] = calls_of(vae, part, shape)
        vae.enable_tiling()
        assert tiled(vae, part, (torch.zeros(shape),), {}) is None
        with torch.inference_mode(), Activations() as counted:
            (vae.encode if part == "encoder" else vae.decode)(torch.zeros(shape))
        assert whole is not None
        assert in_tiles is not None
        assert counted.peak <= in_tiles <= 4 * counted.peak
        assert in_tiles < whole


def test_tiles_that_are_not_smaller_help_nothing() -> None:
    vae = tiny_models.autoencoder(8, 8)
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 16
    assert tiled(vae, "decoder", (torch.empty(1, 4, 16, 16),), {}) is None
    assert tiled(vae, "encoder", (torch.empty(1, 3, 32, 32),), {}) is None
    assert tiled(vae, "encoder", (torch.empty(1, 3, 33, 32),), {}) is not None
