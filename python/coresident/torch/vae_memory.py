"""What a VAE needs to encode and decode, before anybody has measured it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

# How many of its widest feature maps a VAE has room for; `estimate` says where it is from.
_MAPS = 8.6
# How much of its output is kept beside a tile: tiles, which overlap, their rows, and the whole.
_KEPT = 4
# In configurations of decoders that make fewer channels before they enlarge, not after.
_FEWER_FIRST = {"spatio_temporal_scaling", "temporal_expansions", "upsample_match_channel"}


def estimate(module: Any, part: str, args: Any, kwargs: Any) -> int | None:
    """Working memory of a VAE's encoder or decoder, as long as nobody has measured it.

    Room for 8.6 of the widest feature maps: those with the resolution of the pixels, or deeper ones
    that have so many more channels. It is what InvokeAI has found on GPUs, with what the allocator
    and cuDNN take: 2200 elements per pixel to decode with the VAEs of SD and SDXL, which have 256
    channels there, and 1100 to encode, where they have 128. ComfyUI takes 2178 and 1767. What is
    live at once (:class:`~coresident.torch.activations.Activations`) are 3 to 8 such maps. Where
    convolutions keep and pad the frames of a video, one frame more is counted, and then it is 3 to
    8 there too; compare InvokeAI's 2900 for one frame of Qwen's and Wan's VAEs, which is 3300 here,
    and ComfyUI's 7000 for four, here 8300. For all VAEs in the tests it is at least what is
    measured, and at most four times that. For inference, with attention that keeps no score matrix.

    Args:
        module: A VAE of diffusers, with ``encoder``, ``decoder`` and the channels of their blocks
            in its configuration.
        part: ``"encoder"`` or ``"decoder"``.
        args: What that child is called with.
        kwargs: The same, by name.

    Returns:
        Bytes beside the weights; ``None`` for everything else. Does not wait.
    """
    call = _call(module, part, args, kwargs)
    return None if call is None else call.peak(call.height, call.width)


def tiled(module: Any, part: str, args: Any, kwargs: Any) -> int | None:
    """The :func:`estimate` of the same call, were the VAE's tiling enabled.

    For one tile, and the output of all tiles for those frames that are in the call.

    Args:
        module: As for :func:`estimate`, like the others.
        part: ``"encoder"`` or ``"decoder"``.
        args: What that child is called with.
        kwargs: The same, by name.

    Returns:
        Bytes beside the weights; ``None`` if there is no estimate, if the VAE has no tiling or has
        it enabled, or if a tile is not smaller than the whole. Does not wait.
    """
    call = _call(module, part, args, kwargs)
    if call is None or getattr(module, "use_tiling", True):
        return None
    height, width = (_tile(module, part, side, call.scale) for side in ("height", "width"))
    if not height or not width or (height >= call.height and width >= call.width):
        return None
    kept = math.ceil(_KEPT * call.output * call.height * call.width)
    return call.peak(min(height, call.height), min(width, call.width)) + kept


class _Call(NamedTuple):
    """A call of a VAE's encoder or decoder."""

    # Of the input; and how many pixels high and wide one of its elements is.
    height: int
    width: int
    scale: float
    # Bytes for each of height times width: of the widest feature map, and of what comes out.
    widest: float
    output: float

    def peak(self, height: int, width: int) -> int:
        return math.ceil(_MAPS * self.widest * height * width)


def _call(vae: Any, part: str, args: Any, kwargs: Any) -> _Call | None:
    """What is known of a call; ``None`` if it is none of an encoder or decoder."""
    config, child = getattr(vae, "config", None), getattr(vae, part, None)
    x = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
    if part not in ("encoder", "decoder") or child is None or x is None or x.dim() not in (4, 5):
        return None
    # What wavelets do to the resolution, a configuration does not tell.
    if not isinstance(config, Mapping) or "patch_type" in config:
        return None
    channels = _channels(config, part)
    if not channels:
        return None
    patch = config["patch_size"] if isinstance(config.get("patch_size"), int) else 1
    scale = _number(vae, "scale_factor_spatial", "spatial_compression_ratio")
    scale = scale or 2 ** (len(channels) - 1)
    halvings = math.log2(max(1, scale / patch))
    frames = x.shape[2] if x.dim() == 5 else 1
    if part == "decoder":
        grid, output = scale / patch, 3.0 * scale**2
        frames *= _frames(vae, kwargs, frames) if x.dim() == 5 else 1
        shuffles = config.get("upsample_block_type") == "pixel_shuffle"
        if not shuffles and not _FEWER_FIRST.intersection(config):
            channels = [max(pair) for pair in zip(channels, [*channels[1:], 0], strict=True)]
        if any(hasattr(module, "conv_y") for module in child.modules()):
            # Norms that enlarge the latents to the size of each map.
            channels = [number + x.shape[1] for number in channels]
    else:
        # Means and variances, and what is computed of those.
        output = 3 * (_number(vae, "latent_channels", "z_dim") or 0) / scale**2
        # It makes the patches itself, or is given them.
        grid, scale = 1 / (_number(child, "patch_size") or 1), 1
    widest = max(number / 4 ** min(level, halvings) for level, number in enumerate(channels))
    parameter = next(child.parameters(), x)
    frame = x.shape[0] * max(x.element_size(), parameter.element_size())
    # One more is what convolutions of video keep and pad.
    widest *= frame * (frames + (x.dim() == 5)) * grid**2
    return _Call(x.shape[-2], x.shape[-1], scale, widest, output * frame * frames)


def _channels(config: Mapping[str, Any], part: str) -> list[int]:
    """The channels of a part's blocks, from the pixels on; none if they are not known."""
    direction = "down" if part == "encoder" else "up"
    for name in (f"{part}_block_out_channels", f"{direction}_block_out_channels"):
        if found := config.get(name):
            return list(found)
    if found := config.get("block_out_channels"):
        return list(found)
    base = config.get(f"{part}_base_dim") or config.get("base_dim") or config.get("channels")
    return [base * factor for factor in config.get("dim_mult") or config.get("ch_mult") or ()]


def _number(owner: Any, *names: str) -> int | None:
    """The first of these that there is, in a configuration or as an attribute."""
    config = getattr(owner, "config", {})
    found = (config.get(name) or getattr(owner, name, None) for name in names)
    return next((number for number in found if isinstance(number, int)), None)


def _frames(vae: Any, kwargs: Mapping[str, Any], latents: int) -> int:
    """How many frames a decoder makes of each frame of latents."""
    caches = [kwargs[name] for name in ("feat_cache", "conv_cache") if name in kwargs]
    if latents == 1 and caches and all(kept is None for kept in caches[0] or ()):
        # The first one is not made more.
        return 1
    if ratio := _number(vae, "scale_factor_temporal", "temporal_compression_ratio"):
        return ratio
    if halved := vae.config.get("temperal_downsample"):
        return int(2 ** sum(halved))
    of_pixels = _number(vae, "num_sample_frames_batch_size") or 1
    return of_pixels // (_number(vae, "num_latent_frames_batch_size") or 1)


def _tile(vae: Any, part: str, side: str, scale: float) -> int | None:
    """The height or width of a tile, of the input of a part."""
    kinds = [("latent", 1.0)] if part == "decoder" else []
    for kind, divisor in (*kinds, ("sample", scale)):
        for name in (side, "size"):
            size = getattr(vae, f"tile_{kind}_min_{name}", None)
            if size:
                return int((size[0] if isinstance(size, (list, tuple)) else size) // divisor)
    return None
