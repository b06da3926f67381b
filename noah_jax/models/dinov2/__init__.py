"""DINOv2: the family's record."""

import functools

from noah_jax.models.dinov2 import pytorch
from noah_jax.models.dinov2.modeling import DinoV2
from noah_jax.models.family import Architecture, Family


def _architecture(width: int, depth: int = 12, registers: int | None = None) -> Architecture:
    build = functools.partial(
        DinoV2, width=width, num_heads=width // 64, depth=depth, patch_size=14, mlp_ratio=4.0
    )
    return Architecture(
        build=functools.partial(build, registers=registers) if registers else build,
        # Nobody published NOAH on DINOv2: these are DeiT's.
        head_num=4,
        key_ratio=1 / 2,
        image_size=(518, 518),
        crop_pct=1.0,
        interpolation="bicubic",
        no_decay=("pos_embed", "cls_token", "reg_token"),
    )


FAMILY = Family(
    name="dinov2",
    architectures={
        "vit_small_patch14_dinov2": _architecture(384),
        "vit_base_patch14_dinov2": _architecture(768),
        "vit_large_patch14_dinov2": _architecture(1024, depth=24),
        "vit_small_patch14_reg4_dinov2": _architecture(384, registers=4),
        "vit_base_patch14_reg4_dinov2": _architecture(768, registers=4),
        "vit_large_patch14_reg4_dinov2": _architecture(1024, depth=24, registers=4),
    },
    table=pytorch.TABLE,
    layers=(r"cls_token|reg_token|pos_embed|patch_embed", r"blocks/(\d+)/"),
    renames=pytorch.RENAMES,
    regroup=pytorch.regroup,
    positions=pytorch.POSITIONS,
    is_kind=pytorch.is_kind,
    infer_dimensions=pytorch.infer_dimensions,
    likely_num_heads=pytorch.likely_num_heads,
)
