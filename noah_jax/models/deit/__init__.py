"""DeiT and ViT: the family's record."""

import dataclasses
import functools

from noah_jax.models.deit import pytorch
from noah_jax.models.deit.modeling import DeiT
from noah_jax.models.family import Architecture, Family


def _architecture(
    width: int, num_heads: int, image_size: int = 224, *, depth: int = 12
) -> Architecture:
    return Architecture(
        build=functools.partial(
            DeiT, width=width, num_heads=num_heads, depth=depth, patch_size=16, mlp_ratio=4.0
        ),
        head_num=4,
        key_ratio=1 / 2,
        image_size=(image_size, image_size),
        interpolation="bicubic",
        no_decay=("pos_embed", "cls_token"),
    )


def _vit_large(image_size: int, crop_pct: float) -> Architecture:
    """ViT-L/16 (Dosovitskiy et al., 2021), with the preprocessing of timm's weights."""
    return dataclasses.replace(
        _architecture(1024, 16, image_size, depth=24),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=crop_pct,
    )


FAMILY = Family(
    name="deit",
    architectures={
        "deit_tiny_050_patch16_224": _architecture(96, 3),
        "deit_tiny_075_patch16_224": _architecture(144, 3),
        "deit_tiny_patch16_224": _architecture(192, 3),
        "deit_small_patch16_224": _architecture(384, 6),
        "deit_base_patch16_224": _architecture(768, 12),
        "deit_base_patch16_384": _architecture(768, 12, image_size=384),
        "vit_large_patch16_224": _vit_large(224, crop_pct=0.9),
        "vit_large_patch16_384": _vit_large(384, crop_pct=1.0),
    },
    table=pytorch.TABLE,
    layers=(r"cls_token|pos_embed|patch_embed", r"blocks/(\d+)/"),
    positions=pytorch.POSITIONS,
    infer_dimensions=pytorch.infer_dimensions,
    infer_arguments=pytorch.infer_arguments,
    likely_num_heads=pytorch.likely_num_heads,
)
