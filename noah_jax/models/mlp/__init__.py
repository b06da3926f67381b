"""The MLP family: its record."""

import functools
from collections.abc import Callable
from typing import Any

from noah_jax.models.family import Architecture, Family
from noah_jax.models.mlp import pytorch
from noah_jax.models.mlp.modeling import (
    Affine,
    GluMlp,
    MixerBlock,
    MlpMixer,
    ResBlock,
    SpatialGatingBlock,
    layer_norm,
    mlp_layer,
)
from noah_jax.nn.layers import LayerNorm
from noah_jax.nn.remat import Layer

_HALF = (0.5, 0.5, 0.5)


def _architecture(
    block: Callable[..., Layer],
    ratios: dict[str, Any],
    depth: int,
    width: int,
    patch_size: int = 16,
    norm: Callable[..., LayerNorm | Affine] = layer_norm,
    **settings: Any,
) -> Architecture:
    return Architecture(
        build=functools.partial(
            MlpMixer,
            block=block,
            norm=norm,
            width=width,
            depth=depth,
            patch_size=patch_size,
            **ratios,
        ),
        head_num=4,
        key_ratio=1 / 2,
        crop_pct=0.9,
        **{"interpolation": "bicubic", **settings},
    )


def _mixer(depth: int, width: int, patch_size: int = 16, **settings: Any) -> Architecture:
    block = functools.partial(MixerBlock, mlp=mlp_layer)
    ratios = dict(channel_ratio=4.0, token_ratio=0.5)
    settings = {"mean": _HALF, "std": _HALF, **settings}
    return _architecture(block, ratios, depth, width, patch_size, **settings)


def _gmixer(depth: int, width: int) -> Architecture:
    block = functools.partial(MixerBlock, mlp=GluMlp)
    return _architecture(block, dict(channel_ratio=4.0, token_ratio=1.0), depth, width)


def _resmlp(depth: int, width: int, layer_scale: float, patch_size: int = 16) -> Architecture:
    block = functools.partial(ResBlock, layer_scale=layer_scale)
    return _architecture(block, dict(channel_ratio=4.0), depth, width, patch_size, norm=Affine)


def _gmlp(depth: int, width: int) -> Architecture:
    ratios = dict(channel_ratio=6.0)
    return _architecture(SpatialGatingBlock, ratios, depth, width, mean=_HALF, std=_HALF)


# MIIL's weights take pixels in 0..1 without normalising.
_MIIL: dict[str, Any] = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear")

FAMILY = Family(
    name="mlp",
    architectures={
        "mixer_s32_224": _mixer(8, 512, 32),
        "mixer_s16_224": _mixer(8, 512),
        "mixer_s16_075_224": _mixer(8, 384),
        "mixer_s16_050_224": _mixer(8, 256),
        "mixer_b32_224": _mixer(12, 768, 32),
        "mixer_b16_224": _mixer(12, 768),
        "mixer_b16_224_in21k": _mixer(12, 768, num_classes=21843),
        "mixer_b16_224_miil": _mixer(12, 768, **_MIIL),
        "mixer_b16_224_miil_in21k": _mixer(12, 768, num_classes=11221, **_MIIL),
        "mixer_l32_224": _mixer(24, 1024, 32),
        "mixer_l16_224": _mixer(24, 1024),
        "mixer_l16_224_in21k": _mixer(24, 1024, num_classes=21843),
        "gmixer_12_224": _gmixer(12, 384),
        "gmixer_24_224": _gmixer(24, 384),
        "resmlp_12_224": _resmlp(12, 384, 1e-4),
        "resmlp_12_distilled_224": _resmlp(12, 384, 1e-4),
        "resmlp_24_224": _resmlp(24, 384, 1e-5),
        "resmlp_24_distilled_224": _resmlp(24, 384, 1e-5),
        "resmlp_36_224": _resmlp(36, 384, 1e-6),
        "resmlp_36_distilled_224": _resmlp(36, 384, 1e-6),
        "resmlp_big_24_224": _resmlp(24, 768, 1e-6, 8),
        "resmlp_big_24_distilled_224": _resmlp(24, 768, 1e-6, 8),
        "resmlp_big_24_224_in22ft1k": _resmlp(24, 768, 1e-6, 8),
        "gmlp_ti16_050_224": _gmlp(30, 64),
        "gmlp_ti16_075_224": _gmlp(30, 96),
        "gmlp_ti16_224": _gmlp(30, 128),
        "gmlp_s16_224": _gmlp(30, 256),
        "gmlp_b16_224": _gmlp(30, 512),
    },
    table=pytorch.TABLE,
    layers=(r"stem/", r"blocks/(\d+)/"),
    renames=pytorch.RENAMES,
    positions=pytorch.POSITIONS,
    is_kind=pytorch.is_kind,
    infer_dimensions=pytorch.infer_dimensions,
)
